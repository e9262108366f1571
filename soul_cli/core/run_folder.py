"""The folder of a run: all that is written there, and how it is read again.

Until the run is finished, `work` in it holds what the same command goes on from: checkpoints, weights, finished parts
of the evaluation, costs.  On several processes all of them call each writer, and rank 0 writes.
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from soul_cli.core.distributed import by_rank_0, main
from soul_cli.core.files import PACKAGE, TEMPORARY, locked, read_json, read_lines, write_lines, write_text
from soul_cli.core.types import Headline, Metric, Row

NAMES = {"original": "original", "retain_trained": "retain-trained", "this_run": "this run"}
RECORDED = (
    "soul-unlearn",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "pytorch-optimizer",
    "peft",
    "bitsandbytes",
    "hydra-core",
    "numpy",
    "scipy",
    "rouge-score",
    "nltk",
    "sacrebleu",
    "sentence-transformers",
    "lm-eval",
)
METRICS, EPOCHS, STEPS, PAGE = "metrics.json", "epochs.jsonl", "train.jsonl", "report.html"
WORK = "work"  # the folder of what a run goes on from
OUTCOME = "epoch.json"  # in the work folder: which epoch's weights the model has, where epochs were evaluated


@dataclass(frozen=True)
class RunFolder:
    """A run's folder.  Where metrics.json stands in it, the run is finished."""

    path: Path

    @property
    def work(self) -> Path:
        """Return the folder of what the run goes on from."""
        return self.path / WORK

    @property
    def trained(self) -> Path:
        """Return where the unlearned model lies until the run is finished."""
        return self.work / "model"

    @property
    def model(self) -> Path:
        """Return where the unlearned model stays, with save_model=true."""
        return self.path / "model"

    @contextmanager
    def locked(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Keep other commands out of the folder.  waiting: called where one is at work on it."""
        if not main():
            yield
            return
        with locked(self.path.with_name(f".{self.path.name}.lock"), waiting):
            yield

    # --- state ---------------------------------------------------------------------------------------------

    @by_rank_0
    def clear(self) -> None:
        """Remove all there is."""
        shutil.rmtree(self.path, ignore_errors=True)

    @by_rank_0
    def is_finished(self, key: str, *, with_model: bool) -> bool:
        """Return whether all results of the run `key` are there.  with_model: its model too."""
        if with_model and not self.model.is_dir():
            return False
        return read_json(self.path / METRICS, {}).get("key") == key

    @by_rank_0
    def is_trained(self) -> bool:
        """Return whether the unlearned model is there."""
        return self.trained.is_dir()

    @by_rank_0
    def tidy(self) -> None:
        """Remove what a finished run no longer needs, and what a killed one left half written."""
        shutil.rmtree(self.work, ignore_errors=True)
        for path in self.path.glob(TEMPORARY):
            path.unlink(missing_ok=True)

    # --- writing -------------------------------------------------------------------------------------------

    @by_rank_0
    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.yaml and environment.json.  config: as plain values."""
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        write_text(self.path / "environment.json", json.dumps(environment(), indent=1))

    @by_rank_0
    def write_epochs(self, lines: list[dict[str, Any]]) -> None:
        """Write epochs.jsonl: an evaluation between epochs a line."""
        for folder in (self.work, self.path):  # the first are this training's, which goes on from them
            write_lines(folder / EPOCHS, lines)

    @by_rank_0
    def write_trained(self, model: Path, records: list[dict[str, Any]], outcome: dict[str, Any] | None) -> None:
        """Put the unlearned model in place, and write train.jsonl: a step a line.

        model: its folder, which is moved.  outcome: which epoch's weights it has, where epochs were evaluated.
        """
        write_lines(self.path / STEPS, records)
        if outcome is not None:
            write_text(self.work / OUTCOME, json.dumps(outcome))
        model.rename(self.trained)

    @by_rank_0
    def keep_model(self, card: str) -> None:
        """Copy the unlearned model to `model`, which stays, with its card beside it."""
        shutil.rmtree(self.model, ignore_errors=True)
        half = self.work / ".kept"
        shutil.copytree(self.trained, half, dirs_exist_ok=True)
        write_text(half / "README.md", card)
        half.rename(self.model)

    @by_rank_0
    def write_rows(self, rows: dict[str, list[Row]]) -> None:
        """Write rows.jsonl and those of the other models.  rows: by model."""
        for model, some in rows.items():
            write_lines(self.path / rows_file(model), some)

    @by_rank_0
    def write_metrics(
        self,
        key: str,
        config: dict[str, Any],
        title: str,
        models: dict[str, dict[str, Metric]],
        absent: dict[str, dict[str, str]],
        cost: dict[str, dict[str, Any]],
        headline: list[Headline],
        columns: list[str],
    ) -> None:
        """Write metrics.json, the last result of a run.  title: the method's name, as tables show it."""
        content = {
            "key": key,
            "task": config["task"]["name"],
            "method": title,
            "optim": config["optim"]["name"] if "optim" in config else "",
            "seed": config["seed"],
            "target_seed": config["target_seed"],
            "headline": list(map(asdict, headline)),
            "columns": columns,
            "models": {name: plain_metrics(some) for name, some in models.items()},
            "absent": absent,
            "cost": cost,
            "epoch_eval": read_json(self.work / OUTCOME, None),
        }
        write_text(self.path / METRICS, json.dumps(content, indent=1, allow_nan=False))

    # --- reading -------------------------------------------------------------------------------------------

    @by_rank_0
    def steps(self) -> int:
        """Return how many steps the unlearning took, 0 where nothing was trained."""
        file = self.path / STEPS
        return len(read_lines(file)) if file.is_file() else 0

    @by_rank_0
    def epochs_so_far(self) -> list[dict[str, Any]]:
        """Return the evaluations between epochs that this training has done."""
        file = self.work / EPOCHS
        return read_lines(file) if file.is_file() else []

    def models(self) -> dict[str, dict[str, Metric]]:
        """Return model -> metric -> its value and all else that metrics.json says of it."""
        models = json.loads((self.path / METRICS).read_text())["models"]
        return {name: read_metrics(some) for name, some in models.items()}


def rows_file(model: str) -> str:
    """Return the name of the file with a model's rows."""
    return "rows.jsonl" if model == "this_run" else f"rows_{model}.jsonl"


def environment() -> dict[str, Any]:
    """Return versions, machine and git commit of the code."""
    found = {}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return {"python": platform.python_version(), "machine": platform.machine(), "packages": found, "git": git_commit()}


def git_commit() -> str | None:
    """Return the commit of the checkout the package runs from, '+changes' behind it where it is not clean.

    None outside a checkout.
    """

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=PACKAGE, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def plain_metrics(metrics: dict[str, Metric]) -> dict[str, dict[str, Any]]:
    """Return one model's metrics as metrics.json has them.  JSON knows no infinity: it is the text "inf" or "-inf"."""

    def plain(x: float) -> float | str:
        return str(x) if math.isinf(x) else x

    return {
        name: asdict(m) | {"value": plain(m.value), "ci95": list(map(plain, m.ci95)) if m.ci95 else None}
        for name, m in metrics.items()
    }


def read_metrics(plain: dict[str, dict[str, Any]]) -> dict[str, Metric]:
    """Return one model's metrics as metrics.json or, with numbers alone, epochs.jsonl has them.

    In files of version 0.1 the KS distance is no metric but stands in the `extra` of forget_quality.
    """
    out = {}
    for name, m in plain.items():
        ends = [float(x) for x in m.get("ci95") or ()]
        ci95 = (ends[0], ends[1]) if ends else None
        out[name] = Metric(float(m["value"]), m["n"], m.get("goal", ""), m.get("definition", ""), ci95)
        if name == "forget_quality" and "D" in m.get("extra", {}):
            out["forget_quality_D"] = Metric(m["extra"]["D"], m["n"], "down", "D of the KS test behind forget_quality")
    return out
