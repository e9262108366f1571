"""Evaluation between the epochs of unlearning, on a few rows a split, and the choice of the epoch that is kept."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from soul_cli.core import cost
from soul_cli.core.distributed import by_rank_0, once, sharded
from soul_cli.core.files import publish
from soul_cli.core.run_folder import RunFolder, plain_metrics
from soul_cli.core.screen import Bar
from soul_cli.core.types import Metric, Row, UserError
from soul_cli.data.encode import Encoder
from soul_cli.evaluate import general
from soul_cli.evaluate.config import Select
from soul_cli.experiment.context import Context
from soul_cli.experiment.evaluation import evaluate
from soul_cli.experiment.models import save
from soul_cli.experiment.tracking import track_epoch
from soul_cli.models.load import ModelRef

Line = dict[str, Any]


@dataclass
class EpochEvaluation:
    """Called with the model after epochs 0 (before the first step), n, 2n, ... and the last.

    Each evaluation is a line of epochs.jsonl as soon as it is done; a run that goes on does not repeat it, and goes on
    in the middle of one.  With select=best the weights of the best epoch so far are kept beside the checkpoint.
    """

    context: Context
    folder: RunFolder
    encoder: Encoder
    rows: dict[str, list[Row]]  # of the original and, where there is one, the retain-trained model
    progress: Bar
    lines: list[Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lines = self.folder.epochs_so_far()

    @cached_property
    def references(self) -> dict[str, dict[str, Metric]]:
        """Return metrics of the other models on the same few rows."""
        return {name: self._summary(rows) for name, rows in self.rows.items()}

    def __call__(self, lm: Any, epoch: int, steps: int) -> None:
        """Evaluate lm, in eval mode, as it is after `epoch` epochs, `steps` steps in all.  All processes call it."""
        config = self.context.config
        every, last = config.epoch_eval.every, config.train.epochs
        assert every is not None
        if (epoch % every and epoch != last) or any(line["epoch"] == epoch for line in self.lines):
            return
        parts = self.folder.work / f"epoch{epoch}"
        with cost.measure():
            model = self._whole(lm)
            show = self.progress.line(f"evaluating, epoch {epoch}")
            rows = evaluate(self.context, lambda: model, self.encoder, parts, show, config.epoch_eval.limit)
            line = once(lambda: self._line(epoch, rows)) | {"cost": cost.spent()}
        if config.epoch_eval.select is Select.best and epoch and best_line([*self.lines, line]) is line:
            self._keep(lm)
        self.lines.append(line)
        self.folder.write_epochs(self.lines)
        track_epoch(self.context.accelerator, steps, line)
        remove(parts)
        remove(self.whole)

    def _whole(self, lm: Any) -> Any:
        """Return lm; of a sharded one a whole copy on each process."""
        if not sharded(next(lm.parameters())):
            return lm
        save(lm, self.encoder, self.whole)
        return self.context.load(ModelRef(str(self.whole), ""))

    @property
    def whole(self) -> Path:
        """Return where a copy of a sharded model lies while it is evaluated."""
        return self.folder.work / ".whole"

    @property
    def best(self) -> Path:
        """Return where the weights with the highest score so far lie."""
        return self.folder.work / "best"

    def _keep(self, lm: Any) -> None:
        temporary = self.folder.work / ".best"
        save(lm, self.encoder, temporary)
        once(lambda: publish(temporary, self.best))

    def _line(self, epoch: int, rows: list[Row]) -> Line:
        models = {**self.references, "this_run": self._summary(rows)}
        try:
            score = self.context.config.task.selection_score(models)
        except KeyError as missing:
            score = None
            if self.context.config.epoch_eval.select is Select.best:
                raise UserError(
                    f"epoch_eval.select=best: the score needs {missing}, which this run does not have; take select=last"
                ) from None
        return {"epoch": epoch, "score": score, "metrics": metric_values(models["this_run"])}

    def _summary(self, rows: list[Row]) -> dict[str, Metric]:
        """Return metrics on the first rows of each split."""
        config, limit = self.context.config, self.context.config.epoch_eval.limit

        def first(rows: list[Row]) -> list[Row]:
            return [r for r in rows if r["split"] != general.SPLIT and r["index"] < limit]

        retain = self.rows.get("retain_trained")
        metrics, _ = config.task.summarise(first(rows), first(retain) if retain else None, config.eval)
        return metrics

    def spent(self) -> dict[str, Any]:
        """Return what all evaluations cost together."""
        total = cost.Cost()
        for line in self.lines:
            total.add(cost.Cost(**line["cost"]))
        return vars(total) | {"seconds": round(total.seconds, 3)}

    def outcome(self) -> dict[str, Any]:
        """Return for metrics.json which epoch's weights the run ends with, by which rule, and what to compare with."""
        config = self.context.config
        best = config.epoch_eval.select is Select.best
        line = best_line(self.lines) if best else self.lines[-1]
        rule = " ".join((config.task.selection_score.__doc__ or "").split())
        levels = {name: metric_values(metrics) for name, metrics in self.references.items()}
        return {
            "select": config.epoch_eval.select.value, "epoch": line["epoch"], "score": line["score"],
            "of": [each["epoch"] for each in self.lines], "rule": rule, "levels": levels,
        }  # fmt: skip


@by_rank_0
def remove(folder: Path) -> None:
    """Remove a folder, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def best_line(lines: list[Line]) -> Line:
    """Return the line with the highest score, the earliest of equals; never epoch 0, which is no unlearned model."""
    return max(lines, key=lambda line: (line["epoch"] > 0, line["score"], -line["epoch"]))


def metric_values(metrics: dict[str, Metric]) -> dict[str, dict[str, Any]]:
    """Return numbers alone; directions and definitions are those of metrics.json."""
    return {k: {x: m[x] for x in ("value", "n", "ci95")} for k, m in plain_metrics(metrics).items()}
