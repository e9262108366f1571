"""Forget terms on hidden states: the forward ends behind a block."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from soul_cli.objective.forget.base import Objective
from soul_cli.objective.losses import distance, wide
from soul_cli.objective.term import Answers, Counts, Needs, Reference


@lru_cache(maxsize=4)
def direction(width: int, seed: int) -> Tensor:
    """Return the direction of a seed, (width,): uniform numbers in [0, 1), normalised to length 1."""
    drawn = torch.rand(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn / drawn.norm()


@dataclass
class RMU(Objective):
    """Representation misdirection: states behind a block towards coefficient times a random direction.

    Mean over the width of the squared difference, mean over the answer tokens.  Deviations: states where answer tokens
    are predicted (the paper's code: all positions; open-unlearning: at the answer tokens themselves, its sums divided
    by every answer's length); a mean over the width as in both codes, where the paper has the squared norm; every
    parameter up to the block is trained, where the paper trains one matrix of three blocks.  Its retain term is
    retain=states.
    """

    layer: int | None  # counted from 0; null: as deep as DEPTH says
    coefficient: float
    seed: int

    paper = "Li et al. 2024, arXiv:2403.03218"
    alone = "all texts' states are steered alike, so that the model loses what it knows"

    def __post_init__(self) -> None:
        self.check("coefficient")

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs(layer=self.layer, head=False)

    def length(self, answers: Answers) -> float:
        """Return how far along the direction states are steered."""
        return self.coefficient

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        assert answers.states is not None
        states = wide(answers.states)
        target = self.length(answers) * direction(states.shape[-1], self.seed).to(states)
        return step.mean(answers, distance(states, target))


@dataclass
class AdaptiveRMU(RMU):
    """RMU with the coefficient in means of the states' own norm, before unlearning.

    That mean is over the answer tokens of all rows to forget.  The authors' code takes it over all positions, padding
    included, of the first batch; the paper has each token's own norm.
    """

    paper = "Dang et al. 2024, arXiv:2408.06223"

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs(layer=self.layer, head=False, reference=Reference.norm)

    def length(self, answers: Answers) -> float:
        assert answers.reference_norm is not None
        return self.coefficient * answers.reference_norm
