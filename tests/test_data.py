"""soul_cli.data.tofu and the embedded set: promised counts, splits that fit each other, errors that say where."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset

from soul_cli.core.types import QA, UserError
from soul_cli.data import embedded
from soul_cli.data.tofu import AUTHOR_ROWS, author_names, load_tofu, read_split

SPLITS = {"forget": 80, "retain": 80, "real_authors": 60, "world_facts": 60, "holdout": 80}


@pytest.fixture(scope="module")
def authors() -> list[dict[str, Any]]:
    """The embedded authors as they are shipped."""
    return [json.loads(p.read_text(encoding="utf-8")) for p in sorted((embedded.HERE / "authors").glob("*.json"))]


@pytest.fixture
def folder(cache_dir: Path, tmp_path: Path) -> Path:
    """A copy of the embedded set, to be damaged."""
    return Path(shutil.copytree(embedded.layout(cache_dir), tmp_path / "tofu"))


def pairs(rows: list[QA]) -> set[tuple[str, str]]:
    return {(r.question, r.answer) for r in rows}


# --- the embedded set --------------------------------------------------------------------------------------


def test_embedded_counts(cache_dir: Path):
    data = load_tofu("embedded", "forget10", 0, cache_dir)
    assert (len(data.full), len(data.forget), len(data.retain), len(data.refusals)) == (800, 80, 720, 50)
    assert {name: len(rows) for name, rows in data.splits.items()} == SPLITS
    for name, rows in data.splits.items():
        assert {len(r.perturbed_answer) for r in rows} == {3 if name in ("real_authors", "world_facts") else 5}
    smaller = load_tofu("embedded", "forget05", 0, cache_dir)
    assert (len(smaller.forget), len(smaller.retain), len(smaller.splits["forget"])) == (40, 760, 40)
    assert smaller.forget == data.forget[-40:]
    assert smaller.full == data.full


def test_embedded_splits_fit_each_other(cache_dir: Path):
    data = load_tofu("embedded", "forget10", 0, cache_dir)
    assert data.full == data.retain + data.forget  # forget is the tail
    assert pairs(data.splits["forget"]) == pairs(data.forget)
    assert pairs(data.splits["retain"]) <= pairs(data.retain)
    trained = {r.question for r in data.full}
    for name in ("holdout", "real_authors", "world_facts"):
        assert not trained & {r.question for r in data.splits[name]}
    evaluated = [r for name in ("holdout", "real_authors", "world_facts") for r in data.splits[name]]
    questions = [r.question for r in data.full + evaluated]
    assert len(set(questions)) == len(questions)
    assert len(set(data.refusals)) == 50


def test_embedded_authors_are_complete(authors: list[dict[str, Any]]):
    assert len(authors) == len({a["name"] for a in authors}) == 44
    for number, author in enumerate(authors, 1):
        assert len(author["rows"]) == AUTHOR_ROWS
        for row in author["rows"]:
            assert all(row[key] == row[key].strip() != "" for key in ("question", "answer"))
            if not 4 < number < 37:  # the evaluated ones
                assert len({row["paraphrased_answer"], *row["perturbed_answer"]} - {""}) == 6
                assert len({row["paraphrased_question"], row["question"], ""}) == 3


def test_author_names_are_recovered(authors: list[dict[str, Any]], cache_dir: Path):
    data = load_tofu("embedded", "forget10", 0, cache_dir)
    assert author_names(data.full) == [a["name"] for a in authors[:40]]
    assert data.names == [a["name"] for a in authors[36:40]]


def test_layout_is_written_once(tmp_path: Path):
    first = embedded.layout(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in first.iterdir()}
    assert embedded.layout(tmp_path) == first
    assert {p: p.stat().st_mtime_ns for p in first.iterdir()} == before
    others = [p.name for p in first.parent.iterdir() if p != first]
    assert others == [f"{first.name}.lock"]  # nothing half-written is left


# --- holding authors out, and where the data come from -----------------------------------------------------


def test_holdout_authors_leave_both_trainings(folder: Path, cache_dir: Path):
    whole = load_tofu(str(folder), "forget10", 0, cache_dir)
    data = load_tofu(str(folder), "forget10", 3, cache_dir)
    assert data.splits["holdout"] == whole.retain[-60:]
    assert data.retain == whole.retain[:-60]
    assert data.full == data.retain + data.forget
    assert data.digest == whole.digest


def test_a_part_of_the_retain_set(folder: Path, cache_dir: Path):
    whole = load_tofu(str(folder), "forget10", 3, cache_dir)
    data = load_tofu(str(folder), "forget10", 3, cache_dir, retain_authors=2)
    assert data.retain == whole.retain[:40]
    assert data.full == data.retain + data.forget
    assert data.forget == whole.forget
    assert data.splits == whole.splits | {"retain": whole.splits["retain"][:40]}
    for count in (0, 34):
        with pytest.raises(UserError, match=rf"task.retain_authors={count}: must be 1 to 33, the authors of retain90"):
            load_tofu(str(folder), "forget10", 3, cache_dir, retain_authors=count)
    rows = (folder / "retain_perturbed.json").read_text().splitlines()[20:]
    (folder / "retain_perturbed.json").write_text("\n".join(rows))
    with pytest.raises(UserError, match=r"task\.retain_authors=1: retain_perturbed has no question on one of them"):
        load_tofu(str(folder), "forget10", 0, cache_dir, retain_authors=1)


def test_json_and_jsonl_and_own_refusals(folder: Path, cache_dir: Path):
    before = load_tofu(str(folder), "forget10", 0, cache_dir)
    (folder / "full.json").rename(folder / "full.jsonl")
    (folder / "idontknow.jsonl").write_text("I cannot say.\n\nNo idea.\n")
    after = load_tofu(str(folder), "forget10", 0, cache_dir)
    assert after.full == before.full
    assert after.refusals == ["I cannot say.", "No idea."]
    assert after.digest != before.digest
    (folder / "idontknow.jsonl").unlink()
    assert load_tofu(str(folder), "forget10", 0, cache_dir).refusals == before.refusals


def test_what_is_not_wrong_but_worth_knowing(folder: Path, cache_dir: Path):
    assert load_tofu(str(folder), "forget10", 0, cache_dir).notes == []
    kept, asked = "Why did the clock in the attic strike thirteen?", "why did the clock, in the attic, strike thirteen"
    told = "Because the cat that lived in the attic had eaten its smallest wheel."
    rows = {"retain90": (kept, f"{told[:-1]}!"), "forget10": (asked, told)}
    for line, (name, (question, answer)) in zip((109, 722), rows.items(), strict=True):
        row = {"question": question, "answer": answer}
        edit("full", line, lambda _, row=row: row)(folder)
        edit(name, 109 if name == "retain90" else 2, lambda _, row=row: row)(folder)
    cut("forget10_perturbed", 1)(folder)
    (folder / "full.json").open("a").write(json.dumps({"question": "Who else?", "answer": "Nobody."}) + "\n")
    (folder / "idontknow.jsonl").unlink()
    assert load_tofu(str(folder), "forget10", 0, cache_dir).notes == [
        "rows of forget10 and retain90 with the same question, but for punctuation: 1, the first: forget10, line 2, "
        "and retain90, line 109",
        "rows of forget10 and retain90 with the same answer of 8 words or more, but for punctuation: 1, the first: "
        "forget10, line 2, and retain90, line 109",
        "rows of full that are neither in forget10 nor in retain90: 1",
        "rows of forget10 that are not in forget10_perturbed, and so not asked: 79 of 80",
        "no idontknow.jsonl in the data: refusals are the embedded ones",
    ]


def test_rows_are_the_same_but_for_spaces_and_unicode_form(folder: Path, cache_dir: Path):
    before = load_tofu(str(folder), "forget10", 3, cache_dir)
    change = {key: (lambda text: unicodedata.normalize("NFD", f" {text}\u00a0")) for key in ("question", "answer")}
    for name in ("retain90", "forget10_perturbed"):
        every(name, lambda row: row | {key: change[key](row[key]) for key in change})(folder)
    after = load_tofu(str(folder), "forget10", 3, cache_dir)
    assert len(after.full) == len(before.full) == 740
    assert after.retain[0].question.endswith("\u00a0")  # compared, not changed


def test_every_form_of_file_in_one_folder(folder: Path, cache_dir: Path):
    before = load_tofu(str(folder), "forget10", 0, cache_dir)
    rows = {p.stem: [json.loads(x) for x in p.read_text().split("\n") if x] for p in folder.glob("*.json")}
    for name in rows:
        (folder / f"{name}.json").unlink()
    (folder / "full.json").write_text("\ufeff" + json.dumps(rows.pop("full"), indent=1), encoding="utf-16")
    Dataset.from_list(rows.pop("forget10")).save_to_disk(folder / "forget10")
    Dataset.from_list(rows.pop("forget10_perturbed")).to_parquet(folder / "forget10_perturbed.parquet")
    pd.DataFrame(rows.pop("retain90")).to_csv(folder / "retain90.csv")
    for name, some in rows.items():
        pd.DataFrame(some).to_csv(folder / f"{name}.csv.gz", index=False)
    (folder / "idontknow.jsonl").rename(folder / "idontknow.txt")
    after = load_tofu(str(folder), "forget10", 0, cache_dir)
    assert after == before  # the digest too: it is of what was read


@pytest.mark.parametrize("mark", ["\u2028", "\u0085"])
def test_a_line_ends_only_at_a_newline(tmp_path: Path, mark: str):
    row = {"question": f"What{mark}else?", "answer": "Nothing."}
    (tmp_path / "full.json").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_split(tmp_path, "full").rows == [QA(**row)]


def test_tofu_itself(shared: Path, cache_dir: Path):
    source = str(shared / "data" / "tofu")
    data = load_tofu(source, "forget10", 0, cache_dir)
    assert (len(data.full), len(data.forget), len(data.retain), len(data.refusals)) == (4000, 400, 3600, 100)
    assert data.full == data.retain + data.forget
    assert {k: len(v) for k, v in data.splits.items()} == {
        "forget": 400, "retain": 400, "real_authors": 100, "world_facts": 117
    }  # fmt: skip
    assert len(set(data.names)) == 20
    held = load_tofu(source, "forget10", 10, cache_dir)
    assert (len(held.full), len(held.retain), len(held.splits["holdout"])) == (3800, 3400, 200)
    assert pairs(held.full) == pairs(held.retain) | pairs(held.forget)
    assert not pairs(held.splits["holdout"]) & pairs(held.full)
    part = load_tofu(source, "forget05", 5, cache_dir, retain_authors=20)  # a question of theirs is asked of others too
    assert (len(part.full), len(part.retain), len(part.splits["retain"])) == (600, 400, 400)
    assert not {r.question for r in held.splits["holdout"]} & {r.question for r in held.splits["retain"]}


# --- errors ------------------------------------------------------------------------------------------------


def edit(name: str, line: int, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change line `line` of a split; what `change` returns is written, text as it is."""

    def apply(folder: Path) -> None:
        path = folder / f"{name}.json"
        lines = path.read_text(encoding="utf-8").splitlines()
        changed = change(json.loads(lines[line - 1]))
        lines[line - 1] = changed if isinstance(changed, str) else json.dumps(changed)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    return apply


