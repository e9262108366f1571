"""`from soul_cli import run`: what a Python program gets of a run, and what it is told of mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from runs import TINY, only_run

import soul_cli
from soul_cli import Result, UserError, run
from soul_cli.experiment.overrides import quoted

NOTEBOOK = Path(__file__).parents[1] / "docs" / "python.ipynb"


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, soul_cli; print(*{'torch', 'transformers', 'hydra', 'pandas'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
    with pytest.raises(AttributeError, match="has no attribute 'runs'"):
        soul_cli.runs  # noqa: B018


def test_a_finished_run_is_read_from_its_folder(finished: tuple[Path, Path, str]) -> None:
    folder = only_run(finished[1])
    result = Result(folder)
    saved = json.loads((folder / "metrics.json").read_text())["models"]
    metrics = result.metrics
    assert list(metrics.columns) == [
        "original", "retain_trained", "this_run", "low", "high", "n", "goal", "definition"
    ]  # fmt: skip
    assert set(metrics.index) == {name for some in saved.values() for name in some}
    for model, some in saved.items():
        for name, metric in some.items():
            assert metrics.loc[name, model] == float(metric["value"])
    last = saved["this_run"]["forget_rougeL"]
    assert list(metrics.loc["forget_rougeL", ["low", "high"]]) == last["ci95"]
    rows = result.rows
    assert rows.groupby("model").size().to_dict() == dict.fromkeys(saved, 5 * 6)
    first = json.loads((folder / "rows.jsonl").read_text().splitlines()[0])
    (mine,) = rows[(rows.model == "this_run") & (rows.split == first["split"]) & (rows["index"] == 0)].to_dict(
        "records"
    )
    assert {k: mine[k] for k in first} == first
    assert result.report == folder / "report.html"


def test_a_metric_that_one_model_lacks_is_not_a_number(finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    content = json.loads((only_run(finished[1]) / "metrics.json").read_text())
    del content["models"]["original"]["forget_rougeL"]
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    assert list(Result(tmp_path).metrics.isna().loc["forget_rougeL", ["original", "this_run"]]) == [True, False]


def test_the_command_and_python_share_a_run(data: Path, finished: tuple[Path, Path, str]) -> None:
    cache, out, _ = finished
    where = [f"task.source={quoted(str(data))}", f"cache_dir={quoted(str(cache))}", f"output_dir={quoted(str(out))}"]
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert run([*TINY, *where]).folder == only_run(out)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=nposs"], ["method/nposs", "graddiff"]),
        (["task.source=/no/such"], ["/no/such: no such folder"]),
        (["sweep=table1"], ["one run"]),
        (["-m", "seed=0,1"], ["one run"]),
        (["plan=true"], ["plan=true"]),
        (["output_dir=/etc/passwd/x"], ["output_dir", "not a folder"]),
    ],
)
def test_mistakes_are_raised(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        run(overrides)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_what_the_system_refuses_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from soul_cli.experiment import run as experiment

    def full(config: object) -> Path:
        raise OSError(28, "No space left on device", "/there")

    monkeypatch.setattr(experiment, "run", full)
    with pytest.raises(UserError, match="no space left on the disk of /there"):
        run([f"output_dir={quoted(str(tmp_path))}"])


def test_the_notebook_runs(data: Path, finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    """Its cells in order, on a tiny model: those tagged `parameters` get other values, as papermill has it."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    where = [
        f"task.source={quoted(str(data))}",
        f"cache_dir={quoted(str(finished[0]))}",
        f"output_dir={quoted(str(tmp_path))}",
    ]
    names: dict[str, object] = {}
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    for cell in cells:
        exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", []):
            assert "settings" in names
            names["settings"] = [*TINY, *where, "train.epochs=1"]
    assert len(list(tmp_path.rglob("metrics.json"))) == 2
