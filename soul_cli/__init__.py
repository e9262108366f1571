"""Unlearning experiments for language models, first- and second-order, end to end."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soul_cli.api import Result, run
    from soul_cli.core.types import UserError

__version__ = "0.1.0"
__all__ = ["Result", "UserError", "run"]


def __getattr__(name: str) -> Any:
    """Import what Python programs use when they ask for it.

    By its name, not by an import statement: one here would count as code behind every cached result
    (soul_cli.core.sources).
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("soul_cli.core.types" if name == "UserError" else "soul_cli.api"), name)
