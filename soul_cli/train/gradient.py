"""The gradient of one step's rows, by the terms of the objective.

A step is a plan of micro-batches of forget and of retain rows, which are dealt out to the processes in passes.  Terms
are normalised by counts over the whole step, so the sum over its passes and over the processes is the step's gradient.
Whole models add theirs up once a call, sharded ones (FSDP2) in each backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from soul_cli.core import cost
from soul_cli.core.distributed import rank, total_gradients, total_numbers, world
from soul_cli.core.types import Batch, Inputs, Prompted
from soul_cli.data.batches import Share, Step, collate, deal, runs
from soul_cli.data.rows import Rows
from soul_cli.models.answer_model import AnswerModel, Found, Look, Shift, logps_of
from soul_cli.models.load import autocast
from soul_cli.objective.combine import Gradient
from soul_cli.objective.methods import Problem
from soul_cli.objective.term import Answers, Counts, Kinds, Logits, Normalise, Reference, Route, Term
from soul_cli.optim.build import Curvature
from soul_cli.optim.curvature import answer_uniforms, drawn_logps, scramble, systematic

NOTHING = Prompted((0,), ((0,),))  # stands in where a process has no row and must still take part in collectives
ANSWERS = 56  # bits of a row's key that leave room for the number of an answer


@dataclass(frozen=True)
class Setup:
    """What all steps of a run have in common."""

    model: AnswerModel
    params: Sequence[Tensor]  # those that are trained
    problem: Problem
    normalise: Normalise
    precision: str
    device: torch.device
    sharded: bool
    seed: int


@dataclass(frozen=True)
class Segment:
    """The rows of one kind in one process's share of a pass."""

    kind: Kinds
    term: Term
    rows: Rows
    indices: tuple[int, ...]
    keys: tuple[int, ...]  # a name of each answer within the step
    answers: tuple[tuple[str, int], ...]  # name and row of each, row after row

    @cached_property
    def prompted(self) -> list[Prompted]:
        return [self.rows.answers[name][i] for name, i in self.answers]

    @cached_property
    def size(self) -> int:
        """The number of answer tokens."""
        return sum(len(p.answers[0]) for p in self.prompted)

    def before(self, of: Mapping[str, Sequence[Tensor]], like: Tensor) -> Tensor:
        """Return what is kept of these answers' tokens from before unlearning, (T, ...)."""
        return torch.cat([of[name][i] for name, i in self.answers]).to(like.device)


def segment(kind: Kinds, term: Term, rows: Rows, indices: tuple[int, ...], keys: tuple[int, ...]) -> Segment:
    """Return a segment with all answers of its rows."""
    names = tuple(rows.answers)
    pairs = [(name, i) for i in indices for name in names]
    named = [key | n << ANSWERS for key in keys for n in range(len(names))]
    return Segment(kind, term, rows, indices, tuple(named), tuple(pairs))


class Asked(NamedTuple):
    """The rows of some segments as one batch, and what is asked about them."""

    segments: list[Segment]
    batch: Batch
    looks: list[Look]


