"""Figures from the report's long table (method, optim, metric, mean, sd, n)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

COLOURS = {"adamw": "#1f77b4", "soul": "#d62728", "soul_released": "#ff9f40"}
MARKERS = {"ga": "v", "graddiff": "s", "po": "D", "npo": "o", "input_based": "P", "finetune": "X"}


def tradeoff(long: pd.DataFrame, path: Path, *, forget: str, keep: str) -> None:
    """Forgetting against utility, one point a row with ± sd over seeds; lines mark the retain-trained model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    wide = long.pivot_table(index=["method", "optim"], columns="metric", values=["mean", "sd"], sort=False)
    figure, axes = pyplot.subplots(figsize=(7, 4.6), layout="constrained")
    for key, row in wide.iterrows():
        method, optim = str(key[0]), str(key[1])  # type: ignore[index]
        x, y = row["mean"][keep], row["mean"][forget]
        if method == "retain-trained":
            axes.axhline(y, color="0.6", lw=1, ls="--", zorder=0)
            axes.axvline(x, color="0.6", lw=1, ls="--", zorder=0)
            axes.annotate(
                "retain-trained", (0.01, y), xycoords=("axes fraction", "data"), va="bottom", color="0.4", fontsize=8
            )
            continue
        if method == "original":
            axes.scatter(x, y, color="black", marker="*", s=120, label="original", zorder=3)
            continue
        sd = row.get("sd", pd.Series(dtype=float))
        axes.errorbar(
            x, y, xerr=_known(sd.get(keep)), yerr=_known(sd.get(forget)), ls="", capsize=2, ms=7,
            marker=MARKERS.get(method, "o"), color=COLOURS.get(optim, "0.3"), alpha=0.9,
            label=f"{method} {optim}".strip(),
        )  # fmt: skip
    axes.set_xlabel(f"{keep} (higher: more is kept)")
    axes.set_ylabel(f"{forget} (dashed: never seen)")
    axes.legend(fontsize=7, ncols=2, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _known(value: float | None) -> float:
    return 0.0 if value is None or pd.isna(value) else float(value)
