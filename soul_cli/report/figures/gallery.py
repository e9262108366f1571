"""All figures of the report, in the page's order, each with its captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

from soul_cli.report.figures.costs import cost
from soul_cli.report.figures.curves import epochs, steps
from soul_cli.report.figures.distributions import ecdf
from soul_cli.report.figures.source import Source
from soul_cli.report.figures.tradeoff import tradeoff


@dataclass(frozen=True)
class Entry:
    """A figure.  words: its caption; alone: that of one run, None where the figure says nothing of one run."""

    draw: Callable[[Source], Figure | None]
    words: str
    alone: str | None


FIGURES = {
    "tradeoff": Entry(
        tradeoff,
        "Forgetting against utility, mean ± sd over seeds. Colour: optimizer, marker: method. A line joins an "
        "optimizer's rows that none of its others beats in both; best is right, and on the dashed line.",
        None,
    ),
    "epochs": Entry(
        epochs,
        "Forgetting and what is kept by epoch, on a few questions a split; mean, band ± sd over seeds. Dotted: the "
        "original and the retain-trained model on the same questions.",
        "Forgetting and what is kept by epoch, on a few questions a split. Dotted: the original and the retain-trained "
        "model on the same questions.",
    ),
    "cost": Entry(
        cost,
        "Wall time, and memory of unlearning: peak (± sd over seeds), and within it the weights and, in the "
        "optimizer's colour, its states. Models and evaluations that the runs share are drawn once, as they were made.",
        "Wall time, and memory of unlearning: peak, and within it the weights and, in colour, the optimizer's states. "
        "Models and evaluations that other runs share stand in a line of their own, as they were made.",
    ),
    "truth_ratio": Entry(
        ecdf,
        "Distribution of the truth ratio R on the forget questions, a line a seed; R outside 1e-6 to 1e6 stands at the "
        "edge. The KS distance D behind forget quality is the largest vertical gap to the retain-trained model.",
        "Distribution of the truth ratio R on the forget questions; R outside 1e-6 to 1e6 stands at the edge. The KS "
        "distance D behind forget quality is the largest vertical gap to the retain-trained model.",
    ),
    "steps": Entry(
        steps,
        "Share of unclipped coordinates over the steps, and distance from the start at the end of epochs; "
        "band: ± sd over seeds.",
        "Share of unclipped coordinates over the steps, and distance from the start at the end of epochs.",
    ),
}


def drawn(source: Source, *, alone: bool) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure of all that the runs have something for.  alone: the source is one run."""
    for name, entry in FIGURES.items():
        words = entry.alone if alone else entry.words
        figure = entry.draw(source) if words else None
        if words and figure:
            yield name, words, figure
