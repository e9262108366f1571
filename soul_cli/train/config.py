"""How long a training run is, and in what portions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from soul_cli.core.machine import instructions
from soul_cli.core.types import UserError
from soul_cli.models.adapters import LoRA
from soul_cli.objective.term import Normalise


@dataclass
class TrainConfig:
    """How long and in what portions, over all processes.

    batch_size counts forget rows (retain rows where there are no forget rows).
    """

    epochs: int
    batch_size: int
    accumulation: int
    normalise: Normalise  # what a mean over the rows of a step counts alike: tokens or rows
    warmup: float  # share of the steps
    decay: str  # linear: to 0 at the end; constant
    clip: float  # global gradient norm; 0: off
    precision: str  # bf16: autocast; no: the weights' own; auto: one of them, settled before the run
    master_weights: bool  # step bfloat16 weights in float32
    lora: LoRA | None  # null: train all weights
    checkpoint_minutes: float  # from one checkpoint to the next; 0: one after every step

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size", "accumulation"):
            if getattr(self, key) < 1:
                raise UserError(f"train.{key}={getattr(self, key)}: must be 1 or more")
        if self.decay not in ("linear", "constant"):
            raise UserError(f"train.decay={self.decay!r}: must be linear or constant")
        if self.precision not in ("auto", "bf16", "no"):
            raise UserError(f"train.precision={self.precision!r}: must be auto, bf16 or no")
        if not 0 <= self.warmup < 1:
            raise UserError(f"train.warmup={self.warmup}: must be in [0, 1)")
        if not self.clip >= 0:
            raise UserError(f"train.clip={self.clip}: must be 0 (off) or more")
        if not self.checkpoint_minutes >= 0:
            raise UserError(f"train.checkpoint_minutes={self.checkpoint_minutes}: must be 0 (every step) or more")

    def settle(self, dtype: str) -> None:
        """Replace precision=auto by what this machine does best, so that the run and its keys hold the choice.

        dtype: the weights'.  Where they are float64, whose numbers are wanted exact, "no".
        """
        if self.precision == "auto":
            self.precision = "bf16" if dtype != "float64" and multiplies_bfloat16() else "no"

    @property
    def in_4bit(self) -> bool:
        """Return whether adapters are trained beside weights in 4 bit."""
        return self.lora is not None and self.lora.load_in_4bit

    @property
    def libraries(self) -> set[str]:
        """Return the libraries that this asks for, of those that others do without."""
        return self.lora.libraries if self.lora else set()


PRODUCTS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86's two, ARM's


@cache
def multiplies_bfloat16() -> bool:
    """Return whether the GPU, or where there is none the processor, has matrix products of bfloat16 in hardware.

    A processor is asked by Linux's list of its abilities; elsewhere the answer is no.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(PRODUCTS & instructions())
