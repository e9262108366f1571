"""Losses as pure functions of tensors.  Everything is in nats and is minimised."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(values: Tensor) -> Tensor:
    """In float32, or in float64 where they are that: what sums and losses are computed in."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """log p(target) for each token.  logits (T, V), targets (T,) -> (T,), float32 or wider."""
    return -F.cross_entropy(wide(logits), targets, reduction="none")


def cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """Return -Σ target log softmax(logits) at each token.  target, a distribution, and logits: (t, V) -> (t,)."""
    return -(target * logits.log_softmax(-1)).sum(-1)


def sum_by(values: Tensor, owner: Tensor, groups: int) -> Tensor:
    """Sum `values` (T,) over the tokens of each answer, owner (T,) in 0..groups-1 -> (groups,)."""
    return torch.zeros(groups, dtype=values.dtype, device=values.device).index_add(0, owner, values)


def preference(gain: Tensor, *, beta: float) -> Tensor:
    """Return (2/beta) softplus(-beta gain), (B,): the lower, the more the preferred answer has gained.

    gain: (B,) nats.  The factor 2/beta, by which beta -> 0 leaves -gain and a constant, is NPO's.
    """
    return -2.0 / beta * F.logsigmoid(beta * gain)


def npo(policy: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """Negative preference optimisation, Zhang et al. 2024 (arXiv:2404.05868, eq. 3).

    policy, reference: (B,) answer log-probabilities, summed over the tokens in the paper; no gradient
    enters the reference.  Returns (B,).  Equal to (2/beta) softplus(beta (policy - reference)).
    """
    return preference(reference.detach() - policy, beta=beta)


def distance(states: Tensor, target: Tensor) -> Tensor:
    """Return the mean over the width of the squared difference, (T,), float32 or wider.  states (T, D)."""
    return (wide(states) - wide(target)).square().mean(-1)
