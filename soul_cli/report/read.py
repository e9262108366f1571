"""Run folders read into memory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from soul_cli.core.files import read_lines
from soul_cli.core.run_folder import EPOCHS, STEPS, read_metrics, rows_file
from soul_cli.core.types import Metric, Row, UserError

BY_TOKEN = ("answer_logps", "prompt_logps", "correct")
REFERENCES = ("original", "retain_trained")
# the first two are settings of input_based
WITHOUT_EFFECT = ("task.forget_names", "task.titles", "train.checkpoint_steps", "train.checkpoint_minutes")
OF_SEED = "method.seed"  # what a method draws beside data and labels follows the run's seed
TERMS = ("method", "retain", "combine", "perturb")  # groups of the configuration that make the objective
SOLVER = "method.solver"  # names a row as an optimizer does
MB = 1e6
# phase -> name in the tables -> field of soul_cli.core.cost.Cost, unit
COSTS: dict[str, dict[str, tuple[str, float]]] = {
    "unlearn": {
        "unlearn_seconds": ("seconds", 1),
        "unlearn_peak_mb": ("peak_memory_bytes", MB),
        "optimizer_state_mb": ("optimizer_state_bytes", MB),
        "parameter_mb": ("parameter_bytes", MB),
        "unlearn_tokens": ("training_tokens", 1),
        "unlearn_forward_passes": ("forward_passes", 1),
        "unlearn_backward_passes": ("backward_passes", 1),
    },
    "evaluate": {"evaluate_seconds": ("seconds", 1)},
}


@dataclass(frozen=True)
class Run:
    """One finished run folder.  config: flat, 'optim.lr' -> value."""

    folder: Path
    config: dict[str, Any]
    content: dict[str, Any]  # metrics.json
    steps: list[dict[str, Any]]  # train.jsonl; empty where nothing was trained
    environment: dict[str, Any] = field(default_factory=dict)
    epochs: dict[int, dict[str, Metric]] = field(default_factory=dict)  # epochs.jsonl; empty where none was evaluated

    @property
    def trained(self) -> bool:
        return bool(self.steps)

    @property
    def row(self) -> tuple[str, str] | None:
        """(method, optimizer) of the unlearned row; None where the run only evaluates.

        In place of the optimizer stands the solver of a method that has one.
        """
        if "this_run" not in self.content["models"]:
            return None
        how = self.content["optim"] or self.config.get(SOLVER, "")
        return self.content["method"], how if self.trained else ""

    @property
    def seed(self) -> int:
        """Unlearning seed.  What is not trained has none: it stands under the target seed."""
        return self.content["seed"] if self.trained else self.content["target_seed"]

    @property
    def settings(self) -> dict[str, Any]:
        """What was chosen for this row: method, its terms, optimizer and training."""
        groups = (*TERMS, "optim", "train", "epoch_eval") if self.trained else ("method",)
        left_out = (*WITHOUT_EFFECT, OF_SEED)
        return {k: v for k, v in self.config.items() if k.split(".")[0] in groups and k not in left_out}

    @cached_property
    def metrics(self) -> dict[str, dict[str, Metric]]:
        """Model -> metric; those of this_run with what stands in other places, ‖Δθ‖ and the costs."""
        out = {model: read_metrics(plain) for model, plain in self.content["models"].items()}
        if "this_run" in out:
            if self.steps and "displacement" in self.steps[-1]:
                moved = "distance of the weights from the first ones"
                out["this_run"]["displacement"] = Metric(self._last_step["displacement"], None, "", moved)
            out["this_run"] |= self._costs()
        return out

    @cached_property
    def levels(self) -> dict[str, dict[str, Metric]]:
        """Metrics of the models that do not change over the epochs, on the questions of the epochs."""
        return {model: read_metrics(plain) for model, plain in self.content["epoch_eval"]["levels"].items()}

    @property
    def _last_step(self) -> dict[str, Any]:
        """The step that gave the weights which were evaluated in full."""
        chosen = self.content.get("epoch_eval")
        if chosen is None:
            return self.steps[-1]
        return [s for s in self.steps if s["epoch"] <= chosen["epoch"]][-1]

    def _costs(self) -> dict[str, Metric]:
        """Return what this row cost by itself.  What cannot be known is absent."""
        found: dict[str, Metric] = {}
        for phase, names in COSTS.items():
            spent = self.content["cost"].get(phase, {})
            for name, (key, unit) in names.items():
                if spent.get(key):
                    found[name] = Metric(spent[key] / unit, None, "", f"{key.replace('_', ' ')} of the phase {phase}")
        return found

    def rows(self, model: str) -> list[Row]:
        """Return the evaluated examples of one model, without the lists by token; empty where the file is not there."""
        path = self.folder / rows_file(model)
        rows = _lines(path) if path.is_file() else []
        return [{k: v for k, v in row.items() if k not in BY_TOKEN} for row in rows]


def label(row: tuple[str, str]) -> str:
    """Return a row's name: method and optimizer."""
    return " ".join(filter(None, row))


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return read_lines(path)
    except ValueError as error:
        raise UserError(f"{path} is not JSON lines: {error}") from None


def flat(config: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Return a nested configuration as 'optim.lr' -> value."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        out |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return out


def read_run(folder: Path) -> Run:
    """Read a finished run.  Raises UserError that names the file that cannot be read."""
    file = folder / "metrics.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        content["task"], content["method"], content["optim"], content["models"]["original"], content["cost"]
        file = folder / "config.yaml"
        config = flat(OmegaConf.to_container(OmegaConf.load(file)))  # type: ignore[arg-type]
    except FileNotFoundError:
        raise UserError(f"{file} is missing") from None
    except Exception as error:  # YAML and OmegaConf raise many kinds
        raise UserError(f"{file} is not what soul-unlearn writes ({type(error).__name__}: {error})") from None
    steps, environment, epochs = (folder / n for n in (STEPS, "environment.json", EPOCHS))
    return Run(
        folder,
        config,
        content,
        _lines(steps) if steps.is_file() else [],
        json.loads(environment.read_text()) if environment.is_file() else {},
        {line["epoch"]: read_metrics(line["metrics"]) for line in _lines(epochs)} if epochs.is_file() else {},
    )


def columns_of(content: dict[str, Any]) -> list[str]:
    """Return the metrics of the task's table, in order.  metrics.json of version 0.1 calls them its headline."""
    columns: list[str] = content.get("columns", content.get("headline", []))
    return columns


def find_runs(roots: list[Path]) -> list[Run]:
    """Read the finished runs at or under the roots, each once, by folder name."""
    for root in roots:
        if not root.exists():
            raise UserError(f"{root}: no such folder")
    folders = {p.parent.resolve() for root in roots for p in root.rglob("metrics.json")}
    if not folders:
        raise UserError(f"no finished run (metrics.json) under {', '.join(map(str, roots))}")
    runs: dict[str, Run] = {}
    for folder in sorted(folders):
        run = read_run(folder)
        runs.setdefault(run.content.get("key") or str(folder), run)
    return list(runs.values())


def unfinished(roots: list[Path]) -> list[Path]:
    """Return run folders that were started and have no metrics.json yet."""
    return sorted(p.parent for r in roots for p in r.rglob("config.yaml") if not (p.parent / "metrics.json").is_file())
