"""A cache of folders keyed by content.

An entry is a folder named by the hash of everything that determines its content.  It is built in a work folder that
survives an interruption (so that a build can go on), then moved into place with a manifest of checksums.  A lock that
dies with its process keeps two processes from building the same entry.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soul_cli.core.files import digest, locked, publish, read_json, sha256, write_text

MANIFEST = "manifest.json"


class Cache:
    """Folders under `root`, by kind and key.  Safe for several processes."""

    def __init__(self, root: Path, log: Callable[[str], None]):
        self.root, self.log = root, log

    def path(self, kind: str, key: dict[str, Any]) -> Path:
        """Return where an entry lies, or would lie."""
        return self.root / kind / digest(key)

    def has(self, kind: str, key: dict[str, Any]) -> bool:
        """Return whether an entry is there.  Its checksums are not looked at."""
        return (self.path(kind, key) / MANIFEST).is_file()

    def get(self, kind: str, key: dict[str, Any], build: Callable[[Path, Path], None]) -> Path:
        """Return the entry's folder; where it is missing or damaged, build(work, out) fills `out` first.

        `work` is kept while the build is unfinished: what an interrupted build left there can be used.
        """
        target = self.path(kind, key)
        work, out = target.with_suffix(".work"), target.with_suffix(".out")
        if self._intact(target) and not work.exists():
            return target
        waiting = f"another process is making this {kind} entry; waiting for it"
        with locked(target.with_suffix(".lock"), lambda: self.log(waiting)):
            if self._intact(target):
                shutil.rmtree(work, ignore_errors=True)  # a process may have ended right after publishing
                return target
            if target.exists():
                self.log(f"{target} is damaged (checksum); it is made again")
                shutil.rmtree(target)
            shutil.rmtree(out, ignore_errors=True)
            work.mkdir(parents=True, exist_ok=True)
            out.mkdir(parents=True)
            build(work, out)
            files = {str(p.relative_to(out)): sha256(p) for p in sorted(out.rglob("*")) if p.is_file()}
            write_text(out / MANIFEST, json.dumps({"key": key, "files": files}, indent=1, default=str))
            publish(out, target)
            shutil.rmtree(work)
        return target

    @staticmethod
    def _intact(target: Path) -> bool:
        manifest = read_json(target / MANIFEST, None)
        if manifest is None:
            return False
        return all(
            (target / name).is_file() and sha256(target / name) == value for name, value in manifest["files"].items()
        )
