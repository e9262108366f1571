"""The report's figures.  Each function gives a figure, or None where the runs hold nothing to draw."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from soul_cli.core.run_folder import NAMES
from soul_cli.core.types import Row
from soul_cli.evaluate import metrics as m
from soul_cli.report.figures.look import FLOOR, Styles, panels
from soul_cli.report.layout import Layout, rank
from soul_cli.report.read import Run
from soul_cli.report.tables import Table

RETAIN, ORIGINAL = NAMES["retain_trained"], NAMES["original"]
WIN_RATE = (0.1, 0.5)  # where Sophia's authors want the unclipped share


@dataclass(frozen=True)
class Source:
    """What figures are drawn from."""

    runs: list[Run]
    table: Table
    layout: Layout

    @cached_property
    def styles(self) -> Styles:
        return Styles(self.table)

    @property
    def axes(self) -> tuple[str, str]:
        """(forgotten, kept) of the trade-off; those of the layout that the runs have."""
        there = {metric for cells in self.table.values() for metric in cells}
        return next((pair for pair in self.layout.axes if there.issuperset(pair)), self.layout.axes[0])

    @property
    def trained(self) -> dict[tuple[str, str], list[Run]]:
        """Row of the table -> its runs, in the table's order."""
        rows: dict[tuple[str, str], list[Run]] = {}
        for run in self.runs:
            if run.row is not None and run.trained:
                rows.setdefault(run.row, []).append(run)
        return dict(sorted(rows.items(), key=lambda item: rank(*item[0])))


def frontier(keep: list[float], distance: list[float]) -> list[int]:
    """Indices of the points that no other dominates (more kept, nearer to the wanted forgetting), by kept."""
    points = list(zip(keep, distance, strict=True))
    best = [
        i
        for i, (k, d) in enumerate(points)
        if not any(a >= k and b <= d and (a, b) != (k, d) for a, b in points)
    ]  # fmt: skip
    return sorted(best, key=lambda i: keep[i])


def _points(source: Source) -> dict[tuple[str, str], tuple[float, float, float, float]]:
    """Row of the table -> kept, forgotten, and their sd (0 for one seed)."""
    forget, keep = source.axes
    return {
        row: (cells[keep].mean, cells[forget].mean, cells[keep].sd or 0.0, cells[forget].sd or 0.0)
        for row, cells in source.table.items()
        if keep in cells and forget in cells
    }


def tradeoff(source: Source) -> Figure | None:
    """Forgetting against what is kept: a point a row with ± sd, a line an optimizer through its best trade-offs."""
    points = _points(source)
    original, floor = points.pop((ORIGINAL, ""), None), points.pop((RETAIN, ""), None)
    if not points:
        return None
    figure, ((axes,),) = panels(1, 1, 7.5, 5.2)
    styles, more = source.styles, list[Artist]()
    if original:
        more += axes.plot(*original[:2], ls="", marker="*", ms=13, color="black", zorder=3, label=ORIGINAL)
    if floor:
        axes.axvline(floor[0], **FLOOR)
        more.append(axes.axhline(floor[1], **FLOOR, label=RETAIN))
    for (method, optim), (x, y, dx, dy) in points.items():
        axes.errorbar(
            x, y, xerr=dx or None, yerr=dy or None, ls="", capsize=2, elinewidth=1, color=styles.colour(optim),
            marker=styles.marker(method), ms=8, mec="white", mew=0.7, zorder=4,
        )  # fmt: skip
    for optim in dict.fromkeys(optim for _, optim in points if optim):
        own = [point for (_, o), point in points.items() if o == optim]
        best = frontier([v[0] for v in own], [abs(v[1] - floor[1]) if floor else v[1] for v in own])
        axes.plot([own[i][0] for i in best], [own[i][1] for i in best], color=styles.colour(optim), lw=1.6, zorder=2)
    axes.set_xlabel(f"{source.axes[1]}  (more is kept: right)")
    axes.set_ylabel(source.axes[0] + ("  (best: on the dashed line)" if floor else "  (less is remembered: down)"))
    styles.legend(figure, points, more, markers=True)
    return figure


def truth_ratios(rows: list[Row]) -> NDArray[np.float64]:
    """R of the forget rows, sorted, geometric mean, as behind forget_quality (N,); empty where rows have none."""
    some = [r for r in rows if r.get("split") == "forget" and r.get("perturbed_nll")]
    if not some:
        return np.array([])
    right = [r.get("paraphrased_nll", r["nll"]) for r in some]
    return np.sort(m.truth_ratio(right, [r["perturbed_nll"] for r in some], mean="geometric"))