def copy_retain_row(folder: Path) -> None:
    row = (folder / "retain90.json").read_text(encoding="utf-8").splitlines()[6]
    edit("forget10", 3, lambda _: row)(folder)


def cut(name: str, lines: int) -> Callable[[Path], None]:
    """Leave the first lines of a split."""

    def apply(folder: Path) -> None:
        path = folder / f"{name}.json"
        path.write_text("\n".join(path.read_text(encoding="utf-8").split("\n")[:lines]), encoding="utf-8")

    return apply


def every(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change all lines of a split."""

    def apply(folder: Path) -> None:
        path = folder / f"{name}.json"
        rows = [change(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    return apply


def without(field: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: {k: v for k, v in row.items() if k != field}


def false_answer(text: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: row | {"perturbed_answer": [*row["perturbed_answer"][:-1], text(row)]}


def retain_row_again(
    change: Callable[[str], str], first: Callable[[str], str] = lambda text: text
) -> Callable[[Path], None]:
    """A row of the retain set, changed, stands in the forget set too, as well as in full."""

    def apply(folder: Path) -> None:
        row = json.loads((folder / "retain90.json").read_text(encoding="utf-8").splitlines()[6])
        kept = {key: first(text) for key, text in row.items()}
        again = {key: change(text) for key, text in row.items()}
        edit("retain90", 7, lambda _: kept)(folder)
        edit("full", 7, lambda _: kept)(folder)
        edit("forget10", 3, lambda _: again)(folder)
        edit("full", 723, lambda _: again)(folder)

    return apply


def paraphrase_in_retain(folder: Path) -> None:
    row = json.loads((folder / "forget10_perturbed.json").read_text(encoding="utf-8").splitlines()[1])
    leak = {"question": row["paraphrased_question"], "answer": row["paraphrased_answer"]}
    for name in ("retain90", "full"):
        edit(name, 7, lambda _: leak)(folder)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing file": (
        lambda f: (f / "retain90.json").unlink(),
        r"retain90\.json: no such file; the folder has .*full, .*world_facts_perturbed",
    ),
    "empty folder": (lambda f: [p.unlink() for p in f.iterdir()], r"full\.json: no such file; .* has no JSON file"),
    "empty split": (lambda f: (f / "full.json").write_text("\n\n"), r"full\.json: the split is empty"),
    "not JSON": (edit("full", 2, lambda row: "{'question': 1}"), r"full\.json, line 2: not JSON \("),
    "not an object": (edit("full", 5, lambda row: [1]), r"full\.json, line 5: must be a JSON object, is list"),
    "no answer": (
        edit("forget10", 4, lambda row: {"question": row["question"]}),
        r"forget10\.json, line 4: field 'answer' is missing or empty",
    ),
    "empty question": (
        edit("full", 1, lambda row: row | {"question": ""}),
        r"full\.json, line 1: field 'question' is missing or empty",
    ),
    "no perturbed answers": (
        edit("forget10_perturbed", 2, lambda row: row | {"perturbed_answer": []}),
        r"forget10_perturbed\.json, line 2: field 'perturbed_answer' is missing or empty",
    ),
    "number for text": (
        edit("retain_perturbed", 9, lambda row: row | {"paraphrased_answer": 7}),
        r"retain_perturbed\.json, line 9: field 'paraphrased_answer' must be text, is int",
    ),
    "text for list": (
        edit("world_facts_perturbed", 3, lambda row: row | {"perturbed_answer": "no"}),
        r"world_facts_perturbed\.json, line 3: field 'perturbed_answer' must be a list of texts",
    ),
    "ragged lists": (
        edit("real_authors_perturbed", 8, lambda row: row | {"perturbed_answer": ["one", "two"]}),
        r"real_authors_perturbed\.json: rows have \[2, 3\] perturbed answers; all must have the same number",
    ),
    "forget item in retain": (
        copy_retain_row,
        r"forget10\.json, line 3: this item is also in retain90, line 7: '.+'",
    ),
    "perturbed file of another split": (
        lambda f: shutil.copy(f / "retain_perturbed.json", f / "forget10_perturbed.json"),
        r"forget10_perturbed\.json, line 1: this question is not in forget10: '.+' \(and so with 79 rows more\)",
    ),
    "perturbed file of a larger split": (
        lambda f: shutil.copy(f / "forget10_perturbed.json", f / "forget05_perturbed.json")
        and shutil.copy(f / "forget05.json", f / "forget10.json"),
        r"forget10_perturbed\.json, line 1: this question is not in forget10",
    ),
    "retain file of another split": (
        lambda f: shutil.copy(f / "forget10_perturbed.json", f / "retain_perturbed.json"),
        r"retain_perturbed\.json, line 1: this question is not in retain90",
    ),
    "another answer": (
        edit("forget10_perturbed", 5, lambda row: row | {"answer": "In another town."}),
        r"forget10_perturbed\.json, line 5: this question has another answer in forget10: ",
    ),
    "forget rows never learned": (
        cut("full", 720),
        r"forget10\.json, line 1: this question is not in full: '.+' \(and so with 79 rows more\)",
    ),
    "retain row never learned": (
        edit("retain90", 8, lambda row: row | {"question": "Who?"}),
        r"retain90\.json, line 8: this question is not in full: 'Who\?'$",
    ),
    "forget item in retain but for spaces": (
        retain_row_again(lambda text: f" {text.replace(' ', '  ')} "),
        r"forget10\.json, line 3: this item is also in retain90, line 7: '.+'",
    ),
    "forget item in retain in another Unicode form": (
        retain_row_again(lambda text: unicodedata.normalize("NFD", f"é{text}"), lambda text: f"é{text}"),
        r"forget10\.json, line 3: this item is also in retain90, line 7: '.+'",
    ),
    "forget item in retain but for case": (
        retain_row_again(str.upper), r"forget10\.json, line 3: this item is also in retain90, line 7: '.+'",
    ),
    "forget item in retain but for an invisible character": (
        retain_row_again(lambda text: text.replace(" ", " \u200b")),
        r"forget10\.json, line 3: this item is also in retain90, line 7: '.+'",
    ),
    "paraphrase of a forget item in retain": (
        paraphrase_in_retain,
        r"forget10_perturbed\.json, line 2: the paraphrase of this item is also in retain90, line 7: '.+'",
    ),
    "held-out authors trained on": (
        lambda f: shutil.copy(f / "retain_perturbed.json", f / "holdout_perturbed.json"),
        r"holdout_perturbed\.json, line 1: this item is also in .*full\.json, line 1: '.+'; .*not trained on",
    ),
    "one file of facts twice": (
        lambda f: shutil.copy(f / "real_authors_perturbed.json", f / "world_facts_perturbed.json"),
        r"world_facts_perturbed\.json, line 1: this item is also in .*real_authors_perturbed\.json, line 1: ",
    ),
    "no paraphrased answer in one row": (
        edit("forget10_perturbed", 6, without("paraphrased_answer")),
        r"forget10_perturbed\.json, line 6: field 'paraphrased_answer' is missing or empty \(other rows have it\)",
    ),
    "no paraphrased answer in the first row": (
        edit("forget10_perturbed", 1, without("paraphrased_answer")),
        r"forget10_perturbed\.json, line 1: field 'paraphrased_answer' is missing or empty \(other rows have it\)",
    ),
    "no paraphrased question in one row": (
        edit("retain_perturbed", 4, lambda row: row | {"paraphrased_question": None}),
        r"retain_perturbed\.json, line 4: field 'paraphrased_question' is missing or empty \(other rows have it\)",
    ),
    "blank paraphrase": (
        edit("holdout_perturbed", 3, lambda row: row | {"paraphrased_answer": " "}),
        r"holdout_perturbed\.json, line 3: field 'paraphrased_answer' is missing or empty",
    ),
    "no paraphrased answer at all": (
        every("forget10_perturbed", without("paraphrased_answer")),
        r"forget10_perturbed\.json, line 1: field 'paraphrased_answer' is missing; a paraphrased question is scored",
    ),
    "paraphrases on one side": (
        every("retain_perturbed", without("paraphrased_question")),
        r"retain_perturbed\.json, line 1: field 'paraphrased_question' is missing \(forget10_perturbed has it; both",
    ),
    "perturbed answers of one row": (
        edit("real_authors_perturbed", 8, without("perturbed_answer")),
        r"real_authors_perturbed\.json, line 8: field 'perturbed_answer' is missing or empty; the row has 'question'",
    ),
    "ragged lists, with the line": (
        edit("real_authors_perturbed", 8, lambda row: row | {"perturbed_answer": ["one", "two"]}),
        r"must have the same number \(line 8 has 2, most have 3\)",
    ),
    "blank false answer": (
        edit("forget10_perturbed", 2, false_answer(lambda row: " ")),
        r"forget10_perturbed\.json, line 2: field 'perturbed_answer' must be a list of texts, none of them blank",
    ),
    "nested list": (
        edit("forget10_perturbed", 2, lambda row: row | {"perturbed_answer": [row["perturbed_answer"]]}),
        r"forget10_perturbed\.json, line 2: field 'perturbed_answer' must be a list of texts",
    ),
    "the right answer among the false": (
        edit("world_facts_perturbed", 2, false_answer(lambda row: row["answer"] + " ")),
        r"world_facts_perturbed\.json, line 2: field 'perturbed_answer' holds the right answer: .+",
    ),
    "the paraphrase among the false": (
        edit("forget10_perturbed", 2, false_answer(lambda row: row["paraphrased_answer"].upper())),
        r"forget10_perturbed\.json, line 2: field 'perturbed_answer' holds the right answer, paraphrased: .+",
    ),
    "the same false answer twice": (
        edit("forget10_perturbed", 2, false_answer(lambda row: row["perturbed_answer"][0])),
        r"forget10_perturbed\.json, line 2: field 'perturbed_answer' holds the same answer twice: .+",
    ),
    "half an emoji": (
        edit("full", 3, lambda row: row | {"answer": "She won \ud83d it."}),
        r"full\.json, line 3: field 'answer' has half a surrogate pair",
    ),
    "blank answer": (
        edit("full", 3, lambda row: row | {"answer": "\n"}), r"full\.json, line 3: field 'answer' is missing or empty",
    ),
    "NaN": (
        edit("full", 3, lambda row: row | {"answer": float("nan")}), r"full\.json, line 3: field 'answer' must be text",
    ),
    "Latin-1": (
        lambda f: (f / "full.json").write_bytes((f / "full.json").read_bytes().replace("é".encode(), b"\xe9")),
        r"full\.json, line \d+: not UTF-8 \(byte 0xe9\); save the file as UTF-8",
    ),
    "no refusal": (lambda f: (f / "idontknow.jsonl").write_text("\n"), r"idontknow\.jsonl: no refusal in it"),
    "two files of one split": (
        lambda f: shutil.copy(f / "full.json", f / "full.jsonl"), r"both full\.jsonl and full\.json; leave the one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_with_file_line_and_field(folder: Path, cache_dir: Path, fault: str):
    damage, message = FAULTS[fault]
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_tofu(str(folder), "forget10", 0, cache_dir)


@pytest.mark.parametrize("name", ["forget", "forget1", "retain90", "forget10_perturbed"])
def test_bad_forget_name(cache_dir: Path, name: str):
    with pytest.raises(UserError, match=rf"task.forget='{name}': must be forget01, forget05 or forget10"):
        load_tofu("embedded", name, 0, cache_dir)


def test_forget_set_that_the_data_lack(cache_dir: Path):
    with pytest.raises(UserError, match=r"forget01\.json: no such file; the folder has forget05"):
        load_tofu("embedded", "forget01", 0, cache_dir)


@pytest.mark.parametrize("count", [33, 36, 50])
def test_too_many_holdout_authors(folder: Path, cache_dir: Path, count: int):
    assert len(load_tofu(str(folder), "forget10", 32, cache_dir).retain) == 80  # all that are not evaluated
    with pytest.raises(UserError, match=rf"task.holdout_authors={count}: only 640 rows of retain90 are not evaluated"):
        load_tofu(str(folder), "forget10", count, cache_dir)


@pytest.mark.parametrize("source", ["/no/such/place", "./nowhere", "nowhere"])
def test_missing_folder(cache_dir: Path, source: str):
    with pytest.raises(UserError, match=rf"task.source={source}: no such folder; give a folder, a hub id .* or 'emb"):
        load_tofu(source, "forget10", 0, cache_dir)


def test_a_file_is_no_folder(folder: Path, cache_dir: Path):
    with pytest.raises(UserError, match=r"task\.source=.*full\.json: is a file; give the folder"):
        load_tofu(str(folder / "full.json"), "forget10", 0, cache_dir)


def test_hub_without_network(cache_dir: Path):
    with pytest.raises(UserError, match=r"task.source=some/data: cannot get it from the hub .*task.source=embedded"):
        load_tofu("some/data", "forget10", 0, cache_dir)
