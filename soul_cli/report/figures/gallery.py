"""All figures of the report, in the page's order, each with its caption."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from soul_cli.report.figures.costs import cost
from soul_cli.report.figures.curves import epochs, steps
from soul_cli.report.figures.distributions import ecdf
from soul_cli.report.figures.source import Source
from soul_cli.report.figures.tradeoff import tradeoff

FIGURES: dict[str, tuple[Callable[[Source], Figure | None], str]] = {
    "tradeoff": (
        tradeoff,
        "Forgetting against utility, mean ± sd over seeds. Colour: optimizer, marker: method. A line joins an "
        "optimizer's rows that none of its others beats in both; best is right, and on the dashed line.",
    ),
    "epochs": (
        epochs,
        "Forgetting and what is kept by epoch, on a few questions a split; mean, band ± sd over seeds. Dotted: the "
        "original and the retain-trained model on the same questions.",
    ),
    "cost": (
        cost,
        "Wall time, and memory of unlearning: peak (± sd over seeds), and within it the weights and, in the "
        "optimizer's colour, its states. Models and evaluations that the runs share are drawn once, as they were made.",
    ),
    "truth_ratio": (
        ecdf,
        "Distribution of the truth ratio R on the forget questions, a line a seed; R outside 1e-6 to 1e6 stands at the "
        "edge. The KS distance D behind forget quality is the largest vertical gap to the retain-trained model.",
    ),
    "steps": (
        steps,
        "Share of unclipped coordinates over the steps, and distance from the start at the end of epochs; "
        "band: ± sd over seeds.",
    ),
}
