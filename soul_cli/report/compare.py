"""Which optimizer forgets better at the same utility: the answer of a sweep that chose its settings, in sentences.

Reads the two folders of such a sweep.  `validation`: every setting on the seeds for choosing.  `reported`: the chosen
setting of each method and optimizer on other seeds.  Four looks, each optimizer against the first-order baseline:
    chosen settings, differences paired over seeds;
    settings that keep alike (retain metric within 0.01) or that moved the weights alike (‖Δθ‖ within 10 %);
    hypervolume of all settings, so that no choice enters.
Intervals are percentile bootstraps over seeds (all resamples of n seeds are counted, none drawn).  With few seeds they
are too narrow; several comparisons stand side by side, and none is corrected for that.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from soul_cli.core.types import UserError
from soul_cli.report.comparable import check_comparable
from soul_cli.report.layout import layout_of, rank
from soul_cli.report.read import Run, find_runs
from soul_cli.report.tables import Cell, csv_text

BASELINE = "adamw"
SAME_RETAINED = 0.01
SAME_DISPLACEMENT = 0.10  # relative
MOST = 6  # seeds whose resamples are counted one by one: 6^6
EXTRA = ("forget_quality_D", "model_utility", "heldout_ppl")  # reported beside the two, where a task has them
LOOKS = "forgotten: distance of the forget metric to the retain-trained model, 0 is best; kept: the retain metric"

Setting = tuple[tuple[str, str], ...]  # key -> value of what was searched
Interval = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """What one run came to.

    distance: |forget metric - that of the retain-trained model|; retained: the retain metric; displacement: ‖Δθ‖.
    """

    method: str
    optim: str
    setting: Setting
    seed: int
    distance: float
    retained: float
    displacement: float
    seconds: float  # a step of unlearning, what the optimizer and the estimates take included
    peak_mb: float  # of the process, while it unlearned
    extra: tuple[tuple[str, float], ...]  # further metrics, by name

    def number(self, name: str) -> float:
        """Return a field or a further metric."""
        return {**vars(self), **dict(self.extra)}[name]


@dataclass(frozen=True)
class Comparison:
    """All that the text and the figure need.  metrics: names of (forget, retain)."""

    tried: list[Point]
    chosen: list[Point]
    metrics: tuple[str, str]

    def rows(self) -> list[tuple[str, str]]:
        """Return (method, optimizer) of the chosen settings, in the table's order."""
        return sorted({(p.method, p.optim) for p in self.chosen}, key=lambda row: rank(*row))


def read_comparison(folder: Path) -> Comparison:
    """Read the two folders of a sweep that chose.  Raises UserError where one of them holds no finished run."""
    tried, chosen = find_runs([folder / "validation"]), find_runs([folder / "reported"])
    check_comparable(chosen)
    axes = layout_of(chosen[0].content["task"], []).axes
    metrics = next((pair for pair in axes if set(pair) <= set(chosen[0].metrics["this_run"])), None)
    if metrics is None:
        raise UserError(f"{folder}: the runs have none of the metrics to compare by: {axes}")
    searched = _searched(tried)
    points = [
        [_point(run, metrics, searched[run.row]) for run in runs if run.row in searched] for runs in (tried, chosen)
    ]
    return Comparison(points[0], points[1], metrics)


def _searched(tried: list[Run]) -> dict[tuple[str, str], list[str]]:
    """Return of each trained row the settings that were searched: those in which its runs differ."""
    rows: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in tried:
        if run.row and run.trained:
            rows[run.row].append(run)
    return {
        row: [k for k in runs[0].settings if len({str(r.settings.get(k)) for r in runs}) > 1]
        for row, runs in rows.items()
    }


def _point(run: Run, metrics: tuple[str, str], searched: list[str]) -> Point:
    assert run.row is not None
    now, floor = run.metrics["this_run"], run.metrics["retain_trained"]
    forget, retain = metrics
    return Point(
        *run.row,
        tuple((k, str(run.settings.get(k))) for k in searched),
        run.seed,
        abs(now[forget].value - floor[forget].value),
        now[retain].value,
        now["displacement"].value,
        now["unlearn_seconds"].value / len(run.steps),
        now["unlearn_peak_mb"].value,
        tuple((k, now[k].value) for k in EXTRA if k in now),
    )


