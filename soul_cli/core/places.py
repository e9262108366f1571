"""Where things may lie: checks of folders before anything is written to them."""

from __future__ import annotations

import os
from pathlib import Path

from soul_cli.core.types import UserError

VARIABLE = {"cache_dir": " or SOUL_CACHE=FOLDER in the environment"}  # which other way there is to name a folder


def default_cache() -> str:
    """Return SOUL_CACHE, else soul-unlearn in XDG_CACHE_HOME, else in ~/.cache.  Empty variables count as not set."""
    if own := os.environ.get("SOUL_CACHE"):
        return own
    shared = os.environ.get("XDG_CACHE_HOME", "")  # its specification wants relative ones ignored
    return str(Path(shared if os.path.isabs(shared) else "~/.cache") / "soul-unlearn")


def expand_home(path: str, key: str) -> Path:
    """Return the path with ~ replaced.  UserError, with the key that gives the path, where there is no home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{key}={path}: there is no such home folder; {_name_another(key)}") from None


def check_writable(folder: Path, key: str) -> None:
    """Raise UserError, with the key that names the folder, unless files can be written in it or it can be made."""
    there = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        raise UserError(f"{key}={folder}: {there} is not a folder; {_name_another(key)}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{key}={folder}: you may not write in {there.absolute()}; {_name_another(key)}")


def _name_another(key: str) -> str:
    return f"name another, {key}=FOLDER{VARIABLE.get(key, '')}"
