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

WINDOW = 1e-6, 1e6  # of R: that of a destroyed model may be 0 or inf
# models that are no row of the table's own
LEVELS: dict[str, dict[str, Any]] = {"original": {"color": "black", "lw": 1.8}, "retain_trained": {**FLOOR, "lw": 1.8}}


def truth_ratios(rows: list[Row]) -> NDArray[np.float64]:
    """Return R of the forget rows, sorted, geometric mean, as behind forget_quality, (N,); empty where none is."""
    forget = [r for r in rows if r.get("split") == "forget" and r.get("perturbed_nll")]
    if not forget:
        return np.array([])
    right = m.nats([r.get("paraphrased_nll", r["nll"]) for r in forget])
    wrong = m.nats([r["perturbed_nll"] for r in forget])
    return np.sort(m.truth_ratio(right, wrong, mean="geometric"))


def ecdf(source: Source) -> Figure | None:
    """Draw distribution functions of the truth ratio, a panel a method; the KS test's D is the largest vertical gap."""
    rows = source.trained
    references = {name: truth_ratios(source.runs[0].rows(name)) for name in LEVELS}
    if not rows or not len(references["original"]):
        return None
    figure, axes = _lay_out(list(dict.fromkeys(method for method, _ in rows)))
    for (method, optim), runs in rows.items():
        colour = source.styles.colour(optim)
        for run in runs:
            _draw(axes[method], truth_ratios(run.rows("this_run")), color=colour, lw=1.1, alpha=0.8)
    for panel in axes.values():
        for name, values in references.items():
            _draw(panel, values, **LEVELS[name])
    more = [Line2D([], [], label=NAMES[name], **style) for name, style in LEVELS.items()]
    source.styles.legend(figure, rows, more, markers=False)
    return figure


def _lay_out(methods: list[str]) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with a panel a method, at most four side by side."""
    columns = min(len(methods), 4)
    lines = -(-len(methods) // columns)
    figure, axes = panels(lines, columns, max(4.5, 2.6 * columns), 0.9 + 2.7 * lines, sharex=True, sharey=True)
    for line in axes:
        line[0].set_ylabel("share of questions")
    flat = [panel for line in axes for panel in line]
    for panel, method in zip(flat, methods, strict=False):
        panel.set(title=method, xscale="log", ylim=(0, 1), xlabel="truth ratio R")
    for panel in flat[len(methods) :]:
        panel.set_visible(False)
    return figure, dict(zip(methods, flat, strict=False))


def _draw(axes: Axes, values: NDArray[np.float64], **style: Any) -> None:
    """Draw a distribution function; values outside the window stand at its edge."""
    if len(values):
        axes.ecdf(np.clip(values, *WINDOW), **style)
