"""Where the gradient of a step is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from soul_cli.objective.combine import OfKinds


@dataclass
class Perturb:
    """Base of the perturbations.  Fields are the config schema."""

    name: str

    def around(self, gradient: OfKinds, params: Sequence[Tensor]) -> OfKinds:
        """Return the gradient as the combination is to see it.  The weights are as before when a call returns."""
        return gradient


@dataclass
class Unperturbed(Perturb):
    """At the weights themselves."""


PERTURBS: dict[str, type[Perturb]] = {"none": Unperturbed}
