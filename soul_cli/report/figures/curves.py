"""What training does over time: metrics by epoch (the paper's Figure 1), the optimizer's quantities by step."""

from __future__ import annotations

from itertools import chain, product
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from soul_cli.core.run_folder import NAMES
from soul_cli.report.figures.look import FLOOR, panels
from soul_cli.report.figures.source import Source
from soul_cli.report.read import Run

WIN_RATE = (0.1, 0.5)  # where Sophia's authors want the unclipped share
SHARE, DISPLACEMENT = "unclipped_share", "displacement"
PARTS = {"": "-", "_forget": "-", "_retain": "--"}  # the last two: alternating mode
# models that do not change over the epochs
LEVELS: dict[str, dict[str, Any]] = {
    "original": {"color": "black", "ls": ":", "lw": 1.4},
    "retain_trained": {**FLOOR, "ls": ":", "lw": 1.8},
}

Rows = dict[tuple[str, str], list[Run]]
Curve = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # epoch or step (T,), mean (T,), sd (T,)


def over_seeds(values: list[dict[int, float]]) -> Curve | None:
    """Return mean and sd (0 for one seed) at the epochs or steps that all seeds have; None where there is none.

    values: of each seed, epoch or step -> value.
    """
    shared = sorted(set.intersection(*(set(v) for v in values)))
    if not shared:
        return None
    table = np.array([[v[x] for x in shared] for v in values], dtype=np.float64)
    sd = table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros(len(shared))
    return np.array(shared), table.mean(axis=0), sd


def by_epoch(runs: list[Run], metric: str) -> Curve | None:
    """Return a metric over the epochs."""
    return over_seeds([{epoch: metrics[metric].value for epoch, metrics in run.epochs.items()} for run in runs])


def by_step(runs: list[Run], key: str) -> Curve | None:
    """Return a quantity of train.jsonl over the steps."""
    return over_seeds([{s["step"]: s[key] for s in run.steps if key in s} for run in runs])


def pair(source: Source, runs: list[Run]) -> tuple[str, str] | None:
    """Return (forgotten, retained): the first of the layout's pairs that every epoch of the runs has; None: no pair."""
    evaluated = [set(metrics) for run in runs for metrics in run.epochs.values()]
    shared = set.intersection(*evaluated) if evaluated else set()
    return next((pair for pair in (*source.layout.curves, *source.layout.axes) if shared.issuperset(pair)), None)


def epochs(source: Source) -> Figure | None:
    """Draw what is forgotten above, what is kept below; a column a method, a line an optimizer, ± sd over seeds."""
    evaluated = {row: [run for run in runs if run.epochs] for row, runs in source.trained.items()}
    rows = {row: runs for row, runs in evaluated.items() if runs}
    metrics = pair(source, list(chain(*rows.values())))
    if metrics is None:
        return None
    figure, axes = _lay_out({m: m for m in metrics}, rows, "epoch", (4.5, 2.6), (0.0, 2.6))
    levels = next(iter(rows.values()))[0].levels
    for (metric, method), panel in axes.items():
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        for name, metrics_of in levels.items():
            panel.axhline(metrics_of[metric].value, **LEVELS[name])
        for optim, runs in _of_method(rows, method):
            _band(panel, by_epoch(runs, metric), source.styles.colour(optim), lw=1.6)
    more = [Line2D([], [], label=NAMES[name], **LEVELS[name]) for name in levels]
    source.styles.legend(figure, rows, more, markers=False)
    return figure


def steps(source: Source) -> Figure | None:
    """Draw unclipped share and ‖Δθ‖ over the steps; a column a method of more than one, mean and ± sd over seeds."""
    rows = {row: runs for row, runs in source.trained.items() if len(runs[0].steps) > 1}
    if not rows:
        return None
    recorded = set(chain(*(run.steps[0] for run in chain(*rows.values()))))
    titles, more = {DISPLACEMENT: "‖Δθ‖"}, list[Artist]()
    if any(key.startswith(SHARE) for key in recorded):
        titles = {SHARE: "unclipped share", **titles}
        more.append(Patch(color="0.93", label="Sophia's range"))
    if f"{SHARE}_retain" in recorded:
        more.append(Line2D([], [], color="0.2", ls="--", label="retain step"))
    figure, axes = _lay_out(titles, rows, "step", (4.5, 2.3), (0.9, 2.2))
    for (key, method), panel in axes.items():
        if key == SHARE:
            panel.axhspan(*WIN_RATE, color="0.93", zorder=0)
        for (optim, runs), (part, style) in product(_of_method(rows, method), PARTS.items()):
            _band(panel, by_step(runs, key + part), source.styles.colour(optim), ls=style, lw=1.4)
    source.styles.legend(figure, rows, more, markers=False)
    return figure


def _of_method(rows: Rows, method: str) -> list[tuple[str, list[Run]]]:
    """Return (optimizer, runs) of a method's rows."""
    return [(optim, runs) for (row_method, optim), runs in rows.items() if row_method == method]


def _lay_out(
    titles: dict[str, str],
    rows: Rows,
    time: str,
    width: tuple[float, float],
    height: tuple[float, float],
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """Return a figure with a panel a (quantity, method): quantities one below the other, methods side by side.

    titles: quantity -> its title.  width: of the figure at least, of a panel; height: of what is around, of a panel.
    """
    methods = list(dict.fromkeys(method for method, _ in rows))
    size = max(width[0], width[1] * len(methods)), height[0] + height[1] * len(titles)
    figure, axes = panels(len(titles), len(methods), *size, sharex="col", sharey="row")
    for line, title in zip(axes, titles.values(), strict=True):
        line[0].set_ylabel(title)
    for top, bottom, method in zip(axes[0], axes[-1], methods, strict=True):
        top.set_title(method)
        bottom.set_xlabel(time)
    places = [(key, method) for key in titles for method in methods]
    return figure, dict(zip(places, [a for line in axes for a in line], strict=True))


def _band(panel: Axes, curve: Curve | None, colour: str, **style: Any) -> None:
    """Draw the mean as a line and ± sd as a band."""
    if curve is not None:
        x, mean, sd = curve
        mean = np.where(np.isfinite(mean), mean, np.nan)  # a gap where a seed's value is infinite
        panel.plot(x, mean, color=colour, marker="." if len(x) <= 20 else None, **style)
        panel.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.2, lw=0)
