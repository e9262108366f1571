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


def speakers(runs: list[Run], variants: tuple[str, ...] = ()) -> list[Speaker]:
    """Original and retain-trained model of the first run that has their rows, then every run's own, in table order."""
    found = []
    for name in REFERENCES:
        rows: list[Row] = next(filter(None, (r.rows(name) for r in runs)), [])
        found += [Speaker(NAMES[name], "", None, _by_place(rows, variants))] if rows else []
    for run in sorted((r for r in runs if r.row), key=lambda r: (rank(*(r.row or ("", ""))), r.seed)):
        rows, row = run.rows("this_run"), run.row
        if rows and row:
            found.append(Speaker(*row, run.seed if run.trained else None, _by_place(rows, variants)))
    return found


def _by_place(rows: list[Row], variants: tuple[str, ...]) -> dict[Place, Row]:
    def variant(row: Row) -> str:
        return ", ".join(f"{key} {row[key]}" for key in variants if key in row)

    return {(row["split"], row["index"], variant(row)): row for row in rows if "generation" in row}


def name_of(place: Place) -> str:
    split, index, variant = place
    return f"{split} {index}" + (f", {variant}" if variant else "")


def one_each(some: list[Speaker]) -> list[Speaker]:
    """The first seed of every row."""
    first: dict[tuple[str, str], Speaker] = {}
    for speaker in some:
        first.setdefault((speaker.method, speaker.optim), speaker)
    return list(first.values())


def question_of(row: Row) -> str:
    return row.get("question") or row.get("prompt", "")


def choose(some: list[Speaker], wanted: list[int] | None, count: int, seed: int) -> list[Place]:
    """Questions of the forget split: the wanted indices, or `count` drawn with `seed`; of each its first variant."""
    splits = list(dict.fromkeys(place[0] for place in some[0].rows))
    split = "forget" if "forget" in splits else splits[0]
    first: dict[int, Place] = {}
    for place in some[0].rows:
        if place[0] == split:
            first.setdefault(place[1], place)
    known = sorted(first)
    if wanted is None:
        wanted = sorted(random.Random(seed).sample(known, min(count, len(known))))
    unknown = [i for i in wanted if i not in known]
    if unknown:
        raise UserError(f"--questions {unknown}: the {split} split has questions {known[0]} to {known[-1]}")
    return [first[i] for i in wanted]


def markdown(some: list[Speaker], places: list[Place]) -> str:
    """One table a question: gold, then a line a model."""
    parts = []
    for place in places:
        row = some[0].rows[place]
        lines = [f"**{md(name_of(place))}** {md(question_of(row))}", "", "| | answer |", "|---|---|"]
        lines.append(f"| gold | {md(row['gold'])} |")
        for speaker in some:
            answer = speaker.rows.get(place, {}).get("generation")
            shown = "*not evaluated*" if answer is None else md(answer) or "*empty*"
            lines.append(f"| {md(speaker.name)} | {shown} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
