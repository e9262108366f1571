"""What a finished run prints on the terminal."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from soul_cli.core.files import read_lines
from soul_cli.core.run_folder import METRICS, NAMES, PAGE, STEPS, read_metrics, rows_file
from soul_cli.core.screen import console, log
from soul_cli.core.streams import printable
from soul_cli.core.types import ARROWS, Metric, Row
from soul_cli.report.headline import (
    LEGEND,
    Shown,
    absences,
    cost_words,
    epoch_words,
    headline_of,
    lines,
    phase_words,
    title_of,
)
from soul_cli.report.tables import short

UNLIMITED = 10_000  # columns, where nothing says how many there are
FOLDED = 16  # characters of a metric's name that stay in a line, before columns go to a table of their own
NARROW = 50  # columns below which an answer stands under its model's name instead of beside it
SHOWN = 400  # characters of an answer


def print_run(folder: Path, *, verbose: bool) -> None:
    """Print a finished run: headline, cost, three answers side by side, and where all of it lies.

    verbose: all metrics instead of the headline, why others are absent, and what each phase cost.
    """
    content = json.loads((folder / METRICS).read_text())
    models = {name: read_metrics(plain) for name, plain in content["models"].items()}
    last = "this_run" if "this_run" in models else "original"
    title = title_of(content, trained=(folder / STEPS).is_file())
    headline, reasons = headline_of(content), content["absent"].get(last, {})
    if verbose:
        say(title)
        print_metrics(models, last)
        say("↑ higher is better; →R nearest to the retain-trained model is best.")
        say(f"Intervals: of {NAMES[last]}, bootstrap over the questions (lm-eval: 1.96 standard errors).")
    else:
        print_headline(title, lines(headline, models), list(models))
        reasons = {line.metric: reasons[line.metric] for line in headline if line.metric in reasons}
    for sentence in filter(None, [*absences(reasons), epoch_words(content["epoch_eval"])]):
        say(sentence)
    if verbose:
        print_phases(content["cost"])
    else:
        say(cost_words(content["cost"]))
    print_answers(folder, list(models))
    print_place(folder)


def print_place(folder: Path) -> None:
    """Print where a run lies, and its page.  A path stays whole, so that it can be copied."""
    log(f"written to {folder}")
    log(f"page: {folder / PAGE}")


def width() -> int:
    """Return how many columns there are: the terminal's, or as COLUMNS says; elsewhere, as in a file, any number."""
    return console.width if console.is_terminal or os.environ.get("COLUMNS") else UNLIMITED


def say(text: str) -> None:
    """Print a sentence, broken between words where the terminal ends."""
    console.print(printable(text), markup=False, soft_wrap=width() == UNLIMITED)


# --- tables ------------------------------------------------------------------------------------------------


def print_headline(title: str, shown: list[Shown], models: list[str]) -> None:
    """Print a line a metric and a column a model, and the verdict on this run where there is a retain-trained model."""
    judged = any(line.verdict for line in shown)
    wide = max((len(line.aspect) for line in shown), default=0)
    rows = [
        f"{line.aspect:<{wide}} {line.name}" + ("" if judged else f" {ARROWS.get(line.goal, '')}") for line in shown
    ]
    columns = {NAMES[model]: [number(line.values.get(model)) for line in shown] for model in models}
    if judged:
        columns["verdict"] = [line.verdict or "-" for line in shown]
    print_columns(title, rows, columns)
    if judged:
        say(LEGEND)


def print_metrics(models: dict[str, dict[str, Metric]], last: str) -> None:
    """Print all metrics, a column a model.  last: the model whose intervals are shown."""
    names = dict.fromkeys(name for metrics in models.values() for name in metrics)
    some = {name: next(metrics[name] for metrics in models.values() if name in metrics) for name in names}
    columns = {NAMES[model]: [number(metrics.get(name)) for name in names] for model, metrics in models.items()}
    columns["95 % interval"] = [interval(models[last].get(name)) for name in names]
    print_columns("metric", [f"{name} {ARROWS.get(metric.goal, '')}" for name, metric in some.items()], columns)


def print_columns(title: str, rows: list[str], columns: dict[str, list[str]]) -> None:
    """Print a table.  Where the columns do not fit beside each other, they stand in several tables below each other."""
    for part in split(title, rows, columns, width()):
        table = lay_out(title, rows, part)
        least = table_width(lay_out("metric", [""] * len(rows), part))  # numbers are never cut
        table.width = min(table_width(table), max(width(), least))
        console.print(table, crop=False)


def number(metric: Metric | None) -> str:
    """Return a value as it is shown; '-' where there is none."""
    return "-" if metric is None else short(metric.value)


def interval(metric: Metric | None) -> str:
    """Return an interval as it is shown; nothing where there is none."""
    return f"{short(metric.ci95[0])} … {short(metric.ci95[1])}" if metric and metric.ci95 else ""


def split(title: str, rows: list[str], columns: dict[str, list[str]], limit: int) -> list[dict[str, list[str]]]:
    """Return the columns in parts, each with as many as fit beside the rows' names, folded or not; one at least."""
    head, *folded = [text[:FOLDED] for text in (title, *rows)]
    parts: list[dict[str, list[str]]] = [{}]
    for name, cells in columns.items():
        wider = {**parts[-1], name: cells}
        if parts[-1] and table_width(lay_out(head, folded, wider)) > limit:
            parts.append({name: cells})
        else:
            parts[-1] = wider
    return parts


def lay_out(title: str, rows: list[str], columns: dict[str, list[str]]) -> Table:
    """Return a table.  Where it is too wide, the names of the rows are folded, numbers stay whole."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(Text(title), overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row, *cells in zip(rows, *columns.values(), strict=True):
        table.add_row(Text(row), *cells)
    return table


def table_width(table: Table) -> int:
    """Return how many columns of the terminal a table takes where nothing is folded."""
    return Measurement.get(console, console.options.update(width=UNLIMITED), table).maximum


# --- the rest ----------------------------------------------------------------------------------------------


def print_phases(cost: dict[str, dict[str, Any]]) -> None:
    """Print what each phase took, a line each."""
    for phase, spent in cost.items():
        sizes = {"peak memory": spent["peak_memory_bytes"], "optimizer states": spent["optimizer_state_bytes"]}
        shown = "".join(f", {name} {size / 1e6:,.1f} MB" for name, size in sizes.items() if size)
        when = " (from the cache; as it was made)" if spent["cached"] else ""
        say(f"cost: {phase_words(phase)} {spent['seconds']:.1f} s{shown}{when}")


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
