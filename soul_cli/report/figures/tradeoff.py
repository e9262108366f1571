"""What is forgotten against what is kept: the rows of a table, and every setting of a comparison."""

from __future__ import annotations

import math
from collections import defaultdict

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from soul_cli.core.run_folder import NAMES
from soul_cli.report.compare import Comparison, Point, Setting, of_row
from soul_cli.report.figures.look import FLOOR, Styles, panels
from soul_cli.report.figures.source import Source
from soul_cli.report.read import label
from soul_cli.report.tables import Cell, Name

ACROSS = 6  # panels beside one another
RETAIN, ORIGINAL = (NAMES["retain_trained"], ""), (NAMES["original"], "")


def frontier(retained: list[float], distance: list[float]) -> list[int]:
    """Return the points that no other dominates (more retained, nearer to the wanted forgetting), by what is retained.

    retained (N,), distance (N,) -> indices.
    """
    points = list(zip(retained, distance, strict=True))
    best = [
        i
        for i, (k, d) in enumerate(points)
        if not any(a >= k and b <= d and (a, b) != (k, d) for a, b in points)
    ]  # fmt: skip
    return sorted(best, key=lambda i: retained[i])


def tradeoff(source: Source) -> Figure | None:
    """Draw forgetting against what is kept: a point a row with ± sd, a line an optimizer through its best rows."""
    forget, retain = source.axes
    points, infinite = _points(source)
    references = {row: points.pop(row) for row in (ORIGINAL, RETAIN) if row in points}
    if not points:
        return None
    figure, ((axes,),) = panels(1, 1, 7.5, 5.2)
    more: list[Artist] = []
    if ORIGINAL in references:
        x, y = references[ORIGINAL]
        more += axes.plot(x.mean, y.mean, ls="", marker="*", ms=13, color="black", zorder=3, label=ORIGINAL[0])
    if RETAIN in references:
        x, y = references[RETAIN]
        axes.axvline(x.mean, **FLOOR)
        more.append(axes.axhline(y.mean, **FLOOR, label=RETAIN[0]))
    floor = references[RETAIN][1].mean if RETAIN in references else None
    _draw_rows(axes, points, floor, source.styles)
    axes.set_xlabel(f"{retain}  (more is kept: right)")
    axes.set_ylabel(forget + ("  (less is remembered: down)" if floor is None else "  (best: on the dashed line)"))
    if infinite:
        axes.set_title(f"infinite, not drawn: {', '.join(map(label, infinite))}", fontsize=8)
    source.styles.legend(figure, points, more, markers=True)
    return figure


def _points(source: Source) -> tuple[dict[Name, tuple[Cell, Cell]], list[Name]]:
    """Return (retained, forgotten) of every row that has both, and the rows of which one is infinite."""
    forget, retain = source.axes
    having = {row: (c[retain], c[forget]) for row, c in source.table.items() if c.keys() >= {retain, forget}}
    infinite = [row for row, (x, y) in having.items() if not math.isfinite(x.mean + y.mean)]
    return {row: cells for row, cells in having.items() if row not in infinite}, infinite


def _draw_rows(axes: Axes, points: dict[Name, tuple[Cell, Cell]], floor: float | None, styles: Styles) -> None:
    """Draw every row and each optimizer's frontier.  floor: the retain-trained model's forget metric."""
    for (method, optim), (x, y) in points.items():
        axes.errorbar(
            x.mean, y.mean, xerr=x.sd, yerr=y.sd, ls="", capsize=2, elinewidth=1, color=styles.colour(optim),
            marker=styles.marker(method), ms=8, mec="white", mew=0.7, zorder=4,
        )  # fmt: skip
    for optim in dict.fromkeys(optim for _, optim in points if optim):
        own = [(x.mean, y.mean) for (_, o), (x, y) in points.items() if o == optim]
        best = frontier([x for x, _ in own], [y if floor is None else abs(y - floor) for _, y in own])
        axes.plot(*zip(*(own[i] for i in best), strict=True), color=styles.colour(optim), lw=1.6, zorder=2)


def pareto(c: Comparison) -> Figure:
    """Draw a panel a method: every setting (small), the line of those none other beats, the chosen ones with ± sd."""
    rows = c.rows()
    methods, styles = list(dict.fromkeys(method for method, _ in rows)), Styles(rows)
    across = min(len(methods), ACROSS)
    down = math.ceil(len(methods) / across)
    figure, lines = panels(down, across, 4.2 * across, 0.4 + 4 * down, sharey=True)
    every = [panel for line in lines for panel in line]
    for panel in every[len(methods) :]:
        panel.remove()
    axes = dict(zip(methods, every, strict=False))
    for method, optim in rows:
        _draw_settings(axes[method], of_row(c.tried, method, optim), styles.colour(optim))
        x, y = _middle(of_row(c.chosen, method, optim))
        axes[method].errorbar(
            x.mean, y.mean, xerr=x.sd, yerr=y.sd, ls="", marker="D", ms=8, capsize=2, color=styles.colour(optim),
            mec="black", mew=0.8, zorder=4,
        )  # fmt: skip
    for method, panel in axes.items():
        panel.set(title=method, xlabel=f"{c.metrics[1]}  (more is kept: right)")
    for line in lines:
        line[0].set_ylabel(f"{c.metrics[0]}, distance to retain-trained  (best: 0)")
    more: list[Artist] = [
        Line2D([], [], color="0.3", ls="", marker="o", ms=4, label="a setting, validation seeds"),
        Line2D([], [], color="0.3", ls="", marker="D", ms=8, mec="black", label="chosen, other seeds, ± sd"),
    ]
    styles.legend(figure, rows, more, markers=False)
    return figure


def _draw_settings(axes: Axes, points: list[Point], colour: str) -> None:
    settings: dict[Setting, list[Point]] = defaultdict(list)
    for p in points:
        settings[p.setting].append(p)
    tried = [_middle(seeds) for seeds in settings.values()]
    retained, distance = [x.mean for x, _ in tried], [y.mean for _, y in tried]
    axes.plot(retained, distance, ls="", marker="o", ms=4, color=colour, alpha=0.6)
    best = frontier(retained, distance)
    axes.plot([retained[i] for i in best], [distance[i] for i in best], color=colour, lw=1.5)


def _middle(points: list[Point]) -> tuple[Cell, Cell]:
    """Return what was retained and the distance to the wanted forgetting, over the points."""
    return Cell(tuple(p.retained for p in points)), Cell(tuple(p.distance for p in points))