def of_row(points: list[Point], method: str, optim: str) -> list[Point]:
    """Return the points of one method and optimizer."""
    return [p for p in points if (p.method, p.optim) == (method, optim)]


# --- numbers -----------------------------------------------------------------------------------------------


def bootstrap(differences: Sequence[float]) -> Interval:
    """Return the 95 % percentile interval of the mean over seeds: of all n^n resamples; of 20,000 where n > 6."""
    values, n = np.asarray(differences, float), len(differences)
    if n <= MOST:
        picks = np.array(list(product(range(n), repeat=n)))
    else:
        picks = np.random.default_rng(0).integers(n, size=(20_000, n))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return float(low), float(high)


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """Return the area that points (distance, retained) dominate in the unit square, from the corner (1, 0)."""
    area, height = 0.0, 0.0
    for distance, retained in sorted(points):  # nearest first: each adds what is retained beyond those before
        if retained > height:
            area += (1 - min(distance, 1.0)) * (retained - height)
            height = retained
    return area


def paired(a: list[Point], b: list[Point], name: str) -> list[float]:
    """Return b - a on the seeds that both have.  name: a field of Point, or a further metric."""
    first, second = ({p.seed: p.number(name) for p in points} for points in (a, b))
    seeds = sorted(first.keys() & second.keys())
    return [0.0 if second[s] == first[s] else second[s] - first[s] for s in seeds]  # two of inf are equal


def alike(tried: list[Point], method: str, optim: str, *, by: str) -> dict[int, list[tuple[Point, Point]]]:
    """Return seed -> pairs (baseline, optim) of one method whose runs are near on that seed.

    by: "retained" or "displacement".
    """
    pairs: dict[int, list[tuple[Point, Point]]] = defaultdict(list)
    for a, b in product(of_row(tried, method, BASELINE), of_row(tried, method, optim)):
        if by == "retained":
            near = abs(a.retained - b.retained) <= SAME_RETAINED
        else:
            near = abs(a.displacement - b.displacement) <= SAME_DISPLACEMENT * b.displacement
        if a.seed == b.seed and near:
            pairs[a.seed].append((a, b))
    return pairs


# --- words -------------------------------------------------------------------------------------------------


def verdict(distance: Interval, retained: Interval) -> str:
    """Return in words what the intervals of the two differences show."""
    forgets, keeps = -sign(distance), sign(retained)  # 1: better, more
    if forgets == 0:
        return f"forgets alike and keeps {'more' if keeps > 0 else 'less'}" if keeps else "cannot be told apart"
    alike = "no less" if forgets > 0 else "no more"
    return f"forgets {'better' if forgets > 0 else 'worse'} and keeps {('less', alike, 'more')[keeps + 1]}"


def sign(interval: Interval) -> int:
    """Return 1 or -1 where the interval lies on one side of 0, else 0."""
    return int(interval[0] > 0) - int(interval[1] < 0)


def difference(values: Sequence[float]) -> str:
    """Return mean and interval as they are shown; where values are infinite, on how many seeds."""
    infinite = [v for v in values if math.isinf(v)]
    if infinite:
        return f"infinite on {len(infinite)} of {len(values)} seeds ({' '.join(f'{v:+}' for v in infinite)})"
    low, high = bootstrap(values)
    return f"{np.mean(values):+.3f} ({low:+.3f} … {high:+.3f})"


def sentences(c: Comparison) -> list[str]:
    """Return the answer, one line a method and optimizer that shares two seeds with the baseline."""
    lines = []
    for method, optim in c.rows():
        a, b = (of_row(c.chosen, method, o) for o in (BASELINE, optim))
        if optim != BASELINE and len(paired(a, b, "distance")) > 1:
            looks = (
                _chosen(method, optim, a, b),
                _alike(c.tried, method, optim, "retained"),
                _alike(c.tried, method, optim, "displacement"),
                _volumes(c.tried, method, optim),
            )
            lines.append(" ".join(looks))
    return lines


def _chosen(method: str, optim: str, a: list[Point], b: list[Point]) -> str:
    distance, retained = paired(a, b, "distance"), paired(a, b, "retained")
    shown = [f"forgotten {difference(distance)}", f"kept {difference(retained)}"]
    shown += [f"{name} {difference(paired(a, b, name))}" for name in EXTRA if name in dict(a[0].extra)]
    moved = np.mean([p.displacement for p in b]) / np.mean([p.displacement for p in a])
    return (
        f"**{method}, {optim}** against {BASELINE}: {verdict(bootstrap(distance), bootstrap(retained))}. "
        f"Chosen settings, n = {len(distance)}: {', '.join(shown)}, ‖Δθ‖ {moved:.2f} times as far."
    )


