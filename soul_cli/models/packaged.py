"""Base models that come in Python packages, so that no hub is needed: model.path=packaged:NAME."""

from __future__ import annotations

from pathlib import Path

from soul_cli.core.types import UserError

PREFIX = "packaged:"
EMBEDDED = Path(__file__).parent / "embedded"  # made by scripts/pretrain_embedded.py


def local(path: str) -> str:
    """Return the folder of a packaged model; any other path as it is.  UserError: no model of that name is packaged."""
    if not path.startswith(PREFIX):
        return path
    if path != f"{PREFIX}embedded":
        raise UserError(f"model.path={path}: no such packaged model; there is {PREFIX}embedded")
    return str(EMBEDDED)
