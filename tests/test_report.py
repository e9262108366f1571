"""Tables, marks and comparability from run folders with known numbers."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from report_runs import ORIGINAL, write_epochs, write_run

from soul_cli.core.run_folder import RunFolder
from soul_cli.core.types import Metric, UserError
from soul_cli.report import render
from soul_cli.report.cli import Out, arguments, main, report
from soul_cli.report.comparable import check_comparable, notes
from soul_cli.report.layout import LAYOUTS, Column, Group, Layout, layout_of
from soul_cli.report.paper import read_paper
from soul_cli.report.read import find_runs, unfinished
from soul_cli.report.tables import Cell, beside_paper, caption, grid, long_csv, marks, tabulate, wide_csv
from soul_cli.tasks import copyright_metrics, tofu_metrics

TOFU = LAYOUTS["tofu"]


def three_rows(root: Path) -> None:
    for seed, rouge in enumerate((0.1, 0.2, 0.3)):
        write_run(root, seed, rouge, "method=npo", "optim=soul", retain_acc=0.7)
    write_run(root, 0, 0.5, "method=npo", "optim=adamw", retain_acc=0.6)
    write_run(root, 0, 0.4, "method=ga", "optim=adamw", retain_acc=0.7)


def test_mean_sd_and_n(tmp_path: Path) -> None:
    three_rows(tmp_path)
    table = tabulate(find_runs([tmp_path]))
    own = table["npo", "soul"]
    cell = own["forget_rougeL"]
    assert (cell.mean, cell.sd, cell.values) == (pytest.approx(0.2), pytest.approx(0.1), (0.1, 0.2, 0.3))
    assert cell.metric is not None
    assert (cell.metric.n, cell.goal) == (80, "retain")
    assert own["displacement"].mean == 2.0  # of the last step
    assert own["unlearn_seconds"].mean == 11.0  # 10, 11 and 12: seeds 0 to 2
    assert [own[k].mean for k in ("unlearn_peak_mb", "optimizer_state_mb", "evaluate_seconds")] == [100.0, 20.0, 5.0]
    assert "unlearn_seconds" not in table["original", ""]
    assert list(table) == [
        ("original", ""), ("retain-trained", ""), ("ga", "adamw"), ("npo", "adamw"), ("npo", "soul"),
    ]  # fmt: skip


def test_the_distance_of_an_older_folder_is_read_as_a_metric(tmp_path: Path) -> None:
    """Version 0.1 wrote D into the `extra` of forget_quality, in metrics.json and epochs.jsonl."""
    folder = write_run(tmp_path, 0, 0.1, "method=npo", "optim=soul")
    write_epochs(folder, [0.9, 0.5], [0.9, 0.8])
    old = {"value": 0.01, "n": 80, "goal": "up", "definition": "d", "ci95": None, "extra": {"D": 0.25, "n_retain": 80}}
    content = json.loads((folder / "metrics.json").read_text())
    content["models"]["this_run"]["forget_quality"] = old
    (folder / "metrics.json").write_text(json.dumps(content))
    epochs = [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]
    for line in epochs:
        line["metrics"]["forget_quality"] = {k: v for k, v in old.items() if k not in ("goal", "definition")}
    (folder / "epochs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in epochs))
    (run,) = find_runs([tmp_path])
    distance = run.metrics["this_run"]["forget_quality_D"]
    assert (distance.value, distance.n, distance.goal) == (0.25, 80, "down")
    assert run.epochs[1]["forget_quality_D"].value == 0.25
    assert RunFolder(folder).models()["this_run"]["forget_quality_D"] == distance


def test_a_method_without_an_optimizer_is_a_row_a_solver(tmp_path: Path) -> None:
    three_rows(tmp_path)
    for seed, rouge in enumerate((0.1, 0.3)):
        write_run(tmp_path, seed, rouge, "method=iu", "optim=lion" if seed else "optim=soul")
    write_run(tmp_path, 0, 0.4, "method=iu", "method.solver=cg")
    table = tabulate(find_runs([tmp_path]))
    assert table["iu", "diagonal"]["forget_rougeL"].values == (0.1, 0.3)
    assert table["iu", "cg"]["forget_rougeL"].values == (0.4,)
    text = report(arguments([str(tmp_path)]))
    assert (text.count("| iu | diagonal | 2 |"), text.count("| iu | cg | 1 |")) == (1, 1)


def test_markdown(tmp_path: Path) -> None:
    three_rows(tmp_path)
    runs = find_runs([tmp_path])
    layout = Layout((Group("Forget", "forget", (Column("forget_rougeL", "R"), Column("absent", "A"))),
                     Group("Retain", "retain", (Column("retain_acc", "Acc"),))), ())  # fmt: skip
    text = render.markdown(grid(tabulate(runs), layout, caption(runs, layout), ["look_here"], brief=True))
    lines = text.splitlines()
    assert "80 forget, 80 retain questions; judge rougeL. Mean ± sd over n unlearning seeds (0, 1, 2)" in lines[0]
    assert lines[3:10] == [
        "| method | optimizer | n | Forget<br>R →R | Retain<br>Acc ↑ |",
        "|---|---|---|---|---|",
        "| original | - | 1 | 0.900 | 0.800 |",
        "| retain-trained | - | 1 | 0.200 | 0.800 |",
        "| ga | adamw | 1 | <ins>0.400</ins> | **0.700** |",
        "| npo | adamw | 1 | 0.500 | 0.600 |",
        "| npo | soul | 3 | **0.200 ± 0.100** | **0.700 ± 0.000** |",
    ]
    assert "- Note: look\\_here." in lines


def marked(goal: str, **values: float) -> dict[str, str]:
    names = {"original": "original", "floor": "retain-trained"}
    column = {(names.get(k, k), ""): Cell((v,), Metric(v, 1, goal, "")) for k, v in values.items()}
    return {method: mark for (method, _), mark in marks(column).items()}


@pytest.mark.parametrize(
    ("goal", "values", "expected"),
    [
        ("up", {"original": 9, "floor": 8, "a": 1, "b": 3, "c": 2}, {"b": "best", "c": "second"}),
        ("down", {"a": 1, "b": 3, "c": 2}, {"a": "best", "c": "second"}),
        ("retain", {"original": 0.9, "floor": 0.3, "a": 0.0, "b": 0.4, "c": 0.5}, {"b": "best", "c": "second"}),
        ("retain", {"original": 0.9, "a": 0.0, "b": 0.4}, {}),  # no floor, no best
        ("up", {"a": 1.0001, "b": 1.0, "c": 0.5}, {"a": "best", "b": "best"}),  # both show 1.000; no second
        ("up", {"a": 0.7, "b": 0.5, "c": 0.5}, {"a": "best", "b": "second", "c": "second"}),
        ("up", {"original": 9, "a": 1}, {}),  # nothing to choose from
        ("up", {"a": 1, "b": 1}, {}),
        ("", {"a": 1, "b": 2}, {}),
    ],
)
def test_marks(goal: str, values: dict[str, float], expected: dict[str, str]) -> None:
    assert marked(goal, **values) == expected


def test_a_cell_shows_its_sd_as_fine_as_its_mean() -> None:
    assert Cell((0.25, 0.25 + 6e-17)).text == "0.250 ± 0.000"
    assert Cell((2e-9 - 3e-10, 2e-9, 2e-9 + 3e-10)).text == "2e-09 ± 3e-10"
    assert Cell((0.0,)).text == "0.000"


# --- what may stand in one table ---------------------------------------------------------------------------


def test_runs_that_do_not_belong_together_are_refused_by_name(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 0.1)
    write_run(tmp_path, 1, 0.2, "task.forget=forget05")
    with pytest.raises(UserError, match=r"task\.forget differs .*forget05.* in npo-soul-1-0\.2"):
        check_comparable(find_runs([tmp_path]))


@pytest.mark.parametrize("setting", ["eval.min_k=40", "eval.limit=3", "model.max_length=99", "target_seed=1"])
def test_other_evaluation_or_model_is_refused(tmp_path: Path, setting: str) -> None:
    write_run(tmp_path, 0, 0.1)
    write_run(tmp_path, 1, 0.2, setting)
    with pytest.raises(UserError, match=rf"{setting.split('=')[0]} differs"):
        check_comparable(find_runs([tmp_path]))


@pytest.mark.parametrize(("key", "value"), [("n", 40), ("definition", "truth ratio, arithmetic mean")])
def test_other_questions_or_definitions_are_refused(tmp_path: Path, key: str, value: object) -> None:
    write_run(tmp_path, 0, 0.1)
    folder = write_run(tmp_path, 1, 0.2)
    content = json.loads((folder / "metrics.json").read_text())
    content["models"]["original"]["forget_rougeL"][key] = value
    (folder / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{key} of forget_rougeL differs"):
        check_comparable(find_runs([tmp_path]))


def test_what_a_method_draws_is_no_setting(tmp_path: Path) -> None:
    """The direction of RMU is another with each seed."""
    for seed in (0, 1):
        write_run(tmp_path, seed, 0.5, "method=rmu")
    first, second = find_runs([tmp_path])
    assert first.config["method.seed"] != second.config["method.seed"]
    check_comparable([first, second])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("setting", ["optim.lr=0.5", "retain.weight=7"])
def test_two_settings_under_one_name_are_refused(tmp_path: Path, seed: int, setting: str) -> None:
    write_run(tmp_path, 0, 0.1)
    write_run(tmp_path, seed, 0.2, setting)
    with pytest.raises(UserError, match=rf"other settings: {setting.split('=')[0]} differs"):
        check_comparable(find_runs([tmp_path]))


def test_one_seed_twice_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 0.1)
    write_run(tmp_path, 0, 0.2)
    with pytest.raises(UserError, match="two runs of npo soul with seed 0 and the same settings"):
        check_comparable(find_runs([tmp_path]))


def test_a_copy_of_a_run_counts_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", 0, 0.1)
    shutil.copytree(folder, tmp_path / "b" / folder.name)
    assert len(find_runs([tmp_path, tmp_path / "a"])) == 1


def test_notes_name_what_is_not_alike(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 0.1, "optim=soul", "method.beta=0.2")
    write_run(tmp_path, 1, 0.2, "optim=adamw", "train.epochs=9", original={**ORIGINAL, "forget_rougeL": 0.8})
    (tmp_path / "npo-soul-0-0.1" / "environment.json").write_text('{"git": "abc"}')
    found = "\n".join(notes(find_runs([tmp_path])))
    assert "train.epochs differs between rows: 9 (npo adamw)" in found
    assert "method.beta of npo differs between optimizers" in found
    assert "rows are over different seeds: npo adamw [1]; npo soul [0]" in found
    assert "forget_rougeL of the original model differs between runs" in found
    assert "different code (git commits)" in found


def test_equal_rows_need_no_note(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 0.1, "optim=soul")
    write_run(tmp_path, 0, 0.2, "optim=adamw")
    assert notes(find_runs([tmp_path])) == []


def test_messages_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run"):
        find_runs([tmp_path])
    with pytest.raises(UserError, match="nowhere: no such folder"):
        find_runs([tmp_path / "nowhere"])
    folder = write_run(tmp_path, 0, 0.1)
    (folder / "train.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"train\.jsonl is not JSON lines"):
        find_runs([tmp_path])
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match=r"metrics\.json is not what soul-unlearn writes"):
        find_runs([tmp_path])
    (folder / "metrics.json").unlink()
    assert unfinished([tmp_path]) == [folder]


def test_a_task_without_a_layout_shows_its_columns() -> None:
    layout = layout_of("other", ["ppl", "forget_bleu", "retain_bleu"])
    assert [c.metric for c in layout.groups[0].columns] == ["ppl", "forget_bleu", "retain_bleu"]
    assert layout.axes == (("forget_bleu", "retain_bleu"),)
    known = layout_of("tofu", ["mia", "new_metric"])
    assert known.groups[-1] == Group("Other", "", (Column("new_metric", "new_metric"),))


def test_layouts_have_a_column_for_every_metric_of_the_tasks() -> None:
    never = {"real_authors_acc_own", "world_facts_acc_own"}  # gold answers there are contained, not nearest
    assert set(tofu_metrics.COLUMNS) - never <= {c.metric for c in TOFU.columns}
    assert set(copyright_metrics.columns([20, 300])) <= {c.metric for c in LAYOUTS["copyright"].columns}


# --- files -------------------------------------------------------------------------------------------------


def test_csv(tmp_path: Path) -> None:
    three_rows(tmp_path)
    table = tabulate(find_runs([tmp_path]))
    rows = list(csv.DictReader(io.StringIO(wide_csv(table, TOFU))))
    assert [r["n"] for r in rows] == ["1", "1", "1", "1", "3"]
    assert (rows[4]["forget_rougeL"], rows[4]["forget_rougeL_sd"], rows[3]["forget_rougeL_sd"]) == ("0.2", "0.1", "")
    read = pd.read_csv(io.StringIO(long_csv(table, TOFU, read_paper("tofu"))), keep_default_na=False)
    acc = read[(read.method == "npo") & (read.optim == "soul") & (read.metric == "retain_acc")].iloc[0]
    assert (acc["mean"], acc["mark"], acc["paper"]) == (0.7, "best", "0.8125")
    rouge = read[(read.method == "npo") & (read.optim == "soul") & (read.metric == "forget_rougeL")].iloc[0]
    assert (rouge["sd"], rouge["median"], rouge["n"], rouge["questions"]) == ("0.1", 0.2, 3, "80")


def test_paper_stands_beside_ours_in_our_units(tmp_path: Path) -> None:
    three_rows(tmp_path)
    beside = beside_paper(tabulate(find_runs([tmp_path])), TOFU, read_paper("tofu"))
    at = [h.metric for h in beside.heads].index("retain_acc")
    lines = {(x.method, x.optim): x for x in beside.lines}
    ours, theirs = lines["npo", "soul"].cells[at : at + 2]
    assert ours is not None
    assert (ours.values, ours.mark) == ((0.7, 0.7, 0.7), "best")
    assert theirs == Cell((pytest.approx(0.8125),))  # type: ignore[arg-type]
    assert lines["retain-trained", ""].cells[at + 1] is None
    assert lines["po", "soul"].cells[at] is None  # the paper has it, we do not
    assert "another model" in beside.notes[0]
    assert "wikitext_word_ppl" not in [h.metric for h in beside.heads]  # the paper has it for the other task
    assert sum(span for _, span in beside.groups) == len(beside.heads)


def test_the_papers_numbers_are_those_of_the_reference(shared: Path) -> None:
    for task, file in (("tofu", "paper_table1_tofu.csv"), ("copyright", "paper_table2_copyright.csv")):
        optims = {"first_order": "adamw", "soul": "soul", "": ""}
        with (shared / "reference" / file).open() as f:
            expected = {(r.pop("method"), optims[r.pop("optimizer")]): r for r in csv.DictReader(f)}
        assert read_paper(task).rows == {k: {c: float(v) for c, v in r.items()} for k, r in expected.items()}
    with pytest.raises(UserError, match="no table of task 'other'"):
        read_paper("other")


def test_text_is_escaped() -> None:
    assert render.md("a|b_*`<b>\nc") == "a\\|b\\_\\*\\`&lt;b&gt; c"
    assert render.tex("50%_&#{}\\~^<é") == (
        r"50\%\_\&\#\{\}\textbackslash{}\textasciitilde{}\textasciicircum{}\textless{}\'{e}"
    )
    assert render.tex("中[*") == "{[}U+4E2D]{[}{*}"


def test_latex_compiles(tmp_path: Path) -> None:
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")
    three_rows(tmp_path / "runs")
    runs = find_runs([tmp_path / "runs"])
    table = tabulate(runs)
    own = grid(table, TOFU, caption(runs, TOFU) + r' %&_#$~^\{}[*"<é中‖Δθ‖', ["* x_y", "[z"], brief=False)
    (tmp_path / "t.tex").write_text(render.latex([own, beside_paper(table, TOFU, read_paper("tofu"))]))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three_rows(tmp_path / "runs")
    main([str(tmp_path / "runs"), "--out", f"{tmp_path}/new/", "--paper", "--questions", "3,1"])
    figures = ("tradeoff", "truth_ratio", "steps", "cost")
    expected = {"table.md", "table.tex", "table.html", "table.csv", "table_wide.csv", "answers.md", "report.html"}
    expected |= {f"{name}.{kind}" for name in figures for kind in ("png", "svg")}
    assert {p.name for p in (tmp_path / "new").iterdir()} == expected
    assert (tmp_path / "new" / "cost.png").read_bytes().startswith(b"\x89PNG")
    assert "note: rows are over different seeds" in capsys.readouterr().out
    assert "Beside the paper" in (tmp_path / "new" / "table.md").read_text()


def test_a_name_is_what_files_begin_with(tmp_path: Path) -> None:
    out = Out(str(tmp_path / "my.table"))
    assert out.path("table", ".md") == tmp_path / "my.table.md"
    assert out.path("table_wide", ".csv") == tmp_path / "my.table_wide.csv"
    assert out.path("report", ".html") == tmp_path / "my.table_report.html"
    assert Out(str(tmp_path)).path("table", ".md") == tmp_path / "table.md"


def test_without_out_the_table_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three_rows(tmp_path)
    main([str(tmp_path)])
    assert "| npo | soul | 3 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folder", "more", "text"),
    [
        ("none", [], "error: no finished run "),
        (
            "runs",
            ["--out", "OUT/", "--questions", "9"],
            "error: --questions [9]: the forget split has questions 0 to 3",
        ),
        ("runs", ["--out", "FILE/out/"], "error: FILE/out: not a directory; name another place"),
    ],
)
def test_an_error_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str, more: list[str], text: str
) -> None:
    three_rows(tmp_path / "runs")
    (tmp_path / "none").mkdir()
    (tmp_path / "file").write_text("")
    places = {"OUT": str(tmp_path / "out"), "FILE": str(tmp_path / "file")}

    def placed(words: str) -> str:
        for name, place in places.items():
            words = words.replace(name, place)
        return words

    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / folder), *map(placed, more)])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(placed(text))
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
