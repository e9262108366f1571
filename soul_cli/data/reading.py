"""The one reader of files that users give: JSON Lines, JSON lists, CSV, Parquet, saved data sets, plain text.

What is read is told by content, not by name (CSV alone is known by its suffix).  Text is UTF-8, or any UTF with its
mark; gzip is unpacked.  What cannot be read is named: file, line, field.
"""

from __future__ import annotations

import ast
import codecs
import csv
import gzip
import io
import json
import re
import sys
import tokenize
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from soul_cli.core.types import UserError

TEXTUAL = (".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXTUAL, *(f"{suffix}.gz" for suffix in TEXTUAL), ".parquet", "")  # "": a folder
MARKS = {  # UTF-32's first: UTF-16's mark is how its own begins
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
FOREIGN = {  # how files begin that hold no readable text -> what they are, and what to do
    b"PK\x03\x04": "a zip archive, an office file or an e-book; give the plain text in it",
    b"BZh": "compressed by bzip2; unpack it",
    b"\xfd7zXZ": "compressed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it",
    b"%PDF": "a PDF; give the plain text in it",
    b"{\\rtf": "rich text (RTF); save it as plain text",
    b"ARROW1": "one Arrow file; give the folder of the saved data set",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch that with `git lfs pull`",
}
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: JSON can hold it, UTF-8 cannot
JSON_LIST = re.compile(r"\s*\[\s*[\[{\"\]]")


@dataclass(frozen=True)
class Record:
    """One row of a file: where it stands, and its fields."""

    place: str  # "FILE, line 3"
    fields: dict[str, Any]
    cells: bool = False  # every value is text, lists too, as in CSV

    def text(self, key: str, *, optional: bool = False) -> str:
        """Return a text field as it is; "" where it is optional and missing, null or blank."""
        value = self.fields.get(key)
        if value is None or value == "" or (isinstance(value, str) and not value.strip()):
            if optional:
                return ""
            raise UserError(f"{self.place}: field {key!r} is missing or empty; the row has {self._names()}")
        if not isinstance(value, str):
            raise UserError(f"{self.place}: field {key!r} must be text, is {type(value).__name__}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a field that is a list of texts, none of them blank."""
        value = self.fields.get(key)
        if value is None or value in ("", []):
            raise UserError(f"{self.place}: field {key!r} is missing or empty; the row has {self._names()}")
        if self.cells:
            value = _list_in_cell(value)
        if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
            raise UserError(f"{self.place}: field {key!r} must be a list of texts, none of them blank")
        return tuple(value)

    def _names(self) -> str:
        return ", ".join(repr(name) for name in self.fields) or "no field"


# --- which file --------------------------------------------------------------------------------------------


def find(folder: Path, name: str, more: tuple[str, ...] = ()) -> Path | None:
    """Return the file (or the folder of a saved data set) of that name, whatever its form; None where there is none.

    more: further suffixes that are taken.  UserError: there are two.
    """
    found = [folder / f"{name}{suffix}" for suffix in (*SUFFIXES, *more)]
    found = [path for path in found if (path.is_dir() if path.name == name else path.is_file())]
    if len(found) > 1:
        raise UserError(f"{folder}: both {found[0].name} and {found[1].name}; leave the one that is meant")
    return found[0] if found else None


def names(folder: Path) -> list[str]:
    """Return the names that `find` would find, in order."""
    known = [s for s in SUFFIXES if s]
    files = {p.name.removesuffix(s) for p in folder.iterdir() for s in known if p.is_file() and p.name.endswith(s)}
    return sorted(files | {p.name for p in folder.iterdir() if p.is_dir()})


# --- bytes and text ----------------------------------------------------------------------------------------


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, unpacked where it is gzip.  UserError: it cannot be opened."""
    try:
        with path.open("rb") as file:
            packed = file.read(len(GZIP)) == GZIP
        return cast(IO[bytes], gzip.open(path)) if packed else path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def marked_encoding(start: bytes) -> str | None:
    """Return the encoding that a file's byte-order mark tells; None where it has none."""
    return next((encoding for mark, encoding in MARKS.items() if start.startswith(mark)), None)


def refuse_foreign(path: Path, start: bytes) -> None:
    """UserError where a file begins as one that holds no plain text."""
    for magic, what in FOREIGN.items():
        if start.startswith(magic):
            raise UserError(f"{path}: this is {what}")


def read_bytes(path: Path, most: int = -1) -> bytes:
    """Return a file's content (its first `most` bytes), unpacked where it is gzip."""
    try:
        with open_bytes(path) as file:
            return file.read(most)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def read_text(path: Path) -> str:
    """Return a file's text, lines ended by newlines.  UserError, with the line: it is neither UTF-8 nor marked UTF."""
    content = read_bytes(path)
    refuse_foreign(path, content)
    encoding = marked_encoding(content) or "utf-8"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: not {name} (byte 0x{content[error.start]:02x}); save the file as UTF-8"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 text (a zero byte; UTF-16 without its mark?); save it as UTF-8"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


# --- rows --------------------------------------------------------------------------------------------------


def read_records(path: Path) -> list[Record]:
    """Return the rows of a file or of the folder of a saved data set.  An empty file has none."""
    table = _table(path)
    return list(_objects(path, read_text(path))) if table is None else table


def _table(path: Path) -> list[Record] | None:
    """Rows of what has columns: a saved data set, Parquet, CSV.  None: of another form."""
    if path.is_dir():
        return _saved(path)
    if read_bytes(path, len(PARQUET)) == PARQUET:
        return _parquet([path])
    if path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv")):
        return list(_csv(path, read_text(path)))
    return None


def read_sentences(path: Path, what: str) -> list[str]:
    """Return short texts, each stripped: lines of text, JSON texts, or rows with one field of text.

    what: one of them, for the messages.
    """
    table = _table(path)
    if table is not None:
        sentences = [_only_text(record, what) for record in table]
    elif JSON_LIST.match(text := read_text(path)):
        sentences = [_sentence(value, place, what) for place, value in _values(path, text)]
    else:
        lines = ((f"{path}, line {n}", line.strip()) for n, line in enumerate(text.split("\n"), 1))
        sentences = [_sentence(_json_or_text(line, place), place, what) for place, line in lines if line]
    if not sentences:
        raise UserError(f"{path}: no {what} in it")
    return sentences


def _json_or_text(line: str, place: str) -> Any:
    """Return what a line means: an object or a quoted text is JSON, all else is the text itself."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        if line.startswith("{"):
            raise UserError(f"{place}: not JSON ({error})") from None
        return line
    _check_whole(value, place)
    return value if isinstance(value, (dict, list, str)) else line


def _sentence(value: Any, place: str, what: str) -> str:
    """Return the text that a line or an item of a list stands for."""
    fields = value if isinstance(value, dict) else {what: value}
    return _only_text(Record(place, fields), what)


def _only_text(record: Record, what: str) -> str:
    """Return the one field of text that a record has."""
    texts = [key for key, value in record.fields.items() if isinstance(value, str)]
    if len(texts) != 1:
        raise UserError(
            f"{record.place}: a {what} must be text, or an object with one field of text; "
            f"it has {', '.join(map(repr, texts)) or 'none'}"
        )
    return record.text(texts[0]).strip()


def _values(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Yield place and value: of a file that is one list its items, else every value in turn (JSON Lines)."""
    decoder = json.JSONDecoder(object_pairs_hook=_without_doubles)
    at, line, count = 0, 1, 0
    while True:
        start = at
        while at < len(text) and text[at] in " \t\n\ufeff":  # a mark may stand where files were joined
            at += 1
        line += text.count("\n", start, at)
        if at == len(text):
            return
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            wrong = line + text.count("\n", at, getattr(error, "pos", at))
            reason = getattr(error, "msg", None) or str(error)
            raise UserError(f"{path}, line {wrong}: not JSON ({reason})") from None
        if isinstance(value, list) and not count and not text[end:].strip():
            for n, item in enumerate(value, 1):
                _check_whole(item, f"{path}, item {n}")
                yield f"{path}, item {n}", item
            return
        _check_whole(value, f"{path}, line {line}")
        yield f"{path}, line {line}", value
        count += 1
        line += text.count("\n", at, end)
        at = end


def _check_whole(value: Any, place: str) -> None:
    """No text in a JSON value has half a surrogate pair."""
    if isinstance(value, str):
        if HALF.search(value):
            raise UserError(f"{place} has half a surrogate pair: {value[:60]!a}")
    elif isinstance(value, dict):
        for key, part in value.items():
            _check_whole(part, place if ": field " in place else f"{place}: field {key!r}")
    elif isinstance(value, list):
        for part in value:
            _check_whole(part, place)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"field {next(k for k in keys if keys.count(k) > 1)!r} stands twice in one object")
    return fields


def _objects(path: Path, text: str) -> Iterator[Record]:
    for place, value in _values(path, text):
        if not isinstance(value, dict):
            raise UserError(f"{place}: must be a JSON object, is {type(value).__name__}")
        yield Record(place, value)


def _csv(path: Path, text: str) -> Iterator[Record]:
    head = text.partition("\n")[0]
    mark = "\t" if "\t" in head else ";" if ";" in head and "," not in head else ","
    rows = csv.reader(io.StringIO(text), delimiter=mark, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        csv.field_size_limit(sys.maxsize)
        for cells in rows:
            place, line = f"{path}, line {line}", rows.line_num + 1
            if header is None:
                header = [cell.strip() for cell in cells]
            elif len(cells) > 1 or "".join(cells).strip():
                if len(cells) != len(header):
                    raise UserError(
                        f"{place}: {len(cells)} cells, the header has {len(header)}; quote a text that holds {mark!r}"
                    )
                yield Record(place, dict(zip(header, cells, strict=True)), cells=True)
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: not CSV ({error})") from None


def _list_in_cell(cell: str) -> Any:
    """Return the list that a cell of CSV holds, as JSON or as Python prints it; None where it holds none.

    NumPy prints lists without commas, which Python would read as one long text: that is none.
    """
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(cell.strip())
        tokens = tokenize.generate_tokens(io.StringIO(cell.strip()).readline)
        texts = sum(token.type == tokenize.STRING for token in tokens)
    except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        return None
    return value if isinstance(value, list) and texts == len(value) else None


def _parquet(files: list[Path]) -> list[Record]:
    from pyarrow import ArrowException, parquet  # comes with datasets; seconds to import

    records: list[Record] = []
    for path in files:
        try:
            rows = parquet.read_table(path).to_pylist()
        except (ArrowException, OSError) as error:
            raise UserError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})") from None
        records += [Record(f"{path}, row {n}", row) for n, row in enumerate(rows, 1)]
    return records


def _saved(folder: Path) -> list[Record]:
    """Rows of a data set that `save_to_disk` wrote, or of the Parquet files in a folder."""
    if not (folder / "state.json").is_file() and not (folder / "dataset_dict.json").is_file():
        files = sorted(folder.glob("*.parquet"))
        if not files:
            raise UserError(f"{folder}: this folder has no saved data set and no .parquet file")
        return _parquet(files)
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except Exception as error:
        raise UserError(f"{folder}: cannot read the saved data set ({type(error).__name__}: {error})") from None
    if isinstance(saved, DatasetDict):
        if len(saved) != 1:
            raise UserError(f"{folder}: the saved data set has the splits {', '.join(saved)}; give the folder of one")
        (saved,) = saved.values()
    return [Record(f"{folder}, row {n}", dict(row)) for n, row in enumerate(saved, 1)]
