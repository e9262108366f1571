"""The nouns every module shares.  Shapes: B rows, L positions, T answer tokens, A answers, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

Row = dict[str, Any]  # one evaluated example, as it stands in rows.jsonl


class UserError(Exception):
    """Something the user can mend.  The message says what, where, and what would be right."""


@dataclass(frozen=True)
class QA:
    """One question with its answer and, where the benchmark has them, paraphrases and false answers."""

    question: str
    answer: str
    paraphrased_question: str = ""
    paraphrased_answer: str = ""
    perturbed_answer: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prompted:
    """Token ids of a prompt and of one or more answers to it.  Answers end in EOS."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.answers))


@dataclass
class Inputs:
    """Right-padded rows, and where in them tokens are predicted."""

    input_ids: Tensor  # (B, L)
    position_ids: Tensor | None  # (B, L); None: 0..L-1
    mask: Tensor | None  # (B, 1, L, L) bool, True = may attend; None: plain causal
    where: Tensor  # (T,) flat index into (B * L): the position whose logits predict targets[t]
    targets: Tensor  # (T,)

    def to(self, device: Any) -> Self:
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


@dataclass
class Batch(Inputs):
    """Rows of a prompt and its answer, whose answer tokens are predicted."""

    owner: Tensor  # (T,) row each target belongs to

    @property
    def answers(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Headline:
    """A line of what a run shows first: a metric, and what it speaks of (forgetting, privacy, kept, fluency ...).

    near_from: of a test's p, from which value on the test does not tell the model from the retain-trained one;
    None: the metric is no p.
    """

    aspect: str
    metric: str
    near_from: float | None = None


@dataclass(frozen=True)
class Metric:
    """A number with what it needs to be read: direction, count, interval and definition.

    goal: "up" or "down" is better, "retain": as near as possible to the retain-trained model, "": no side is better.
    n: how many questions (prompts, documents) stand behind it; None: none, as behind a cost.
    """

    value: float
    n: int | None
    goal: str
    definition: str
    ci95: tuple[float, float] | None = None


ARROWS = {"up": "↑", "down": "↓", "retain": "→R"}  # of a metric's goal
