"""Low-rank adapters: few trained parameters beside frozen weights, merged into them afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from soul_cli.core.types import UserError


@dataclass
class LoRA:
    """Adapters on all linear layers but the head (Hu et al. 2022, arXiv:2106.09685).

    load_in_4bit: the frozen weights stand in NF4 with double quantisation while the adapters are trained (QLoRA,
    Dettmers et al. 2023, arXiv:2305.14314).  Deviation: they are merged into the weights as they were before.
    """

    r: int
    alpha: int
    load_in_4bit: bool

    def __post_init__(self) -> None:
        if self.r < 1 or self.alpha < 1:
            raise UserError(f"lora.r={self.r}, lora.alpha={self.alpha}: must be 1 or more")

    @property
    def libraries(self) -> set[str]:
        """Return the libraries that the trained weights depend on."""
        return {"peft", "bitsandbytes"} if self.load_in_4bit else {"peft"}

    def check(self) -> None:
        """Refuse where a package that it needs is not installed."""
        if find_spec("peft") is None:
            raise UserError("train.lora needs the extra 'lora': pip install 'soul-unlearn[lora]'")
        if self.load_in_4bit and find_spec("bitsandbytes") is None:
            raise UserError("lora.load_in_4bit=true needs the extra 'qlora': pip install 'soul-unlearn[qlora]'")

    def attach(self, lm: Any, seed: int) -> Any:
        """Put adapters into lm, in place, and freeze the rest.  Returns the wrapper that `merge` takes."""
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        where = LoraConfig(r=self.r, lora_alpha=self.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # about an old name
            return get_peft_model(lm, where)

    def merge(self, trained: Any, load: Callable[[], Any]) -> Any:
        """Return the model with its adapters merged.

        load: gives it as before training, for weights that stand in 4 bit.
        """
        if not self.load_in_4bit:
            return trained.merge_and_unload()
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        whole = self.attach(load(), seed=0)
        set_peft_model_state_dict(whole, get_peft_model_state_dict(trained))
        return whole.merge_and_unload()
