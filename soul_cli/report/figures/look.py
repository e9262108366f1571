"""How every figure looks, and how it becomes bytes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from string import ascii_uppercase
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from soul_cli.objective.methods import METHODS
from soul_cli.optim.build import OPTIMS
from soul_cli.report.layout import place

# Okabe and Ito's palette, told apart by colour-blind readers, then Tol's darker ones
PALETTE = (
    "#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#882255", "#332288", "#117733", "#999933",
    "#AA4499", "#661100", "#44AA99", "#6699CC",
)  # fmt: skip
SHAPES = (*"^PXvsDoh<>pdH8", *(f"${letter}$" for letter in ascii_uppercase))
NO_OPTIMIZER = "#595959"
FLOOR: dict[str, Any] = {"color": "#7f7f7f", "lw": 1.2, "ls": "--", "zorder": 1}  # the retain-trained model
STYLE: Any = {
    "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "legend.fontsize": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": "#555555", "axes.grid": True, "grid.color": "#e6e6e6",
    "axes.axisbelow": True, "legend.frameon": False, "savefig.dpi": 150, "svg.hashsalt": "soul-report",
}  # fmt: skip


class Styles:
    """One colour an optimizer and one marker a method, in every figure: by their places in the registries.

    What is in neither, as a solver, a method with other terms or a name of another version, takes the places behind.
    """

    def __init__(self, rows: Iterable[tuple[str, str]]):
        methods, optims = zip(*rows, strict=True)
        self.methods = [*METHODS, *sorted({*methods} - METHODS.keys(), key=lambda name: place(name, METHODS))]
        self.optims = [*OPTIMS, *sorted({*optims} - OPTIMS.keys() - {""}, key=lambda name: place(name, OPTIMS))]

    def colour(self, optim: str) -> str:
        return PALETTE[self.optims.index(optim) % len(PALETTE)] if optim else NO_OPTIMIZER

    def marker(self, method: str) -> str:
        return SHAPES[self.methods.index(method) % len(SHAPES)]

    def legend(self, figure: Figure, rows: Iterable[tuple[str, str]], more: Sequence[Artist], *, markers: bool) -> None:
        """Add a legend: colours of the rows' optimizers and, with markers, markers of their methods, then `more`.

        Below the axes, in as many columns as there is room for.
        """
        methods, optims = (set(names) for names in zip(*rows, strict=True))
        handles: list[Artist] = [
            Line2D([], [], color=self.colour(name), lw=3, label=name)
            for name in sorted(optims - {""}, key=lambda name: place(name, OPTIMS))
        ]
        if markers:
            handles += [
                Line2D([], [], color="0.2", ls="", marker=self.marker(name), ms=6, label=name)
                for name in sorted(methods, key=lambda name: place(name, METHODS))
            ]
        handles += more
        widest = 50 + 5.2 * max(len(str(h.get_label())) for h in handles)  # points, at the legend's font size
        columns = min(len(handles), max(1, int(figure.get_figwidth() * 72 / widest)))
        with matplotlib.rc_context(STYLE):
            figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, list[list[Axes]]]:
    """Return an empty figure with rows x columns axes; width and height in inches."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, [list(row) for row in axes]


def save(figure: Figure) -> tuple[bytes, bytes]:
    """Return PNG and SVG; the same figure gives the same bytes."""
    return _bytes(figure, "png", {"Software": None}), svg(figure)


def svg(figure: Figure) -> bytes:
    """Return SVG; the same figure gives the same bytes."""
    return _bytes(figure, "svg", {"Date": None})


def _bytes(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(out, format=kind, metadata=metadata)
    return out.getvalue()
