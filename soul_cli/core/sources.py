"""The code behind a result: a module, all that it imports from the package, and the data that lie beside these.

Imports are read off the source, those inside functions too; those under `if TYPE_CHECKING` never run and do not count.
A module that is imported also runs the `__init__` of each package above it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from soul_cli.core.files import PACKAGE, digest, sha256


@dataclass(frozen=True)
class Sources:
    """What determines a result besides its input."""

    files: tuple[Path, ...]  # modules and data, sorted
    libraries: frozenset[str]  # what the modules import from elsewhere, by top-level name, without Python's own

    def digest(self, package: Path = PACKAGE) -> str:
        """Return a hash of the files' places in the package and of their content."""
        return digest([(f.relative_to(package).as_posix(), sha256(f)) for f in self.files])


def closure(roots: Collection[str], exempt: Collection[str] = (), package: Path = PACKAGE) -> Sources:
    """Return what the modules `roots` (dotted names) need, followed until nothing is new.

    exempt: modules that are left out, and what only they import with them.
    """
    todo, seen, libraries = list(roots), set(exempt), set[str]()
    files: set[Path] = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        path = _module(name, package)
        if path is None:
            raise ModuleNotFoundError(f"{name} is no module of {package}")
        files |= {path, *_data(path, package)}
        todo += [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 1)]
        for imported in _imports(path, name):
            top = imported.split(".")[0]
            if top == package.name:
                todo += _modules(imported, package)
            elif top not in sys.stdlib_module_names:
                libraries.add(top)
    return Sources(tuple(sorted(files)), frozenset(libraries))


def _module(name: str, package: Path) -> Path | None:
    """Return the file of a module of the package; None where the name is none (a function, say)."""
    place = package.parent.joinpath(*name.split("."))
    return next((p for p in (place / "__init__.py", place.with_suffix(".py")) if p.is_file()), None)


def _modules(imported: str, package: Path) -> list[str]:
    """Return the module behind an imported name: itself, or the one that it is defined in."""
    return [imported] if _module(imported, package) else [imported.rpartition(".")[0]]


@lru_cache
def _imports(path: Path, name: str) -> tuple[str, ...]:
    """Return the dotted names a module imports; of `from a import b`, a.b, which may be a module."""
    found: list[str] = []
    for node in _running(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level or any(alias.name == "*" for alias in node.names):
                raise SyntaxError(f"{name}, line {node.lineno}: import by full name, and not *")
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(found)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a tree's nodes but for what stands under `if TYPE_CHECKING`."""
    yield node
    typed = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    for child in node.orelse if typed else ast.iter_child_nodes(node):  # type: ignore[attr-defined]
        yield from _running(child)


def _data(path: Path, package: Path) -> set[Path]:
    """Return the files beside a module that are not Python's, those in folders that are no packages included.

    None of the package's own folder: what lies there in a wheel are configurations, whose values stand in every key.
    """
    if path.parent == package:
        return set()
    found: set[Path] = set()
    folders = [path.parent]
    while folders:
        for each in folders.pop().iterdir():
            if each.is_dir() and each.name != "__pycache__" and not (each / "__init__.py").is_file():
                folders.append(each)
            elif each.is_file() and each.suffix not in (".py", ".pyc", ".pyi") and not each.name.startswith("."):
                found.add(each)
    return found
