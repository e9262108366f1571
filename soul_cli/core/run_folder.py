"""The run folder: what is written, and how it is read and shown again."""

from __future__ import annotations

import json
import platform
import random
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich import box
from rich.markup import escape
from rich.table import Table

from soul_cli.core.cache import PACKAGE, read_lines, write_text
from soul_cli.core.screen import console, say
from soul_cli.core.types import Metric, Row

ARROWS = {"up": "↑", "down": "↓", "retain": "→R"}
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
    return {name: {k: Metric(**fields) for k, fields in some.items()} for name, some in models.items()}


def number(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return "-"
    value = metric["value"]
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"


def show(folder: Path) -> None:
    """Print the table of a finished run and three answers side by side."""
    content = json.loads((folder / "metrics.json").read_text())
    models = content["models"]
    seed = f"seed {content['seed']}" if (folder / "train.jsonl").is_file() else ""
    title = " · ".join(filter(None, [content["task"], content["method"], content["optim"], seed]))
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    table.add_column("metric", no_wrap=True)
    for name in models:
        table.add_column(NAMES[name].replace("-trained", ""), justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    last = models.get("this_run") or models["original"]
    for key in content["headline"]:
        if key not in last:
            continue
        m = last[key]
        ci = f"{m['ci95'][0]:.3f} … {m['ci95'][1]:.3f}" if m["ci95"] else ""
        note = f"D {m['extra']['D']:.3f}, n {m['n']}" if "D" in m["extra"] else ci
        table.add_row(f"{key} {ARROWS[m['goal']]}", *(number(some.get(key)) for some in models.values()), note)
    console.print(table)
    say("↑ higher is better; →R nearest to the retain-trained model (column retain) is best.")
    say("Intervals: bootstrap over the questions of the last column (lm-eval: 1.96 standard errors).")
    for key, reason in content["absent"].get("this_run", {}).items():
        say(f"absent: {key} ({reason})")
    show_epoch(content["epoch_eval"])
    show_cost(content["cost"])
    show_answers(folder, list(models))
    say(f"written to {folder}")


def show_epoch(epoch: dict[str, Any] | None) -> None:
    """Which epoch's weights were evaluated in full."""
    if epoch is not None:
        score = "" if epoch["score"] is None else f", selection score {epoch['score']:.3f} on a few rows"
        say(
            f"weights of epoch {epoch['epoch']} ({epoch['select']} of epochs {', '.join(map(str, epoch['of']))}){score}"
        )


def show_cost(cost: dict[str, dict[str, Any]]) -> None:
    """A line for what this run did, one for what it found in the cache."""
    own, found = [], []
    for phase, spent in cost.items():
        words = f"{phase.replace('_', ' ')} {spent['seconds']:.1f} s"
        sizes = {"peak memory": spent["peak_memory_bytes"], "optimizer states": spent["optimizer_state_bytes"]}
        if spent["cached"]:
            found.append(words)
        else:
            own.append(words + "".join(f", {name} {size / 1e6:,.1f} MB" for name, size in sizes.items() if size))
    for title, some in (("cost: ", own), ("cached, cost when made: ", found)):
        if some:
            say(title + "; ".join(some))


def show_answers(folder: Path, models: list[str], count: int = 3) -> None:
    """`count` forget questions, the same for every run, with each model's answer."""
    answers: dict[str, list[Row]] = {}
    for name in models:
        answers[name] = [row for row in read_lines(folder / rows_file(name)) if row["split"] == "forget"]
    some = next(iter(answers.values()))
    for i in sorted(random.Random(0).sample(range(len(some)), min(count, len(some)))):
        table = Table(
            show_header=False, title=escape(some[i]["question"]), title_justify="left", width=min(110, console.width)
        )
        table.add_column(style="bold", width=14)
        table.add_column(overflow="fold")
        table.add_row("gold", escape(some[i]["gold"]))
        for name, rows in answers.items():
            table.add_row(NAMES[name], escape(rows[i]["generation"][:400]) or "(empty)")
        console.print(table)


def rows_file(model: str) -> str:
    return "rows.jsonl" if model == "this_run" else f"rows_{model}.jsonl"
