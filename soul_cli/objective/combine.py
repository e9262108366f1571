"""How the gradients of the two terms make a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from soul_cli.core.choice import Choice
from soul_cli.core.distributed import dot, local, norm
from soul_cli.core.types import UserError
from soul_cli.objective.term import Kinds

Parts = list[Tensor | None]  # one a trained parameter, in its shape and type (sharded as it is); None: unused


class Gradient(NamedTuple):
    """A gradient of the whole step, and the losses it comes from."""

    parts: Parts
    losses: dict[str, float]  # loss_forget, loss_retain: of those that were run, without the retain term's weight


class OfKinds(Protocol):
    """The gradient of the rows of some kinds: of both that of forget + weight * retain.

    Of one kind it is its own term's, without the weight.
    """

    def __call__(self, kinds: Kinds, weight: float = 1.0) -> Gradient: ...


@dataclass
class Combine(Choice):
    """Base of the combinations."""

    group = "combine"
    # the optimizer steps that one step of the run is made of; each has an optimizer with states of its own
    steps: ClassVar[tuple[Kinds, ...]] = (Kinds.both,)
    # the gradients that an optimizer step is made of, in the order in which they are taken
    passes: ClassVar[tuple[Kinds, ...]] = (Kinds.both,)
    paired: ClassVar[bool] = False  # whether it makes no sense without either term
    weighs: ClassVar[bool] = True  # whether the retain term's weight has an effect
    decays: ClassVar[Kinds] = Kinds.both  # in whose optimizer steps weights decay
    buffers: ClassVar[int] = 0  # gradients that stand while the last one of a step is computed
    kept: ClassVar[int] = 0  # gradient-sized lists in its memory

    def rate(self, kinds: Kinds, weight: float) -> float:
        """Return the factor of the learning rate in the step on these kinds.  weight: of the retain term."""
        return 1.0

    def turns(self, kinds: Kinds) -> int:
        """Return how many optimizer steps on these kinds follow each other, each on rows of its own."""
        return 1

    def __call__(self, gradient: OfKinds, kinds: Kinds, weight: float, memory: dict[str, Any]) -> Gradient:
        """Return the gradient of the step on these kinds.  weight: of the retain term.

        memory: what is kept from step to step, by name: numbers, and lists of a tensor (or None) a parameter.  It is
        part of the checkpoint.
        """
        return gradient(kinds, weight)


@dataclass
class Sum(Combine):
    """One step on forget + weight * retain."""


@dataclass
class Alternating(Combine):
    """A step on the forget term, then one on the retain term, each with optimizer states of its own (SOUL, eq. 11).

    In a clipped step a factor on the loss would cancel, so the retain term's weight acts on its step's rate.  Weights
    decay once, in the first of the two.
    """

    steps = (Kinds.forget, Kinds.retain)
    paired = True
    decays = Kinds.forget

    def rate(self, kinds: Kinds, weight: float) -> float:
        return weight if kinds is Kinds.retain else 1.0


@dataclass
class Separate(Alternating):
    """DualOptim (Zhong et al. 2025, arXiv:2504.15827): forget steps, then retain steps, an optimizer each.

    Both count in optimizer steps; each takes rows of its own, so a step of the run passes over retain_steps /
    forget_steps times as many retain as forget rows.  Rates: optim.lr on the forget term, retain.weight times that on
    the retain term.  Weights decay in every step, at its rate.

    Deviations: the released code decays behind the update where bitsandbytes' CUDA kernels run it; here the optimizer's
    own order holds.  The schedule of the rate goes on once a step of the run, there once an optimizer step.
    """

    forget_steps: int
    retain_steps: int

    decays = Kinds.both

    def __post_init__(self) -> None:
        self.check("forget_steps", "retain_steps", least=1)

    def turns(self, kinds: Kinds) -> int:
        return self.forget_steps if kinds is Kinds.forget else self.retain_steps


@dataclass
class NGDiff(Combine):
    """Normalised gradient difference (Bu et al. 2024, arXiv:2410.22086): g_f / |g_f| + g_r / |g_r|.

    g_f is the gradient of the forget loss that is minimised, so the paper's difference is this sum.  Norms are over all
    trained weights; a gradient of 0 stays 0.  The retain term's weight cancels.  retain=kl has no gradient before the
    first step, and what rounding leaves of it there is made as long as any.

    Deviation: the paper's rule that finds the learning rate is left out: the rate is the optimizer's.

    The gradient of forget rows stands while that of retain rows is computed: one buffer.
    """

    passes = (Kinds.forget, Kinds.retain)
    paired = True
    weighs = False
    buffers = 1

    def __call__(self, gradient: OfKinds, kinds: Kinds, weight: float, memory: dict[str, Any]) -> Gradient:
        forget, retain = gradient(Kinds.forget), gradient(Kinds.retain)
        sizes = size(forget.parts), size(retain.parts)
        length = self.length(product(forget.parts, retain.parts), *sizes)
        f, r = (length / one if one else 0.0 for one in sizes)
        return Gradient(plus(scaled(forget.parts, f), retain.parts, r), forget.losses | retain.losses)

    def length(self, between: float, forget: float, retain: float) -> float:
        """Return the length of both parts.  between: inner product of the gradients; forget, retain: their norms."""
        return 1.0


@dataclass
class MUNBa(NGDiff):
    """Unlearning as a Nash bargain (Wu and Harandi 2024, arXiv:2411.15537): NGDiff's direction times (1 + cos)^-1/2.

    cos is that of the angle between the gradients.  a_r g_r + a_f g_f with G'G a = 1/a has for two players the solution
    a = 1 / (|g| sqrt(1 + cos)); its length is always sqrt 2.  Gradients that oppose each other exactly give no step.

    Deviations from the released code: no 1e-8 in the denominators, no rounding of a to float32, and steps whose a is
    not positive are not left out (there are none but for rounding).  Its clipping to norm 1 is train.clip=1.
    """

    def length(self, between: float, forget: float, retain: float) -> float:
        cosine = between / (forget * retain) if forget and retain else 0.0
        return (1 + cosine) ** -0.5 if cosine > -1 else 0.0


@dataclass
class GRU(Combine):
    """Gradient rectified unlearning (Wang et al. 2025, arXiv:2503.09117): g_f without its part against the retain rows.

    e <- gamma g_r + (1 - gamma) e from 0, without correction; where <g_f, e> < 0, <g_f, e> / <e, e> e is taken out of
    g_f.  As in the released code the retain gradient itself is not applied, so the retain term's weight cancels.

    Deviation: here e is that of whole steps; in released code it moves with every micro-batch that it sees.

    e is kept between steps, and the gradient of retain rows goes into it before that of forget rows is computed: one
    buffer.
    """

    gamma: float

    passes = (Kinds.retain, Kinds.forget)
    paired = True
    weighs = False
    kept = 1

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise UserError(f"combine.gamma={self.gamma}: must be above 0 and at most 1")

    def __call__(self, gradient: OfKinds, kinds: Kinds, weight: float, memory: dict[str, Any]) -> Gradient:
        retain = self._smooth(gradient, memory)
        forget = gradient(Kinds.forget)
        smooth = memory["retain"]
        against = product(forget.parts, smooth)
        parts = plus(forget.parts, smooth, -against / product(smooth, smooth)) if against < 0 else forget.parts
        return Gradient(parts, forget.losses | retain)

    def _smooth(self, gradient: OfKinds, memory: dict[str, Any]) -> dict[str, float]:
        """Put the retain gradient into the memory; return its losses, so that nothing else of it stands on."""
        found = gradient(Kinds.retain)
        old = memory.get("retain", [None] * len(found.parts))
        memory["retain"] = plus(scaled(old, 1 - self.gamma), found.parts, self.gamma)
        return found.losses


@dataclass
class Dual(Combine):
    """The multiplier of primal-dual unlearning (PDU, Entesari et al. 2025, arXiv:2506.05314).

    Forget loss under the constraint retain loss <= bound: a step is taken on forget + dual * retain, then
    dual <- max(0, dual + step * (retain loss - bound)).  It begins at retain.weight and stays there for `warmup` steps
    of the run.

    Deviations: the released code moves the multiplier with every micro-batch, here every step of the run; its warm-up
    counts epochs.
    """

    step: float
    bound: float  # nats
    warmup: int

    paired = True

    def __post_init__(self) -> None:
        self.check("step", "warmup", least=0)
        if not 0 <= self.bound < float("inf"):
            raise UserError(f"combine.bound={self.bound}: must be 0 or more, in nats")

    def __call__(self, gradient: OfKinds, kinds: Kinds, weight: float, memory: dict[str, Any]) -> Gradient:
        dual, taken = memory.get("dual", weight), memory.get("taken", 0)
        found = gradient(kinds, dual)
        over = found.losses["loss_retain"] - self.bound
        memory["dual"] = max(0.0, dual + self.step * over) if taken >= self.warmup else dual
        memory["taken"] = taken + 1
        return found


COMBINES: dict[str, type[Combine]] = {
    "sum": Sum,
    "alternating": Alternating,
    "separate": Separate,
    "ngdiff": NGDiff,
    "munba": MUNBa,
    "gru": GRU,
    "dual": Dual,
}


# --- gradients as vectors ----------------------------------------------------------------------------------


def size(parts: Sequence[Tensor | None]) -> float:
    """Return the L2 norm of all parts together, over all processes."""
    some = [p for p in parts if p is not None]
    return norm(some, some[0]) if some else 0.0


def product(parts: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> float:
    """Return the inner product of two gradients, over all processes."""
    pairs = [(a, b) for a, b in zip(parts, others, strict=True) if a is not None and b is not None]
    return dot(pairs, pairs[0][0]) if pairs else 0.0


@torch.no_grad()
def scaled(parts: Parts, factor: float) -> Parts:
    """Multiply a gradient in place, and return it."""
    for p in parts:
        if p is not None:
            local(p).mul_(factor)
    return parts


@torch.no_grad()
def plus(parts: Parts, others: Sequence[Tensor | None], factor: float) -> Parts:
    """Add a multiple of another gradient in place, and return the sum."""
    for i, (a, b) in enumerate(zip(parts, others, strict=True)):
        if a is None:
            parts[i] = b * factor if b is not None else None
        elif b is not None:
            local(a).add_(local(b), alpha=factor)
    return parts
