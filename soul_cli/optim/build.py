"""The config schema of each optimizer, and how it is built from parameters."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from pytorch_optimizer import Lion as LionOptimizer
from pytorch_optimizer import SignSGD
from torch import nn
from torch.optim import Optimizer

from soul_cli.optim.sophia import Soul, SoulReleased
from soul_cli.types import UserError

Groups = list[dict[str, Any]]


@dataclass
class Optim:
    """Base of all optimizers.  lr is the peak rate; weight decay is decoupled and spares biases and norms."""

    name: str
    lr: float
    weight_decay: float

    def __post_init__(self) -> None:
        for key in ("lr", "weight_decay"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise UserError(f"optim.{key}={getattr(self, key)}: must be 0 or more")
        for key in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, key, 0.5) < 1:
                raise UserError(f"optim.{key}={getattr(self, key)}: must be in [0, 1)")

    def build(self, groups: Groups) -> Optimizer:
        raise NotImplementedError


@dataclass
class AdamW(Optim):
    """torch.optim.AdamW."""

    beta1: float
    beta2: float
    eps: float

    def build(self, groups: Groups) -> Optimizer:
        return torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)


class HessianData(Enum):
    forget = "forget"
    retain = "retain"
    both = "both"


class Mode(Enum):
    joint = "joint"
    alternating = "alternating"


@dataclass
class SoulConfig(Optim):
    """SOUL, Algorithm 1.  mode=alternating is eq. 11: a forget step, then a retain step, each with its own m and h."""

    beta1: float
    beta2: float
    eps: float
    rho: float | None
    unclipped_share: float | None
    hessian_every: int
    hessian_data: HessianData
    mode: Mode

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.rho is None) == (self.unclipped_share is None):
            raise UserError(
                f"optim.rho={self.rho} and optim.unclipped_share={self.unclipped_share}: set exactly one, the other to null"
            )
        if self.unclipped_share is not None and not 0 < self.unclipped_share < 1:
            raise UserError(f"optim.unclipped_share={self.unclipped_share}: must be between 0 and 1")
        if self.rho is not None and self.rho <= 0:
            raise UserError(f"optim.rho={self.rho}: must be above 0")
        if self.hessian_every < 1:
            raise UserError(f"optim.hessian_every={self.hessian_every}: must be 1 or more")

    def build(self, groups: Groups) -> Optimizer:
        return Soul(
            groups,
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            rho=self.rho,
            unclipped_share=self.unclipped_share,
        )


@dataclass
class SoulReleasedConfig(Optim):
    """The optimizer of SOUL's released code."""

    beta1: float
    beta2: float
    rho: float
    bs: int

    def build(self, groups: Groups) -> Optimizer:
        return SoulReleased(
            groups,
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            rho=self.rho,
            bs=self.bs,
            weight_decay=self.weight_decay,
        )


@dataclass
class Signum(Optim):
    """Sign of the momentum: SOUL's step where every coordinate is clipped (control)."""

    momentum: float

    def build(self, groups: Groups) -> Optimizer:
        return SignSGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass
class Lion(Optim):
    """Lion, Chen et al. 2023 (control)."""

    beta1: float
    beta2: float

    def build(self, groups: Groups) -> Optimizer:
        return LionOptimizer(
            groups, lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay, weight_decouple=True
        )


OPTIMS: dict[str, type[Optim]] = {
    "adamw": AdamW,
    "soul": SoulConfig,
    "soul_released": SoulReleasedConfig,
    "signum": Signum,
    "lion": Lion,
}


def parameter_groups(model: nn.Module, weight_decay: float) -> Groups:
    """Two groups: matrices with weight decay; vectors (norms, biases) without."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]