def _alike(tried: list[Point], method: str, optim: str, by: str) -> str:
    pairs = alike(tried, method, optim, by=by)
    keep = by == "retained"
    what = f"Settings that keep alike (±{SAME_RETAINED})" if keep else f"That move alike (±{SAME_DISPLACEMENT:.0%})"
    if not pairs:
        return f"{what}: none."

    def mean(name: str) -> float:
        return float(np.mean([np.mean([b.number(name) - a.number(name) for a, b in p]) for p in pairs.values()]))

    count = sum(map(len, pairs.values()))
    text = f"{what}: {count} pairs on {len(pairs)} seeds, forgotten {mean('distance'):+.3f}"
    return text + ("." if keep else f", kept {mean('retained'):+.3f}.")


def _volumes(tried: list[Point], method: str, optim: str) -> str:
    def by_seed(name: str) -> dict[int, float]:
        seeds: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for p in of_row(tried, method, name):
            seeds[p.seed].append((p.distance, p.retained))
        return {seed: hypervolume(points) for seed, points in seeds.items()}

    theirs, ours = by_seed(BASELINE), by_seed(optim)
    shown = ", ".join(f"{ours[s]:.3f} to {theirs[s]:.3f}" for s in sorted(theirs.keys() & ours.keys()))
    return f"Hypervolume of all settings, a pair a seed: {shown}."


def markdown(c: Comparison) -> str:
    """Return the answer with what a reader must know of how it came about."""
    settings = defaultdict(set)
    for p in c.tried:
        settings[(p.method, p.optim)].add(p.setting)
    sizes = sorted({len(s) for s in settings.values()})
    tried, reported = (", ".join(map(str, sorted({p.seed for p in points}))) for points in (c.tried, c.chosen))
    head = [
        f"Settings tried for each method and optimizer: {', '.join(map(str, sizes))}, the same for all, on seeds "
        f"{tried}; the best by the task's selection score ran on seeds {reported}.",
        f"{LOOKS} (here {c.metrics[0]} and {c.metrics[1]}). In brackets 95 % intervals, bootstrap over seeds, which "
        "with so few are too narrow; nothing is corrected for the number of comparisons.",
        "",
    ]
    return "\n".join([*head, *(f"- {s}" for s in sentences(c)), "", *_table(c), ""])


def _table(c: Comparison) -> list[str]:
    """Return the chosen settings and what they came to; a setting at the edge of its grid says so."""
    lines = [
        "| method | optimizer | chosen setting | n | forgotten ↓ | kept ↑ | ‖Δθ‖ | s a step | peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, optim in c.rows():
        points, tried = of_row(c.chosen, method, optim), [dict(p.setting) for p in of_row(c.tried, method, optim)]
        parts = [
            f"{k.split('.')[-1]} {_short(v)}{_edge(v, [t[k] for t in tried if k in t])}" for k, v in points[0].setting
        ]
        names = ("distance", "retained", "displacement", "seconds", "peak_mb")
        numbers = (Cell(tuple(p.number(name) for p in points)).text for name in names)
        lines.append(f"| {method} | {optim} | {', '.join(parts)} | {len(points)} | {' | '.join(numbers)} |")
    return lines


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _short(value: str) -> str:
    number = _number(value)
    return value if number is None else f"{number:g}"


def _edge(value: str, values: list[str]) -> str:
    """Return a mark where a better value may lie outside the grid: a number, and more than two of them were tried."""
    numbers = sorted({number for v in values if (number := _number(v)) is not None})
    return " (edge)" if len(numbers) > 2 and _number(value) in (numbers[0], numbers[-1]) else ""


def csv(c: Comparison) -> str:
    """Return a line a run."""
    return csv_text([
        {
            "part": part, "method": p.method, "optim": p.optim, **dict(p.setting), "seed": p.seed,
            "distance": p.distance, "retained": p.retained, "displacement": p.displacement, **dict(p.extra),
            "seconds_a_step": p.seconds, "peak_mb": p.peak_mb,
        }
        for part, points in (("validation", c.tried), ("reported", c.chosen))
        for p in points
    ])  # fmt: skip
