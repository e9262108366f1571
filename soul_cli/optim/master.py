"""Master weights: what the optimizers step where the model's own parameters are too narrow, or should not hold states.

A bfloat16 number keeps 8 bits: a step smaller than 1/512 of a weight is rounded away, and unlearning at lr 1e-5 takes
such steps.  So the step is taken on a float32 copy, with float32 states, and the model gets the rounded result
(Micikevicius et al. 2018, arXiv:1710.03740).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Masters:
    """One master a parameter: a copy in float32 (wide, where it is bfloat16) or in main memory (offload), or itself.

    Its gradient and the optimizer's states have its type and lie where it lies.
    """

    def __init__(self, params: Sequence[Tensor], *, wide: bool, offload: bool):
        self.params = list(params)
        self.weights = [self._master(p, wide=wide, offload=offload) for p in self.params]

    @staticmethod
    def _master(p: Tensor, *, wide: bool, offload: bool) -> Tensor:
        dtype = torch.float32 if wide and p.dtype == torch.bfloat16 else p.dtype
        if dtype == p.dtype and not offload:
            return p
        device = "cpu" if offload else p.device
        return nn.Parameter(p.detach().to(device=device, dtype=dtype, copy=True))

    def groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Parameter groups of an optimizer, with masters in the place of parameters."""
        master = dict(zip(self.params, self.weights, strict=True))
        return [{**g, "params": [master[p] for p in g["params"]]} for g in groups]

    def take_gradients(self) -> None:
        """Hand each parameter's gradient on to its master; the parameter keeps none."""
        for p, w in zip(self.params, self.weights, strict=True):
            if w is not p and p.grad is not None:
                w.grad = p.grad.to(device=w.device, dtype=w.dtype)
                p.grad = None

    @torch.no_grad()
    def give_weights(self) -> None:
        """Round the masters to the model's parameters."""
        for p, w in zip(self.params, self.weights, strict=True):
            if w is not p:
                p.copy_(w)
