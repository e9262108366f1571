"""How the gradients of the two terms make a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from soul_cli.objective.term import Kinds


class Gradient(NamedTuple):
    """A gradient of the whole step, and the losses it comes from."""

    parts: list[Tensor | None]  # one a trained parameter, in its shape and type (sharded as it is); None: unused
    losses: dict[str, float]  # loss_forget, loss_retain: of those that were run, without the retain term's weight


# The gradient of the rows of some kinds: of one kind its own term's, of both that of forget + weight * retain.
OfKinds = Callable[[Kinds], Gradient]


@dataclass
class Combine:
    """Base of the combinations.  Fields are the config schema."""

    name: str

    # the optimizer steps that one step of the run is made of; each has an optimizer with states of its own
    steps: ClassVar[tuple[Kinds, ...]] = (Kinds.both,)

    def rate(self, kinds: Kinds, weight: float) -> float:
        """Return the factor of the learning rate in the step on these kinds.  weight: of the retain term."""
        return 1.0

    def __call__(self, gradient: OfKinds, kinds: Kinds, memory: dict[str, Any]) -> Gradient:
        """Return the gradient of the step on these kinds.

        memory: what is kept from step to step, by name: numbers, and lists of a tensor a parameter.  It is part of the
        checkpoint.
        """
        return gradient(kinds)


@dataclass
class Sum(Combine):
    """One step on forget + weight * retain."""


@dataclass
class Alternating(Combine):
    """A step on the forget term, then one on the retain term, each with optimizer states of its own (SOUL, eq. 11).

    In a clipped step a factor on the loss would cancel, so the retain term's weight acts on its step's rate.  Weights
    decay once, in the first of the two.
    """

    steps: ClassVar[tuple[Kinds, ...]] = (Kinds.forget, Kinds.retain)

    def rate(self, kinds: Kinds, weight: float) -> float:
        return weight if kinds is Kinds.retain else 1.0


COMBINES: dict[str, type[Combine]] = {"sum": Sum, "alternating": Alternating}
