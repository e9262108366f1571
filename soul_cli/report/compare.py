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
SAME_KEPT = 0.01
SAME_MOVED = 0.10  # relative
MOST = 6  # seeds whose resamples are counted one by one: 6^6
EXTRA = ("forget_quality_D", "model_utility", "heldout_ppl")  # reported beside the two, where a task has them
LOOKS = "forgotten: distance of the forget metric to the retain-trained model, 0 is best; kept: the retain metric"

Setting = tuple[tuple[str, str], ...]  # key -> value of what was searched


@dataclass(frozen=True)
class Point:
    """What one run came to.  far: |forget metric - that of the retain-trained model|; moved: ‖Δθ‖."""

    method: str
    optim: str
    setting: Setting
    seed: int
    far: float
    kept: float
    moved: float
    extra: tuple[tuple[str, float], ...]  # further metrics, by name

    def number(self, name: str) -> float:
        return {**vars(self), **dict(self.extra)}[name]


@dataclass(frozen=True)
class Comparison:
    """All that the text and the figure need.  metrics: names of (forget, kept)."""

    tried: list[Point]
    chosen: list[Point]
    metrics: tuple[str, str]

    def cells(self) -> list[tuple[str, str]]:
        return sorted({(p.method, p.optim) for p in self.chosen}, key=lambda c: rank(*c))


def read_comparison(folder: Path) -> Comparison:
    """The two folders of a sweep that chose.  Raises UserError where one of them holds no finished run."""
    tried, chosen = find_runs([folder / "validation"]), find_runs([folder / "reported"])
    check_comparable(chosen)
    axes = layout_of(chosen[0].content["task"], []).axes
    there = chosen[0].metrics["this_run"]
    metrics = next((pair for pair in axes if set(pair) <= set(there)), None)
    if metrics is None:
        raise UserError(f"{folder}: the runs have none of the metrics to compare by: {axes}")
    points = [[_point(r, metrics) for r in some if r.trained] for some in (tried, chosen)]
    return Comparison(points[0], points[1], metrics)


def _point(run: Run, metrics: tuple[str, str]) -> Point:
    now, floor = run.metrics["this_run"], run.metrics["retain_trained"]
    forget, keep = metrics
    return Point(
        run.content["method"],
        run.content["optim"],
        tuple((k, str(v)) for k, v in run.settings.items() if k in ("optim.lr", "method.retain_weight")),
        run.seed,
        abs(now[forget].value - floor[forget].value),
        now[keep].value,
        now["displacement"].value,
        tuple((k, now[k].value) for k in EXTRA if k in now),
    )


def of_row(points: list[Point], method: str, optim: str) -> list[Point]:
    return [p for p in points if (p.method, p.optim) == (method, optim)]


# --- numbers -----------------------------------------------------------------------------------------------


def bootstrap(differences: Sequence[float]) -> tuple[float, float]:
    """95 % percentile interval of the mean over seeds: of all n^n resamples; of 20,000 where n > 6."""
    values, n = np.asarray(differences, float), len(differences)
    if n <= MOST:
        picks = np.array(list(product(range(n), repeat=n)))
    else:
        picks = np.random.default_rng(0).integers(n, size=(20_000, n))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return float(low), float(high)


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """Area that the points (far, kept) dominate in the unit square, from the corner far = 1, kept = 0."""
    area, height = 0.0, 0.0
    for far, kept in sorted(points):  # nearest first: each adds what is kept beyond those before
        if kept > height:
            area += (1 - min(far, 1.0)) * (kept - height)
            height = kept
    return area


def paired(a: list[Point], b: list[Point], of: str) -> list[float]:
    """b - a on the seeds that both have.  of: a field of Point, or the name of a further metric."""

    first, second = ({p.seed: p.number(of) for p in some} for some in (a, b))
    return [second[s] - first[s] for s in sorted(first.keys() & second.keys())]


def alike(tried: list[Point], method: str, optim: str, *, by: str) -> dict[int, list[tuple[Point, Point]]]:
    """Seed -> pairs (baseline, optim) of one method whose runs on that seed kept, or moved, alike."""
    pairs: dict[int, list[tuple[Point, Point]]] = defaultdict(list)
    for a, b in product(of_row(tried, method, BASELINE), of_row(tried, method, optim)):
        near = abs(a.kept - b.kept) <= SAME_KEPT if by == "kept" else abs(a.moved / b.moved - 1) <= SAME_MOVED
        if a.seed == b.seed and near:
            pairs[a.seed].append((a, b))
    return pairs


# --- words -------------------------------------------------------------------------------------------------


def verdict(far: tuple[float, float], kept: tuple[float, float]) -> str:
    """Intervals of the differences -> what they show."""
    nearer, farther = far[1] < 0, far[0] > 0
    more, less = kept[0] > 0, kept[1] < 0
    if nearer and not less:
        return "forgets better and keeps " + ("more" if more else "no less")
    if farther and not more:
        return "forgets worse and keeps " + ("less" if less else "no more")
    if nearer or farther:
        return "forgets better and keeps less" if nearer else "forgets worse and keeps more"
    if more or less:
        return "forgets alike and keeps " + ("more" if more else "less")
    return "cannot be told apart"


