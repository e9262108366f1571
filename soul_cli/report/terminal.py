"""What a finished run prints on the terminal."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from soul_cli.core.files import read_lines
from soul_cli.core.run_folder import METRICS, NAMES, read_metrics, rows_file
from soul_cli.core.screen import console, log
from soul_cli.core.streams import printable
from soul_cli.core.types import Metric, Row
from soul_cli.report.tables import ARROWS, short

UNLIMITED = 10_000  # columns, where nothing says how many there are
FOLDED = 16  # characters of a metric's name that stay in a line, before columns go to a table of their own
NARROW = 50  # columns below which an answer stands under its model's name instead of beside it
SHOWN = 400  # characters of an answer


def print_run(folder: Path) -> None:
    """Print the table of a finished run, what is absent and why, its costs, and three answers side by side."""
    content = json.loads((folder / METRICS).read_text())
    models = {name: read_metrics(plain) for name, plain in content["models"].items()}
    seed = f"seed {content['seed']}" if (folder / "train.jsonl").is_file() else ""
    title = " · ".join(filter(None, [content["task"], content["method"], content["optim"], seed]))
    last = "this_run" if "this_run" in models else "original"
    print_metrics(title, content["headline"], models, models[last])
    log("↑ higher is better; →R nearest to the retain-trained model (column retain) is best.")
    log(f"Intervals: of {NAMES[last]}, bootstrap over the questions (lm-eval: 1.96 standard errors).")
    print_absent(content["absent"].get(last, {}))
    print_epoch(content["epoch_eval"])
    print_cost(content["cost"])
    print_answers(folder, list(models))
    log(f"written to {folder}")


def width() -> int:
    """Return how many columns there are: the terminal's, or as COLUMNS says; elsewhere, as in a file, any number."""
    return console.width if console.is_terminal or os.environ.get("COLUMNS") else UNLIMITED


# --- the table ---------------------------------------------------------------------------------------------


def print_metrics(title: str, names: list[str], models: dict[str, dict[str, Metric]], last: dict[str, Metric]) -> None:
    """Print the metrics `names` that `last` has, a column a model.  last: the model whose intervals are shown.

    Where the columns do not fit beside each other, they stand in several tables below each other.
    """
    rows = {f"{name} {ARROWS[last[name].goal]}": name for name in names if name in last}
    columns = {
        NAMES[model].replace("-trained", ""): [number(metrics.get(name)) for name in rows.values()]
        for model, metrics in models.items()
    }
    columns["95 % interval"] = [interval(last[name]) for name in rows.values()]
    for part in split(list(rows), columns, width()):
        table = lay_out(list(rows), part)
        table.title = escape(title)
        least = table_width(lay_out([""] * len(rows), part))  # numbers are never cut
        table.width = min(table_width(table), max(width(), least))
        console.print(table, crop=False)
        title = ""


def number(metric: Metric | None) -> str:
    """Return a value as it is shown; '-' where there is none."""
    return "-" if metric is None else short(metric.value)


def interval(metric: Metric) -> str:
    """Return an interval as it is shown."""
    return f"{short(metric.ci95[0])} … {short(metric.ci95[1])}" if metric.ci95 else ""


def split(rows: list[str], columns: dict[str, list[str]], limit: int) -> list[dict[str, list[str]]]:
    """Return the columns in parts, each with as many as fit beside the rows' names, folded or not; one at least."""
    folded = [row[:FOLDED] for row in rows]
    parts: list[dict[str, list[str]]] = [{}]
    for name, cells in columns.items():
        wider = {**parts[-1], name: cells}
        if parts[-1] and table_width(lay_out(folded, wider)) > limit:
            parts.append({name: cells})
        else:
            parts[-1] = wider
    return parts


def lay_out(rows: list[str], columns: dict[str, list[str]]) -> Table:
    """Return a table.  Where it is too wide, the names of the rows are folded, numbers stay whole."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    table.add_column("metric", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row, *cells in zip(rows, *columns.values(), strict=False):
        table.add_row(row, *cells)
    return table


def table_width(table: Table) -> int:
    """Return how many columns of the terminal a table takes where nothing is folded."""
    return Measurement.get(console, console.options.update(width=UNLIMITED), table).maximum


# --- the rest ----------------------------------------------------------------------------------------------


def print_absent(reasons: dict[str, str]) -> None:
    """Print which metrics are absent, a line a reason."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    for reason, absent in names.items():
        log(f"absent: {', '.join(absent)} ({reason})")


def print_epoch(epoch: dict[str, Any] | None) -> None:
    """Print which epoch's weights were evaluated in full."""
    if epoch is not None:
        score = "" if epoch["score"] is None else f", selection score {epoch['score']:.3f} on a few rows"
        of = ", ".join(map(str, epoch["of"]))
        log(f"weights of epoch {epoch['epoch']} ({epoch['select']} of epochs {of}){score}")


def print_cost(cost: dict[str, dict[str, Any]]) -> None:
    """Print a line for what this run did, one for what it found in the cache."""
    lines: dict[str, list[str]] = {"cost": [], "cached, cost when made": []}
    for phase, spent in cost.items():
        words = f"{phase.replace('_', ' ')} {spent['seconds']:.1f} s"
        sizes = {"peak memory": spent["peak_memory_bytes"], "optimizer states": spent["optimizer_state_bytes"]}
        if spent["cached"]:
            lines["cached, cost when made"].append(words)
        else:
            shown = "".join(f", {name} {size / 1e6:,.1f} MB" for name, size in sizes.items() if size)
            lines["cost"].append(words + shown)
    for title, phases in lines.items():
        if phases:
            log(f"{title}: {'; '.join(phases)}")


def print_answers(folder: Path, models: list[str], count: int = 3) -> None:
    """Print `count` forget questions, the same for every run, with each model's answer."""
    rows = {model: [r for r in read_lines(folder / rows_file(model)) if r["split"] == "forget"] for model in models}
    asked = next(iter(rows.values()))
    for i in sorted(random.Random(0).sample(range(len(asked)), min(count, len(asked)))):
        answers = {NAMES[model]: own[i]["generation"][:SHOWN] or "(empty)" for model, own in rows.items()}
        print_question(asked[i], answers)


def print_question(row: Row, answers: dict[str, str]) -> None:
    """Print a question, the true answer and each model's, side by side where there is room."""
    columns = min(110, width())
    question, lines = printable(row["question"]), {"gold": row["gold"], **answers}
    table = Table(show_header=False, title=escape(question), title_justify="left", width=columns)
    if columns < NARROW:
        table.add_column(overflow="fold")
        for name, text in lines.items():
            table.add_row(f"[bold]{name}[/]\n{escape(printable(text))}")
    else:
        table.add_column(style="bold", width=max(map(len, NAMES.values())))
        table.add_column(overflow="fold")
        for name, text in lines.items():
            table.add_row(name, escape(printable(text)))
    console.print(table, crop=False)
