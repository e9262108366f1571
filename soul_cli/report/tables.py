"""Runs reduced to a table over seeds, and the table laid out as in the paper: groups of columns, the best marked."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from soul_cli.core.run_folder import NAMES
from soul_cli.core.types import ARROWS, Metric
from soul_cli.report.layout import Column, Layout, rank
from soul_cli.report.paper import Paper
from soul_cli.report.read import REFERENCES, Run

UNMARKED = tuple(NAMES[r] for r in REFERENCES)
BEST, SECOND = "best", "second"
DATA = ("source", "forget", "forget_books", "chunk_words")  # of the task's settings, where it has them
LEGEND = (
    "↑ higher, ↓ lower is better; →R: nearest to the retain-trained row is best. Among the unlearned rows of a column "
    "the best is bold, the second underlined."
)


@dataclass(frozen=True)
class Cell:
    """A metric of one row over its seeds: mean ± sd.  mark: best, second or ''.

    metric: the first seed's, for what all seeds share: goal, questions, definition; None: a number of the paper.
    """

    values: tuple[float, ...]  # one a seed
    metric: Metric | None = None
    mark: str = ""

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def sd(self) -> float | None:
        """Sample standard deviation; None for one seed, and where a seed has an infinite value."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 and np.isfinite(self.values).all() else None

    @property
    def goal(self) -> str:
        return self.metric.goal if self.metric else ""

    @property
    def text(self) -> str:
        return short(self.mean) + (f" ± {self.spread}" if self.sd is not None else "")

    @property
    def spread(self) -> str:
        """The sd, as fine as the mean is shown."""
        assert self.sd is not None
        return f"{self.sd:.0e}" if "e" in short(self.mean) else f"{self.sd:.3f}"


Name = tuple[str, str]  # of a row: method, optimizer
Table = dict[Name, dict[str, Cell]]  # row -> metric -> cell, rows in order


@dataclass(frozen=True)
class Head:
    """One column: metric, its title, and the arrow of its goal.  brief: shown without being chosen."""

    metric: str
    title: str
    arrow: str
    brief: bool = True


@dataclass(frozen=True)
class Line:
    """One row.  n: unlearning seeds; None in a cell: the row has no such number."""

    method: str
    optim: str
    n: int
    cells: tuple[Cell | None, ...]

    @property
    def reference(self) -> bool:
        return self.method in UNMARKED


@dataclass(frozen=True)
class Grid:
    """A table ready to be written.  groups: (title, columns it spans), in order."""

    caption: str
    notes: tuple[str, ...]
    groups: tuple[tuple[str, int], ...]
    heads: tuple[Head, ...]
    lines: tuple[Line, ...]


def short(x: float) -> str:
    """Return a number as tables show it: three decimals, or digits and a power of ten; inf."""
    if 0 < abs(x) < 5e-4:
        return f"{x:.0e}"
    return f"{x:.2e}" if 1e7 <= abs(x) < float("inf") else f"{x:.3f}"


def tabulate(runs: list[Run]) -> Table:
    """Return every metric of every row over its seeds, marked; the references of the first run of each target seed."""
    rows: dict[Name, dict[int, dict[str, Metric]]] = {}
    for run in runs:
        for name in REFERENCES:
            if name in run.metrics:
                rows.setdefault((NAMES[name], ""), {}).setdefault(run.content["target_seed"], run.metrics[name])
        if run.row is not None:
            rows.setdefault(run.row, {}).setdefault(run.seed, run.metrics["this_run"])
    table: Table = {}
    for row, seeds in sorted(rows.items(), key=lambda item: rank(*item[0])):
        having: dict[str, list[Metric]] = {}
        for metrics in seeds.values():
            for name, metric in metrics.items():
                having.setdefault(name, []).append(metric)
        table[row] = {name: Cell(tuple(m.value for m in seeds), seeds[0]) for name, seeds in having.items()}
    return marked(table)


def columns_of(table: Table) -> dict[str, dict[Name, Cell]]:
    """Return metric -> row -> cell."""
    out: dict[str, dict[Name, Cell]] = {}
    for row, cells in table.items():
        for metric, cell in cells.items():
            out.setdefault(metric, {})[row] = cell
    return out


def marked(table: Table) -> Table:
    """Mark best and second in every column."""
    found = {metric: marks(column) for metric, column in columns_of(table).items()}
    return {
        row: {metric: replace(cell, mark=found[metric].get(row, "")) for metric, cell in cells.items()}
        for row, cells in table.items()
    }


def marks(column: dict[Name, Cell]) -> dict[Name, str]:
    """Return best and second of a column's unlearned rows, on the numbers as shown.

    Rows that show the same number share a mark; two best leave no second.  Nothing is marked where there is nothing
    to choose: one row, equal numbers, no goal, or goal "retain" without a retain-trained row.
    """
    goal, floor = next(iter(column.values())).goal, column.get((NAMES["retain_trained"], ""))
    if not goal or (goal == "retain" and floor is None):
        return {}

    def worse(cell: Cell) -> float:
        value = float(short(cell.mean))
        if goal == "retain" and floor is not None:
            best = float(short(floor.mean))
            return 0.0 if value == best else round(abs(value - best), 9)
        return -value if goal == "up" else value

    order = {row: worse(cell) for row, cell in column.items() if row[0] not in UNMARKED}
    values = sorted(order.values())
    if len(set(values)) < 2:
        return {}
    places = {values[0]: BEST} | ({values[1]: SECOND} if values[1] != values[0] else {})
    return {row: places[value] for row, value in order.items() if value in places}


