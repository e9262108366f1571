"""The paper's Table 3: answers of all models side by side."""

from __future__ import annotations

import random
from dataclasses import dataclass

from soul_cli.report.layout import rank
from soul_cli.report.read import REFERENCES, Run, label
from soul_cli.report.render import md
from soul_cli.results import NAMES
from soul_cli.types import Row, UserError


@dataclass(frozen=True)
class Speaker:
    """One model whose answers are shown.  seed: None for the two references."""

    method: str
    optim: str
    seed: int | None
    rows: dict[tuple[str, int], Row]  # (split, index) -> evaluated example

    @property
    def name(self) -> str:
        return label((self.method, self.optim)) + ("" if self.seed is None else f", seed {self.seed}")


def speakers(runs: list[Run]) -> list[Speaker]:
    """Original and retain-trained model of the first run that has their rows, then every run's own, in table order."""
    found = []
    for name in REFERENCES:
        rows: list[Row] = next(filter(None, (r.rows(name) for r in runs)), [])
        found += [Speaker(NAMES[name], "", None, _by_place(rows))] if rows else []
    for run in sorted((r for r in runs if r.row), key=lambda r: (rank(*(r.row or ("", ""))), r.seed)):
        rows, row = run.rows("this_run"), run.row
        if rows and row:
            found.append(Speaker(*row, run.seed if run.trained else None, _by_place(rows)))
    return found


def _by_place(rows: list[Row]) -> dict[tuple[str, int], Row]:
    return {(row["split"], row["index"]): row for row in rows}


def one_each(some: list[Speaker]) -> list[Speaker]:
    """The first seed of every row."""
    first: dict[tuple[str, str], Speaker] = {}
    for speaker in some:
        first.setdefault((speaker.method, speaker.optim), speaker)
    return list(first.values())


def question_of(row: Row) -> str:
    return row.get("question") or row.get("prompt", "")


def choose(some: list[Speaker], wanted: list[int] | None, count: int, seed: int) -> list[tuple[str, int]]:
    """Places of the questions to show: the wanted indices, or `count` drawn with `seed`, of the forget split."""
    places = list(some[0].rows)
    split = "forget" if any(s == "forget" for s, _ in places) else places[0][0]
    known = sorted(i for s, i in places if s == split)
    if wanted is None:
        wanted = sorted(random.Random(seed).sample(known, min(count, len(known))))
    unknown = [i for i in wanted if i not in known]
    if unknown:
        raise UserError(f"--questions {unknown}: the {split} split has questions {known[0]} to {known[-1]}")
    return [(split, i) for i in wanted]


def markdown(some: list[Speaker], places: list[tuple[str, int]]) -> str:
    """One table a question: gold, then a line a model."""
    parts = []
    for split, index in places:
        row = some[0].rows[split, index]
        lines = [f"**{split} {index}** {md(question_of(row))}", "", "| | answer |", "|---|---|"]
        lines.append(f"| gold | {md(row['gold'])} |")
        for speaker in some:
            answer = speaker.rows.get((split, index), {}).get("generation")
            shown = "*not evaluated*" if answer is None else md(answer) or "*empty*"
            lines.append(f"| {md(speaker.name)} | {shown} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
