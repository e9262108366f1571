"""Imports point down: a module may import only from layers below its own.  Scripts import what there is."""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "soul_cli"
FLOORS = [
    {"core"},
    {"data", "objective"},
    {"models", "optim"},
    {"evaluate", "train"},
    {"tasks", "report"},
    {"experiment"},
    {"api", "planning", "tools"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
# third-party packages that only these modules may know
OWNERS = {
    "hydra": {"experiment", "cli"},
    "transformers": {"models", "evaluate", "experiment", "api"},
    "pandas": {"report", "api"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "rich": {"core", "report"},
    "lm_eval": {"evaluate"},
    "datasets": {"data", "evaluate"},
}


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    return names | {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = [p for p in sorted(PACKAGE.rglob("*.py")) if unit(p) != "__init__"]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = unit(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "soul_cli" and len(parts) > 1 and parts[1] != here:
            assert LEVEL[parts[1]] < LEVEL[here], f"{here} imports {name}, which is not below it"
        if parts[0] in OWNERS:
            assert here in OWNERS[parts[0]], f"{here} must not know {parts[0]}"


def test_scripts_import_what_the_package_has() -> None:
    """Many of their imports stand in functions that only hours of work come to."""
    for path in sorted(PACKAGE.with_name("scripts").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.module or not node.module.startswith("soul_cli"):
                continue
            module = import_module(node.module)
            for name in (alias.name for alias in node.names):
                submodule = hasattr(module, "__path__") and find_spec(f"{node.module}.{name}")
                assert hasattr(module, name) or submodule, f"{path.name}: {node.module}.{name}"
