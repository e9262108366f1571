"""What all forget terms have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from soul_cli.objective.term import Answers, Counts, Term


@dataclass
class Objective(Term):
    """A method that the loop trains: a forget term, beside the retain term of `retain=`."""

    group = "method"
    forgets: ClassVar[bool] = True  # False: it has no forget term
    alone: ClassVar[str] = ""  # what becomes of the model without a retain term, where that is known to be bad


@dataclass
class Finetune(Objective):
    """No forget term: fine-tuning on the retain rows.  Also makes the target and the retain-trained model."""

    forgets = False


@dataclass
class Mean(Objective):
    """Base of the terms that are a mean over the answer tokens of what `token` says."""

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        return step.mean(answers)
