"""Base models: any causal LM of the hub, of a folder, or of a package."""

from __future__ import annotations

from dataclasses import dataclass

from soul_cli.core.types import UserError
from soul_cli.data.prompts import CHAT, TEMPLATES
from soul_cli.models.load import Architecture
from soul_cli.optim.build import AdamW, MuonConfig
from soul_cli.train.config import TrainConfig


@dataclass
class Recipe:
    """How a base model is fine-tuned (target and retain-trained alike)."""

    optim: AdamW
    train: TrainConfig


@dataclass
class MuonRecipe:
    """How the embedded model is fine-tuned: Muon memorises in a third of AdamW's epochs."""

    optim: MuonConfig
    train: TrainConfig


@dataclass
class Model:
    """A pretrained causal LM: what all have in common."""

    name: str
    path: str  # a hub id, a folder, or packaged:NAME
    revision: str | None
    template: str  # soul_cli.data.prompts
    max_length: int  # tokens of a question with its answer; a system prompt comes on top
    dtype: str
    architecture: Architecture | None  # for plans; null: unknown until the model is there

    def __post_init__(self) -> None:
        if self.template not in (*TEMPLATES, CHAT):
            raise UserError(f"model.template={self.template!r}: must be one of {', '.join([*TEMPLATES, CHAT])}")
        if self.dtype not in ("float32", "bfloat16", "float64"):
            raise UserError(f"model.dtype={self.dtype!r}: must be float32, bfloat16 or float64")
        if self.max_length < 2:
            raise UserError(f"model.max_length={self.max_length}: must be 2 or more")


@dataclass
class HubModel(Model):
    """A model of the hub, of a folder or of a package, fine-tuned by AdamW."""

    finetune: Recipe


@dataclass
class EmbeddedModel(Model):
    """The small model that comes with the package, fine-tuned by Muon."""

    finetune: MuonRecipe


AnyModel = HubModel | EmbeddedModel
MODELS: dict[str, type[AnyModel]] = {"embedded": EmbeddedModel, "hub": HubModel}