class StepGradient:
    """The gradient of one step's rows, of the kinds that are asked for; it may be called any number of times."""

    def __init__(self, setup: Setup, step: Step, rows: Mapping[Kinds, Rows], index: int):
        """index: of the step."""
        self.setup, self.step, self.rows, self.index = setup, step, rows, index
        self.indices = {
            Kinds.forget: [i for f, _ in step.micro for i in f],
            Kinds.retain: [i for _, r in step.micro for i in r],
        }
        self.counts = {kind: self._count(kind) for kind in self.indices}

    def _count(self, kind: Kinds) -> Counts:
        indices, rows = self.indices[kind], self.rows[kind]
        tokens = sum(len(p.answers[0]) for i in indices for p in rows.row(i))
        return Counts(len(indices), tokens, self.setup.normalise)

    def __call__(self, kinds: Kinds, weight: float = 1.0) -> Gradient:
        """Return the gradient of the terms of these kinds: of both, of forget + weight * retain; summed over processes.

        Losses are those of the whole step.  .grad of the parameters is empty before and after.
        """
        setup = self.setup
        sums = {kind: 0.0 for kind in kinds}
        for share in self._shares(self.step, kinds):
            for kind, loss in self._pass(kinds, share, weight if kinds == Kinds.both else 1.0).items():
                sums[kind] += loss
        totals = total_numbers([sums[kind] for kind in kinds], setup.device)
        losses = {f"loss_{kind.name}": total for kind, total in zip(kinds, totals, strict=True)}
        self._complete()
        parts = [p.grad for p in setup.params]
        for p in setup.params:
            p.grad = None
        return Gradient(parts, losses)

    def draw(self, kinds: Kinds, wanted: Curvature) -> float:
        """Put into .grad, which is empty, the gradient of the CE to labels drawn from the model, summed over tokens.

        kinds: those of the optimizer step.  Of their rows that `wanted` counts, it takes `wanted.rows`.  Returns the
        factor that makes of the square an estimate of the Gauss-Newton diagonal (curvature.py).
        """
        kinds = Kinds[wanted.data.value] if kinds == Kinds.both else kinds
        taken = self._some(kinds, wanted.rows)
        # no pass over more rows than the step's own has of one kind
        size = max(len(some) for pair in self.step.micro for some in pair)
        step = Step(tuple((_of(Kinds.forget, some), _of(Kinds.retain, some)) for some in runs(taken, size)))
        for share in self._shares(step, kinds):
            segments = [s for s in self._segments(kinds, share) if s.indices]
            batch = self._batch(segments)
            found = self._forward(batch, [self._labels(batch, segments) if segments else logps_of(batch)], Route())
            total([-found.looks[0].sum()] if segments else [], found).backward()
            cost.count(backward_passes=1)
        self._complete()
        every = sum(len(self.indices[kind]) for kind in kinds)
        return every / len(taken) / sum(self.counts[kind].tokens for kind in kinds)

    def _labels(self, batch: Batch, segments: list[Segment]) -> Look:
        """Return the look that draws labels for all tokens of the segments."""
        keys = [key for s in segments for key in s.keys]
        return Look(drawn_logps, (answer_uniforms(self.setup.seed, self.index, keys, batch.owner.cpu()),))

    def _some(self, kinds: Kinds, most: int | None) -> list[tuple[Kinds, int]]:
        """Return `most` rows of these kinds, short ones first, the same however they are batched; None: all."""
        every: list[tuple[Kinds, int]] = []
        for kind in kinds:
            rows = sorted(self.indices[kind])
            order = scramble(self.setup.seed, self.index, kind.value, np.arange(len(rows))).argsort()
            every += [(kind, rows[j]) for j in order]
        start = int(scramble(self.setup.seed, self.index)[0])
        some = [every[j] for j in systematic(len(every), most or len(every), start)]
        return sorted(some, key=lambda row: (self.rows[row[0]].tokens(row[1]), row[0].value, row[1]))

    def _complete(self) -> None:
        """Add up .grad over the processes; of sharded parameters each backward has done so."""
        if not self.setup.sharded:
            total_gradients(self.setup.params)

    def _shares(self, step: Step, kinds: Kinds) -> list[Share]:
        """Return what this process has of the rows of these kinds in each pass that it has to take part in."""
        passes = deal(step, world(), forget=Kinds.forget in kinds, retain=Kinds.retain in kinds)
        return [of[rank()] for of in passes if of[rank()].keys or self.setup.sharded]

    def _segments(self, kinds: Kinds, share: Share) -> list[Segment]:
        terms = self.setup.problem.terms
        split = len(share.forget)
        of = {
            Kinds.forget: (share.forget, share.keys[:split]),
            Kinds.retain: (share.retain, share.keys[split:]),
        }
        return [segment(kind, terms[kind], self.rows[kind], *of[kind]) for kind in kinds]

    def _pass(self, kinds: Kinds, share: Share, weight: float) -> dict[Kinds, float]:
        """Add the gradients of this process's rows of one pass.  Returns the loss of each kind that has rows."""
        every = self._segments(kinds, share)
        losses: dict[Kinds, float] = {}
        # rows that take the same way through the model go together
        for route in dict.fromkeys(s.term.needs.route for s in every):
            taken = [s for s in every if s.term.needs.route == route]
            losses |= self._backward(taken, route, weight)
        return losses

    def _backward(self, taken: list[Segment], route: Route, weight: float) -> dict[Kinds, float]:
        """One forward of the segments' rows and its backward.  weight: of the retain term."""
        segments = [s for s in taken if s.indices]
        if not (segments or self.setup.sharded):
            return {}
        shift = self._shift([s for s in taken if s.kind is Kinds.forget], route)
        asked = self._asked(segments, route)
        found = self._forward(asked.batch, asked.looks, route, shift)
        losses = self._losses(asked, found)
        parts = [weight * loss if kind is Kinds.retain else loss for kind, loss in losses.items()]
        total(parts, found).backward()
        cost.count(backward_passes=1, training_tokens=sum(len(p) for s in segments for p in s.prompted))
        return {kind: float(part.detach()) for kind, part in losses.items()}

    def _shift(self, forget: list[Segment], route: Route) -> Shift | None:
        """Return what the perturbation adds to hidden states of forget rows.  All ranks of a sharded model take part.

        forget: their segment in the pass, if they are among its kinds.
        """
        perturb, segments = self.setup.problem.perturb, [s for s in forget if s.indices]
        if perturb.place is None or not (segments or (forget and self.setup.sharded)):
            return None
        place, asked = perturb.place, self._asked(segments, route)

        def loss(delta: Tensor) -> Tensor:
            found = self._forward(asked.batch, asked.looks, route, Shift(place, delta))
            cost.count(backward_passes=1)
            return total(list(self._losses(asked, found).values()), found)

        lm = self.setup.model.lm
        shape = (*asked.batch.input_ids.shape, lm.config.get_text_config().hidden_size)
        wide = torch.promote_types(lm.dtype, torch.float32)
        return Shift(place, perturb.states(loss, torch.zeros(shape, dtype=wide, device=self.setup.device)))

    def _batch(self, segments: list[Segment]) -> Batch:
        return collate([p for s in segments for p in s.prompted] or [NOTHING]).to(self.setup.device)

    def _asked(self, segments: list[Segment], route: Route) -> Asked:
        batch = self._batch(segments)
        return Asked(segments, batch, looks_of([self._part(batch, s) for s in segments], batch) if route.head else [])

    def _losses(self, asked: Asked, found: Found) -> dict[Kinds, Tensor]:
        return {s.kind: s.term.loss(a, self.counts[s.kind]) for s, a in self._answers(asked, found)}

    @staticmethod
    def _part(batch: Batch, s: Segment) -> Part:
        return Part(s.term, s.size, lambda: s.before(s.rows.states, batch.targets))

    def _forward(self, batch: Batch, looks: list[Look], route: Route, shift: Shift | None = None) -> Found:
        cost.count(forward_passes=1)
        with autocast(self.setup.device, self.setup.precision):
            return self.setup.model(batch, looks, route.layer, head=route.head, shift=shift)

    def _answers(self, asked: Asked, found: Found) -> list[tuple[Segment, Answers]]:
        """Cut what was found for the batch into the segments."""
        segments, batch, looks = asked
        out: list[tuple[Segment, Answers]] = []
        tokens = torch.bincount(batch.owner, minlength=batch.answers)
        first = start = 0  # answer, token
        for n, s in enumerate(segments):
            last = first + len(s.answers)
            end = start + s.size
            values = found.looks[0][start:end] if len(looks) == 1 else found.looks[n] if looks else batch.owner[:0]
            names, uses = tuple(name for name, _ in s.answers), s.term.needs
            out.append((s, Answers(
                values=values, owner=batch.owner[start:end] - first, tokens=tokens[first:last], which=names,
                reference=s.before(s.rows.values, values) if uses.reference is Reference.values else None,
                states=found.states[start:end] if found.states is not None else None,
                reference_states=s.before(s.rows.states, batch.where) if uses.reference is Reference.states else None,
                reference_norm=s.rows.norm if uses.reference is Reference.norm else None,
            )))  # fmt: skip
            first, start = last, end
        return out


