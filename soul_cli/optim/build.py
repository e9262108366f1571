"""The config schema of each optimizer, and how it is built from parameters."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from soul_cli.core.choice import Choice
from soul_cli.core.types import UserError
from soul_cli.optim.muon import Muon
from soul_cli.optim.sophia import Soul, SoulReleased

Groups = list[dict[str, Any]]


class HessianData(Enum):
    forget = "forget"
    retain = "retain"
    both = "both"


@dataclass(frozen=True)
class Curvature:
    """How often an optimizer wants an estimate of the curvature, and of which rows."""

    every: int  # steps
    data: HessianData  # whose labels count where an optimizer step has both kinds; else it takes what it has
    rows: int | None  # how many rows of each step; None: all


@dataclass
class Optim(Choice):
    """Base of all optimizers.  lr is the peak rate; weight decay is decoupled and spares biases and norms."""

    lr: float
    weight_decay: float

    group = "optim"

    @property
    def states(self) -> int:
        """Numbers it keeps for each parameter."""
        return 2

    @property
    def curvature(self) -> Curvature | None:
        """The estimates that its `update_hessian` takes; None where it takes none."""
        return None

    def __post_init__(self) -> None:
        self.check(*(key for key in ("lr", "weight_decay", "eps") if hasattr(self, key)), least=0)
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


@dataclass
class SoulConfig(Optim):
    """SOUL, Algorithm 1; with combine=alternating eq. 11."""

    beta1: float
    beta2: float
    eps: float
    rho: float | None
    unclipped_share: float | None
    hessian_every: int
    hessian_rows: int | None
    hessian_data: HessianData

    @property
    def curvature(self) -> Curvature:
        return Curvature(self.hessian_every, self.hessian_data, self.hessian_rows)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.rho is None) == (self.unclipped_share is None):
            raise UserError(
                f"optim.rho={self.rho} and optim.unclipped_share={self.unclipped_share}: "
                "set exactly one, the other to null"
            )
        if self.unclipped_share is not None and not 0 < self.unclipped_share < 1:
            raise UserError(f"optim.unclipped_share={self.unclipped_share}: must be between 0 and 1")
        if self.rho is not None:
            self.check("rho")
        self.check("hessian_every", least=1)
        if self.hessian_rows is not None:
            self.check("hessian_rows", least=1)

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

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("rho")
        self.check("bs", least=1)

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

    @property
    def states(self) -> int:
        return 1

    def build(self, groups: Groups) -> Optimizer:
        from pytorch_optimizer import SignSGD  # here, not above: the import takes seconds

        return SignSGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass
class Lion(Optim):
    """Lion, Chen et al. 2023 (control)."""

    beta1: float
    beta2: float

    @property
    def states(self) -> int:
        return 1

    def build(self, groups: Groups) -> Optimizer:
        from pytorch_optimizer import Lion as LionOptimizer

        return LionOptimizer(
            groups, lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay, weight_decouple=True
        )


@dataclass
class MuonConfig(Optim):
    """Muon (Jordan et al. 2024) on the hidden matrices, AdamW on embeddings and vectors, one lr for both."""

    momentum: float
    beta1: float
    beta2: float

    def build(self, groups: Groups) -> Optimizer:
        return Muon(groups, lr=self.lr, momentum=self.momentum, betas=(self.beta1, self.beta2))


OPTIMS: dict[str, type[Optim]] = {
    "adamw": AdamW,
    "soul": SoulConfig,
    "soul_released": SoulReleasedConfig,
    "signum": Signum,
    "lion": Lion,
    "muon": MuonConfig,
}


def parameter_groups(model: nn.Module, weight_decay: float) -> Groups:
    """Hidden matrices and embeddings with weight decay; vectors (norms, biases) without."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = getattr(getattr(model, "lm", model), "get_output_embeddings", lambda: None)()
    embeddings |= {id(p) for p in head.parameters()} if head is not None else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    groups: Groups = [
        {"params": [p for p in matrices if id(p) not in embeddings], "weight_decay": weight_decay, "hidden": True},
        {"params": [p for p in matrices if id(p) in embeddings], "weight_decay": weight_decay, "hidden": False},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, "hidden": False},
    ]
    return [g for g in groups if g["params"]]
