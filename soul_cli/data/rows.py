"""The rows a run trains on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from soul_cli.core.types import Prompted


@dataclass(frozen=True)
class Rows:
    """Rows of one kind: questions, each with one answer of every name, and what the model made of them before."""

    answers: Mapping[str, Sequence[Prompted]]  # name -> a prompt with its answer, by row
    values: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)  # name -> (T,) of each row's answer, by row
    states: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)  # name -> (T, D), likewise
    norm: float | None = None  # mean norm of the hidden states behind the term's layer, over all rows' answer tokens

    def __len__(self) -> int:
        return len(next(iter(self.answers.values())))

    def row(self, i: int) -> list[Prompted]:
        """Return the answers of row i, in the order of their names."""
        return [some[i] for some in self.answers.values()]

    def tokens(self, i: int) -> int:
        """Return the length of row i, its prompt counted with each answer."""
        return sum(map(len, self.row(i)))

    @property
    def lengths(self) -> list[int]:
        """The length of each row."""
        return [self.tokens(i) for i in range(len(self))]


NO_ROWS = Rows({"answer": ()})
