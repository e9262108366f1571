"""The paper's Table 3: answers of all models side by side."""

from __future__ import annotations

import random
from dataclasses import dataclass

from soul_cli.core.run_folder import NAMES
from soul_cli.core.types import Row, UserError
from soul_cli.report.layout import rank
from soul_cli.report.read import REFERENCES, Run, label
from soul_cli.report.render import md

Place = tuple[str, int, str]  # split, index, and what tells rows of the same index apart


@dataclass(frozen=True)
class Speaker:
    """One model whose answers are shown.  seed: None for the two references."""

    method: str
    optim: str
    seed: int | None
    rows: dict[Place, Row]  # evaluated examples that have an answer

    @property
    def name(self) -> str:
        return label((self.method, self.optim)) + ("" if self.seed is None else f", seed {self.seed}")


def list_speakers(runs: list[Run], variants: tuple[str, ...] = ()) -> list[Speaker]:
    """Return original and retain-trained model of the first run that has their rows, then every run's own, in order."""
    references = [(model, next(filter(None, (run.rows(model) for run in runs)), [])) for model in REFERENCES]
    speakers = [Speaker(NAMES[model], "", None, _by_place(rows, variants)) for model, rows in references if rows]
    unlearned = [(run.row, run) for run in runs if run.row is not None]
    for row, run in sorted(unlearned, key=lambda pair: (rank(*pair[0]), pair[1].seed)):
        if rows := run.rows("this_run"):
            speakers.append(Speaker(*row, run.seed if run.trained else None, _by_place(rows, variants)))
    return speakers


def _by_place(rows: list[Row], variants: tuple[str, ...]) -> dict[Place, Row]:
    def variant(row: Row) -> str:
        return ", ".join(f"{key} {row[key]}" for key in variants if key in row)

    return {(row["split"], row["index"], variant(row)): row for row in rows if "generation" in row}


def name_of(place: Place) -> str:
    """Return the words that a question is called by."""
    split, index, variant = place
    return f"{split} {index}" + (f", {variant}" if variant else "")


def one_each(speakers: list[Speaker]) -> list[Speaker]:
    """Return the first seed of every row."""
    first: dict[tuple[str, str], Speaker] = {}
    for speaker in speakers:
        first.setdefault((speaker.method, speaker.optim), speaker)
    return list(first.values())


def question_of(row: Row) -> str:
    """Return what the model was asked."""
    return row.get("question") or row.get("prompt", "")


def choose(speakers: list[Speaker], asked: list[int] | None, count: int, seed: int) -> list[Place]:
    """Return questions of the forget split: those of the indices asked for, or `count` drawn with `seed`.

    Of each the first variant.  Raises UserError where an index is none of the split's.
    """
    splits = list(dict.fromkeys(place[0] for place in speakers[0].rows))
    split = "forget" if "forget" in splits else splits[0]
    first: dict[int, Place] = {}
    for place in speakers[0].rows:
        if place[0] == split:
            first.setdefault(place[1], place)
    indices = sorted(first)
    if asked is None:
        asked = sorted(random.Random(seed).sample(indices, min(count, len(indices))))
    unknown = [i for i in asked if i not in first]
    if unknown:
        raise UserError(f"--questions {unknown}: the {split} split has questions {indices[0]} to {indices[-1]}")
    return [first[i] for i in asked]


def markdown(speakers: list[Speaker], places: list[Place]) -> str:
    """Return one table a question: gold, then a line a model."""
    parts = []
    for place in places:
        row = speakers[0].rows[place]
        lines = [f"**{md(name_of(place))}** {md(question_of(row))}", "", "| | answer |", "|---|---|"]
        lines.append(f"| gold | {md(row['gold'])} |")
        for speaker in speakers:
            answer = speaker.rows.get(place, {}).get("generation")
            shown = "*not evaluated*" if answer is None else md(answer) or "*empty*"
            lines.append(f"| {md(speaker.name)} | {shown} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
