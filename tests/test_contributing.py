"""The example method of docs/extending.md works as it stands there; CONTRIBUTING.md shows the house as it is."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf
from test_layers import FLOORS
from test_methods import BY_TOKEN, two_answers

from soul_cli.experiment.config import _typed

ROOT = Path(__file__).parents[1]
METHOD = re.search(r"^## A method.*?(?=^## )", (ROOT / "docs/extending.md").read_text(encoding="utf-8"), re.M | re.S)


def blocks(kind: str) -> list[str]:
    assert METHOD
    found = re.findall(rf"^ *```{kind}\n(.*?)^ *```", METHOD[0], flags=re.M | re.S)
    return ["".join(line.removeprefix("    ") for line in block.splitlines(keepends=True)) for block in found]


def test_the_example_passes_its_own_test(monkeypatch: pytest.MonkeyPatch):
    term, check = blocks("python")
    module = ModuleType("example")  # a dataclass's annotations are looked up in its module
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names = vars(module)
    names |= {"math": math, "pytest": pytest, "BY_TOKEN": BY_TOKEN, "two_answers": two_answers}
    exec(term, names)
    exec(check, names)
    names["test_unlikelihood"]()
    (values,) = blocks("yaml")
    made = _typed("method", OmegaConf.create(values), names["Unlikelihood"])
    assert (made.name, made.least) == ("unlikelihood", 1e-5)


def test_the_house_is_the_one_that_the_layers_are_tested_by():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms: dict[str, int] = {}
    for floor, room in re.findall(r"^\| (\d) \| `(\w+)(?:/|\.py)` \|", text, flags=re.M):
        rooms[room] = int(floor)
    assert rooms == {room: level for level, rooms in enumerate(FLOORS, 1) for room in rooms}
