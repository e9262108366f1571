"""Sophia's clipped second-order step, in two forms: SOUL's Algorithm 1 and the recursion of its released code.

The arithmetic stands in two free functions; the classes own groups and state.  It acts on each coordinate by itself, so
on sharded parameters each process steps its own part; what is logged or calibrated counts the coordinates of all.
Float32 parameters on a CPU or a CUDA GPU are stepped by the same arithmetic in one pass (kernel.py).

References
    SOUL: Jia et al., EMNLP 2024 (Algorithm 1, eq. 11).  Sophia: Liu et al., ICLR 2024 (arXiv:2305.14342).
Deviations from Sophia's released code, all in `Soul`
    - the number of tokens B is part of h (h estimates the Gauss-Newton diagonal itself), not of the update;
    - the gradient of the sampled loss is not clipped before it is squared: clipping would bias h;
    - h is the mean of its estimates until the moving average would weigh a new one as much (k = 1 / (1 - beta2)), where
      theirs starts at 0: a short run has few estimates; a coordinate starts at its first estimate that is not 0
      (low-rank adapters have none at the first step, nor has an embedding that no token touched);
    - the step divides by max(rho h, eps), as Algorithm 1 has it, where theirs divides by rho h + eps;
    - the estimate is made before the step, on rows of its own batch, where theirs is made after it, for the next;
    - rho is found anew, see `Soul`, where theirs is given;
    - the unclipped share counts coordinates with a non-zero momentum only: rows of the embedding that no
      token touched are neither clipped nor unclipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from soul_cli.core.distributed import all_values, every, local, over_shards, sharded
from soul_cli.objective.losses import wide
from soul_cli.optim import kernel

SAMPLE = 1 << 18  # coordinates looked at when rho is calibrated: the share is then right to 0.001
PIECE = {"cpu": 1 << 18}  # coordinates in work at a time, by device: on a CPU what a cache holds,
LARGE = 1 << 26  # elsewhere so many that launching costs nothing and what stands in between little memory


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape as views of some of their rows at a time."""
    first = tensors[0]
    most = PIECE.get(first.device.type, LARGE)
    if first.numel() <= most:
        yield tensors
        return
    rows = max(1, most * len(first) // first.numel())
    yield from zip(*(t.split(rows) for t in tensors), strict=True)


def counts(unclipped: Tensor, m: Tensor, h: Tensor) -> Tensor:
    """Unclipped coordinates with m != 0, those with m != 0, sum of m^2, sum of |h|: (4,), in float64."""
    numbers = [unclipped.sum(), (m != 0).sum(), wide(m).square().sum(), wide(h).abs().sum()]
    return torch.stack([n.to(torch.float32 if m.device.type == "mps" else torch.float64) for n in numbers])


def soul_step_(
    param: Tensor, grad: Tensor, m: Tensor, h: Tensor, lr: float, decay: float, gain: float, rho: float, eps: float
) -> Tensor:
    """In place: m += gain (grad - m); param = decay param - lr clip(m / max(rho h, eps), 1).  Returns `counts`."""
    m.lerp_(grad.to(m.dtype), gain)
    ratio = m / torch.clamp(rho * h, min=eps)
    param.mul_(decay).add_(ratio.clamp(-1, 1).to(param.dtype), alpha=-lr)
    return counts((ratio.abs() < 1) & (m != 0), m, h)


def soul_released_step_(
    param: Tensor, grad: Tensor, m: Tensor, h: Tensor, lr: float, decay: float, beta1: float, beta2: float, width: float
) -> Tensor:
    """In place, the step of SOUL's released code: h from the squared gradient, the momentum applied twice.

    decay: factor of the parameter; width: of h, rho * bs.  Returns `counts`.
    """
    grad = grad.to(m.dtype)
    h.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    for _ in range(2):
        m.mul_(beta1).add_(grad, alpha=1 - beta1)
    ratio = m.abs() / (width * h + 1e-15)
    param.mul_(decay).addcmul_(m.sign(), ratio.clamp(max=1).to(m.dtype), value=-lr)
    return counts((ratio < 1) & (m != 0), m, h)


class SecondOrder(Optimizer):
    """What both have in common: states m and h of the parameter's dtype, and numbers worth logging."""

    _counted: Tensor | None = None  # `counts` of the last step, on its device

    @property
    def stats(self) -> dict[str, float]:
        """Of the last step: unclipped share, norm of m, sum of |h|.  It waits for the device, where `step` does not."""
        if self._counted is None:
            return {}
        unclipped, active, square, size = self._counted.tolist()
        return {"unclipped_share": unclipped / max(1, active), "m_norm": math.sqrt(square), "h_l1": size}

    def _state(self, p: Tensor) -> tuple[Tensor, Tensor]:
        state = self.state[p]
        if "m" not in state:
            state["m"], state["h"] = torch.zeros_like(p), torch.zeros_like(p)
        return state["m"], state["h"]

    def _part(self, p: Tensor) -> kernel.Part:
        """This process's part of a parameter, its gradient, m and h."""
        grad = p.grad
        assert grad is not None
        whole = (p, grad, *self._state(p))
        return tuple(map(local, whole)) if sharded(p) else whole  # type: ignore[return-value]

    def _states(self) -> list[dict[str, Tensor]]:
        """In the order of the groups, which a resumed run shares (that of self.state it does not)."""
        states = (self.state[p] for group in self.param_groups for p in group["params"] if p in self.state)
        return [s for s in states if "m" in s]

    def _update(self, step_: Callable[..., Tensor], options: Callable[[dict[str, Any]], tuple[float, ...]]) -> None:
        """Step every parameter that has a gradient; count.

        step_: one of the two functions above; options: of a group, what the function takes after the tensors.
        """
        groups: list[tuple[list[kernel.Part], tuple[float, ...]]] = []
        for group in self.param_groups:
            stepped = [p for p in group["params"] if p.grad is not None]
            groups.append(([self._part(p) for p in stepped], options(group)))
        everything = [part for parts, _ in groups for part in parts]
        if kernel.takes(everything):
            total = kernel.step(step_.__name__, groups)
        else:
            each = [step_(*some, *opts) for parts, opts in groups for part in parts for some in pieces(*part)]
            total = torch.stack(each).sum(0)
        self._counted = over_shards(total, next(iter(self.state)))


class Soul(SecondOrder):
    """SOUL's optimizer (Algorithm 1).  Call `update_hessian` with estimates of the diagonal every k steps.

    Exactly one of rho and unclipped_share is given.  With the second, rho is found so that this share of the
    coordinates stays unclipped: rho = quantile of |m| / h, after every estimate, and in each of the first
    1 / (1 - beta1) steps, in which m grows from 0 to its size.
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
        found = {"rho": rho, "share": unclipped_share, "calibrate": False, "estimates": 0, "steps": 0}
        super().__init__(params, defaults | found)

    @torch.no_grad()
    def update_hessian(self, estimates: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Average a new estimate into h: h += gain (estimate - h), gain = max(1 / k, 1 - beta2) for the k-th.

        Where h is 0 it becomes the estimate.  estimates: parameters, each with one of the same shape; of a sharded
        parameter, in the shape of this process's part.  None is kept: they may be made one after the other.
        """
        gains: dict[Tensor, float] = {}
        for group in self.param_groups:
            group["estimates"] += 1
            group["calibrate"] = group["share"] is not None
            gains |= dict.fromkeys(group["params"], max(1 / group["estimates"], 1 - group["betas"][1]))
        for p, estimate in estimates:
            _, h = self._state(p)
            for old, new in pieces(local(h), estimate):
                new = new.to(old.dtype)
                old.copy_(torch.where(old == 0, new, old.lerp(new, gains[p])))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients in .grad; the curvature must have been given at least once."""
        stepped = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if any("m" not in self.state[p] for p, _ in stepped):
            raise RuntimeError("Soul.step before the first update_hessian")
        first = self.param_groups[0]
        grows = first["steps"] * (1 - first["betas"][0]) < 1
        ahead = first["calibrate"] or (grows and first["share"] is not None)
        for group in self.param_groups:
            group["steps"] += 1
        if ahead:  # rho depends on the new momentum: it is made first, in a pass of its own
            for p, group in stepped:
                m = local(self.state[p]["m"])
                m.lerp_(local(p.grad).to(m.dtype), 1 - group["betas"][0])
            rho = self._calibrated(self.param_groups[0]["share"])
            for group in self.param_groups:
                group["rho"], group["calibrate"] = rho, False

        def options(group: dict[str, Any]) -> tuple[float, ...]:
            gain = 0.0 if ahead else 1 - group["betas"][0]
            return group["lr"], 1 - group["lr"] * group["weight_decay"], gain, group["rho"], group["eps"]

        self._update(soul_step_, options)

    @property
    def stats(self) -> dict[str, float]:
        """Those of both, and rho."""
        return {**super().stats, "rho": float(self.param_groups[0]["rho"])} if self._counted is not None else {}

    def _calibrated(self, share: float) -> float:
        """The share-quantile of |m| / h over a strided sample of the coordinates with m != 0.

        It lies half-way between two of them, so that rounding does not decide on which side one is.
        Where h is 0 no rho unclips: such coordinates take the full step and do not enter the quantile.
        The sample counts coordinates of whole tensors, so that it is the same however they are sharded.
        """
        states = self._states()
        stride = max(1, sum(s["m"].numel() for s in states) // SAMPLE)
        m, h = (wide(torch.cat([every(s[name], stride) for s in states])) for name in ("m", "h"))
        none = (m == 0) | (h <= 0)
        ratios = m.abs_().div_(h).masked_fill_(none, torch.nan)  # sorted behind all numbers
        values = all_values(ratios, states[0]["m"])
        if values.device.type == "cuda":
            return float(_around(values, share))  # the one wait for the device
        numbers = values[~values.isnan()].cpu().numpy()
        if not len(numbers):
            return 1.0  # no curvature anywhere: every rho gives the same step
        above = min(len(numbers) - 1, int(share * len(numbers)))
        around = sorted({max(0, above - 1), above})
        return float(np.partition(numbers, around)[around].mean())  # a tenth of a sort's time


def _around(values: Tensor, share: float) -> Tensor:
    """The same without leaving the device."""
    count = (~values.isnan()).sum()
    above = torch.minimum((share * count.double()).long(), count - 1).clamp(min=0)
    two = values.sort().values[torch.stack([above - 1, above]).clamp(min=0)]
    return torch.where(count > 0, two.mean(), 1.0)


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

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients in .grad (already clipped to norm 1 by the loop)."""

        def options(group: dict[str, Any]) -> tuple[float, ...]:
            decay = 1 - group["lr"] * group["weight_decay"]
            return group["lr"], decay, *group["betas"], group["rho"] * group["bs"]

        self._update(soul_released_step_, options)
