"""What a finished run prints, on terminals of any width and in files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_runs import write_run

from soul_cli.core.screen import console
from soul_cli.report.terminal import print_run

NUMBER = re.compile(r"\d\.\d{3}")


@pytest.fixture(autouse=True)
def width_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The console does not keep the COLUMNS that it found when it was made, as in a worker of pytest-xdist."""
    monkeypatch.setattr(console, "_width", None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run in a folder of a long path, with intervals."""

    def add_intervals(content: dict[str, Any]) -> None:
        for metrics in content["models"].values():
            for metric in metrics.values():
                metric["ci95"] = [0.111, 0.222]

    return change(write_run(tmp_path / ("long_name_" * 12), 0, 0.123, retain_acc=0.7), add_intervals)


def change(folder: Path, edit: Any) -> Path:
    content = json.loads((folder / "metrics.json").read_text())
    content |= {"absent": {}, "epoch_eval": None, "headline": list(content["models"]["this_run"])}
    edit(content)
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    print_run(folder)
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [200, 80, 66, 50, 40, 30, 20, 10])
def test_no_number_is_cut_and_no_model_vanishes(
    folder: Path, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = printed(folder, capsys)
    assert f"written to {folder}\n" in text
    table = text[: text.index("↑ higher is better")]
    assert "…" not in table.replace("0.111 … 0.222", "")
    content = json.loads((folder / "metrics.json").read_text())
    values = [f"{m['value']:.3f}" for some in content["models"].values() for m in some.values()]
    assert sorted(NUMBER.findall(table.replace("0.111 … 0.222", ""))) == sorted(values)
    assert table.count("0.111 … 0.222") == 4
    for name in ("original", "retain", "this run", "95 % interval"):
        assert name in table
    longest = max(map(len, table.splitlines()))
    assert longest <= max(columns, 25)  # below, numbers come first: a name of 6 and an interval of 13
    answers = text[text.index("cost: ") :]
    assert re.sub(r"[\s│]", "", answers).count("ananswer") == 3


def test_in_a_file_nothing_is_folded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert not console.is_terminal
    change(folder, lambda c: c.update(headline=[*c["headline"], "a_metric_" * 12]))
    name = "a_metric_" * 12

    def longer(content: dict[str, Any]) -> None:
        for some in content["models"].values():
            some[name] = {**some["retain_acc"]}
        content["headline"] = [name]

    text = printed(change(folder, longer), capsys)
    assert re.search(rf"^ *{name} ↑ +0.800 +0.800 +0.700 +0.111 … 0.222", text, re.MULTILINE)
    assert f"written to {folder}\n" in text


def test_reasons_of_what_is_absent_where_nothing_was_unlearned(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "no retain-trained model to compare with"

    def evaluation_alone(content: dict[str, Any]) -> None:
        del content["models"]["this_run"], content["models"]["retain_trained"]
        content["absent"] = {"original": {"forget_quality": reason, "forget_quality_D": reason, "mia": "another"}}

    text = printed(change(folder, evaluation_alone), capsys)
    assert f"absent: forget_quality, forget_quality_D ({reason})\nabsent: mia (another)\n" in text
    assert "Intervals: of original," in text


def test_control_characters_of_questions_and_answers_are_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in folder.glob("rows*.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            line |= {"question": "Who \x1b[31mwrote[/] it?", "generation": "a\x00b\x07\x9b \u202e [bold]"}
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = printed(folder, capsys)
    assert not re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert r"Who \x1b[31mwrote[/] it?" in text
    assert r"a\x00b\x07\x9b \u202e [bold]" in text
