"""Methods that change the weights without a loss to train on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from torch import Tensor

from soul_cli.core.choice import Choice
from soul_cli.core.types import UserError
from soul_cli.objective.losses import wide


@dataclass
class Edit(Choice):
    """Base of the edits."""

    group = "method"
    trains: ClassVar[bool] = False  # whether an optimizer takes part


class Solver(Enum):
    diagonal = "diagonal"
    cg = "cg"


@dataclass
class IU(Edit):
    """Influence unlearning: one step along the inverse curvature, no optimizer.

    See soul_cli/train/influence.py.  damping counts in means of the curvature's diagonal, scales in steps of the
    influence function, tolerance in nats.  The line search tries first_scale, first_scale * scale_ratio, ... up to
    last_scale.
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

    paper = "Izzo et al. 2021, arXiv:2002.10077; SOUL, section 4"

    def __post_init__(self) -> None:
        self.check("damping")
        self.check("cg_steps", "hessian_every", least=1)
        self.check("tolerance", least=0)
        if not 0 < self.validation_share < 1:
            raise UserError(f"method.validation_share={self.validation_share}: must be between 0 and 1")
        if not 0 < self.first_scale <= self.last_scale < float("inf"):
            raise UserError(
                f"method.first_scale={self.first_scale}, method.last_scale={self.last_scale}: "
                "must be above 0, and the first not above the last"
            )
        if not 1 < self.scale_ratio < float("inf"):
            raise UserError(f"method.scale_ratio={self.scale_ratio}: must be above 1")

    @property
    def scales(self) -> list[float]:
        """The grid of the line search, rising."""
        steps = math.log(self.last_scale / self.first_scale) / math.log(self.scale_ratio)
        return [self.first_scale * self.scale_ratio**i for i in range(math.floor(steps + 1e-9) + 1)]


@dataclass
class TaskVector(Edit):
    """Task arithmetic: away from what fine-tuning on the rows to forget would do.

    theta - alpha (theta_forget - theta), where theta_forget is the model after train.* and optim.* of cross-entropy on
    the rows to forget.  In float32 or wider, where the released code (MUSE) computes in bfloat16.
    """

    alpha: float

    paper = "Ilharco et al. 2023, arXiv:2212.04089; MUSE, Shi et al. 2024, arXiv:2407.06460"
    trains = True

    def __post_init__(self) -> None:
        self.check("alpha")

    def edited(self, weights: Tensor, tuned: Tensor) -> Tensor:
        """Return what becomes of weights, given what fine-tuning makes of them; float32 or wider."""
        there = wide(weights)
        return there - self.alpha * (wide(tuned) - there)
