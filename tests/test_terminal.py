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
    """Neither the console's COLUMNS of when it was made, as in a worker of pytest-xdist, nor those of now count."""
    monkeypatch.setattr(console, "_width", None)
    monkeypatch.delenv("COLUMNS", raising=False)


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
    content |= {"absent": {}, "epoch_eval": None}
    edit(content)
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def printed(folder: Path, capsys: pytest.CaptureFixture[str], *, verbose: bool = False) -> str:
    print_run(folder, verbose=verbose)
    return capsys.readouterr().out


def test_the_headline_has_eight_lines_in_eighty_columns(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seven metrics of names as long as the longest; the words; the cost in one line; the paths last."""
    monkeypatch.setenv("COLUMNS", "80")
    long = ["forget_extraction_strength", *(f"forget_{letter}" for letter in "abcd")]

    def more(content: dict[str, Any]) -> None:
        for metrics in content["models"].values():
            metrics |= {name: {**metrics["forget_rougeL"], "value": 1234.567} for name in long}
        content["headline"] += [{"aspect": "forgetting", "metric": name, "near_from": None} for name in long]

    text = printed(change(folder, more), capsys)
    head, *rest = text.splitlines()
    assert re.fullmatch("tofu · npo · soul · seed 0 +original +retain-trained +this run +verdict *", head)
    table = rest[: next(i for i, line in enumerate(rest) if line.startswith("verdict: "))]
    assert len(table) == 7
    assert re.fullmatch(r"forgetting forget_rougeL +0.900 +0.200 +0.123 +near *", table[0])
    assert re.fullmatch(r"kept       retain_rougeL +0.950 +0.900 +0.900 short of *", table[1])
    assert max(map(len, [head, *table])) <= 80
    assert "\ncost: 15.0 s, peak memory 100 MB; cached: target model (60.0 s when made)\n" in text
    assert text.endswith(f"written to {folder}\npage: {folder}/report.html\n")


@pytest.mark.parametrize("columns", [200, 80, 66, 50, 40, 30, 20, 10])
@pytest.mark.parametrize("verbose", [False, True])
def test_no_number_is_cut_and_no_model_vanishes(
    folder: Path, columns: int, verbose: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = printed(folder, capsys, verbose=verbose)
    assert f"written to {folder}\npage: {folder}/report.html\n" in text
    table = text[: re.search("^(verdict: |↑ higher)", text, re.MULTILINE).start()]  # type: ignore[union-attr]
    intervals = table.count("0.111 … 0.222")
    table = table.replace("0.111 … 0.222", "")
    assert "…" not in table
    content = json.loads((folder / "metrics.json").read_text())
    shown = [line["metric"] for line in content["headline"]]
    values = [
        f"{m['value']:.3f}"
        for some in content["models"].values()
        for name, m in some.items()
        if verbose or name in shown
    ]
    assert sorted(NUMBER.findall(table)) == sorted(values)
    assert intervals == (4 if verbose else 0)
    names = ["original", "retain-trained", "this run", "95 % interval" if verbose else "verdict"]
    assert all(re.search(rf"(^| ){name}( |$)", table, re.MULTILINE) for name in names)
    longest = max(map(len, table.splitlines()))
    assert longest <= max(columns, 25)  # below, numbers come first: a name of 6 and a heading of 14
    answers = text[text.index("cost: ") :]
    assert re.sub(r"[\s│]", "", answers).count("ananswer") == 3


def test_in_a_file_nothing_is_folded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert not console.is_terminal
    name = "a_metric_" * 12

    def longer(content: dict[str, Any]) -> None:
        for some in content["models"].values():
            some[name] = {**some["retain_acc"]}

    text = printed(change(folder, longer), capsys, verbose=True)
    assert re.search(rf"^{name} ↑ +0.800 +0.800 +0.700 +0.111 … 0.222", text, re.MULTILINE)
    assert f"written to {folder}\n" in text


def test_verbose_shows_every_metric_and_each_cost(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short, long = printed(folder, capsys), printed(folder, capsys, verbose=True)
    assert "retain_acc" not in short
    assert "retain_acc ↑" in long
    assert "cost: unlearn 10.0 s, peak memory 100.0 MB, optimizer states 20.0 MB\n" in long
    assert "cost: target model 60.0 s" in long


def test_reasons_of_what_is_absent_where_nothing_was_unlearned(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "no retain-trained model to compare with"

    def evaluation_alone(content: dict[str, Any]) -> None:
        del content["models"]["this_run"], content["models"]["retain_trained"]
        content["absent"] = {"original": {"forget_quality": reason, "forget_quality_D": reason, "mia": "another"}}

    text = printed(change(folder, evaluation_alone), capsys, verbose=True)
    assert f"absent: forget_quality, forget_quality_D ({reason})\nabsent: mia (another)\n" in text
    assert "Intervals: of original," in text


def test_a_run_that_only_evaluates_has_arrows_in_place_of_verdicts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the original alone, too; of what is absent, the headline's own metrics are named."""
    monkeypatch.setenv("COLUMNS", "80")

    def evaluation_alone(content: dict[str, Any]) -> None:
        del content["models"]["this_run"]
        content["absent"] = {"original": {"forget_rougeL": "no reason", "forget_bleu": "not shown"}}

    text = printed(change(folder, evaluation_alone), capsys)
    assert re.search(r"original +retain-trained *\n", text)
    assert re.search(r"^kept +retain_rougeL ↑ +0.950 +0.900 *\n", text, re.MULTILINE)
    assert "verdict" not in text.lower()
    assert "absent: forget_rougeL (no reason)\n" in text
    assert "not shown" not in text
    text = printed(change(folder, lambda c: c["models"].pop("retain_trained")), capsys)
    assert re.search(r"^kept +retain_rougeL ↑ +0.950 *\n", text, re.MULTILINE)


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
