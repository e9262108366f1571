"""The score by which settings are chosen: a harmonic mean of parts in [0, 1], each task's own.

1 is a model that forgot like the retain-trained one and kept everything else.  For choosing on seeds that are not
reported, never for a table.  All functions take the models of a metrics.json: model -> metric -> its fields.
"""

from __future__ import annotations

from typing import Any

Models = dict[str, dict[str, dict[str, Any]]]


def value(models: Models, model: str, metric: str) -> float:
    return models[model][metric]["value"]


def share(now: float, original: float) -> float:
    """What is left of the original's value, where higher is better; 1 where there was nothing to lose."""
    return now / original if original else 1.0


def kept(models: Models, metric: str) -> float:
    return share(value(models, "this_run", metric), value(models, "original", metric))


def near(models: Models, metric: str) -> float:
    """1 at the retain-trained model's value, 0 at the original's and at as far on the other side as can be."""
    original, floor, now = (value(models, m, metric) for m in ("original", "retain_trained", "this_run"))
    gap = max(floor, original - floor if now > floor else floor)
    return 1 - abs(now - floor) / gap if gap else float(now == floor)


def harmonic(parts: list[float]) -> float:
    """Harmonic mean; parts above 1 count as 1, and one at or below 0 makes it 0."""
    return 0.0 if min(parts) <= 0 else len(parts) / sum(1 / min(p, 1.0) for p in parts)
