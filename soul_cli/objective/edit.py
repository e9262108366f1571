"""Methods that change the weights without a loss to train on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from soul_cli.core.types import UserError


@dataclass
class Edit:
    """Base of the edits: weights in closed form, no optimizer."""

    name: str


class Solver(Enum):
    diagonal = "diagonal"
    cg = "cg"


@dataclass
class IU(Edit):
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
