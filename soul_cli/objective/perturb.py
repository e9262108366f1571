"""Where the gradient of a step is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from soul_cli.core.choice import Choice
from soul_cli.core.distributed import local, sharded, sharded_as
from soul_cli.objective.combine import Gradient, OfKinds, Parts, plus, scaled, size
from soul_cli.objective.term import Kinds


@dataclass
class Perturb(Choice):
    """Base of the perturbations.

    They act on the gradient of the forget term; that of the retain term is taken at the weights themselves.
    """

    group = "perturb"
    buffers: ClassVar[int] = 0  # tensors of the trained weights' size that stand while a gradient is computed

    @property
    def place(self) -> int | None:
        """The block behind which hidden states of forget rows are perturbed (see `states`)."""
        return None

    def passes(self, kinds: Kinds) -> tuple[Kinds, ...]:
        """Return whose rows are passed over for one gradient of these kinds, pass after pass."""
        return (kinds,)

    def around(self, gradient: OfKinds, params: Sequence[Tensor], seed: int) -> OfKinds:
        """Return the gradient as the combination is to see it.  The weights are as before when a call returns.

        seed: of what is drawn in this step, the same on all processes.
        """
        return gradient

    def states(self, loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
        """Return what is added to the hidden states of a micro-batch's forget rows, (B, L, D).

        loss: the rows' share of the forget term with that added, ().  start: zeros, (B, L, D).
        """
        return start


@dataclass
class Unperturbed(Perturb):
    """At the weights themselves."""


@dataclass
class SAM(Perturb):
    """Sharpness-aware minimisation of the forget term (Fan et al. 2025, arXiv:2502.05374): g_f(w + rho g_f / |g_f|).

    The norm is over all trained weights.  Losses are those at w.  Of a small rho,
    bfloat16 weights take in little.

    Deviation: the released code overwrites the gradients of earlier micro-batches; here gradients are those of whole
    steps.

    A second pass over the forget rows.  A copy of the weights stands during it, and its result while a retain gradient
    is computed: one buffer.
    """

    rho: float

    buffers = 1

    def __post_init__(self) -> None:
        self.check("rho", least=0)

    def passes(self, kinds: Kinds) -> tuple[Kinds, ...]:
        return (Kinds.forget,) * 2 + apart(kinds) if Kinds.forget in kinds else (kinds,)

    def around(self, gradient: OfKinds, params: Sequence[Tensor], seed: int) -> OfKinds:
        def steepest() -> Gradient:
            here = gradient(Kinds.forget)
            length = size(here.parts)
            with moved(params) as before:
                if length:
                    for p, b, part in zip(params, before, here.parts, strict=True):
                        if part is not None:
                            put(p, b + local(part) * (self.rho / length))
                here.parts.clear()
                return Gradient(gradient(Kinds.forget).parts, here.losses)

        return with_retain(gradient, steepest)


@dataclass
class Smooth(Perturb):
    """Random smoothing of the forget term (Fan et al. 2025, arXiv:2502.05374): mean of g_f(w + sigma xi), xi ~ N(0, 1).

    Noise is a function of seed, step and weight: neither micro-batches nor processes change it, another kind of device
    does.  The loss is the mean over the draws.

    Deviation: the released code steps within each micro-batch, without clipping; here gradients are those of whole
    steps.

    `draws` passes over the forget rows in the place of one.  A copy of the weights and the sum so far stand during
    them: two buffers, for weights that are to come back bit for bit can't be had by taking the noise off again.
    """

    sigma: float
    draws: int

    buffers = 2

    def __post_init__(self) -> None:
        self.check("sigma", least=0)
        self.check("draws", least=1)

    def passes(self, kinds: Kinds) -> tuple[Kinds, ...]:
        return (Kinds.forget,) * self.draws + apart(kinds) if Kinds.forget in kinds else (kinds,)

    def around(self, gradient: OfKinds, params: Sequence[Tensor], seed: int) -> OfKinds:
        def mean() -> Gradient:
            generator = torch.Generator(params[0].device).manual_seed(seed)
            total: Parts = []
            losses: list[dict[str, float]] = []
            with moved(params) as before:
                for _ in range(self.draws):
                    for p, b in zip(params, before, strict=True):
                        put(p, b + self.sigma * noise(p, generator))
                    found = gradient(Kinds.forget)
                    share = scaled(found.parts, 1 / self.draws)
                    total = plus(share, total, 1.0) if total else share
                    losses.append(found.losses)
            return Gradient(total, {k: sum(some[k] for some in losses) / self.draws for k in losses[0]})

        return with_retain(gradient, mean)


@dataclass
class LAT(Perturb):
    """Latent adversarial training of the forget term (Sheshadri et al. 2024, arXiv:2407.15549), untargeted.

    In each micro-batch the loss is that at h + d, h the output of block `layer` (counted from 0) at all positions of
    the forget rows.  d maximises it within |d| <= epsilon at each position: `steps` ascents of AdamW at rate `lr` from
    0, each followed by the projection.

    Deviations: the released code also draws its adversary towards given texts; here it has the forget term alone.  It
    may perturb several blocks.

    `steps` more forwards over the forget rows, with backwards that end behind the block.  No buffer: d is as large as
    one block's output.
    """

    layer: int | None  # counted from 0; null: as deep as DEPTH says
    epsilon: float
    steps: int
    lr: float

    def __post_init__(self) -> None:
        self.check("epsilon", "steps", "lr", least=0)
        if self.layer is not None:
            self.check("layer", least=0)

    @property
    def place(self) -> int:
        assert self.layer is not None, "settle_layers has not been called"
        return self.layer

    def passes(self, kinds: Kinds) -> tuple[Kinds, ...]:
        return (Kinds.forget,) * self.steps + (kinds,) if Kinds.forget in kinds else (kinds,)

    def states(self, loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
        delta = start.requires_grad_()
        optimizer = torch.optim.AdamW([delta], lr=self.lr, maximize=True)
        for _ in range(self.steps):
            (delta.grad,) = torch.autograd.grad(loss(delta), delta)
            optimizer.step()
            with torch.no_grad():
                lengths = delta.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(delta.dtype).tiny)
                delta.mul_((self.epsilon / lengths).clamp(max=1))
        return delta.detach()


PERTURBS: dict[str, type[Perturb]] = {"none": Unperturbed, "sam": SAM, "smooth": Smooth, "lat": LAT}


def apart(kinds: Kinds) -> tuple[Kinds, ...]:
    """Return the kinds but for forget rows."""
    return (Kinds.retain,) if Kinds.retain in kinds else ()


def with_retain(gradient: OfKinds, forget: Callable[[], Gradient]) -> OfKinds:
    """Return the gradient that has another one in the place of that of forget rows."""

    def of(kinds: Kinds, weight: float = 1.0) -> Gradient:
        if Kinds.forget not in kinds:
            return gradient(kinds)
        found = forget()
        if Kinds.retain not in kinds:
            return found
        retain = gradient(Kinds.retain)
        return Gradient(plus(found.parts, retain.parts, weight), found.losses | retain.losses)

    return of


# --- moving weights ----------------------------------------------------------------------------------------


@contextmanager
def moved(params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Give a copy of this process's part of the weights, which may be moved, and put it back at the end."""
    before = [local(p.detach()).clone() for p in params]
    try:
        yield before
    finally:
        for p, b in zip(params, before, strict=True):
            put(p, b)


def put(p: Tensor, values: Tensor) -> None:
    """Set this process's part of a weight."""
    local(p.detach()).copy_(values)


def noise(p: Tensor, generator: torch.Generator) -> Tensor:
    """Return this process's part of standard normal numbers, one a weight of p, in float32 or wider.

    Every process draws all of a weight's numbers: each part is then that of the whole.
    """
    wide = torch.promote_types(p.dtype, torch.float32)
    whole = torch.randn(p.shape, generator=generator, dtype=wide, device=p.device)
    return local(sharded_as(p, whole)) if sharded(p) else whole
