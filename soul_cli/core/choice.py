"""What the parts of a run that a configuration chooses by name have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from soul_cli.core.types import UserError


@dataclass
class Choice:
    """Base of terms, edits, combinations, perturbations and optimizers.

    Fields are the config schema.  What a subclass sets without a type is no field, but a constant of the class.
    """

    name: str

    group: ClassVar[str]  # of the configuration
    paper: ClassVar[str] = ""  # where it is published

    def check(self, *keys: str, least: int | None = None) -> None:
        """Raise UserError where a number of the configuration is infinite or not above 0; with least, below that."""
        for key in keys:
            value = getattr(self, key)
            fits = value > 0 if least is None else value >= least
            if not (fits and value < float("inf")):
                must = "above 0" if least is None else f"{least} or more"
                raise UserError(f"{self.group}.{key}={value}: must be {must}")
