"""A cache of folders keyed by content.

An entry is a folder named by the hash of everything that determines its content.  It is built in a work folder that
survives an interruption (so that a build can go on), then moved into place with a manifest of checksums.  A lock that
dies with its process keeps two processes from building the same entry, and another, on the folder, keeps what a process
uses from being cleared.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from soul_cli.core.files import digest, locked, publish, read_json, sha256, write_text

MANIFEST = "manifest.json"


class Cache:
    """Folders under `root`, by kind and key.  Safe for several processes.

    What `get` has returned cannot be cleared as long as the Cache lives.
    """

    def __init__(self, root: Path, log: Callable[[str], None]):
        self.root, self.log = root, log
        self.held: dict[Path, Held] = {}

    def path(self, kind: str, key: dict[str, Any]) -> Path:
        """Return where an entry lies, or would lie."""
        return self.root / kind / digest(key)

    def has(self, kind: str, key: dict[str, Any]) -> bool:
        """Return whether an entry is there.  Its checksums are not looked at."""
        return (self.path(kind, key) / MANIFEST).is_file()

    def get(self, kind: str, key: dict[str, Any], build: Callable[[Path, Path], None], of: str = "") -> Path:
        """Return the entry's folder; where it is missing or damaged, build(work, out) fills `out` first.

        `work` is kept while the build is unfinished: what an interrupted build left there can be used.
        of: what the entry is, in words, for who looks into the cache.
        """
        while True:
            target = self._made(kind, key, build, of)
            if target in self.held:
                return target
            self.held[target] = Held(target)
            if (target / MANIFEST).is_file():  # else it was cleared in between
                return target
            del self.held[target]

    def _made(self, kind: str, key: dict[str, Any], build: Callable[[Path, Path], None], of: str) -> Path:
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
                self.held.pop(target, None)
                shutil.rmtree(target)
            shutil.rmtree(out, ignore_errors=True)
            work.mkdir(parents=True, exist_ok=True)
            out.mkdir(parents=True)
            build(work, out)
            files = {str(p.relative_to(out)): sha256(p) for p in sorted(out.rglob("*")) if p.is_file()}
            write_text(out / MANIFEST, json.dumps({"of": of, "key": key, "files": files}, indent=1, default=str))
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


class Held:
    """A shared lock on a folder, until it is closed or the process ends.  A folder that is gone is not held."""

    def __init__(self, folder: Path):
        self.file: int | None = None
        try:
            self.file = os.open(folder, os.O_RDONLY)
            fcntl.flock(self.file, fcntl.LOCK_SH)
        except OSError:  # gone, or on a file system without locks, where nothing can be held
            self.__del__()

    def __del__(self) -> None:
        if self.file is not None:
            os.close(self.file)
            self.file = None


# --- what lies there ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """An entry, or what an unfinished build has left of one.  size: bytes.  made: seconds since the epoch."""

    target: Path
    of: str
    size: int
    made: float

    @property
    def kind(self) -> str:
        return self.target.parent.name

    @property
    def parts(self) -> list[Path]:
        """Return its folders: the entry, and those of a build that is unfinished."""
        return [path for suffix in ("", ".work", ".out") if (path := self.target.with_suffix(suffix)).is_dir()]

    def remove(self) -> bool:
        """Remove it, unless a process builds or uses it; return whether it is gone."""
        try:
            with FileLock(self.target.with_suffix(".lock"), timeout=0):
                return self._remove()
        except Timeout:
            return False

    def _remove(self) -> bool:
        if self.target.is_dir():
            file = os.open(self.target, os.O_RDONLY)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (self.target / MANIFEST).unlink(missing_ok=True)  # first: without it there is no entry
                shutil.rmtree(self.target)
            except BlockingIOError:
                return False
            finally:
                os.close(file)
        for part in self.parts:
            shutil.rmtree(part)
        return True


def entries(root: Path) -> Iterator[Entry]:
    """Yield what lies in a cache, by kind and name."""
    folders = (path for kind in sorted(root.glob("*")) if kind.is_dir() for path in kind.iterdir() if path.is_dir())
    for target in sorted({path.with_suffix("") for path in folders if not path.name.startswith(".")}):
        manifest = read_json(target / MANIFEST, None)
        of = "unfinished" if manifest is None and not target.is_dir() else (manifest or {}).get("of", "")
        files = [found for part in ("", ".work", ".out") for found in _files(target.with_suffix(part))]
        yield Entry(target, of, sum(f.st_size for f in files), max((f.st_mtime for f in files), default=time.time()))


def _files(folder: Path) -> Iterator[os.stat_result]:
    """Yield size and times of the files below a folder; another process may remove them meanwhile."""
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file():
                yield path.stat()
