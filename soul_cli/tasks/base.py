"""What the runner needs of a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from soul_cli.core.types import QA, Headline, Metric, Row, UserError
from soul_cli.data.encode import Encoder
from soul_cli.data.reading import read_records
from soul_cli.evaluate.config import EvalConfig


@dataclass
class TaskData:
    """What training and the header need, whatever the benchmark."""

    full: list[QA]  # the target model is fine-tuned on these
    forget: list[QA]
    retain: list[QA]  # the retain-trained model on these
    refusals: list[str]
    system_prompt: str  # of method=input_based
    splits: dict[str, list[QA]]  # for evaluation
    notes: list[str]  # for the header: what of the data was taken, what left out
    digest: str


Measured = tuple[str, int]  # a text, and the tokens it takes
Progress = Callable[[str, int, int], None]  # what, done, total


def counting(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    """Return a callback that takes how many more are done."""
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        progress(what, done, total)

    return advance


class Task(Protocol):
    """A benchmark.  Its dataclass fields are its config schema."""

    name: str
    template: str | None  # prompt template; None: the model's own
    target_model: str | None
    retain_model: str | None
    retain_rows: str | None

    @property
    def source(self) -> str:
        """Where the data come from, for the header."""
        ...

    def load(self, cache_dir: Path) -> TaskData: ...

    def measure(self, encoder: Encoder, split: str, items: list[QA]) -> list[Measured]:
        """Return what evaluation of the split gives a model to read, each text (by its question) with its tokens."""
        ...

    def cut(self, encoder: Encoder, splits: dict[str, list[QA]], config: EvalConfig) -> list[str]:
        """Return notes on what evaluation cuts short.  UserError: a prompt leaves no room for an answer."""
        ...

    def most_total(self, config: EvalConfig) -> int:
        """Return the most tokens of a prompt with the answer generated to it, where the true answer sets no limit."""
        ...

    def check_retain_rows(self, rows: list[Row], splits: dict[str, list[QA]]) -> None:
        """Raise UserError where the rows of task.retain_rows are of other questions than this run's."""
        ...

    def evaluate(
        self, lm: Any, encoder: Encoder, split: str, items: list[QA], config: EvalConfig, progress: Progress
    ) -> list[Row]:
        """Rows of one split."""
        ...

    def summarise(
        self, rows: list[Row], retain_rows: list[Row] | None, config: EvalConfig
    ) -> tuple[dict[str, Metric], dict[str, str]]:
        """-> metrics, and for each metric that is absent the reason.

        rows hold lm-eval's too: `general_metrics.own_rows` leaves them out, `general_metrics.summarise` reduces them.
        """
        ...

    @staticmethod
    def selection_score(models: dict[str, dict[str, Metric]]) -> float:
        """How good a trade-off this_run is, in [0, 1], from its metrics and those of original and retain_trained.

        The docstring of the function behind it states the rule.  KeyError: a model or metric it needs is absent.
        """
        ...

    def headline(self) -> list[Headline]:
        """What a run shows first, in order: seven metrics at most.  A metric that no model has is left out."""
        ...

    def columns(self) -> list[str]:
        """Metrics of the report's table, in order."""
        ...


def read_retain_rows(path: Path) -> list[Row]:
    """Return the rows of a finished evaluation.  UserError: the file holds none, or something else."""
    records = read_records(path)
    if not any(record.text("split") == "forget" for record in records):
        raise UserError(f"{path}: no row of the split 'forget'; give the rows.jsonl of a finished run")
    return [record.fields for record in records]


def check_lengths(parts: dict[str, list[Measured]], most: int) -> None:
    """Refuse texts that a model cannot read whole, before anything is trained.

    parts: kind of text -> the texts, and the tokens of each with its prompt and EOS.
    UserError: some have more than `most` (model.max_length); how many of each kind, the first and the longest of them.
    """
    found = []
    for part, some in parts.items():
        long = [(number, text, size) for number, (text, size) in enumerate(some, 1) if size > most]
        if long:
            number, text, _ = long[0]
            found.append(
                f"{part}: {len(long)} of {len(some)}, the first is number {number}, {text[:60]!r}, the longest has "
                f"{max(size for *_, size in long)} tokens"
            )
    if found:
        raise UserError(f"texts that model.max_length={most} does not hold (prompt, answer, end): {'; '.join(found)}")


def measure_training(
    encoder: Encoder, data: TaskData, rows: list[QA], *, refused: list[QA]
) -> dict[str, list[Measured]]:
    """Return what training gives a model to read.

    refused: questions that are answered with refusals; measured is each refusal with the longest of them.
    """
    parts = {"training rows": measured(encoder, rows)}
    if refused:
        longest = max(refused, key=lambda qa: len(encoder.prompt(qa.question))).question
        sizes = encoder.pair_lengths([QA(longest, refusal) for refusal in data.refusals])
        parts["refusals"] = list(zip(data.refusals, sizes, strict=True))
    return parts


def measured(encoder: Encoder, items: list[QA]) -> list[Measured]:
    """Return the question and the tokens of each pair, prompt and EOS included."""
    return [(qa.question, size) for qa, size in zip(items, encoder.pair_lengths(items), strict=True)]
