"""What training does over time: metrics by epoch (the paper's Figure 1), the optimizer's quantities by step."""

from __future__ import annotations

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
