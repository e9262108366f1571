"""What a term of the objective sees and says.

A run minimises forget term + weight * retain term.  Either is a `Term`: it says what it needs (`Needs`), what it makes
of the logits at one answer token (`token`), and what of that it minimises (`loss`).  The training loop lays before it
what it needs, rows of one kind and one micro-batch at a time.

Shapes: B answers, T answer tokens, t of them at a time, V vocabulary, D width.  Everything is in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, Flag
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from soul_cli.core.choice import Choice
from soul_cli.objective.losses import sum_by, token_logps


class Kinds(Flag):
    """The two kinds of rows."""

    forget = 1
    retain = 2
    both = 3


class Reference(Enum):
    """What a term needs of the model before unlearning.

    values: what its own `token` makes of that model, 4 bytes a token.  logits: those of that model, from its last
    hidden states (T, D) and a copy of its head.  states: its hidden states (T, D) behind `layer`.  norm: the mean of
    their norms.  All are computed once and kept on disk; no second model is held.
    """

    none = "none"
    values = "values"
    logits = "logits"
    states = "states"
    norm = "norm"


DEPTH = 7 / 32  # of a model, where terms on hidden states look: the block of the papers' settings, 7 of 32


class Route(NamedTuple):
    """The way of rows through the model."""

    layer: int | None = None  # hidden states are taken behind this block
    head: bool = True  # False: the way ends there


@dataclass(frozen=True)
class Needs:
    """What the loop lays before a term."""

    answers: tuple[str, ...] = ("answer",)  # to each question: answer, refusal, alternative
    reference: Reference = Reference.none
    layer: int | None = None  # hidden states behind this block (0: the first)
    head: bool = True  # False: the forward ends behind `layer`, and there are no values

    @property
    def route(self) -> Route:
        """The way through the model that gives all of it."""
        return Route(self.layer, self.head)


class Logits(NamedTuple):
    """What the head says of a few answer tokens.  It never stands for all of them."""

    policy: Tensor  # (t, V), float32 or wider, with graph
    targets: Tensor  # (t,) the answers' tokens
    reference: Tensor | None = None  # (t, V) before unlearning, where the term needs logits


@dataclass
class Answers:
    """Rows of one kind, forget or retain, of one micro-batch, answer after answer."""

    values: Tensor  # (T,) or (T, k): what `token` made of the logits
    owner: Tensor  # (T,) the answer a token belongs to, 0..B-1
    tokens: Tensor  # (B,) number of tokens, EOS included
    which: tuple[str, ...] = ()  # (B) the name of each answer
    reference: Tensor | None = None  # (T,) or (T, k): `values` before unlearning
    states: Tensor | None = None  # (T, D) hidden states where each token is predicted
    reference_states: Tensor | None = None  # (T, D) the same before unlearning
    reference_norm: float | None = None  # the mean of their norms over all rows of this kind

    def sums(self, values: Tensor | None = None) -> Tensor:
        """Return the sum over the tokens of each answer, (B,).  values: (T,); None: the term's own."""
        return sum_by(self.values if values is None else values, self.owner, len(self.tokens))

    def reference_sums(self) -> Tensor:
        """Return the sums before unlearning, (B,)."""
        assert self.reference is not None, "this term has not asked for the reference's values"
        return self.sums(self.reference.double()).to(self.values.dtype)  # in double precision: constants cost nothing

    @property
    def position(self) -> Tensor:
        """The place of each token in its answer, (T,), from 0."""
        return (
            torch.arange(len(self.owner), device=self.owner.device) - (self.tokens.cumsum(0) - self.tokens)[self.owner]
        )

    def named(self, name: str) -> Tensor:
        """Return which answers have the name, (B,) bool."""
        return self.tokens.new_tensor([w == name for w in self.which]).bool()


class Normalise(Enum):
    """Over what a mean is taken.

    token: all answer tokens of the step count the same.  row: the mean over its rows of each row's mean, as released
    codes compute it with micro-batches of one row.
    """

    token = "token"
    row = "row"


@dataclass(frozen=True)
class Counts:
    """Size of the whole optimizer step, over all its micro-batches and processes, in rows of one kind.

    Terms divide by it: so neither gradient accumulation nor the number of processes changes the objective.
    """

    rows: int  # questions
    tokens: int  # of all their answers
    normalise: Normalise = Normalise.token

    def mean(self, answers: Answers, values: Tensor | None = None) -> Tensor:
        """Return this micro-batch's share of the mean of values (T,) over the step; None: of the term's own."""
        if self.normalise is Normalise.row:
            return self.mean_by_row(answers, values)
        return answers.sums(values).sum() / self.tokens

    def mean_by_row(self, answers: Answers, values: Tensor | None = None) -> Tensor:
        """Return this micro-batch's share of the mean over the rows of each row's mean, with one answer a row."""
        return (answers.sums(values) / answers.tokens).sum() / self.rows


@dataclass
class Term(Choice):
    """Base of all terms."""

    needs: ClassVar[Needs] = Needs()

    def token(self, at: Logits) -> Tensor:
        """Return what is kept of the logits at each token, (t,) or (t, k): log p(target) where nothing else is said."""
        return token_logps(at.policy, at.targets)

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        """Return this micro-batch's share of the term, ()."""
        raise NotImplementedError(f"{self.name} has no loss")
