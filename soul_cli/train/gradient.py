"""The gradient of one step's rows, by the terms of the objective.

A step is a plan of micro-batches of forget and of retain rows.  Terms are normalised by counts over the whole step, so
the sum over its micro-batches, and over the processes, which take their share of the rows of each, is the step's
gradient.  Whole models add theirs up once a call, sharded ones (FSDP2) in each backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from soul_cli.core import cost
from soul_cli.core.distributed import rank, total_gradients, total_numbers, world
from soul_cli.core.types import Batch, Inputs, Prompted
from soul_cli.data.batches import Share, Step, collate, shares
from soul_cli.data.rows import Rows
from soul_cli.models.answer_model import AnswerModel, Found, Look, logps_of
from soul_cli.models.load import autocast
from soul_cli.objective.combine import Gradient
from soul_cli.objective.methods import Problem
from soul_cli.objective.term import Answers, Counts, Kinds, Logits, Normalise, Reference, Term
from soul_cli.optim.build import HessianData
from soul_cli.optim.curvature import GaussNewtonBartlett, answer_uniforms, drawn_logps

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
    """The rows of one kind in one process's share of a micro-batch."""

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


class StepGradient:
    """The gradient of one step's rows, of the kinds that are asked for; it may be called any number of times.

    Labels for the curvature are drawn in the first forward of each kind of rows.
    """

    def __init__(
        self,
        setup: Setup,
        step: Step,
        rows: Mapping[Kinds, Rows],
        index: int,
        kinds: Kinds,
        curvature: GaussNewtonBartlett | None,
        hessian_data: HessianData = HessianData.both,
    ):
        """index: of the step.  kinds: those of the optimizer step this gradient is for.

        hessian_data: whose labels count where the optimizer step has both kinds; else it takes what it has.
        """
        self.setup, self.step, self.rows, self.index, self.curvature = setup, step, rows, index, curvature
        self.wanted = Kinds[hessian_data.value] if kinds == Kinds.both else Kinds.both
        self.drawn = Kinds(0)  # kinds whose labels the curvature has
        self.counts = {
            Kinds.forget: self._count(Kinds.forget, [i for f, _ in step.micro for i in f]),
            Kinds.retain: self._count(Kinds.retain, [i for _, r in step.micro for i in r]),
        }

    def _count(self, kind: Kinds, indices: list[int]) -> Counts:
        rows = self.rows[kind]
        tokens = sum(len(p.answers[0]) for i in indices for p in rows.row(i))
        return Counts(len(indices), tokens, self.setup.normalise)

    def __call__(self, kinds: Kinds) -> Gradient:
        """Return the gradient of the terms of these kinds: of both, of forget + weight * retain; summed over processes.

        Losses are those of the whole step.  .grad of the parameters is empty before and after.
        """
        setup = self.setup
        sums = {kind: 0.0 for kind in kinds}
        for share in shares(
            self.step, rank(), world(), forget=Kinds.forget in kinds, retain=Kinds.retain in kinds
        ):  # fmt: skip
            if share.keys or setup.sharded:
                for kind, loss in self._micro_batch(kinds, share).items():
                    sums[kind] += loss
        self.drawn |= kinds
        totals = total_numbers([sums[kind] for kind in kinds], setup.device)
        losses = {f"loss_{kind.name}": total for kind, total in zip(kinds, totals, strict=True)}
        if not setup.sharded:
            total_gradients(setup.params)
        parts = [p.grad for p in setup.params]
        for p in setup.params:
            p.grad = None
        return Gradient(parts, losses)

    def _micro_batch(self, kinds: Kinds, share: Share) -> dict[Kinds, float]:
        """Add the gradients of this process's rows of one micro-batch.  Returns the loss of each kind that has rows."""
        terms = self.setup.problem.terms
        split = len(share.forget)
        of = {
            Kinds.forget: (share.forget, share.keys[:split]),
            Kinds.retain: (share.retain, share.keys[split:]),
        }
        every = [segment(kind, terms[kind], self.rows[kind], *of[kind]) for kind in kinds]
        losses: dict[Kinds, float] = {}
        # rows that take the same way through the model go together
        for route in dict.fromkeys((s.term.needs.layer, s.term.needs.head) for s in every):
            taken = [s for s in every if (s.term.needs.layer, s.term.needs.head) == route]
            losses |= self._backward(taken, *route, weight=self.setup.problem.weight if kinds == Kinds.both else 1.0)
        return losses

    def _backward(self, taken: list[Segment], layer: int | None, head: bool, *, weight: float) -> dict[Kinds, float]:
        """One forward of the segments' rows and its backward.  weight: of the retain term.

        Where the curvature still wants labels of these rows, the forward goes on to the head for them.
        """
        setup = self.setup
        segments = [s for s in taken if s.indices]
        if not (segments or setup.sharded):
            return {}
        own = [p for s in segments for p in s.prompted]
        batch = collate(own or [NOTHING]).to(setup.device)
        looks = looks_of([self._part(batch, s) for s in segments], batch) if head else []
        draws = self.curvature is not None and any(s.kind in self.wanted & ~self.drawn for s in taken)
        found = self._predict(batch, looks, layer, head, self._labels(batch, segments) if draws else None)
        losses = {s.kind: s.term.loss(a, self.counts[s.kind]) for s, a in self._answers(batch, found, segments, looks)}
        parts = [weight * loss if kind is Kinds.retain else loss for kind, loss in losses.items()]
        if not parts:  # what other processes wait for
            parts = [0 * t.sum() for t in (*found.looks, found.states) if t is not None]
        torch.stack(parts).sum().backward()
        cost.count(backward_passes=1, training_tokens=sum(map(len, own)))
        return {kind: float(part.detach()) for kind, part in losses.items()}

    @staticmethod
    def _part(batch: Batch, s: Segment) -> Part:
        return Part(s.term, s.size, lambda: s.before(s.rows.states, batch.targets))

    def _predict(self, batch: Batch, looks: list[Look], layer: int | None, head: bool, labels: Look | None) -> Found:
        """Answer the looks, and give the curvature its labels on the way, which takes the head in any case."""
        if labels is None:
            return self._forward(batch, looks, layer, head)
        assert self.curvature is not None
        found = self._forward(batch, [*looks, labels], layer, head=True)
        self.curvature.add(found.looks[-1])
        if self.setup.sharded:  # the estimate's backward has used that forward up
            return self._forward(batch, looks, layer, head)
        return Found(found.looks[:-1], found.states)

    def _forward(self, batch: Batch, looks: list[Look], layer: int | None, head: bool) -> Found:
        cost.count(forward_passes=1)
        with autocast(self.setup.device, self.setup.precision):
            return self.setup.model(batch, looks, layer, head=head)

    def _labels(self, batch: Batch, segments: list[Segment]) -> Look:
        """Return the look that draws labels for the curvature, for the kinds that have still to give theirs."""
        owner = batch.owner.cpu()
        takes = [s.kind in self.wanted & ~self.drawn for s in segments for _ in s.answers] or [False]
        at = torch.tensor(takes)[owner].nonzero().squeeze(1)
        keys = [key for s in segments for key in s.keys] or [0]
        u = answer_uniforms(self.setup.seed, self.index, keys, owner)
        return Look(drawn_logps, (u[at],), at.to(batch.where.device))

    def _answers(
        self, batch: Batch, found: Found, segments: list[Segment], looks: list[Look]
    ) -> list[tuple[Segment, Answers]]:
        """Cut what was found for the batch into the segments."""
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
