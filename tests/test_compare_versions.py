"""scripts/compare_versions.py finds what differs between two run folders, however small."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

TENSOR = torch.tensor([[1.0, -2.0], [0.0, 3.0]])


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[1] / "scripts" / "compare_versions.py"
    spec = importlib.util.spec_from_file_location("compare_versions", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Factory of a run folder with one value of each part changed, or none."""

    def write(name: str, *, nll: Any = 0.5, weights: Any = TENSOR, loss: float = 1.0, **metric: Any) -> Path:
        out = tmp_path / name
        (out / "model").mkdir(parents=True)
        row = {"split": "forget", "nll": nll, "answer_logps": [-0.25, float("nan")]}
        (out / "rows.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row | {'nll': 2})}\n")
        (out / "train.jsonl").write_text(json.dumps({"step": 1, "loss_forget": loss, "tokens_per_s": id(out)}) + "\n")
        mia = {"value": 0.75, "n": 4, "definition": name, "extra": {}}
        (out / "metrics.json").write_text(json.dumps({"models": {"this_run": {"mia": mia | metric}}}))
        save_file({"layer": weights}, out / "model" / "model.safetensors")
        return out

    return write


def test_two_runs_with_the_same_numbers_are_equal(script: ModuleType, folder: Callable[..., Path]) -> None:
    parts = script.compare(folder("old"), folder("new"))
    assert {part: (found.values, found.unequal) for part, found in parts.items()} == {
        "rows": (8, 0), "weights": (4, 0), "metrics": (2, 0), "steps": (2, 0),
    }  # fmt: skip
    assert not any(found.alone for found in parts.values())


@pytest.mark.parametrize(
    ("changed", "part", "first", "largest"),
    [
        ({"nll": 0.5 + 2**-50}, "rows", "rows.jsonl[0].nll", 2**-50),
        ({"nll": None}, "rows", "rows.jsonl[0].nll", 0),
        ({"weights": TENSOR.nextafter(torch.tensor(9.0))}, "weights", "layer", 2**-22),
        ({"loss": 1.5}, "steps", "train.jsonl[0].loss_forget", 0.5),
        ({"weights": torch.tensor([[1.0, -2.0], [-0.0, 3.0]])}, "weights", "layer", 0),
        ({"weights": TENSOR.double()}, "weights", "layer", 0),
        ({"weights": TENSOR.flatten()}, "weights", "layer", 0),
        ({"n": 5}, "metrics", "this_run.mia.n", 1),
    ],
)
def test_a_planted_difference_is_found(
    script: ModuleType, folder: Callable[..., Path], changed: dict[str, Any], part: str, first: str, largest: float
) -> None:
    parts = script.compare(folder("old"), folder("new", **changed))
    assert [name for name, found in parts.items() if found.unequal] == [part]
    assert parts[part].first.startswith(first)
    assert parts[part].largest == largest
    assert "differ" in str(parts[part])


@pytest.mark.parametrize(("file", "part"), [("rows.jsonl", "rows"), ("model/model.safetensors", "weights")])
def test_a_missing_file_is_a_difference(script: ModuleType, folder: Callable[..., Path], file: str, part: str) -> None:
    old, new = folder("old"), folder("new")
    (new / file).unlink()
    assert script.compare(old, new)[part].first.endswith("(old alone)")
    assert script.compare(new, old)[part].unequal == 1


def test_a_lost_row_is_a_difference_and_a_new_key_is_named(script: ModuleType, folder: Callable[..., Path]) -> None:
    old, new = folder("old"), folder("new", D=0.5)
    (new / "rows.jsonl").write_text((new / "rows.jsonl").read_text().split("\n")[0])
    parts = script.compare(old, new)
    assert parts["rows"].unequal == 1
    assert parts["metrics"].unequal == 0
    assert parts["metrics"].alone == {"this_run.mia.D (new)"}


def test_overrides_are_given_under_the_names_a_checkout_knows(script: ModuleType, tmp_path: Path) -> None:
    name = "npo-soul-alternating"
    old = script.overrides(name, tmp_path)
    assert {"method.retain_weight=0.5", "optim.mode=alternating"} < set(old)
    for group in ("retain", "combine"):
        (tmp_path / "configs" / group).mkdir(parents=True)
    new = script.overrides(name, tmp_path)
    assert {"retain.weight=0.5", "combine=alternating"} == set(new) - set(old)
    assert len(new) == len(old)
