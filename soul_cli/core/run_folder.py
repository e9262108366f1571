"""The run folder: what is written, and how it is read again."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from soul_cli.core.files import PACKAGE, write_text
from soul_cli.core.types import Metric

NAMES = {"original": "original", "retain_trained": "retain-trained", "this_run": "this run"}
RECORDED = (
    "soul-unlearn",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "hydra-core",
    "numpy",
    "scipy",
    "rouge-score",
    "lm-eval",
)


def environment() -> dict[str, Any]:
    """Versions, machine and git commit of the code, for the run folder."""
    found = {}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return {"python": platform.python_version(), "machine": platform.machine(), "packages": found, "git": git_commit()}


def git_commit() -> str | None:
    """Commit of the checkout the package runs from, with '+changes' where it is not clean; None outside one."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=PACKAGE, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def write_config(folder: Path, config: dict[str, Any]) -> None:
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    write_text(folder / "environment.json", json.dumps(environment(), indent=1))


def write_steps(folder: Path, records: list[dict[str, Any]]) -> None:
    write_text(folder / "train.jsonl", "".join(json.dumps(r) + "\n" for r in records))


def write_metrics(
    folder: Path,
    key: str,
    config: dict[str, Any],
    models: dict[str, dict[str, Metric]],
    absent: dict[str, dict[str, str]],
    cost: dict[str, dict[str, Any]],
    epoch: dict[str, Any] | None,
    headline: list[str],
) -> None:
    """Last file of a run: where it stands, the run is finished.

    epoch: whose weights these are, where epochs were evaluated.
    """
    content = {
        "key": key,
        "task": config["task"]["name"],
        "method": config["method"]["name"],
        "optim": config["optim"]["name"] if "optim" in config else "",
        "seed": config["seed"],
        "target_seed": config["target_seed"],
        "headline": headline,
        "models": {name: {k: asdict(v) for k, v in some.items()} for name, some in models.items()},
        "absent": absent,
        "cost": cost,
        "epoch_eval": epoch,
    }
    write_text(folder / "metrics.json", json.dumps(content, indent=1))


def read_models(folder: Path) -> dict[str, dict[str, Metric]]:
    """Model -> metric -> its value and all else that metrics.json says of it."""
    models = json.loads((folder / "metrics.json").read_text())["models"]
    return {name: read_metrics(some) for name, some in models.items()}


def read_metrics(plain: dict[str, dict[str, Any]]) -> dict[str, Metric]:
    """Return one model's metrics as metrics.json or, with numbers alone, epochs.jsonl has them.

    In files of version 0.1 the KS distance is no metric but stands in the `extra` of forget_quality.
    """
    out = {}
    for name, m in plain.items():
        ci95 = tuple(m["ci95"]) if m.get("ci95") else None
        out[name] = Metric(m["value"], m["n"], m.get("goal", ""), m.get("definition", ""), ci95)
        if name == "forget_quality" and "D" in m.get("extra", {}):
            out["forget_quality_D"] = Metric(m["extra"]["D"], m["n"], "down", "D of the KS test behind forget_quality")
    return out


def rows_file(model: str) -> str:
    return "rows.jsonl" if model == "this_run" else f"rows_{model}.jsonl"
