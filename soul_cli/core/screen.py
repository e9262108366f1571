"""What the user sees: words, progress bars, tables.  Nothing here decides anything."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# under a launcher (torchrun, accelerate) the first process speaks
console = Console(highlight=False, soft_wrap=False, quiet=int(os.environ.get("RANK", "0")) > 0)


class Bar:
    """One progress bar; `to(done, total, note)` moves it."""

    def __init__(self, progress: Progress, label: str):
        self.progress, self.label = progress, label
        self.tasks: dict[str, TaskID] = {}

    def to(self, part: str, done: int, total: int, note: str = "") -> None:
        name = f"{self.label}: {part}" if part else self.label
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=total, note="")
        self.progress.update(self.tasks[name], completed=done, total=total, note=note)

    def line(self, label: str) -> Line:
        """One line for work of many parts."""
        return Line(self, label)


@dataclass
class Line:
    """A line of a bar that shows one part after the other."""

    bar: Bar
    label: str

    def to(self, part: str, done: int, total: int, note: str = "") -> None:
        self.bar.to(self.label, done, total, part)


@contextmanager
def bar(label: str) -> Iterator[Bar]:
    """A progress bar on a terminal; elsewhere one line at the end."""
    began = time.perf_counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    live = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not live) as progress:
        yield Bar(progress, label)
    say(f"{label}: {time.perf_counter() - began:.0f} s")


def say(text: str) -> None:
    console.print(text, markup=False)
