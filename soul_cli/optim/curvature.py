"""The Gauss-Newton-Bartlett estimate of the diagonal curvature (Sophia, section 2.3, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soul_cli.core import cost
from soul_cli.core.distributed import local, sharded, total, total_each
from soul_cli.objective.losses import token_logps, wide

HEIGHTS = 1 << 22  # values of distribution functions that stand in float64 at a time


def scramble(*keys: Any) -> NDArray[np.uint64]:
    """Return a hash of integers, or element-wise of arrays of them.

    splitmix64's mixing (Steele et al. 2014) after each key.  Equal keys give equal values on every machine; no key needs the others of its array.
    """
    mixed = np.zeros(1, np.uint64)
    for key in keys:
        mixed = mixed + np.asarray(key, np.int64).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


def uniforms(seed: int, step: int, rows: Tensor, positions: Tensor) -> Tensor:
    """One number in [0, 1) a token, float64 (T,): a function of seed, step, row key and position in the answer alone.

    So the labels drawn from them depend neither on how rows are dealt to micro-batches or processes nor on what was
    drawn before.  rows, positions: (T,) int64 on the CPU.
    """
    return torch.from_numpy((scramble(seed, step, rows.numpy(), positions.numpy()) >> np.uint64(11)) * 2.0**-53)


def answer_uniforms(seed: int, step: int, keys: Sequence[int], owner: Tensor) -> Tensor:
    """`uniforms` of a batch (T,).  keys: a name of each of its answers; owner (T,), on the CPU: whose a token is."""
    sizes = torch.bincount(owner, minlength=len(keys))
    positions = torch.arange(len(owner)) - (sizes.cumsum(0) - sizes)[owner]
    return uniforms(seed, step, torch.tensor(keys)[owner], positions)


def sample_labels(logits: Tensor, u: Tensor) -> Tensor:
    """Labels ~ softmax(logits) by inverting the distribution function at u.  logits (T, V), u (T,) -> (T,) int64."""
    precise = torch.float32 if logits.device.type == "mps" else torch.float64  # Apple's GPUs know no float64
    labels = []
    n = max(1, HEIGHTS // logits.shape[1])
    for some, at in zip(logits.detach().split(n), u.to(logits.device, precise).split(n), strict=True):
        heights = some.softmax(-1, dtype=precise).cumsum(-1)
        # the last height is 1 but for rounding
        labels.append(torch.searchsorted(heights, at[:, None] * heights[:, -1:], right=True).squeeze(1))
    return torch.cat(labels).clamp(max=logits.shape[1] - 1)


def drawn_logps(logits: Tensor, u: Tensor) -> Tensor:
    """Return the log-probabilities of labels drawn from the model itself: (T,), nats.

    logits (T, V); u (T,): see `uniforms`.
    """
    return token_logps(logits, sample_labels(logits, u))


class GaussNewtonBartlett:
    """h = B * g * g, where g is the gradient of the mean CE to labels sampled from the model, B tokens.

    E[h] over the labels is the diagonal of the Gauss-Newton matrix of the mean CE.  Tokens and gradients are those of
    all micro-batches and all processes together: they are summed before they are squared.

    Whole parameters: it reuses a forward already done: one extra backward and no extra forward.
    Sharded ones (FSDP2): gradients are reduced by hooks of backward(), which torch.autograd.grad does not run, and a
    forward serves one backward.  There the log-probabilities must come from a forward of their own, before the step's,
    and all ranks must take part in each `add`, with or without tokens; gradients already in .grad are put back.
    """

    def __init__(self, params: Sequence[Tensor], masters: Sequence[Tensor] | None = None):
        """masters: what the estimates are for, one a parameter; sums lie where they lie.  None: the parameters."""
        self.params, self.masters = params, params if masters is None else masters
        self.sharded = sharded(params[0])
        self.tokens = torch.zeros((), dtype=torch.int64, device=params[0].device)
        self.sums = [torch.zeros_like(wide(local(m.detach()))) for m in self.masters]

    def add(self, drawn: Tensor) -> None:
        """Add one micro-batch: log-probabilities of its drawn labels, (K,) with their graph (`drawn_logps`)."""
        loss = -drawn.sum()
        for part, grad in zip(self.sums, self._gradients(loss), strict=True):
            if grad is not None:
                part.add_(local(grad).to(part.device))
        self.tokens += len(drawn)

    def _gradients(self, loss: Tensor) -> list[Tensor | None]:
        cost.count(backward_passes=1)
        if not self.sharded:
            return list(torch.autograd.grad(loss, self.params, retain_graph=True, allow_unused=True))
        before = [p.grad for p in self.params]
        for p in self.params:
            p.grad = None
        loss.backward()
        grads = [p.grad for p in self.params]
        for p, grad in zip(self.params, before, strict=True):
            p.grad = grad
        return grads

    def estimates(self) -> dict[Tensor, Tensor]:
        """Master -> estimate of the same shape (of its shard).  (sum / B)^2 * B = sum^2 / B.  Call it once."""
        tokens = int(total(self.tokens))
        if not tokens:
            raise ValueError("no token took part in the curvature estimate")
        if not self.sharded:
            total_each(self.sums)
        return {p: part.square_().div_(tokens) for p, part in zip(self.masters, self.sums, strict=True)}
