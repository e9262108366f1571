"""The paper's Figure 1: what is forgotten and what is kept, epoch by epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from soul_cli.core.run_folder import NAMES
from soul_cli.report.figures.look import FLOOR, panels
from soul_cli.report.figures.plots import Source
from soul_cli.report.read import Run

# models that do not change over the epochs
LEVELS: dict[str, dict[str, Any]] = {
    "original": {"color": "black", "ls": ":", "lw": 1.4},
    "retain_trained": {**FLOOR, "ls": ":", "lw": 1.8},
}


def pair(source: Source, runs: list[Run]) -> tuple[str, str] | None:
    """(forgotten, kept): the first of the layout's pairs that every epoch of the runs has."""
    evaluated = [metrics for run in runs for metrics in run.epochs.values()]
    wanted = (*source.layout.curves, *source.layout.axes)
    return next((p for p in wanted if all(m in metrics for metrics in evaluated for m in p)), None)


def curve(runs: list[Run], metric: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """A metric over the epochs that all runs have -> epoch (E,), mean (E,), sd (E,) (0 for one seed)."""
    tables = [{epoch: metrics[metric].value for epoch, metrics in run.epochs.items()} for run in runs]
    shared = sorted(set.intersection(*(set(t) for t in tables)))
    values = np.array([[t[e] for e in shared] for t in tables], dtype=np.float64)
    sd = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(shared))
    return np.array(shared), values.mean(axis=0), sd


def epochs(source: Source) -> Figure | None:
    """Forgotten above, kept below, against epochs; a column a method, a line an optimizer, mean ± sd over seeds."""
    rows = {row: some for row, runs in source.trained.items() if (some := [r for r in runs if r.epochs])}
    found = pair(source, [r for runs in rows.values() for r in runs]) if rows else None
    if found is None:
        return None
    methods = list(dict.fromkeys(method for method, _ in rows))
    width = max(4.5, 2.6 * len(methods))
    figure, axes = panels(2, len(methods), width, 5.2, sharex="col", sharey="row")
    levels = next(iter(rows.values()))[0].levels
    for line, metric in zip(axes, found, strict=True):
        line[0].set_ylabel(metric)
        for a, method in zip(line, methods, strict=True):
            for name, style in LEVELS.items():
                if name in levels:
                    a.axhline(levels[name][metric].value, **style)
            for (of, optim), runs in rows.items():
                if of == method:
                    x, mean, sd = curve(runs, metric)
                    a.plot(x, mean, color=source.styles.colour(optim), lw=1.6, marker=".")
                    a.fill_between(x, mean - sd, mean + sd, color=source.styles.colour(optim), alpha=0.2, lw=0)
    for top, bottom, method in zip(axes[0], axes[-1], methods, strict=True):
        top.set_title(method)
        bottom.set_xlabel("epoch")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    more: list[Artist] = [Line2D([], [], label=NAMES[name], **s) for name, s in LEVELS.items() if name in levels]
    source.styles.legend(figure, rows, more, markers=False)
    return figure
