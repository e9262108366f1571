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


def sum_by(values: Tensor, owner: Tensor, groups: int) -> Tensor:
    """Sum `values` (T,) over the tokens of each answer, owner (T,) in 0..groups-1 -> (groups,)."""
    return torch.zeros(groups, dtype=values.dtype, device=values.device).index_add(0, owner, values)


def npo(policy: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """Negative preference optimisation, Zhang et al. 2024 (arXiv:2404.05868, eq. 3).

    policy, reference: (B,) answer log-probabilities, summed over the tokens in the paper; no gradient
    enters the reference.  Returns (B,).  Equal to (2/beta) softplus(beta (policy - reference)).
    """
    return -2.0 / beta * F.logsigmoid(-beta * (policy - reference.detach()))
