"""The Gauss-Newton-Bartlett estimate of the diagonal curvature (Sophia, section 2.3, Algorithm 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from soul_cli.losses import token_logps


class GaussNewtonBartlett:
    """h = B * g * g, where g is the gradient of the mean CE to labels sampled from the model, B tokens.

    E[h] over the labels is the diagonal of the Gauss-Newton matrix of the mean CE.  It reuses the logits of a
    forward already done: one extra backward, no extra forward.  Labels come from a generator of their own,
    seeded by (seed, step), so that a resumed run samples what an uninterrupted one would.
    """

    def __init__(self, params: list[Tensor], seed: int, step: int):
        self.params = params
        self.tokens = 0
        self.sums: list[Tensor] = [torch.zeros_like(p, dtype=torch.float32) for p in params]
        self.generator = torch.Generator(device=params[0].device)
        self.generator.manual_seed((seed * 1_000_003 + step) % (1 << 63))

    def add(self, logits: Tensor, keep: Tensor) -> None:
        """Add one micro-batch: logits (T, V) with their graph, keep (T,) bool: tokens that take part."""
        if not bool(keep.any()):
            return
        chosen = logits[keep]
        labels = torch.multinomial(chosen.detach().float().softmax(-1), 1, generator=self.generator).squeeze(1)
        loss = -token_logps(chosen, labels).sum()
        grads = torch.autograd.grad(loss, self.params, retain_graph=True, allow_unused=True)
        for total, grad in zip(self.sums, grads, strict=True):
            if grad is not None:
                total.add_(grad)
        self.tokens += len(labels)

    def estimates(self) -> dict[Tensor, Tensor]:
        """Parameter -> estimate of the same shape.  (sum / B)^2 * B = sum^2 / B."""
        if not self.tokens:
            raise ValueError("no token took part in the curvature estimate")
        return {p: total.square_().div_(self.tokens) for p, total in zip(self.params, self.sums, strict=True)}
