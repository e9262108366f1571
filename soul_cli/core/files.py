"""Files written whole or not at all, hashes of their content, and locks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

PACKAGE = Path(__file__).parents[1]
# in a wheel the configurations lie inside the package, in a checkout beside it
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"


def digest(value: Any) -> str:
    """Return a hash of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """Return a dataclass tree as dicts, enums as their values."""
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value.value if isinstance(value, Enum) else value


def sha256(path: Path) -> str:
    """Return the hash of a file's content."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def file_digest(files: Iterable[Path], cache_dir: Path) -> str:
    """Return a hash of names and contents.  Large files are hashed once and remembered by path, size and mtime."""
    memory_path = cache_dir / "file_hashes.json"
    memory = read_json(memory_path, {})
    known = len(memory)
    parts = []
    for path in files:
        stat = path.stat()
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        if stat.st_size < 1 << 26:
            parts.append((path.name, sha256(path)))
            continue
        if key not in memory:
            memory[key] = sha256(path)
        parts.append((path.name, memory[key]))
    if len(memory) > known:
        with suppress(OSError):  # a cache that can only be read serves too
            write_text(memory_path, json.dumps(memory))
    return digest(parts)


def read_json(path: Path, default: Any) -> Any:
    """Return the file's content, or `default` where it is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return default


def read_lines(path: Path) -> list[Any]:
    """Return the values of a JSON Lines file, blank lines left out.

    Not splitlines: JSON leaves U+2028 and the like as they are.
    """
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Write a JSON Lines file, a value a line, whole or not at all."""
    write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


TEMPORARY = ".*.[0-9]*"  # a file that is being written


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def publish(folder: Path, target: Path) -> None:
    """Move a finished folder to its place, replacing what is there."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as f:
                os.fsync(f.fileno())
    if target.exists():
        old = target.with_name(f".{target.name}.old.{os.getpid()}")
        os.rename(target, old)
        os.rename(folder, target)
        shutil.rmtree(old)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, target)


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock that ends with the process.  `waiting` is called once where another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting:
            waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
