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

from soul_cli.core.streams import UNREAD, discard_output, printable


class Screen(Console):
    """Rich's console, but where nobody reads the output any more the command ends as `command` has it."""

    def on_broken_pipe(self) -> None:
        discard_output()
        raise SystemExit(UNREAD)


# under a launcher (torchrun, accelerate) the first process speaks; ":x:" in a path or a question is no emoji
console = Screen(highlight=False, emoji=False, quiet=os.environ.get("RANK", "0") != "0")
if not console.width:  # COLUMNS=0, at which Rich prints nothing
    console.width = 80


class Bar:
    """One progress bar, with a line for each part."""

    def __init__(self, progress: Progress, label: str):
        self.progress, self.label = progress, label
        self.tasks: dict[str, TaskID] = {}

    def to(self, part: str, done: int, total: int, note: str = "") -> None:
        """Show how much of a part is done, with a note behind it."""
        name = f"{self.label}: {part}" if part else self.label
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=total, note="")
        self.progress.update(self.tasks[name], completed=done, total=total, note=note)

    def line(self, label: str) -> Line:
        """Return one line for work of many parts."""
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
    """Show a progress bar on a terminal; elsewhere, and when it ends, one line."""
    began = time.perf_counter()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    live = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not live) as progress:
        yield Bar(progress, label)
    log(f"{label}: {time.perf_counter() - began:.0f} s")


def log(text: str) -> None:
    """Print a text.  Long lines stay whole: a terminal breaks them itself, and a path in a log can be copied."""
    console.print(printable(text), markup=False, soft_wrap=True)
