"""Batched sampling.  A module of its own: evaluations, which decode greedily, do not depend on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from soul_cli.evaluate.generate import greedy
from soul_cli.objective.losses import wide
from soul_cli.optim.curvature import sample_labels, uniforms


def sample(
    lm: Any,
    prompts: Sequence[tuple[int, ...]],
    *,
    keys: Sequence[int],
    seed: int,
    temperature: float,
    **options: Any,
) -> list[list[int]]:
    """Return a sampled continuation of each prompt, without the token that ends it.

    keys: a name of each prompt.  A continuation is a function of prompt, key and seed alone, whatever it is batched
    with, but for rounding.  options: those of `greedy`.
    """

    def drawn(logits: Tensor, rows: Tensor, count: int) -> Tensor:
        names = torch.tensor(keys)[rows.cpu()]
        return sample_labels(wide(logits) / temperature, uniforms(seed, 0, names, torch.full_like(names, count)))

    return greedy(lm, prompts, choose=drawn, **options)
