"""Sophia's clipped second-order step, in two forms: SOUL's Algorithm 1 and the recursion of its released code.

The arithmetic stands in two free functions; the classes own groups and state.  It acts on each coordinate by itself, so
on sharded parameters each process steps its own part; what is logged or calibrated counts the coordinates of all.

References
    SOUL: Jia et al., EMNLP 2024 (Algorithm 1, eq. 11).  Sophia: Liu et al., ICLR 2024 (arXiv:2305.14342).
Deviations from Sophia's released code, all in `Soul`
    - the number of tokens B is part of h (h estimates the Gauss-Newton diagonal itself), not of the update;
    - the gradient of the sampled loss is not clipped before it is squared: clipping would bias h;
    - h starts at its first estimate instead of 0: a short run has few estimates;
    - the unclipped share counts coordinates with a non-zero momentum only: rows of the embedding that no
      token touched are neither clipped nor unclipped.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from soul_cli.distributed import all_values, every, local, norm, over_shards
from soul_cli.losses import wide

SAMPLE = 1 << 20  # coordinates looked at when rho is calibrated


def soul_step_(
    param: Tensor, m: Tensor, h: Tensor, *, lr: float, rho: float, eps: float, weight_decay: float
) -> Tensor:
    """In place: param -= lr * clip(m / max(rho h, eps), 1), after decoupled weight decay.

    Returns the number of coordinates with m != 0 that were not clipped, a scalar tensor.
    """
    ratio = m / torch.clamp(rho * h, min=eps)
    param.mul_(1 - lr * weight_decay)
    param.add_(ratio.clamp(-1, 1).to(param.dtype), alpha=-lr)
    return ((ratio.abs() < 1) & (m != 0)).sum()


def soul_released_step_(
    param: Tensor, grad: Tensor, m: Tensor, h: Tensor, *, lr: float, weight_decay: float, group: dict[str, Any]
) -> Tensor:
    """In place, the step of SOUL's released code: h from the squared gradient, the momentum applied twice.

    Returns the number of coordinates with m != 0 that were not clipped, a scalar tensor.
    """
    beta1, beta2 = group["betas"]
    h.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    for _ in range(2):
        m.mul_(beta1).add_(grad, alpha=1 - beta1)
    param.mul_(1 - lr * weight_decay)
    ratio = m.abs() / (group["rho"] * group["bs"] * h + 1e-15)
    param.addcmul_(m.sign(), ratio.clamp(max=1).to(m.dtype), value=-lr)
    return ((ratio < 1) & (m != 0)).sum()


class SecondOrder(Optimizer):
    """What both have in common: states m and h of the parameter's dtype, and numbers worth logging."""

    stats: dict[str, float]

    def _state(self, p: Tensor) -> tuple[Tensor, Tensor]:
        state = self.state[p]
        if "m" not in state:
            state["m"], state["h"] = torch.zeros_like(p), torch.zeros_like(p)
        return state["m"], state["h"]

    def _states(self) -> list[dict[str, Tensor]]:
        """In the order of the groups, which a resumed run shares (that of self.state it does not)."""
        states = (self.state[p] for group in self.param_groups for p in group["params"] if p in self.state)
        return [s for s in states if "m" in s]

    def _measure(self, unclipped: list[Tensor]) -> None:
        """unclipped: counts, one a parameter, of this process's coordinates."""
        m, h = ([s[key] for s in self._states()] for key in "mh")
        counts = torch.stack([sum(unclipped), sum((local(x) != 0).sum() for x in m)])  # type: ignore[list-item]
        free, active = over_shards(counts, m[0]).tolist()
        self.stats = {
            "unclipped_share": free / max(1, active),
            "m_norm": norm(m, m[0]),
            "h_l1": float(over_shards(sum(wide(local(x)).abs().sum() for x in h), h[0])),  # type: ignore[arg-type]
        }


class Soul(SecondOrder):
    """SOUL's optimizer (Algorithm 1).  Call `update_hessian` with estimates of the diagonal every k steps.

    Exactly one of rho and unclipped_share is given.  With the second, rho is set after every estimate so that this
    share of the coordinates stays unclipped: rho = quantile of |m| / h.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        rho: float | None = None,
        unclipped_share: float | None = None,
    ):
        if (rho is None) == (unclipped_share is None):
            raise ValueError(
                f"give exactly one of rho (is {rho}) and unclipped_share (is {unclipped_share}); set the other null"
            )
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "rho": rho, "share": unclipped_share, "calibrate": False})
        self.stats = {}

    @torch.no_grad()
    def update_hessian(self, estimates: dict[Tensor, Tensor]) -> None:
        """h = beta2 h + (1 - beta2) estimate; the first estimate starts h.

        estimates: parameter -> same shape; for a sharded parameter, the shape of this process's part.
        """
        for group in self.param_groups:
            for p in group["params"]:
                if p not in estimates:
                    continue
                first = "m" not in self.state[p]
                _, h = self._state(p)
                local(h).lerp_(estimates[p].to(h.dtype), 1.0 if first else 1 - group["betas"][1])
            group["calibrate"] = group["share"] is not None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients in .grad; the curvature must have been given at least once."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    if "m" not in self.state[p]:
                        raise RuntimeError("Soul.step before the first update_hessian")
                    m = local(self.state[p]["m"])
                    m.lerp_(local(p.grad).to(m.dtype), 1 - group["betas"][0])
        if self.param_groups[0]["calibrate"]:
            rho = self._calibrated(self.param_groups[0]["share"])
            for group in self.param_groups:
                group["rho"], group["calibrate"] = rho, False
        unclipped = []
        for group in self.param_groups:
            options = {k: group[k] for k in ("lr", "rho", "eps", "weight_decay")}
            for p in group["params"]:
                if p.grad is not None:
                    unclipped.append(soul_step_(local(p), *map(local, self._state(p)), **options))
        self._measure(unclipped)
        self.stats["rho"] = float(self.param_groups[0]["rho"])

    def _calibrated(self, share: float) -> float:
        """The share-quantile of |m| / h over a strided sample of the coordinates with m != 0.

        It lies half-way between two of them, so that rounding does not decide on which side one is.
        Where h is 0 no rho unclips: such coordinates take the full step and do not enter the quantile.
        The sample counts coordinates of whole tensors, so that it is the same however they are sharded.
        """
        states = self._states()
        stride = max(1, sum(s["m"].numel() for s in states) // SAMPLE)
        ratios = []
        for s in states:
            m, h = wide(every(s["m"], stride)).abs(), wide(every(s["h"], stride))
            seen = (m > 0) & (h > 0)
            ratios.append(m[seen] / h[seen])
        values = all_values(torch.cat(ratios), states[0]["m"]).sort().values
        if not len(values):
            return 1.0  # no curvature anywhere: every rho gives the same step
        above = min(len(values) - 1, int(share * len(values)))
        return float(values[max(0, above - 1) : above + 1].mean())


class SoulReleased(SecondOrder):
    """The optimizer of SOUL's released code: sign-momentum with a squared-gradient brake (see soul_released_step_)."""

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float],
        rho: float,
        bs: int,
        weight_decay: float,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "rho": rho, "bs": bs, "weight_decay": weight_decay})
        self.stats = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients in .grad (already clipped to norm 1 by the loop)."""
        unclipped = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    m, h = map(local, self._state(p))
                    grad, options = local(p.grad).to(m.dtype), {k: group[k] for k in ("lr", "weight_decay")}
                    unclipped.append(soul_released_step_(local(p), grad, m, h, group=group, **options))
        self._measure(unclipped)