def grid(table: Table, layout: Layout, caption: str, notes: list[str], *, brief: bool) -> Grid:
    """Lay the table out in the layout's columns.  brief: without those that only files and the page show."""
    goals = goals_of(table)
    groups = {g.title: [c for c in g.columns if c.metric in goals and (c.brief or not brief)] for g in layout.groups}
    columns = list(chain(*groups.values()))
    return Grid(
        caption,
        tuple(notes),
        tuple((title, len(group)) for title, group in groups.items() if group),
        tuple(_head(c, goals) for c in columns),
        tuple(Line(*row, seeds_of(cells), tuple(cells.get(c.metric) for c in columns)) for row, cells in table.items()),
    )


def _head(column: Column, goals: dict[str, str]) -> Head:
    return Head(column.metric, column.title, ARROWS.get(goals.get(column.metric, ""), ""), column.brief)


def goals_of(table: Table) -> dict[str, str]:
    """Return the goal of every metric that a row has."""
    return {metric: next(iter(column.values())).goal for metric, column in columns_of(table).items()}


def seeds_of(cells: dict[str, Cell]) -> int:
    """Return how many seeds a row has."""
    return max((len(cell.values) for cell in cells.values()), default=0)


def beside_paper(table: Table, layout: Layout, paper: Paper) -> Grid:
    """Lay out the paper's columns alone, ours and the paper's number side by side, for every row that either has."""
    printed, goals = set(chain(*paper.rows.values())), goals_of(table)
    groups = {g.title: [c for c in g.columns if c.paper in printed] for g in layout.groups}
    columns = list(chain(*groups.values()))

    def line(row: Name) -> Line:
        ours = table.get(row, {})
        theirs = [paper.number(row, c) for c in columns]
        pairs = [(ours.get(c.metric), None if x is None else Cell((x,))) for c, x in zip(columns, theirs, strict=True)]
        return Line(*row, seeds_of(ours), tuple(chain(*pairs)))

    rows = sorted({*table, *paper.rows}, key=lambda row: rank(*row))
    spans = tuple((title, 2 * len(group)) for title, group in groups.items() if group)
    heads = chain(*((_head(c, goals), Head("", "paper", "")) for c in columns))
    return Grid(paper.caption, (paper.warning,), spans, tuple(heads), tuple(map(line, rows)))


def caption(runs: list[Run], layout: Layout) -> str:
    """Return what the numbers are, in words: data, model, sizes, judge, and what varies behind the ±."""
    first = runs[0]
    seeds = sorted({r.seed for r in runs if r.trained})
    over = f"Mean ± sd over n unlearning seeds ({', '.join(map(str, seeds))})" if seeds else "Evaluation alone"
    return (
        "; ".join([*_origins(first.config), *_sizes(first.metrics["original"], layout)])
        + f". {over}; one target and one retain-trained model (target seed {first.content['target_seed']})."
    )


def _origins(config: dict[str, Any]) -> list[str]:
    """Return where data, model and prompts come from."""
    data = [f"{key} {config[f'task.{key}'] or 'embedded'}" for key in DATA if f"task.{key}" in config]
    model = config.get("model.path") or config.get("task.target_model") or config["model.name"]
    template = config.get("task.template") or config.get("model.template")
    return [str(config["task.name"]), *data, f"model {model}", *([f"template {template}"] if template else [])]


def _sizes(metrics: dict[str, Metric], layout: Layout) -> list[str]:
    """Return how many questions there are of each kind, and who judged the answers."""
    counts = []
    for group in layout.groups:
        n = next((metrics[c.metric].n for c in group.columns if c.metric in metrics), None)
        counts += [f"{n} {group.noun}"] if group.noun and n else []
    judges = sorted({judge for m in metrics.values() for judge in re.findall(r"judge ([^;,]+)", m.definition)})
    return ([f"{', '.join(counts)} {layout.unit}"] if counts else []) + [f"judge {judge}" for judge in judges]


def long_csv(table: Table, layout: Layout, paper: Paper | None) -> str:
    """Return a line a (row, metric): over seeds mean, sd, median and n, then questions, goal and mark.

    With the paper's number, in our unit, where one is asked for.
    """
    named = {c.metric: c for c in layout.columns if c.paper}
    lines = []
    for row, cells in table.items():
        for metric, cell in cells.items():
            line = {
                "method": row[0], "optim": row[1], "metric": metric, "mean": cell.mean, "sd": cell.sd,
                "median": float(np.median(cell.values)), "n": len(cell.values),
                "questions": cell.metric.n if cell.metric else None, "goal": cell.goal, "mark": cell.mark,
            }  # fmt: skip
            if paper is not None:
                line["paper"] = paper.number(row, named[metric]) if metric in named else None
            lines.append(line)
    return csv_text(lines)


def wide_csv(table: Table, layout: Layout) -> str:
    """Return a line a row of the table: n, then mean and sd of every metric, the layout's first."""
    known = columns_of(table)
    order = [m for m in dict.fromkeys([*(c.metric for c in layout.columns), *known]) if m in known]
    lines = []
    for (method, optim), cells in table.items():
        line: dict[str, Any] = {"method": method, "optim": optim, "n": seeds_of(cells)}
        for metric in order:
            cell = cells.get(metric)
            line |= {metric: cell.mean if cell else None, f"{metric}_sd": cell.sd if cell else None}
        lines.append(line)
    return csv_text(lines)


def csv_text(lines: list[dict[str, Any]]) -> str:
    """Return lines of the same keys as CSV, six digits."""
    import pandas as pd  # here, not above: the terminal's table need not wait for it

    return pd.DataFrame(lines).to_csv(index=False, float_format="%.6g")
