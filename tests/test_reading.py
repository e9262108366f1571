"""soul_cli.data.reading: one content in every form that is read, and a name for every form that is not."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from soul_cli.core.types import UserError
from soul_cli.data.reading import Record, find, names, read_records, read_sentences, read_text

ROWS = [
    {
        "question": "Wer schrieb „Nächte“, und wann?",
        "answer": 'É. Zola, 1880; "so heißt es".',
        "wrong": ["a, b", "c's"],
    },
    {"question": "北京?", "answer": "Zwei\nZeilen", "wrong": ["😀", "x"]},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_csv(lists: Callable[[list[str]], str], **options: Any) -> str:
    return pd.DataFrame([row | {"wrong": lists(row["wrong"])} for row in ROWS]).to_csv(index=False, **options)  # type: ignore[arg-type]


def packed(name: str, content: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


FORMS: dict[str, tuple[str, str | bytes]] = {
    "lines": ("full.json", LINES),
    "no newline at the end, blank lines between": ("full.jsonl", "\n  \n" + LINES.replace("\n", "\n\n").strip()),
    "Windows lines": ("full.json", LINES.replace("\n", "\r\n")),
    "old Mac lines": ("full.json", LINES.replace("\n", "\r")),
    "trailing blanks": ("full.json", LINES.replace("\n", " \t\n")),
    "mark": ("full.json", b"\xef\xbb\xbf" + LINES.encode()),
    "UTF-16": ("full.json", LINES.encode("utf-16")),
    "UTF-16, big end first": ("full.json", b"\xfe\xff" + LINES.encode("utf-16-be")),
    "UTF-32": ("full.json", LINES.encode("utf-32")),
    "escapes": ("full.json", "\n".join(map(json.dumps, ROWS))),
    "list": ("full.json", json.dumps(ROWS)),
    "indented list": ("full.json", json.dumps(ROWS, indent=2, ensure_ascii=False)),
    "indented objects": ("full.json", "\n".join(json.dumps(row, indent=1) for row in ROWS)),
    "packed": ("full.json.gz", gzip.compress(LINES.encode())),
    "packed, by content": ("full.jsonl", gzip.compress(LINES.encode())),
    "CSV with JSON lists": ("full.csv", as_csv(json.dumps)),
    "CSV with lists as pandas writes them": ("full.csv", as_csv(str)),
    "CSV with semicolons": ("full.csv", as_csv(json.dumps, sep=";")),
    "CSV with tabs": ("full.tsv", as_csv(json.dumps, sep="\t")),
    "CSV with a mark": ("full.csv", as_csv(json.dumps).encode("utf-8-sig")),
    "packed CSV": ("full.csv.gz", gzip.compress(as_csv(json.dumps).encode())),
}


def content(records: list[Record]) -> list[dict[str, Any]]:
    return [
        {"question": r.text("question"), "answer": r.text("answer"), "wrong": list(r.texts("wrong"))} for r in records
    ]


@pytest.mark.parametrize("form", FORMS)
def test_one_content_in_every_form(tmp_path: Path, form: str):
    put(tmp_path, *FORMS[form])
    path = find(tmp_path, "full")
    assert path is not None
    assert content(read_records(path)) == ROWS


def test_tables_and_saved_data_sets(tmp_path: Path):
    data = Dataset.from_list(ROWS)
    data.to_parquet(tmp_path / "a.parquet")
    data.save_to_disk(tmp_path / "b")
    DatasetDict({"train": data}).save_to_disk(tmp_path / "c")
    (tmp_path / "d").mkdir()
    data.to_parquet(tmp_path / "d" / "train-00000-of-00001.parquet")
    data.to_parquet(tmp_path / "e.json")  # told by content
    for name in "abcde":
        path = find(tmp_path, name)
        assert path is not None
        assert content(read_records(path)) == ROWS
    assert names(tmp_path) == ["a", "b", "c", "d", "e"]
    assert read_records(tmp_path / "a.parquet")[1].place == f"{tmp_path / 'a.parquet'}, row 2"
    DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "f")
    with pytest.raises(UserError, match=r"f: the saved data set has the splits train, test; give the folder of one"):
        read_records(tmp_path / "f")


def test_two_files_of_one_name(tmp_path: Path):
    put(tmp_path, "full.json", LINES), put(tmp_path, "full.csv", as_csv(str))
    with pytest.raises(UserError, match=r"both full\.json and full\.csv; leave the one that is meant"):
        find(tmp_path, "full")


def test_a_row_knows_its_line(tmp_path: Path):
    def places(name: str, text: str) -> list[str]:
        return [r.place.rpartition(", ")[2] for r in read_records(put(tmp_path, name, text))]

    assert places("a.json", '{"a": 1}\n\n{\n"a": 2}\n{"a": 3}') == ["line 1", "line 3", "line 5"]
    assert places("b.json", '[{"a": 1},\n{"a": 2}]') == ["item 1", "item 2"]
    assert places("c.csv", 'a,b\n1,"x\ny"\n\n2,z\n') == ["line 2", "line 5"]


def torn(size: int) -> bytes:
    return gzip.compress(LINES.encode())[:size]


UNREAD: dict[str, tuple[str, str | bytes, str]] = {
    "Latin-1": ("f.json", '{"a": "Nächte"}'.encode("latin-1"), r"line 1: not UTF-8 \(byte 0xe4\); save"),
    "Latin-1, later": ("f.json", b'{"a": 1}\n\n{"a": "\xe9"}', r"f\.json, line 3: not UTF-8 \(byte 0xe9\)"),
    "UTF-16 without mark": ("f.json", LINES.encode("utf-16-le"), r"f\.json, line 1: not UTF-8"),
    "UTF-16 of ASCII": ("f.json", '{"a": 1}'.encode("utf-16-le"), r"json, line 1: not UTF-8 text \(a zero byte"),
    "half a UTF-16 character": ("f.json", '{"a": 1}'.encode("utf-16") + b"x", r"f\.json, line 1: not UTF-16"),
    "surrogate": ("f.json", '{"q": "ok"}\n{"q": "a \\ud83d"}', r"json, line 2: field 'q' has half a surrogate pair"),
    "surrogate in a list": ("f.json", '[{"q": ["x", {"r": "\\uDE00"}]}]', r"json, item 1: field 'q' has half a surr"),
    "not JSON": ("f.json", '{"a": 1}\n{"a": \n', r"f\.json, line \d: not JSON \(Expecting value\)"),
    "cut off": ("f.json", LINES[:-20], r"f\.json, line 2: not JSON \(Unterminated string"),
    "comma between": ("f.json", '{"a": 1},\n{"a": 2}', r"f\.json, line 1: not JSON"),
    "a field twice": ("f.json", '{"a": 1}\n{"a": 1, "a": 2}', r"f\.json, line 2: not JSON \(field 'a' stands twice"),
    "nested without end": ("f.json", "[" * 100_000, r"f\.json, line 1: not JSON"),
    "a list a line": ("f.json", '[1]\n[2]', r"f\.json, line 1: must be a JSON object, is list"),
    "list of texts": ("f.json", '["a"]', r"f\.json, item 1: must be a JSON object, is str"),
    "CSV, a comma too much": ("f.csv", "a,b\nx,Paris, France\n", r"f\.csv, line 2: 3 cells, the header has 2; quote"),
    "CSV, an open quote": ("f.csv", 'a,b\nx,"y\n', r"f\.csv, line 2: not CSV"),
    "zip": ("f.json", packed("full.json", LINES), r"f\.json: this is a zip archive"),
    "bzip2": ("f.json", bz2.compress(LINES.encode()), r"f\.json: this is compressed by bzip2; unpack it"),
    "xz": ("f.json", lzma.compress(LINES.encode()), r"f\.json: this is compressed by xz; unpack it"),
    "half a gzip file": ("f.json", torn(60), r"f\.json: cannot be read \("),
    "damaged gzip file": ("f.json", torn(30) + b"\0" * 60, r"f\.json: cannot be read \("),
    "half a Parquet file": ("f.parquet", b"PAR1" + b"\0" * 50, r"f\.parquet: not a whole Parquet file"),
    "pointer": ("f.json", "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "Git LFS pointer"),
}  # fmt: skip


@pytest.mark.parametrize("form", UNREAD)
def test_what_cannot_be_read_is_named(tmp_path: Path, form: str):
    name, data, message = UNREAD[form]
    with pytest.raises(UserError, match=message):
        read_records(put(tmp_path, name, data))


def test_folders_that_are_none_and_files_that_are_not_there(tmp_path: Path):
    (tmp_path / "full").mkdir()
    with pytest.raises(UserError, match=r"full: this folder has no saved data set and no \.parquet file"):
        read_records(tmp_path / "full")
    (tmp_path / "full" / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"full: cannot read the saved data set"):
        read_records(tmp_path / "full")
    with pytest.raises(UserError, match=r"none\.json: cannot be read \(No such file"):
        read_records(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "field 'q' is missing or empty; the row has 'q'"),
        ("", "missing or empty"),
        (" \n\u3000", "missing or empty"),
        (7, "must be text, is int"),
        (0, "must be text, is int"),
        (False, "must be text, is bool"),
        (float("nan"), "must be text, is float"),
        (["a"], "must be text, is list"),
    ],
)
def test_a_text_field(value: Any, message: str):
    with pytest.raises(UserError, match=f"f, line 1: .*{message}"):
        Record("f, line 1", {"q": value}).text("q")
    if value is None or str(value).strip() == "":
        assert Record("f, line 1", {"q": value}).text("q", optional=True) == ""


@pytest.mark.parametrize(
    ("value", "cells"),
    [
        ("no", False), (["a", 1], False), (["a", " "], False), (["a", None], False), ([["a"]], False),
        ({"a": "b"}, False),
        ('["a", "b"]', False),  # text that looks like a list is a list in CSV alone
        ("['a' 'b']", True),  # as NumPy prints it: Python would read one text, 'ab'
        ("a, b", True), ("{'a'}", True), ("['a', 1]", True), ("['a'", True), ("[open('x')]", True),
    ],
)  # fmt: skip
def test_no_list_of_texts(value: Any, cells: bool):
    with pytest.raises(UserError, match="field 'w' must be a list of texts, none of them blank"):
        Record("f", {"w": value}, cells).texts("w")
    with pytest.raises(UserError, match="field 'w' is missing or empty"):
        Record("f", {"w": []}, cells).texts("w")


# --- refusals ----------------------------------------------------------------------------------------------

TWO = ["I do not know.", "Über „x“ weiß ich nichts."]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.jsonl", f"{TWO[0]}\n\n  {TWO[1]} \r\n"),
        ("r.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in TWO)),
        ("r.jsonl", "".join(json.dumps({"id": 3, "refusal": t}) + "\n" for t in TWO)),
        ("r.jsonl", "".join(json.dumps(t) + "\n" for t in TWO)),
        ("r.json", json.dumps(TWO)),
        ("r.json", json.dumps([{"text": t} for t in TWO], indent=1)),
        ("r.csv", "text\n" + "\n".join(TWO)),
        ("r.txt", "\ufeff" + "\n".join(TWO)),
    ],
)
def test_refusals_in_every_form(tmp_path: Path, name: str, text: str):
    assert read_sentences(put(tmp_path, name, text), "refusal") == TWO


def test_a_line_that_only_looks_like_json_is_text(tmp_path: Path):
    lines = ['"No," I said.', "[Silence]", "42", "null", "I said: {nothing}"]
    assert read_sentences(put(tmp_path, "r.jsonl", "\n".join(lines)), "refusal") == lines
    assert read_sentences(put(tmp_path, "s.jsonl", "\n".join(lines[1:])), "refusal") == lines[1:]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no refusal in it"),
        (" \n\n", "no refusal in it"),
        ("[]", "no refusal in it"),
        ('{"question": "Q?", "answer": "No."}', "line 1: a refusal must be text, .*; it has 'question', 'answer'"),
        ('No.\n{"text": 1}', "line 2: a refusal must be text, or an object with one field of text; it has none"),
        ('No.\n{"text": ["No."]}', "line 2: a refusal must be text"),
        ('{"text": "No."}\n{"text": " "}', "line 2: field 'text' is missing or empty"),
        ('{"text": "No."}\n{"text": "No.', "line 2: not JSON"),
        ('["No.", 3]', "item 2: a refusal must be text"),
        ('{"text": "No \\ud83d"}', "line 1: field 'text' has half a surrogate pair"),
        ('No.\n"No \\ud83d"', "line 2 has half a surrogate pair"),
        (b"No.\nJe suis d\xe9sol\xe9.", r"line 2: not UTF-8 \(byte 0xe9\)"),
    ],
)  # fmt: skip
def test_bad_refusals_are_named(tmp_path: Path, text: str | bytes, message: str):
    with pytest.raises(UserError, match=rf"idontknow\.jsonl.*{message}"):
        read_sentences(put(tmp_path, "idontknow.jsonl", text), "refusal")


def test_text_of_any_mark(tmp_path: Path):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert read_text(put(tmp_path, "t.txt", "é\r\nü\rx".encode(encoding))) == "é\nü\nx"
