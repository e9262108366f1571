"""Runs reduced to a long table, and the table laid out as in the paper: groups of columns, best and second marked."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd

from soul_cli.core.run_folder import NAMES
from soul_cli.report.layout import Column, Layout, rank
from soul_cli.report.paper import Paper
from soul_cli.report.read import REFERENCES, Number, Run
from soul_cli.report.terminal import ARROWS

UNMARKED = tuple(NAMES[r] for r in REFERENCES)
BEST, SECOND = "best", "second"
DATA = ("source", "forget", "forget_books", "chunk_words")  # of the task's settings, where it has them
LEGEND = (
    "↑ higher, ↓ lower is better; →R: nearest to the retain-trained row is best. Among the unlearned rows of a column "
    "the best is bold, the second underlined."
)


@dataclass(frozen=True)
class Cell:
    """mean ± sd over n seeds; sd is None for one seed.  mark: best, second or ''."""

    mean: float
    sd: float | None = None
    mark: str = ""

    @property
    def text(self) -> str:
        return short(self.mean) + (f" ± {self.spread}" if self.sd is not None else "")

    @property
    def spread(self) -> str:
        """The sd, as fine as the mean is shown."""
        assert self.sd is not None
        return f"{self.sd:.0e}" if "e" in short(self.mean) else f"{self.sd:.3f}"


@dataclass(frozen=True)
class Head:
    """One column: metric, its title, and the arrow of its goal."""

    metric: str
    title: str
    arrow: str


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
    return f"{x:.0e}" if 0 < abs(x) < 5e-4 else f"{x:.3f}"


def long_table(runs: list[Run]) -> pd.DataFrame:
    """One line a (row, metric): mean, sd, median and n over unlearning seeds, questions behind each, goal and mark."""
    rows: dict[tuple[str, str], dict[int, dict[str, Number]]] = {}
    for run in runs:
        for name in REFERENCES:
            if name in run.numbers:
                rows.setdefault((NAMES[name], ""), {}).setdefault(run.content["target_seed"], run.numbers[name])
        if run.row is not None:
            rows.setdefault(run.row, {}).setdefault(run.seed, run.numbers["this_run"])
    lines = []
    for (method, optim), seeds in sorted(rows.items(), key=lambda item: rank(*item[0])):
        for metric in dict.fromkeys(m for numbers in seeds.values() for m in numbers):
            having = [numbers[metric] for numbers in seeds.values() if metric in numbers]
            column = pd.Series([x.value for x in having])
            lines.append({
                "method": method, "optim": optim, "metric": metric, "mean": column.mean(),
                "sd": column.std(ddof=1), "median": column.median(), "n": len(column),
                "questions": having[0].n, "goal": having[0].goal,
            })  # fmt: skip
    long = pd.DataFrame(lines)
    return long.assign(mark=marks(long))


def marks(long: pd.DataFrame) -> pd.Series:
    """best / second / '' a line of the long table: per metric, among the unlearned rows, on the numbers as shown.

    Rows that show the same number share a mark; two best leave no second.  Nothing is marked where there is nothing
    to choose: one row, equal numbers, no goal, or goal "retain" without a retain-trained row.
    """
    out = pd.Series("", index=long.index)
    for _, part in long.groupby("metric", sort=False):
        unlearned = part[~part.method.isin(UNMARKED)]
        floor = part.loc[part.method == NAMES["retain_trained"], "mean"]
        goal = part.goal.iloc[0]
        shown = unlearned["mean"].map(lambda x: float(short(x)))
        if goal == "retain" and len(floor):
            worse = (shown - float(short(floor.iloc[0]))).abs().round(9)
        elif goal in ("up", "down"):
            worse = -shown if goal == "up" else shown
        else:
            continue
        place = worse.rank(method="min")
        if worse.nunique() > 1:
            out[place[place == 1].index] = BEST
            out[place[place == 2].index] = SECOND
    return out


def grid(long: pd.DataFrame, layout: Layout, caption: str, notes: list[str], *, brief: bool) -> Grid:
    """The long table in the layout's columns.  brief: without those that only files and the page show."""
    there = set(long.metric)

    def shown(column: Column) -> bool:
        return column.metric in there and (column.brief or not brief)

    groups = [(g.title, [c for c in g.columns if shown(c)]) for g in layout.groups]
    goals = dict(zip(long.metric, long.goal, strict=True))
    columns = [c for _, some in groups for c in some]
    return Grid(
        caption,
        tuple(notes),
        tuple((title, len(some)) for title, some in groups if some),
        tuple(Head(c.metric, c.title, ARROWS.get(goals[c.metric], "")) for c in columns),
        tuple(_lines(long, [c.metric for c in columns])),
    )