def _of(kind: Kinds, some: Sequence[tuple[Kinds, int]]) -> tuple[int, ...]:
    return tuple(i for own, i in some if own is kind)


def total(parts: list[Tensor], found: Found) -> Tensor:
    """Return the sum of losses; where there is none, a zero whose backward is the one that other processes wait for."""
    return torch.stack(parts or [0 * t.sum() for t in (*found.looks, found.states) if t is not None]).sum()


@dataclass(frozen=True)
class Part:
    """Answer tokens, one after the other in a batch, that one term sees."""

    term: Term
    size: int
    states: Callable[[], Tensor]  # their last hidden states before unlearning, (size, D)


def looks_of(parts: Sequence[Part], batch: Inputs) -> list[Look]:
    """Return the looks that compute what the terms make of a batch's logits.  parts: of all its answer tokens.

    One for all tokens where every term takes log-probabilities, else one a part.
    """
    if all(type(part.term).token is Term.token for part in parts):
        return [logps_of(batch)]
    looks, start = [], 0
    for part in parts:
        at = torch.arange(start, start + part.size, device=batch.targets.device)
        before = part.states() if part.term.needs.reference is Reference.logits else None
        looks.append(Look(_token_of(part.term), (batch.targets[at],), at, before))
        start += part.size
    return looks


def _token_of(term: Term) -> Callable[..., Tensor]:
    """Return a term's `token` as a function of logits, those of the kept head second where it has them, and targets."""

    def token(policy: Tensor, *others: Tensor) -> Tensor:
        *reference, targets = others
        return term.token(Logits(policy, targets, *reference))

    return token
