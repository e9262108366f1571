"""Forget terms: what is minimised on the rows to forget."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from torch import Tensor

from soul_cli.core.types import UserError
from soul_cli.objective.losses import npo
from soul_cli.objective.term import Answers, Counts, Needs, Reference, Term


@dataclass
class Objective(Term):
    """A method that the loop trains: a forget term, beside the retain term of `retain=`."""

    forgets: ClassVar[bool] = True  # False: it has no forget term


@dataclass
class Finetune(Objective):
    """No forget term: fine-tuning on the retain rows.  Also makes the target and the retain-trained model."""

    forgets: ClassVar[bool] = False


@dataclass
class GA(Objective):
    """Gradient ascent: minus the cross-entropy of the answers to forget.

    With retain=ce it is gradient difference, method=graddiff (SOUL, section 3).
    """

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        return step.mean(answers)


@dataclass
class PO(Objective):
    """Preference optimisation as in TOFU and SOUL: cross-entropy of a refusal to each question to forget."""

    needs: ClassVar[Needs] = Needs(answers=("refusal",))

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        return -step.mean(answers)


class Normalize(Enum):
    """How NPO weighs an answer's log-probability."""

    sum = "sum"
    mean = "mean"


@dataclass
class NPO(Objective):
    """Negative preference optimisation (Zhang et al. 2024, arXiv:2404.05868, eq. 3), mean over the answers.

    normalize: sum is the NPO paper; mean takes the log-probability per token, as SOUL's released code does, which has
    one log-sigmoid a micro-batch where this has one an answer: the same with one row a micro-batch.
    """

    beta: float
    normalize: Normalize

    needs: ClassVar[Needs] = Needs(reference=Reference.values)

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise UserError(f"method.beta={self.beta}: must be above 0")

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        policy, reference = answers.sums(), answers.reference_sums()
        if self.normalize is Normalize.mean:
            policy, reference = policy / answers.tokens, reference / answers.tokens
        return npo(policy, reference, beta=self.beta).sum() / step.rows
