"""What is forgotten against what is kept: the rows of a table, and every setting of a comparison."""

from __future__ import annotations

from collections import defaultdict

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from soul_cli.core.run_folder import NAMES
from soul_cli.report.compare import Comparison, Point, Setting, of_row
from soul_cli.report.figures.look import FLOOR, Styles, panels
from soul_cli.report.figures.source import Source
from soul_cli.report.tables import Cell

RETAIN, ORIGINAL = NAMES["retain_trained"], NAMES["original"]


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


def pareto(c: Comparison) -> Figure:
    """A panel a method: every setting (small), the line of those none other beats, the chosen ones with ± sd."""
    methods, styles = list(dict.fromkeys(m for m, _ in c.cells())), Styles(c.cells())
    figure, (row,) = panels(1, len(methods), 4.2 * len(methods), 4.4, sharey=True)
    for axes, method in zip(row, methods, strict=True):
        for optim in [o for m, o in c.cells() if m == method]:
            colour = styles.colour(optim)
            settings: dict[Setting, list[Point]] = defaultdict(list)
            for p in of_row(c.tried, method, optim):
                settings[p.setting].append(p)
            tried = [_middle(some) for some in settings.values()]
            kept, far = [x.mean for x, _ in tried], [y.mean for _, y in tried]
            axes.plot(kept, far, ls="", marker="o", ms=4, color=colour, alpha=0.6)
            best = frontier(kept, far)
            axes.plot([kept[i] for i in best], [far[i] for i in best], color=colour, lw=1.5)
            x, y = _middle(of_row(c.chosen, method, optim))
            axes.errorbar(
                x.mean, y.mean, xerr=x.sd, yerr=y.sd, ls="", marker="D", ms=8, capsize=2, color=colour, mec="black",
                mew=0.8, zorder=4,
            )  # fmt: skip
        axes.set(title=method, xlabel=f"{c.metrics[1]}  (more is kept: right)")
    row[0].set_ylabel(f"{c.metrics[0]}, distance to retain-trained  (best: 0)")
    more: list[Artist] = [
        Line2D([], [], color="0.3", ls="", marker="o", ms=4, label="a setting, validation seeds"),
        Line2D([], [], color="0.3", ls="", marker="D", ms=8, mec="black", label="chosen, other seeds, ± sd"),
    ]
    styles.legend(figure, c.cells(), more, markers=False)
    return figure


def _middle(points: list[Point]) -> tuple[Cell, Cell]:
    """What was kept and the distance to the wanted forgetting, over the points."""
    return Cell(tuple(p.kept for p in points)), Cell(tuple(p.far for p in points))