def _lines(long: pd.DataFrame, metrics: list[str]) -> list[Line]:
    rows: dict[tuple[str, str], dict[str, Cell]] = {}
    seeds: dict[tuple[str, str], int] = {}
    for r in long.to_dict("records"):
        key = (r["method"], r["optim"])
        rows.setdefault(key, {})[r["metric"]] = Cell(r["mean"], None if pd.isna(r["sd"]) else r["sd"], r["mark"])
        seeds[key] = max(r["n"], seeds.get(key, 0))
    return [Line(*key, seeds[key], tuple(cells.get(m) for m in metrics)) for key, cells in rows.items()]


def beside_paper(long: pd.DataFrame, layout: Layout, paper: Paper) -> Grid:
    """The paper's columns only, ours and the paper's number side by side, for every row that either has."""
    printed = {name for row in paper.rows.values() for name in row}
    columns = [(g.title, c) for g in layout.groups for c in g.columns if c.paper in printed]
    ours = {(x.method, x.optim): x for x in _lines(long, [c.metric for _, c in columns])}
    goals = dict(zip(long.metric, long.goal, strict=True))
    heads, groups = [], []
    for title, c in columns:
        heads += [Head(c.metric, c.title, ARROWS.get(goals.get(c.metric, ""), "")), Head("", "paper", "")]
        groups.append(title)
    lines = []
    for key in sorted({*ours, *paper.rows}, key=lambda k: rank(*k)):
        mine = ours[key].cells if key in ours else (None,) * len(columns)
        theirs = [paper.rows.get(key, {}).get(c.paper) for _, c in columns]
        cells: list[Cell | None] = []
        for (_, c), a, b in zip(columns, mine, theirs, strict=True):
            cells += [a, None if b is None else Cell(b / c.per)]
        lines.append(Line(*key, ours[key].n if key in ours else 0, tuple(cells)))
    spans = tuple((t, 2 * groups.count(t)) for t in dict.fromkeys(groups))
    return Grid(paper.caption, (paper.warning,), spans, tuple(heads), tuple(lines))


def caption(runs: list[Run], layout: Layout) -> str:
    """What the numbers are, in words: data, model, sizes, judge, and what varies behind the ±."""
    first = runs[0]
    of, metrics = first.config, first.content["models"]["original"]
    data = [str(of["task.name"]), *(f"{k} {of[f'task.{k}'] or 'embedded'}" for k in DATA if f"task.{k}" in of)]
    model = of.get("model.path") or of.get("task.target_model") or of["model.name"]
    template = of.get("task.template") or of.get("model.template")
    counts = []
    for group in layout.groups:
        n = next((metrics[c.metric]["n"] for c in group.columns if c.metric in metrics), None)
        counts += [f"{n} {group.noun}"] if group.noun and n else []
    judges = sorted({j for m in metrics.values() for j in re.findall(r"judge ([^;,]+)", m["definition"])})
    parts = [*data, f"model {model}", *([f"template {template}"] if template else [])]
    parts += ([f"{', '.join(counts)} {layout.unit}"] if counts else []) + [f"judge {j}" for j in judges]
    seeds = sorted({r.seed for r in runs if r.trained})
    over = f"Mean ± sd over n unlearning seeds ({', '.join(map(str, seeds))})" if seeds else "Evaluation alone"
    return (
        "; ".join(parts) + f". {over}; one target and one retain-trained model "
        f"(target seed {first.content['target_seed']})."
    )


def long_csv(long: pd.DataFrame, layout: Layout, paper: Paper | None) -> str:
    """The long table; with the paper's number, in our unit, where one is asked for."""
    if paper is not None:
        named = {c.metric: c for c in layout.columns if c.paper}

        def theirs(row: pd.Series) -> float | None:
            column = named.get(row["metric"])
            found = paper.rows.get((row["method"], row["optim"]), {}).get(column.paper) if column else None
            return None if column is None or found is None else found / column.per

        long = long.assign(paper=long.apply(theirs, axis=1))
    return long.to_csv(index=False, float_format="%.6g")


def wide_csv(long: pd.DataFrame, layout: Layout) -> str:
    """One line a row of the table: n, then mean and sd of every metric, the layout's first."""
    order = [c.metric for c in layout.columns] + list(long.metric)
    lines = []
    for (method, optim), part in long.groupby(["method", "optim"], sort=False):
        line = {"method": method, "optim": optim, "n": part.n.max()}
        known = part.set_index("metric")
        for metric in dict.fromkeys(m for m in order if m in set(long.metric)):
            line[metric] = known["mean"].get(metric)
            line[f"{metric}_sd"] = known["sd"].get(metric)
        lines.append(line)
    return pd.DataFrame(lines).to_csv(index=False, float_format="%.6g")
