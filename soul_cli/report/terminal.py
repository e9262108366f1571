"""What a finished run shows on the terminal."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from soul_cli.core.files import read_lines
from soul_cli.core.run_folder import NAMES, read_metrics, rows_file
from soul_cli.core.screen import console, say
from soul_cli.core.types import Metric, Row

ARROWS = {"up": "↑", "down": "↓", "retain": "→R"}


def number(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    value = metric.value
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"


def show(folder: Path) -> None:
    """Print the table of a finished run and three answers side by side."""
    content = json.loads((folder / "metrics.json").read_text())
    models = {name: read_metrics(some) for name, some in content["models"].items()}
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
        interval = f"{m.ci95[0]:.3f} … {m.ci95[1]:.3f}" if m.ci95 else ""
        table.add_row(f"{key} {ARROWS[m.goal]}", *(number(some.get(key)) for some in models.values()), interval)
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
