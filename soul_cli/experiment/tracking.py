"""`trackers=`: what the unlearning of a run tells Accelerate's trackers, as TensorBoard and Weights & Biases.

Every number has the step of the unlearning at which it stood: `unlearn/...` each step's record (losses, learning rate,
gradient norm, unclipped share), `epochs/...` the metrics between epochs, `final/...` those of the finished run.
Fine-tuning is not tracked: its steps would count beside these, and W&B takes steps in rising order alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import filter_trackers

from soul_cli.core.types import Metric
from soul_cli.experiment.card import markdown, table

PROJECT = "soul-unlearn"


@contextmanager
def tracked(accelerator: Accelerator, names: list[str], folder: str, settings: dict[str, Any]) -> Iterator[None]:
    """Open the trackers, and close them, whatever ends the block.

    names: as Accelerate has them.  folder: of the run; trackers that write files write there.  settings: the
    configuration, as plain values.
    """
    if names:  # not where the accelerator is made: a run's folder is known later
        accelerator.project_configuration.set_directories(folder)
        accelerator.log_with = filter_trackers(names, folder)
        accelerator.init_trackers(PROJECT, flat(settings))
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Return nested values by dotted key, as trackers take them; lists and null as text."""
    out: dict[str, bool | int | float | str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return out


def track_step(accelerator: Accelerator, step: int, record: dict[str, Any]) -> None:
    """Track the record of an unlearning step."""
    accelerator.log({f"unlearn/{k}": v for k, v in record.items() if k != "step"}, step=step)


def track_epoch(accelerator: Accelerator, step: int, line: dict[str, Any]) -> None:
    """Track a line of epochs.jsonl.  step: the epoch's last."""
    values = {name: float(metric["value"]) for name, metric in line["metrics"].items()}
    values |= {"score": line["score"]} if line["score"] is not None else {}
    accelerator.log({f"epochs/{name}": value for name, value in values.items()}, step=step)


def track_result(accelerator: Accelerator, step: int, models: dict[str, dict[str, Metric]], columns: list[str]) -> None:
    """Track all metrics of each model, and the table of the headline: a table where a tracker has them, else Markdown.

    step: the last of unlearning, 0 where there was none.
    """
    values = {f"final/{model}/{name}": m.value for model, some in models.items() for name, m in some.items()}
    accelerator.log(values, step=step)
    heads, lines = table(models, columns)
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_table"):
            tracker.log_table("final/table", columns=heads, data=lines, step=step)
        else:
            tracker.log({"final/table": markdown(heads, lines)}, step=step)
