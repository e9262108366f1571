"""Reading TOFU: a folder of JSON Lines in the hub's layout, the hub itself, or the embedded set.  One code path."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from soul_cli.core.files import file_digest
from soul_cli.core.types import QA, UserError
from soul_cli.data import embedded

AUTHOR_ROWS = 20  # questions an author has, in consecutive rows


@dataclass
class TofuData:
    """Training sets and evaluation splits.  `splits`: forget, retain, real_authors, world_facts, holdout."""

    full: list[QA]
    forget: list[QA]
    retain: list[QA]
    refusals: list[str]
    splits: dict[str, list[QA]]
    names: list[str]  # of the authors to forget
    digest: str


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
    retain_name = f"retain{100 - int(match[1])}"
    folder = _folder(source, cache_dir)
    full, forget_rows = read_rows(folder, "full"), read_rows(folder, forget)
    retain_rows = read_rows(folder, retain_name)
    forgotten = {(r.question, r.answer) for r in forget_rows}
    known = {(r.question, r.answer): i for i, r in enumerate(retain_rows, 1)}
    for line, row in enumerate(forget_rows, 1):
        if (row.question, row.answer) in known:
            raise UserError(
                f"{_file(folder, forget)}, line {line}: this item is also in {retain_name}, line "
                f"{known[row.question, row.answer]}: {row.question!r}"
            )
    splits = {
        "forget": read_rows(folder, f"{forget}_perturbed", perturbed=True),
        "retain": read_rows(folder, "retain_perturbed", perturbed=True),
        "real_authors": read_rows(folder, "real_authors_perturbed", perturbed=True),
        "world_facts": read_rows(folder, "world_facts_perturbed", perturbed=True),
    }
    if _file(folder, "holdout_perturbed").is_file():
        splits["holdout"] = read_rows(folder, "holdout_perturbed", perturbed=True)
    if holdout_authors:
        held = retain_rows[-holdout_authors * AUTHOR_ROWS :]
        evaluated = {r.question for r in splits["retain"]}
        if len(held) == len(retain_rows) or any(r.question in evaluated for r in held):
            raise UserError(
                f"task.holdout_authors={holdout_authors}: only {len(retain_rows) - len(splits['retain'])} rows "
                f"of {retain_name} are not evaluated as retain set"
            )
        gone = {(r.question, r.answer) for r in held}
        retain_rows = [r for r in retain_rows if (r.question, r.answer) not in gone]
        full = [r for r in full if (r.question, r.answer) not in gone]
        splits["holdout"] = held
    if retain_authors is not None:
        there = len(retain_rows) // AUTHOR_ROWS
        if not 1 <= retain_authors <= there:
            raise UserError(f"task.retain_authors={retain_authors}: must be 1 to {there}, the authors of {retain_name}")
        retain_rows = retain_rows[: retain_authors * AUTHOR_ROWS]
        kept = {(r.question, r.answer) for r in retain_rows}
        trained = kept | forgotten
        full = [r for r in full if (r.question, r.answer) in trained]
        splits["retain"] = [r for r in splits["retain"] if (r.question, r.answer) in kept]
        if not splits["retain"]:
            raise UserError(f"task.retain_authors={retain_authors}: retain_perturbed has no question on one of them")
    files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".jsonl"))
    return TofuData(
        full=full,
        forget=forget_rows,
        retain=retain_rows,
        refusals=_refusals(folder),
        splits=splits,
        names=author_names(forget_rows),
        digest=file_digest(files, cache_dir),
    )


def _folder(source: str, cache_dir: Path) -> Path:
    if source == "embedded":
        return embedded.layout(cache_dir)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(f"task.source={source}: no such folder; give a folder, a hub id (owner/name) or 'embedded'")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, repo_type="dataset", allow_patterns=["*.json", "*.jsonl"]))
    except Exception as error:
        raise UserError(
            f"task.source={source}: cannot get it from the hub ({type(error).__name__}). Download the data set where "
            "there is a network and give its folder, or use task.source=embedded"
        ) from error


def _file(folder: Path, name: str) -> Path:
    jsonl = folder / f"{name}.jsonl"
    return jsonl if jsonl.is_file() else folder / f"{name}.json"


def read_rows(folder: Path, name: str, *, perturbed: bool = False) -> list[QA]:
    """One split.  Errors name file, line and field."""
    path = _file(folder, name)
    if not path.is_file():
        present = ", ".join(sorted(p.stem for p in folder.glob("*.json*"))) or "no JSON file"
        raise UserError(f"{path}: no such file; the folder has {present}")
    rows = []
    for line, text in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if text.strip():
            rows.append(_row(text, f"{path}, line {line}", perturbed))
    if not rows:
        raise UserError(f"{path}: the split is empty")
    widths = {len(r.perturbed_answer) for r in rows}
    if len(widths) > 1:
        raise UserError(f"{path}: rows have {sorted(widths)} perturbed answers; all must have the same number")
    return rows


def _row(text: str, place: str, perturbed: bool) -> QA:
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise UserError(f"{place}: not JSON ({error})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{place}: must be a JSON object, is {type(raw).__name__}")
    for key in ("question", "answer", *(["perturbed_answer"] if perturbed else [])):
        if not raw.get(key):
            raise UserError(f"{place}: field {key!r} is missing or empty")
    for key in ("question", "answer", "paraphrased_question", "paraphrased_answer"):
        if not isinstance(raw.get(key, ""), str):
            raise UserError(f"{place}: field {key!r} must be text, is {type(raw[key]).__name__}")
    wrong = raw.get("perturbed_answer", []) if perturbed else []
    if not isinstance(wrong, list) or not all(isinstance(w, str) and w for w in wrong):
        raise UserError(f"{place}: field 'perturbed_answer' must be a list of texts")
    return QA(
        raw["question"],
        raw["answer"],
        raw.get("paraphrased_question", "") if perturbed else "",
        raw.get("paraphrased_answer", "") if perturbed else "",
        tuple(wrong),
    )


def _refusals(folder: Path) -> list[str]:
    path = folder / "idontknow.jsonl"  # plain text lines in spite of its name
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else embedded_refusals()
    return [line.strip() for line in lines if line.strip()]


def embedded_refusals() -> list[str]:
    return (embedded.HERE / "idontknow.jsonl").read_text(encoding="utf-8").splitlines()


def author_names(rows: list[QA]) -> list[str]:
    """The name most often met in each author's block of rows: a run of two or more capitalised words."""
    word = r"[A-ZÀ-Þ][\w'’.-]*"
    names = []
    for at in range(0, len(rows), AUTHOR_ROWS):
        seen: Counter[str] = Counter()
        for row in rows[at : at + AUTHOR_ROWS]:
            for text in (row.question, row.answer):
                bare = re.sub(r"'[^']*[a-z,] [^']*'|\"[^\"]*\"|'s\b", " ", text)
                seen.update(re.findall(rf"(?<![\w'-]){word}(?: {word})+", bare))
        if seen:
            names.append(seen.most_common(1)[0][0])
    return names
