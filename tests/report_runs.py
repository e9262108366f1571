"""Run folders as soul-unlearn writes them, with numbers made up by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from soul_cli.core.cost import Cost
from soul_cli.experiment.config import RunConfig, compose

GOALS = {"forget_rougeL": "retain", "heldout_ppl": "down"}  # others: up
ORIGINAL = {"forget_rougeL": 0.9, "retain_rougeL": 0.95, "forget_quality": 0.01, "retain_acc": 0.8}
RETAIN = {"forget_rougeL": 0.2, "retain_rougeL": 0.9, "forget_quality": 1.0, "retain_acc": 0.8}


def metric(name: str, value: float) -> dict[str, Any]:
    definition = "judge rougeL; chance 1/6" if name.endswith("acc") else "d"
    goal = GOALS.get(name, "up")
    return {"value": value, "n": 80, "goal": goal, "definition": definition, "ci95": None}


def row(split: str, index: int, answer: str, wrong: float = 2.0) -> dict[str, Any]:
    """R = exp(1 - wrong)."""
    return {
        "split": split, "index": index, "question": f"What of {split} {index}?", "gold": f"gold {index}",
        "generation": answer, "nll": 0.0, "paraphrased_nll": 1.0, "perturbed_nll": [wrong, wrong], "rougeL": 0.5,
    }  # fmt: skip


def spent(seconds: float, *, cached: bool = False) -> dict[str, Any]:
    """100 MB of peak memory, 10 MB of weights, 20 MB of states."""
    sizes = {"parameter_bytes": 10_000_000, "optimizer_state_bytes": 20_000_000, "peak_memory_bytes": 100_000_000}
    return {"cached": cached, **asdict(Cost(seconds, 1000, forward_passes=30, backward_passes=40, **sizes))}


@cache
def composed(*overrides: str) -> tuple[RunConfig, str]:
    """A configuration, and its config.yaml."""
    config = compose([*overrides])
    return config, OmegaConf.to_yaml(OmegaConf.create(config.plain()))


def write_run(
    root: Path,
    seed: int,
    rouge: float,
    *overrides: str,
    answer: str = "an answer",
    original: dict[str, float] = ORIGINAL,
    change: dict[str, Any] | None = None,
    **more: float,
) -> Path:
    """One finished run.  rouge: its forget ROUGE-L; more: its other metrics; change: top entries of metrics.json."""
    config, text = composed(f"seed={seed}", *overrides)
    method, optim = config.method.name, config.plain().get("optim", {}).get("name", "")
    folder = root / f"{method}-{optim}-{seed}-{rouge}"
    folder.mkdir(parents=True)
    own = {"forget_rougeL": rouge, "retain_rougeL": 0.9, "forget_quality": 0.01, "retain_acc": 0.7, **more}
    values = {"original": original, "retain_trained": RETAIN, "this_run": own}
    content = {
        "key": folder.name, "task": "tofu", "method": method, "optim": optim, "seed": seed, "target_seed": 0,
        "headline": [
            {"aspect": "forgetting", "metric": "forget_rougeL", "near_from": None},
            {"aspect": "kept", "metric": "retain_rougeL", "near_from": None},
        ],
        "columns": ["forget_rougeL", "retain_rougeL"], "absent": {}, "epoch_eval": None,
        "models": {model: {k: metric(k, v) for k, v in some.items()} for model, some in values.items()},
        "cost": {"target_model": spent(60.0, cached=True), "unlearn": spent(10.0 + seed), "evaluate": spent(5.0)},
        **(change or {}),
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(content))
    (folder / "config.yaml").write_text(text)
    if config.changes_weights:
        last = 2 if config.optimizes else 1
        steps = [{"step": i, "epoch": i, "unclipped_share": 0.3, "displacement": float(i)} for i in range(1, last + 1)]
        (folder / "train.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
    for file, text in (("rows", answer), ("rows_original", "the original"), ("rows_retain_trained", "the floor")):
        rows = [row(split, i, f"{text} {i}") for split in ("forget", "retain") for i in range(4)]
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def write_epochs(folder: Path, forget: list[float], keep: list[float], metric: str = "rougeL") -> None:
    """Evaluations after epochs 0, 1, ... of a run that is there already; the last one is kept."""

    def values(f: float, k: float) -> dict[str, Any]:
        return {f"forget_{metric}": {"value": f, "n": 4}, f"retain_{metric}": {"value": k, "n": 4}}

    lines = [{"epoch": e, "score": 0.5, "metrics": values(*fk)} for e, fk in enumerate(zip(forget, keep, strict=True))]
    (folder / "epochs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    content = json.loads((folder / "metrics.json").read_text())
    levels = {"original": values(0.9, 0.95), "retain_trained": values(0.2, 0.9)}
    epochs = list(range(len(lines)))
    content["epoch_eval"] = {"select": "last", "epoch": epochs[-1], "of": epochs, "score": 0.5, "levels": levels}
    (folder / "metrics.json").write_text(json.dumps(content))
