"""Unlearning objectives: min L_forget + retain_weight * L_retain (SOUL, section 3).

A method is one dataclass: its fields are the config schema, its body the loss of the forget rows.
The retain term is the same for all: cross-entropy of the retain answers.  All normalisers are counts over the
whole step, so that gradient accumulation does not change the objective.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from torch import Tensor

from soul_cli.core.types import UserError
from soul_cli.objective.losses import npo


@dataclass
class Answers:
    """What a loss may look at: log-probabilities of the answers of one micro-batch, one value a row (B,)."""

    logps: Tensor  # summed over the answer tokens, EOS included, nats
    tokens: Tensor  # number of answer tokens
    reference: Tensor | None  # the same sum under the model before unlearning, or None


@dataclass(frozen=True)
class Counts:
    """Size of the whole optimizer step, over all its micro-batches (and processes)."""

    rows: int
    tokens: int


def cross_entropy(answers: Answers, counts: Counts) -> Tensor:
    """Mean negative log-likelihood of the answer tokens of the step (this micro-batch's share)."""
    return -answers.logps.sum() / counts.tokens


@dataclass
class Method:
    """Base of all methods.  The class variables say what the loop has to provide."""

    name: str

    trains: ClassVar[bool] = True  # False: the model stays as it is
    one_shot: ClassVar[bool] = False  # True: a step in closed form (soul_cli/train/influence.py) instead of the loop
    uses_forget: ClassVar[bool] = True
    uses_retain: ClassVar[bool] = True
    learns_refusal: ClassVar[bool] = False  # forget questions are answered with refusals
    uses_reference: ClassVar[bool] = False
    prompts: ClassVar[bool] = False  # evaluation gets the task's system prompt

    @property
    def optimizes(self) -> bool:
        """Whether the optimizer has any effect."""
        return self.trains and not self.one_shot

    @property
    def weight(self) -> float:
        """Weight of the retain term; 1 where a method has no such knob."""
        return float(getattr(self, "retain_weight", 1.0))

    @property
    def needs_retain(self) -> bool:
        """Whether retain rows are run: a term of weight 0 costs nothing."""
        return self.uses_retain and self.weight > 0

    def forget_loss(self, answers: Answers, counts: Counts) -> Tensor:
        raise NotImplementedError(f"{self.name} has no forget term")

    def retain_loss(self, answers: Answers, counts: Counts) -> Tensor:
        return cross_entropy(answers, counts)


@dataclass
class NoUnlearning(Method):
    """The original model, evaluated as it is."""

    trains: ClassVar[bool] = False


@dataclass
class InputBased(Method):
    """No training: a system prompt lists the authors not to answer about (SOUL, Table 1)."""

    trains: ClassVar[bool] = False
    prompts: ClassVar[bool] = True


@dataclass
class Finetune(Method):
    """Cross-entropy on the retain rows alone.  Also makes the target and the retain-trained model."""

    uses_forget: ClassVar[bool] = False


@dataclass
class GA(Method):
    """Gradient ascent: -CE on the forget rows, nothing else."""

    uses_retain: ClassVar[bool] = False

    def forget_loss(self, answers: Answers, counts: Counts) -> Tensor:
        return -cross_entropy(answers, counts)


@dataclass
class WithRetain(Method):
    """A method with a retain term of adjustable weight."""

    retain_weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.retain_weight < float("inf"):
            raise UserError(f"method.retain_weight={self.retain_weight}: must be 0 or more")


@dataclass
class GradDiff(WithRetain):
    """Gradient difference: -CE on the forget rows + retain_weight * CE on the retain rows."""

    def forget_loss(self, answers: Answers, counts: Counts) -> Tensor:
        return -cross_entropy(answers, counts)


@dataclass
class PO(WithRetain):
    """Preference optimisation as in TOFU and SOUL: CE of a refusal to the forget question + retain term."""

    learns_refusal: ClassVar[bool] = True

    def forget_loss(self, answers: Answers, counts: Counts) -> Tensor:
        return cross_entropy(answers, counts)


class Normalize(Enum):
    sum = "sum"
    mean = "mean"


@dataclass
class NPO(WithRetain):
    """Zhang et al. 2024 on the forget rows + retain term.

    normalize=sum is the NPO paper; mean (log-probability per token) is what SOUL's released code does.
    """

    beta: float
    normalize: Normalize

    uses_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < float("inf"):
            raise UserError(f"method.beta={self.beta}: must be above 0")

    def forget_loss(self, answers: Answers, counts: Counts) -> Tensor:
        assert answers.reference is not None, "NPO needs reference log-probabilities"
        policy, reference = answers.logps, answers.reference
        if self.normalize is Normalize.mean:
            policy, reference = policy / answers.tokens, reference / answers.tokens
        return npo(policy, reference, beta=self.beta).sum() / counts.rows


class Solver(Enum):
    diagonal = "diagonal"
    cg = "cg"


@dataclass
class IU(Method):
    """Influence unlearning: one step along the inverse curvature, no optimizer.  See soul_cli/train/influence.py.

    damping counts in means of the curvature's diagonal, scales in steps of the influence function, tolerance in nats.
    The line search tries first_scale, first_scale * scale_ratio, ... up to last_scale.
    """

    solver: Solver
    damping: float
    cg_steps: int
    hessian_every: int
    validation_share: float
    first_scale: float
    last_scale: float
    scale_ratio: float
    tolerance: float

    one_shot: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.damping < float("inf"):
            raise UserError(f"method.damping={self.damping}: must be above 0")
        for key in ("cg_steps", "hessian_every"):
            if getattr(self, key) < 1:
                raise UserError(f"method.{key}={getattr(self, key)}: must be 1 or more")
        if not 0 < self.validation_share < 1:
            raise UserError(f"method.validation_share={self.validation_share}: must be between 0 and 1")
        if not 0 < self.first_scale <= self.last_scale < float("inf"):
            raise UserError(
                f"method.first_scale={self.first_scale}, method.last_scale={self.last_scale}: "
                "must be above 0, and the first not above the last"
            )
        if not 1 < self.scale_ratio < float("inf"):
            raise UserError(f"method.scale_ratio={self.scale_ratio}: must be above 1")
        if not 0 <= self.tolerance < float("inf"):
            raise UserError(f"method.tolerance={self.tolerance}: must be 0 or more")

    @property
    def scales(self) -> list[float]:
        """The grid of the line search, rising."""
        steps = math.log(self.last_scale / self.first_scale) / math.log(self.scale_ratio)
        return [self.first_scale * self.scale_ratio**i for i in range(math.floor(steps + 1e-9) + 1)]


METHODS: dict[str, type[Method]] = {
    "none": NoUnlearning,
    "input_based": InputBased,
    "finetune": Finetune,
    "ga": GA,
    "graddiff": GradDiff,
    "po": PO,
    "npo": NPO,
    "iu": IU,
}
