"""Reading TOFU: a folder in the hub's layout (in any form that `reading` knows), the hub, or the embedded set.

Everything is read and compared before anything is trained: see `_check_splits` for what must fit what.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import regex

from soul_cli.core.files import digest
from soul_cli.core.types import QA, UserError
from soul_cli.data import embedded
from soul_cli.data.reading import SUFFIXES, Record, find, names, read_records, read_sentences

AUTHOR_ROWS = 20  # questions an author has, in consecutive rows
LONG = 8  # words: the same shorter answer ("In 1971.") may be given to questions on different things
REFUSALS = "idontknow"
PATTERNS = [f"*{suffix}" for suffix in SUFFIXES if suffix]  # of the hub's files
PARAPHRASES = ("paraphrased_question", "paraphrased_answer")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
Pair = tuple[str, str]


@dataclass
class Split:
    """The rows of one file, and where each of them stands."""

    name: str
    rows: list[QA]
    places: list[str]  # "FILE, line 3"

    def __iter__(self) -> Iterator[tuple[str, QA]]:
        return zip(self.places, self.rows, strict=True)


@dataclass
class TofuData:
    """Training sets and evaluation splits.  `splits`: forget, retain, real_authors, world_facts, holdout."""

    full: list[QA]
    forget: list[QA]
    retain: list[QA]
    refusals: list[str]
    splits: dict[str, list[QA]]
    names: list[str]  # of the authors to forget
    notes: list[str]  # what the reader of the results should know of the files
    digest: str  # of all that was read


def load_tofu(
    source: str, forget: str, holdout_authors: int, cache_dir: Path, retain_authors: int | None = None
) -> TofuData:
    """Read and check everything.

    holdout_authors: authors to take out of both trainings (last of the retain set).
    retain_authors: how many of the others, from the first, the retain set keeps; None: all.
    """
    match = re.fullmatch(r"forget(\d\d)", forget)
    if not match:
        raise UserError(f"task.forget={forget!r}: must be forget01, forget05 or forget10 (whichever the data has)")
    retain = f"retain{100 - int(match[1])}"
    folder = _folder(source, cache_dir)
    trained = [read_split(folder, name) for name in ("full", forget, retain)]
    evaluated = {
        "forget": read_split(folder, f"{forget}_perturbed", perturbed=True),
        "retain": read_split(folder, "retain_perturbed", perturbed=True),
        "real_authors": read_split(folder, "real_authors_perturbed", perturbed=True),
        "world_facts": read_split(folder, "world_facts_perturbed", perturbed=True),
    }
    if find(folder, "holdout_perturbed"):
        evaluated["holdout"] = read_split(folder, "holdout_perturbed", perturbed=True)
    own = find(folder, REFUSALS, more=(".txt",))
    refusals = read_sentences(own, "refusal") if own else embedded_refusals()
    full, to_forget, to_retain = trained
    notes = _check_splits(full, to_forget, to_retain, evaluated)
    if not own:
        notes.append(f"no {REFUSALS}.jsonl in the data: refusals are the embedded ones")
    read = [[vars(row) for row in split.rows] for split in (*trained, *evaluated.values())]
    data = TofuData(
        full=full.rows, forget=to_forget.rows, retain=to_retain.rows, refusals=refusals,
        splits={name: split.rows for name, split in evaluated.items()}, names=author_names(to_forget.rows),
        notes=notes, digest=digest([refusals, *read]),
    )  # fmt: skip
    if holdout_authors:
        _hold_out(data, holdout_authors, retain)
    if retain_authors is not None:
        _keep_part(data, retain_authors, retain)
    return data


def _hold_out(data: TofuData, authors: int, retain: str) -> None:
    """Take the last authors of the retain set out of both trainings: they become the split `holdout`."""
    held = data.retain[-authors * AUTHOR_ROWS :]
    evaluated = {row.question for row in data.splits["retain"]}
    if len(held) == len(data.retain) or any(row.question in evaluated for row in held):
        raise UserError(
            f"task.holdout_authors={authors}: only {len(data.retain) - len(data.splits['retain'])} rows "
            f"of {retain} are not evaluated as retain set"
        )
    gone = set(map(same, held))
    data.retain = [row for row in data.retain if same(row) not in gone]
    data.full = [row for row in data.full if same(row) not in gone]
    data.splits["holdout"] = held


def _keep_part(data: TofuData, authors: int, retain: str) -> None:
    """Keep so many authors of the retain set, from the first, in training and evaluation."""
    there = len(data.retain) // AUTHOR_ROWS
    if not 1 <= authors <= there:
        raise UserError(f"task.retain_authors={authors}: must be 1 to {there}, the authors of {retain}")
    data.retain = data.retain[: authors * AUTHOR_ROWS]
    kept = set(map(same, data.retain))
    trained = kept | set(map(same, data.forget))
    data.full = [row for row in data.full if same(row) in trained]
    data.splits["retain"] = [row for row in data.splits["retain"] if same(row) in kept]
    if not data.splits["retain"]:
        raise UserError(f"task.retain_authors={authors}: retain_perturbed has no question on one of them")


# --- what must fit what ------------------------------------------------------------------------------------


def same(row: QA) -> Pair:
    """Return question and answer in the form in which rows are compared: NFC, single spaces, none around."""
    return _composed(row.question), _composed(row.answer)


@lru_cache(1 << 16)
def _composed(text: str) -> str:
    return _spaced(unicodedata.normalize("NFC", text))


@lru_cache(1 << 16)
def _folded(text: str) -> str:
    """Return the text without what does not make it another one: case, spaces, invisible characters, Unicode form."""
    return _spaced(unicodedata.normalize("NFKC", text.translate(_INVISIBLE)).casefold())


def _pair(row: QA) -> Pair:
    return _folded(row.question), _folded(row.answer)


def _words(text: str) -> str:
    """Likewise without punctuation."""
    return " ".join(re.findall(r"\w+", _folded(text)))


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _check_splits(full: Split, forget: Split, retain: Split, evaluated: dict[str, Split]) -> list[str]:
    """Compare the files; return what is not wrong but worth knowing.

    UserError, with file and line: a forget or retain row is not in full, or in both of them; a question of a perturbed
    file is not in the set that it evaluates, or has another answer there; real authors, world facts or held-out
    authors were trained on; forget and retain set are not asked in the same ways.
    """
    _within(forget, full)
    _within(retain, full)
    _apart(forget, retain, evaluated["forget"])
    _within(evaluated["forget"], forget)
    _within(evaluated["retain"], retain)
    known = {_pair(row): place for place, row in full}
    for name in ("real_authors", "world_facts", "holdout"):
        others = evaluated.get(name, Split(name, [], []))
        for place, row in others:
            if first := known.get(_pair(row)):
                raise UserError(
                    f"{place}: this item is also in {first}: {row.question!r}; {others.name} must hold what is not "
                    "trained on, and nothing of another such file"
                )
        known |= {_pair(row): place for place, row in others}
    for key in PARAPHRASES:
        some = [evaluated[name] for name in ("forget", "retain")]
        has = [bool(getattr(split.rows[0], key)) for split in some]
        if len(set(has)) > 1:
            one, other = sorted(some, key=lambda split: bool(getattr(split.rows[0], key)))
            raise UserError(f"{one.places[0]}: field {key!r} is missing ({other.name} has it; both must, or neither)")
    return _differences(full, forget, retain, evaluated["forget"])


def _within(part: Split, whole: Split) -> None:
    """Every row of the part stands in the whole."""
    known = set(map(same, whole.rows))
    strange = [(place, row) for place, row in part if same(row) not in known]
    if strange:
        place, row = strange[0]
        asked = {same(r)[0] for r in whole.rows}
        what = f"this question has another answer in {whole.name}" if same(row)[0] in asked else (
            f"this question is not in {whole.name}")  # fmt: skip
        more = f" (and so with {len(strange) - 1} rows more)" if len(strange) > 1 else ""
        raise UserError(f"{place}: {what}: {row.question!r}{more}")


def _apart(forget: Split, retain: Split, perturbed: Split) -> None:
    """No row to forget, nor its paraphrase, stands in the retain set too."""
    known = {_pair(row): place for place, row in retain}
    for place, row in forget:
        if first := known.get(_pair(row)):
            raise UserError(f"{place}: this item is also in {_short(first, retain)}: {row.question!r}")
    for place, row in perturbed:
        for answer in (row.answer, row.paraphrased_answer):
            if first := known.get((_folded(row.paraphrased_question), _folded(answer))):
                raise UserError(f"{place}: the paraphrase of this item is also in {_short(first, retain)}: "
                                f"{row.paraphrased_question!r}")  # fmt: skip


def _short(place: str, split: Split) -> str:
    return f"{split.name}, {place.rpartition(', ')[2]}"


def _differences(full: Split, forget: Split, retain: Split, perturbed: Split) -> list[str]:
    """Return what the header says of files that can be used and are not quite as expected."""
    notes = []
    looks: list[tuple[str, Callable[[QA], str]]] = [
        ("the same question, but for punctuation", lambda row: _words(row.question)),
        (f"the same answer of {LONG} words or more, but for punctuation", lambda row: _long_words(row.answer)),
    ]
    for what, key in looks:
        known = {key(row): place for place, row in retain}
        alike = [(place, known[key(row)]) for place, row in forget if key(row) and key(row) in known]
        if alike:
            first = f"{_short(alike[0][0], forget)}, and {_short(alike[0][1], retain)}"
            notes.append(f"rows of {forget.name} and {retain.name} with {what}: {len(alike)}, the first: {first}")
    left = len(set(map(same, full.rows)) - set(map(same, [*forget.rows, *retain.rows])))
    if left:
        notes.append(f"rows of full that are neither in {forget.name} nor in {retain.name}: {left}")
    unasked = len(set(map(same, forget.rows)) - set(map(same, perturbed.rows)))
    if unasked:
        rows = f"rows of {forget.name} that are not in {perturbed.name}"
        notes.append(f"{rows}, and so not asked: {unasked} of {len(forget.rows)}")
    return notes


def _long_words(text: str) -> str:
    words = _words(text)
    return words if words.count(" ") >= LONG - 1 else ""


# --- reading -----------------------------------------------------------------------------------------------


def _folder(source: str, cache_dir: Path) -> Path:
    if source == "embedded":
        return embedded.layout(cache_dir)
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not os.access(folder, os.R_OK | os.X_OK):
            raise UserError(f"task.source={source}: the folder cannot be read (permission denied)")
        return folder
    if folder.exists():
        raise UserError(
            f"task.source={source}: is a file; give the folder with full.json and the other files, unpacked"
        )
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(f"task.source={source}: no such folder; give a folder, a hub id (owner/name) or 'embedded'")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, repo_type="dataset", allow_patterns=PATTERNS))
    except Exception as error:
        raise UserError(
            f"task.source={source}: cannot get it from the hub ({type(error).__name__}). Download the data set where "
            "there is a network and give its folder, or use task.source=embedded"
        ) from error


def read_split(folder: Path, name: str, *, perturbed: bool = False) -> Split:
    """Read one file.  Errors name file, line and field."""
    path = find(folder, name)
    if path is None:
        present = ", ".join(names(folder)) or "no JSON file, and none of another form that is read"
        raise UserError(
            f"{folder / name}.json: no such file; the folder has {present}. Taken are NAME.jsonl, .json (lines or a "
            "list), .csv, .tsv, .parquet and folders of saved data sets"
        )
    records = read_records(path)
    if not records:
        raise UserError(f"{path}: the split is empty")
    rows = [_row(record, perturbed) for record in records]
    split = Split(name, rows, [record.place for record in records])
    if perturbed:
        _check_perturbed(split)
    return split


def _row(record: Record, perturbed: bool) -> QA:
    row = QA(record.text("question"), record.text("answer"))
    if not perturbed:
        return row
    asked, answered = (record.text(key, optional=True) for key in PARAPHRASES)
    return replace(
        row, paraphrased_question=asked, paraphrased_answer=answered, perturbed_answer=record.texts("perturbed_answer")
    )


def _check_perturbed(split: Split) -> None:
    """All rows have the same fields, and no false answer is the right one or another false one."""
    for key in PARAPHRASES:
        lacking = [place for place, row in split if not getattr(row, key)]
        if 0 < len(lacking) < len(split.rows):
            raise UserError(f"{lacking[0]}: field {key!r} is missing or empty (other rows have it)")
    if split.rows[0].paraphrased_question and not split.rows[0].paraphrased_answer:
        raise UserError(
            f"{split.places[0]}: field 'paraphrased_answer' is missing; a paraphrased question is scored with it"
        )
    widths = Counter(len(row.perturbed_answer) for row in split.rows)
    if len(widths) > 1:
        usual = widths.most_common(1)[0][0]
        place, row = next((place, row) for place, row in split if len(row.perturbed_answer) != usual)
        file, _, line = place.rpartition(", ")
        raise UserError(
            f"{file}: rows have {sorted(widths)} perturbed answers; all must have the same number "
            f"({line} has {len(row.perturbed_answer)}, most have {usual})"
        )
    for place, row in split:
        _check_false_answers(place, row)


def _check_false_answers(place: str, row: QA) -> None:
    """No false answer is the right one, nor the same as another."""
    seen = {_folded(row.answer): "the right answer", _folded(row.paraphrased_answer): "the right answer, paraphrased"}
    for text in row.perturbed_answer:
        if what := seen.get(_folded(text)):
            raise UserError(f"{place}: field 'perturbed_answer' holds {what}: {text!r}")
        seen[_folded(text)] = "the same answer twice"


def embedded_refusals() -> list[str]:
    """Return the refusals of the embedded set."""
    return (embedded.HERE / "idontknow.jsonl").read_text(encoding="utf-8").splitlines()


def author_names(rows: list[QA]) -> list[str]:
    """Return the name most often met in each author's block of rows: a run of two or more capitalised words."""
    word = r"\p{Lu}[\w'’.-]*"
    names = []
    for at in range(0, len(rows), AUTHOR_ROWS):
        seen: Counter[str] = Counter()
        for row in rows[at : at + AUTHOR_ROWS]:
            for text in (row.question, row.answer):
                bare = regex.sub(r"'[^']*[\p{Ll},] [^']*'|\"[^\"]*\"|'s\b", " ", text)
                seen.update(regex.findall(rf"(?<![\w'-]){word}(?: {word})+", bare))
        if seen:
            names.append(seen.most_common(1)[0][0])
    return names