def ecdf(source: Source) -> Figure | None:
    """Distribution functions of the truth ratio, a panel a method; the KS test's D is the largest vertical gap."""
    rows = source.trained
    methods = list(dict.fromkeys(method for method, _ in rows))
    references = [(truth_ratios(source.runs[0].rows(name)), style) for name, style in (
        ("original", {"color": "black", "lw": 1.8}), ("retain_trained", {**FLOOR, "lw": 1.8}),
    )]  # fmt: skip
    if not methods or not len(references[0][0]):
        return None
    columns = min(len(methods), 4)
    lines = -(-len(methods) // columns)
    figure, axes = panels(lines, columns, max(4.5, 2.6 * columns), 0.9 + 2.7 * lines, sharex=True, sharey=True)
    flat = [a for row in axes for a in row]
    for a, method in zip(flat, methods, strict=False):
        for (of, optim), runs in rows.items():
            for run in runs if of == method else ():
                _steps(a, truth_ratios(run.rows("this_run")), color=source.styles.colour(optim), lw=1.1, alpha=0.8)
        for values, style in references:
            _steps(a, values, **style)
        a.set(title=method, xscale="log", ylim=(0, 1), xlabel="truth ratio R")
    for a in flat[len(methods) :]:
        a.set_visible(False)
    for line in axes:
        line[0].set_ylabel("share of questions")
    more = [Line2D([], [], color="black", lw=1.8, label=ORIGINAL), Line2D([], [], label=RETAIN, **FLOOR)]
    source.styles.legend(figure, rows, more, markers=False)
    return figure


def _steps(axes: Axes, values: NDArray[np.float64], **style: Any) -> None:
    if len(values):
        axes.ecdf(values, **style)


def band(runs: list[Run], key: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None:
    """A quantity of train.jsonl over the steps all seeds have -> step (T,), mean (T,), sd (T,) (0 for one seed)."""
    curves = [{s["step"]: s[key] for s in run.steps if key in s} for run in runs]
    shared = [step for step in curves[0] if all(step in c for c in curves)]
    if not shared:
        return None
    table = np.array([[c[step] for step in shared] for c in curves], dtype=np.float64)
    sd = table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros(len(shared))
    return np.array(shared), table.mean(axis=0), sd


def steps(source: Source) -> Figure | None:
    """Unclipped share and ‖Δθ‖ over the steps, a column a method of more than one; mean and ± sd over seeds."""
    rows = {row: runs for row, runs in source.trained.items() if len(runs[0].steps) > 1}
    if not rows:
        return None
    methods = list(dict.fromkeys(method for method, _ in rows))
    quantities = [("displacement", "‖Δθ‖")]
    if any(k.startswith("unclipped_share") for runs in rows.values() for r in runs for k in r.steps[0]):
        quantities.insert(0, ("unclipped_share", "unclipped share"))
    figure, axes = panels(
        len(quantities),
        len(methods),
        max(4.5, 2.3 * len(methods)),
        0.9 + 2.2 * len(quantities),
        sharex="col",
        sharey="row",
    )
    for line, (key, title) in zip(axes, quantities, strict=True):
        line[0].set_ylabel(title)
        for a, method in zip(line, methods, strict=True):
            if key == "unclipped_share":
                a.axhspan(*WIN_RATE, color="0.93", zorder=0)
            for (of, optim), runs in rows.items():
                if of == method:
                    _band(a, runs, key, source.styles.colour(optim))
    for top, bottom, method in zip(axes[0], axes[-1], methods, strict=True):
        top.set_title(method)
        bottom.set_xlabel("step")
    split = any("unclipped_share_retain" in r.steps[0] for runs in rows.values() for r in runs)
    more: list[Artist] = [Line2D([], [], color="0.2", ls="--", label="retain step (alternating)")] if split else []
    if len(quantities) == 2:
        more.append(Patch(color="0.93", label="Sophia's range"))
    source.styles.legend(figure, rows, more, markers=False)
    return figure


def _band(axes: Axes, runs: list[Run], key: str, colour: str) -> None:
    for suffix, style in (("", "-"), ("_forget", "-"), ("_retain", "--")):  # the last two: alternating mode
        found = band(runs, key + suffix)
        if found is not None:
            x, mean, sd = found
            axes.plot(x, mean, color=colour, ls=style, lw=1.4, marker="." if len(x) <= 20 else None)
            axes.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.2, lw=0)
