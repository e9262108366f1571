"""Muon: momentum whose singular values are made equal, for hidden matrices; AdamW for embeddings and vectors.

References
    Jordan et al. 2024 (kellerjordan.github.io/posts/muon).  Liu et al. 2025 (arXiv:2502.16982): one lr for both kinds.
Deviation: the iterations of Newton-Schulz are in float32.  The released code and the libraries have them in bfloat16,
    which on a processor without products of bfloat16 takes thirty times as long.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from soul_cli.objective.losses import wide

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's: singular values end in [0.7, 1.2] after five iterations


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return about U V^T of a matrix U S V^T.  (m, n) -> (m, n); dimensions behind the first count as one."""
    a, b, c = NEWTON_SCHULZ
    x = wide(matrix).reshape(len(matrix), -1)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).reshape(matrix.shape).to(matrix.dtype)


class Muon(Optimizer):
    """Groups whose `hidden` is true are stepped by Muon with Nesterov's momentum, the others by AdamW.

    states: `m` of each hidden matrix; `m`, `v` and `step` of the others.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float, betas: tuple[float, float], eps: float = 1e-10
    ):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # takes no closure
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    (self._step_hidden if group["hidden"] else self._step_other)(p, p.grad, group)

    def _step_hidden(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        m = state.setdefault("m", torch.zeros_like(p))
        m.lerp_(grad, 1 - group["momentum"])
        update = orthogonalised(grad.lerp(m, group["momentum"]))
        longest = max(len(p), p.numel() // len(p))
        p.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(longest))  # as long as AdamW's: Liu et al., eq. 4

    def _step_other(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        m, v = (state.setdefault(name, torch.zeros_like(p)) for name in ("m", "v"))
        state["step"] = step = state.get("step", 0) + 1
        m.lerp_(grad, 1 - beta1)
        v.lerp_(grad.square(), 1 - beta2)
        size = v.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
        p.addcdiv_(m, size, value=-group["lr"] / (1 - beta1**step))
