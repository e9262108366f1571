"""How every figure looks, and how it becomes bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe and Ito's palette, told apart by colour-blind readers: one optimizer = one colour in every figure
COLOURS = {
    "adamw": "#0072B2", "soul": "#D55E00", "soul_released": "#E69F00", "signum": "#009E73", "lion": "#CC79A7",
    "muon": "#56B4E9", "diagonal": "#882255", "cg": "#332288",
}  # fmt: skip
# one method = one marker
MARKERS = {"input_based": "P", "finetune": "X", "ga": "v", "graddiff": "s", "po": "D", "npo": "o", "iu": "h"}
OTHER_COLOUR, OTHER_MARKER = "#595959", "^"
FLOOR: dict[str, Any] = {"color": "#7f7f7f", "lw": 1.2, "ls": "--", "zorder": 1}  # the retain-trained model
STYLE: Any = {
    "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "legend.fontsize": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": "#555555", "axes.grid": True, "grid.color": "#e6e6e6",
    "axes.axisbelow": True, "legend.frameon": False, "savefig.dpi": 150, "svg.hashsalt": "soul-report",
}  # fmt: skip


def colour(optim: str) -> str:
    return COLOURS.get(optim, OTHER_COLOUR)


def marker(method: str) -> str:
    return MARKERS.get(method, OTHER_MARKER)


def panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, list[list[Axes]]]:
    """An empty figure with rows x columns axes; width and height in inches."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, [list(row) for row in axes]


def legend(figure: Figure, methods: list[str], optims: list[str], more: Sequence[Artist] = ()) -> None:
    """Colours for optimizers, markers for methods, below the axes in as many columns as there is room for."""
    handles: list[Artist] = [Line2D([], [], color=colour(o), lw=3, label=o) for o in optims]
    handles += [Line2D([], [], color="0.2", ls="", marker=marker(m), ms=6, label=m) for m in methods]
    handles += more
    widest = 50 + 5.2 * max(len(str(h.get_label())) for h in handles)  # points, at the legend's font size
    columns = min(len(handles), max(1, int(figure.get_figwidth() * 72 / widest)))
    with matplotlib.rc_context(STYLE):
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def save(figure: Figure) -> tuple[bytes, bytes]:
    """-> PNG, SVG; the same figure gives the same bytes."""
    png, svg = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(png, format="png", metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return png.getvalue(), svg.getvalue()
