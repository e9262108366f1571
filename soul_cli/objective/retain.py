"""Retain terms: what is minimised on the rows to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from soul_cli.core.types import UserError
from soul_cli.objective.term import Answers, Counts, Logits, Needs, Reference, Term


@dataclass
class NoRetain:
    """No retain rows."""

    name: str


@dataclass
class Retain(Term):
    """Base of the retain terms.  weight: its factor beside the forget term; 0 leaves the retain rows out."""

    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise UserError(f"retain.weight={self.weight}: must be 0 or more")


@dataclass
class CE(Retain):
    """Cross-entropy of the answers (SOUL, section 3)."""

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        return -step.mean(answers)


@dataclass
class KL(Retain):
    """KL(p' ‖ p) of the next token's distribution, p' before unlearning, p now; mean over the answer tokens.

    TOFU (arXiv:2401.06121, section 3.2) takes the mean over all positions, its code prompt and padding included; here
    answer tokens count alone, as in every other term.
    """

    needs: ClassVar[Needs] = Needs(reference=Reference.logits)

    def token(self, at: Logits) -> Tensor:
        assert at.reference is not None
        before, now = at.reference.log_softmax(-1), at.policy.log_softmax(-1)
        return (before.exp() * (before - now)).sum(-1)

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        return step.mean(answers)


RETAINS: dict[str, type] = {"none": NoRetain, "ce": CE, "kl": KL}