def difference(values: Sequence[float]) -> str:
    low, high = bootstrap(values)
    return f"{np.mean(values):+.3f} ({low:+.3f} … {high:+.3f})"


def sentences(c: Comparison) -> list[str]:
    """The answer, one line a method and optimizer."""
    out = []
    for method, optim in c.cells():
        if optim == BASELINE:
            continue
        a, b = (of_row(c.chosen, method, o) for o in (BASELINE, optim))
        if not a:
            continue
        far, kept = paired(a, b, "far"), paired(a, b, "kept")
        if len(far) < 2:
            continue
        words = [f"**{method}, {optim}** against {BASELINE}: {verdict(bootstrap(far), bootstrap(kept))}."]
        words.append(f"Chosen settings, n = {len(far)}: forgotten {difference(far)}, kept {difference(kept)}")
        for name in (n for n in EXTRA if n in dict(a[0].extra)):
            words[-1] += f", {name} {difference(paired(a, b, name))}"
        words[-1] += f", ‖Δθ‖ {np.mean([p.moved for p in b]) / np.mean([p.moved for p in a]):.2f} times as far."
        words += [_alike(c.tried, method, optim, "kept"), _alike(c.tried, method, optim, "moved")]
        words.append(_volumes(c.tried, method, optim))
        out.append(" ".join(words))
    return out


def _alike(tried: list[Point], method: str, optim: str, by: str) -> str:
    pairs = alike(tried, method, optim, by=by)
    what = f"Settings that keep alike (±{SAME_KEPT})" if by == "kept" else f"That move alike (±{SAME_MOVED:.0%})"
    if not pairs:
        return f"{what}: none."
    count = sum(map(len, pairs.values()))
    far = [float(np.mean([b.far - a.far for a, b in some])) for some in pairs.values()]
    text = f"{what}: {count} pairs on {len(pairs)} seeds, forgotten {np.mean(far):+.3f}"
    if by == "moved":
        kept = [float(np.mean([b.kept - a.kept for a, b in some])) for some in pairs.values()]
        text += f", kept {np.mean(kept):+.3f}"
    return text + "."


def _volumes(tried: list[Point], method: str, optim: str) -> str:
    def by_seed(of: str) -> dict[int, float]:
        seeds: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for p in of_row(tried, method, of):
            seeds[p.seed].append((p.far, p.kept))
        return {seed: hypervolume(points) for seed, points in seeds.items()}

    theirs, ours = by_seed(BASELINE), by_seed(optim)
    shown = ", ".join(f"{ours[s]:.3f} to {theirs[s]:.3f}" for s in sorted(theirs.keys() & ours.keys()))
    return f"Hypervolume of all settings, a pair a seed: {shown}."


def markdown(c: Comparison) -> str:
    """The answer with what a reader must know of how it came about."""
    settings = defaultdict(set)
    for p in c.tried:
        settings[(p.method, p.optim)].add(p.setting)
    sizes = sorted({len(s) for s in settings.values()})
    tried, reported = (sorted({p.seed for p in some}) for some in (c.tried, c.chosen))
    head = [
        f"Settings tried for each method and optimizer: {', '.join(map(str, sizes))}, the same for all, on seeds "
        f"{_list(tried)}; the best by the task's selection score ran on seeds {_list(reported)}.",
        f"{LOOKS} (here {c.metrics[0]} and {c.metrics[1]}). In brackets 95 % intervals, bootstrap over seeds, which "
        "with so few are too narrow; nothing is corrected for the number of comparisons.",
        "",
    ]
    return "\n".join([*head, *(f"- {s}" for s in sentences(c)), "", *_table(c), ""])


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _table(c: Comparison) -> list[str]:
    """The chosen settings and what they came to; a setting at the edge of its grid says so."""
    lines = [
        "| method | optimizer | chosen setting | n | forgotten ↓ | kept ↑ | ‖Δθ‖ |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, optim in c.cells():
        own, tried = of_row(c.chosen, method, optim), [dict(p.setting) for p in of_row(c.tried, method, optim)]
        parts = [
            f"{k.split('.')[-1]} {float(v):g}{_edge(v, [t[k] for t in tried if k in t])}" for k, v in own[0].setting
        ]
        columns = ([getattr(p, of) for p in own] for of in ("far", "kept", "moved"))
        numbers = (Cell(tuple(values)).text for values in columns)
        lines.append(f"| {method} | {optim} | {', '.join(parts)} | {len(own)} | {' | '.join(numbers)} |")
    return lines


def _edge(value: str, values: list[str]) -> str:
    """A mark where a better value may lie outside the grid."""
    numbers = sorted({float(v) for v in values})
    return " (edge)" if len(numbers) > 2 and float(value) in (numbers[0], numbers[-1]) else ""


def csv(c: Comparison) -> str:
    """A line a run."""
    lines = []
    for part, some in (("validation", c.tried), ("reported", c.chosen)):
        for p in some:
            own = {"method": p.method, "optim": p.optim, **dict(p.setting), "seed": p.seed, "far": p.far}
            lines.append({"part": part, **own, "kept": p.kept, "displacement": p.moved, **dict(p.extra)})
    return csv_text(lines)
