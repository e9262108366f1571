"""The cost figure: is a second-order step as cheap in memory and time as Adam's?"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from soul_cli.report.figures.look import panels
from soul_cli.report.figures.source import Source
from soul_cli.report.read import Run, label

# phases that runs share, with their grey
SHARED = {
    "target_model": "0.35", "retain_model": "0.5", "evaluate_original": "0.65", "evaluate_retain_trained": "0.75",
    "alternatives": "0.8", "reference": "0.85",
}  # fmt: skip
EVALUATION = "0.9"


def cost(source: Source) -> Figure | None:
    """Draw, a row at a time, seconds of unlearning and evaluation, peak memory, weights and states; ± sd over seeds.

    Below them the shared models and evaluations, once, with what they cost when they were made.
    """
    rows = source.trained
    if not rows:
        return None
    figure, ((time,), (memory,)) = panels(2, 1, 5.6, 2.2 + 0.56 * (len(rows) + 1), sharey=True)
    for y, ((_, optim), runs) in enumerate(rows.items()):
        width = _bar(time, y, runs, "unlearn_seconds", source.styles.colour(optim))
        _bar(time, y, runs, "evaluate_seconds", EVALUATION, left=width, spread=False)
        _bar(memory, y, runs, "unlearn_peak_mb", "0.85")
        width = _bar(memory, y, runs, "parameter_mb", "0.6", spread=False)
        _bar(memory, y, runs, "optimizer_state_mb", source.styles.colour(optim), left=width, spread=False)
    shared = _shared(source.runs, time, len(rows))
    time.set_yticks(
        range(len(rows) + 1), [*(f"{label(row)} (n = {len(r)})" for row, r in rows.items()), "shared, once"]
    )
    time.invert_yaxis()
    time.set_xlabel("seconds")
    memory.set_xlabel("MB of memory while unlearning")
    for axes in (time, memory):
        axes.grid(axis="y", visible=False)
    more = [Patch(color=EVALUATION, label="evaluation"), Patch(color="0.6", label="weights")]
    more += [Patch(color="0.85", label="peak memory"), *shared]
    source.styles.legend(figure, rows, more, markers=False)
    return figure


def _bar(
    axes: Axes, y: int, runs: list[Run], metric: str, shade: str, *, left: float = 0.0, spread: bool = True
) -> float:
    """Draw a bar of the mean over the runs that have the metric; return where it ends."""
    values = np.array([r.metrics["this_run"][metric].value for r in runs if metric in r.metrics["this_run"]])
    if not len(values):
        return left
    sd = values.std(ddof=1) if spread and len(values) > 1 else None
    axes.barh(y, values.mean(), left=left, color=shade, xerr=sd, error_kw={"lw": 1, "capsize": 2})
    return left + float(values.mean())


def _shared(runs: list[Run], axes: Axes, y: int) -> list[Patch]:
    """Draw a bar of what the runs share, phase after phase; return its legend."""
    left, patches = 0.0, []
    for phase, grey in SHARED.items():
        seconds = next((r.content["cost"][phase]["seconds"] for r in runs if phase in r.content["cost"]), 0.0)
        if seconds:
            axes.barh(y, seconds, left=left, color=grey)
            patches.append(Patch(color=grey, label=phase.replace("_", " ")))
            left += seconds
    return patches
