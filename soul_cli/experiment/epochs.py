"""Evaluation between the epochs of unlearning, on a few rows a split, and the choice of the epoch that is kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from soul_cli.core import cost
from soul_cli.core.distributed import once, sharded
from soul_cli.core.files import publish, read_lines, write_text
from soul_cli.core.screen import Bar
from soul_cli.core.types import Metric, Row, UserError
from soul_cli.data.encode import Encoder
from soul_cli.evaluate import general
from soul_cli.evaluate.config import Select
from soul_cli.experiment.pipeline import Pipeline, save
from soul_cli.models.load import ModelRef

FILE = "epochs.jsonl"
BEST = "best"  # in the work folder: the weights with the highest score so far
Line = dict[str, Any]


@dataclass
class EpochEvaluation:
    """Called with the model after epochs 0 (before the first step), n, 2n, ... and the last.

    Each evaluation is a line of epochs.jsonl as soon as it is done; a run that goes on does not repeat it, and goes on
    in the middle of one.  With select=best the weights of the best epoch so far are kept beside the checkpoint.
    """

    pipe: Pipeline
    folder: Path  # of the run
    work: Path
    encoder: Encoder
    rows: dict[str, list[Row]]  # of the original and, where there is one, the retain-trained model
    progress: Bar
    lines: list[Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        # those in `work` are of this training; one that is done anew overwrites the run folder's
        self.lines = once(lambda: lines_of(self.work))

    @cached_property
    def references(self) -> dict[str, dict[str, Metric]]:
        """Metrics of the other models on the same few rows."""
        return {name: self._summary(rows) for name, rows in self.rows.items()}

    def __call__(self, lm: Any, epoch: int) -> None:
        """Evaluate lm, in eval mode, as it is after `epoch` epochs.  All processes call it."""
        config = self.pipe.config
        every, last = config.epoch_eval.every, config.train.epochs
        assert every is not None
        if (epoch % every and epoch != last) or any(line["epoch"] == epoch for line in self.lines):
            return
        parts = self.work / f"epoch{epoch}"
        with cost.measure():
            model = self._whole(lm)
            show = self.progress.line(f"evaluating, epoch {epoch}")
            rows = self.pipe.evaluate(lambda: model, self.encoder, parts, show, config.epoch_eval.limit)
            line = once(lambda: self._line(epoch, rows)) | {"cost": cost.spent()}
        if config.epoch_eval.select is Select.best and epoch and chosen([*self.lines, line]) is line:
            self._keep(lm)
        self.lines.append(line)
        once(lambda: self._write(parts))

    def _whole(self, lm: Any) -> Any:
        """lm; of a sharded one a whole copy on each process."""
        if not sharded(next(lm.parameters())):
            return lm
        copy = self.work / ".whole"
        save(lm, self.encoder, copy)
        return self.pipe.load(ModelRef(str(copy), ""))

    def _keep(self, lm: Any) -> None:
        temporary = self.work / ".best"
        save(lm, self.encoder, temporary)
        once(lambda: publish(temporary, self.work / BEST))

    def _line(self, epoch: int, rows: list[Row]) -> Line:
        models = {**self.references, "this_run": self._summary(rows)}
        try:
            score = self.pipe.config.task.selection_score(models)
        except KeyError as missing:
            score = None
            if self.pipe.config.epoch_eval.select is Select.best:
                raise UserError(
                    f"epoch_eval.select=best: the score needs {missing}, which this run does not have; take select=last"
                ) from None
        return {"epoch": epoch, "score": score, "metrics": values(models["this_run"])}

    def _summary(self, rows: list[Row]) -> dict[str, Metric]:
        """Metrics on the first rows of each split."""
        config, limit = self.pipe.config, self.pipe.config.epoch_eval.limit

        def few(some: list[Row]) -> list[Row]:
            return [r for r in some if r["split"] != general.SPLIT and r["index"] < limit]

        retain = self.rows.get("retain_trained")
        metrics, _ = config.task.summarise(
            few(rows), few(retain) if retain else None, config.eval, facts_trained=config.model.facts_trained
        )
        return metrics

    def _write(self, parts: Path) -> None:
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        write_text(self.work / FILE, text)
        write_text(self.folder / FILE, text)
        for done in (parts, self.work / ".whole"):
            shutil.rmtree(done, ignore_errors=True)

    def spent(self) -> dict[str, Any]:
        """What all evaluations cost together."""
        total = cost.Cost()
        for line in self.lines:
            total.add(cost.Cost(**line["cost"]))
        return vars(total) | {"seconds": round(total.seconds, 3)}

    def outcome(self) -> dict[str, Any]:
        """For metrics.json: which epoch's weights the run ends with, by which rule, and the levels to compare with."""
        config = self.pipe.config
        best = config.epoch_eval.select is Select.best
        line = chosen(self.lines) if best else self.lines[-1]
        rule = " ".join((config.task.selection_score.__doc__ or "").split())
        levels = {name: values(metrics) for name, metrics in self.references.items()}
        return {
            "select": config.epoch_eval.select.value, "epoch": line["epoch"], "score": line["score"],
            "of": [each["epoch"] for each in self.lines], "rule": rule, "levels": levels,
        }  # fmt: skip


def lines_of(folder: Path) -> list[Line]:
    return read_lines(folder / FILE) if (folder / FILE).is_file() else []


def chosen(lines: list[Line]) -> Line:
    """The line with the highest score, the earliest of equals.  Epoch 0 is no unlearned model and never chosen."""
    return max(lines, key=lambda line: (line["epoch"] > 0, line["score"], -line["epoch"]))


def values(metrics: dict[str, Metric]) -> dict[str, dict[str, Any]]:
    """Numbers alone; directions and definitions are those of metrics.json."""
    return {k: {"value": m.value, "n": m.n, "ci95": m.ci95} for k, m in metrics.items()}
