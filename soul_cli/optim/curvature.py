"""The Gauss-Newton-Bartlett estimate of the diagonal curvature (Sophia, section 2.3, Algorithm 2).

With g the gradient of the sum, over the tokens of some rows, of the CE to labels sampled from the model, the
expectation of g * g over the labels is the sum of the tokens' Gauss-Newton diagonals: labels of different tokens are
independent, and a token's gradient has the mean 0.  Where r of n rows with T tokens are taken, each with the same
probability, n / (r T) g * g is therefore, in expectation, the diagonal of the mean CE of the n rows.  With all of them
it is Sophia's B * ghat * ghat, ghat = g / B and B = T.

Tokens and gradients are those of all micro-batches and processes together: they are summed before they are squared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soul_cli.objective.losses import token_logps

HEIGHTS = 1 << 22  # values of distribution functions that stand in float64 at a time


def scramble(*keys: Any) -> NDArray[np.uint64]:
    """Return a hash of integers, or element-wise of arrays of them.

    splitmix64's mixing (Steele et al. 2014) after each key.  Equal keys give equal values on every machine; no key
    needs the others of its array.
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


def systematic(n: int, most: int, start: int) -> list[int]:
    """Return `most` of 0..n-1, or all where there are fewer: every (n / most)-th (Madow and Madow 1944).

    start: an integer at random.  Each number is taken with the same probability, and of each run of consecutive ones
    as many as their share, but for one.
    """
    most = min(most, n)
    return [(start % n + j * n) // most for j in range(most)]


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
