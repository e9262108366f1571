"""What the KS test behind forget quality compares: the distribution of the truth ratio."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from soul_cli.core.run_folder import NAMES
from soul_cli.core.types import Row
from soul_cli.evaluate import metrics as m
from soul_cli.report.figures.look import FLOOR, panels
from soul_cli.report.figures.source import Source

# models that are no row of the table's own
LEVELS: dict[str, dict[str, Any]] = {"original": {"color": "black", "lw": 1.8}, "retain_trained": {**FLOOR, "lw": 1.8}}


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
    references = {name: truth_ratios(source.runs[0].rows(name)) for name in LEVELS}
    if not methods or not len(references["original"]):
        return None
    columns = min(len(methods), 4)
    lines = -(-len(methods) // columns)
    figure, axes = panels(lines, columns, max(4.5, 2.6 * columns), 0.9 + 2.7 * lines, sharex=True, sharey=True)
    flat = [a for row in axes for a in row]
    for a, method in zip(flat, methods, strict=False):
        for (of, optim), runs in rows.items():
            for run in runs if of == method else ():
                _steps(a, truth_ratios(run.rows("this_run")), color=source.styles.colour(optim), lw=1.1, alpha=0.8)
        for name, values in references.items():
            _steps(a, values, **LEVELS[name])
        a.set(title=method, xscale="log", ylim=(0, 1), xlabel="truth ratio R")
    for a in flat[len(methods) :]:
        a.set_visible(False)
    for line in axes:
        line[0].set_ylabel("share of questions")
    more = [Line2D([], [], label=NAMES[name], **style) for name, style in LEVELS.items()]
    source.styles.legend(figure, rows, more, markers=False)
    return figure


def _steps(axes: Axes, values: NDArray[np.float64], **style: Any) -> None:
    if len(values):
        axes.ecdf(values, **style)
