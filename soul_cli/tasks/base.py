"""What the runner needs of a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from soul_cli.core.types import QA, Metric, Row
from soul_cli.data.encode import Encoder
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
    rehearsed: list[QA]  # what a base model trained from scratch has to know, besides the style of the answers
    notes: list[str]  # for the header: what of the data was taken, what left out
    digest: str


Progress = Callable[[str, int, int], None]  # what, done, total


def counting(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    """A callback that takes how many more are done."""
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

    def longest(self, encoder: Encoder, split: str, items: list[QA], config: EvalConfig) -> int:
        """Return the most tokens that a model reads at once of a split's items, without a system prompt.

        Encodes all of them.  UserError: one cannot be asked, or not answered.
        """
        ...

    def evaluate(
        self, lm: Any, encoder: Encoder, split: str, items: list[QA], config: EvalConfig, progress: Progress
    ) -> list[Row]:
        """Rows of one split."""
        ...

    def summarise(
        self, rows: list[Row], retain_rows: list[Row] | None, config: EvalConfig, *, facts_trained: bool
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

    def headline(self) -> list[str]:
        """Metrics of the short table, in order."""
        ...
