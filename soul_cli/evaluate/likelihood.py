"""Teacher-forced scores: one forward a row gives every likelihood metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from soul_cli.core import cost
from soul_cli.core.types import Prompted
from soul_cli.data.batches import by_length
from soul_cli.evaluate.abilities import Abilities, abilities
from soul_cli.evaluate.room import tokens_a_batch
from soul_cli.evaluate.trees import Tree, plant
from soul_cli.models.answer_model import AnswerModel, Look
from soul_cli.objective.losses import token_logps

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Scored:
    """Scores of one answer (or prompt), token by token."""

    logps: tuple[float, ...]  # log-probability of each true token, nats
    correct: tuple[int, ...]  # 1 where the true token is the arg-max

    @property
    def nll(self) -> float:
        """Return the mean nats per token."""
        return -sum(self.logps) / len(self.logps)


def recited(prompt: tuple[int, ...], pair: Prompted, scored: Scored) -> tuple[int, ...]:
    """Return what greedy decoding from the prompt begins with: the answer's tokens before the first miss.

    Nothing where the pair was scored behind other ids, as when the answer's first token holds the prompt's last space.
    """
    if pair.prompt != prompt:
        return ()
    right = scored.correct
    return pair.answers[0][: right.index(0) if 0 in right else len(right)]


def scores(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log-probability of each target and whether it is the arg-max, (T, 2)."""
    return torch.stack([token_logps(logits, targets), logits.argmax(-1) == targets], dim=-1)


@torch.inference_mode()
def each(
    model: AnswerModel,
    rows: Sequence[Prompted],
    look: Callable[[Tensor, Tensor], Tensor] | None,
    *,
    layer: int | None,
    budget: int | None,
    autocast: Autocast = nullcontext,
) -> list[Tensor]:
    """Return what a function of (logits, targets) makes of the answer tokens of each row of one answer, (T,) or (T, k).

    look: the function; None: the hidden states (T, D) behind the layer, where that is None the last.  Rows are batched
    as in scoring; the result lies on the CPU.
    """
    budget = budget or tokens_a_batch(model.lm)
    device = next(model.parameters()).device
    results: list[Tensor] = [torch.empty(0)] * len(rows)
    for indices in by_length([len(Tree(row)) for row in rows], budget):
        trees = [Tree(rows[i]) for i in indices]
        batch = plant(trees).to(device)
        with autocast():
            if look is not None:
                found = model(batch, [Look(look, (batch.targets,))]).looks[0]
            elif layer is None:
                found = model.hidden(batch)
            else:
                found = model(batch, [], layer, head=False).states
        cost.count(forward_passes=1, scored_tokens=sum(len(rows[i]) for i in indices))
        parts = found.cpu().split([len(tree.pairs) for tree in trees])
        for i, part in zip(indices, parts, strict=True):
            results[i] = part
    return results


@torch.inference_mode()
def score(
    model: AnswerModel,
    groups: Sequence[Prompted],
    *,
    budget: int | None,
    score_prompt: bool = False,
    autocast: Autocast = nullcontext,
    progress: Callable[[int], None] = lambda n: None,
) -> list[list[Scored]]:
    """Return per group one Scored an answer, in order; with score_prompt the prompt's own (less its first token) first.

    budget: padded tokens a batch; None: by the room for them.  Groups are batched by length; the result does not
    depend on the batching.  A prompt is read once, and so is what several answers to it begin with, where the model
    can (`abilities`).
    """
    budget = budget or tokens_a_batch(model.lm)
    device = next(model.parameters()).device
    able = abilities(model.lm)
    rows, lengths, owners = _rows(groups, able)
    first = [i == 0 or owner != owners[i - 1] for i, owner in enumerate(owners)]
    left = Counter(owners)  # rows of a group that are still to be scored
    results: list[list[Scored]] = [[] for _ in rows]
    for indices in _batches(lengths, budget, able.longest):
        trees = [Tree(rows[i], score_prompt=score_prompt and first[i]) for i in indices]
        batch = plant(trees).to(device)
        with autocast():
            (found,) = model(batch, [Look(scores, (batch.targets,))]).looks
        cost.count(forward_passes=1, scored_tokens=sum(len(rows[i]) for i in indices))
        values, correct = found[:, 0].tolist(), found[:, 1].int().tolist()
        start = 0
        for i, tree in zip(indices, trees, strict=True):
            results[i] = [
                Scored(tuple(values[start + k] for k in path), tuple(correct[start + k] for k in path))
                for path in tree.paths
            ]
            start += len(tree.pairs)
        left.subtract(owners[i] for i in indices)
        progress(sum(left[group] == 0 for group in {owners[i] for i in indices}))
    return [
        [scored for _, some in own for scored in some]
        for _, own in groupby(zip(owners, results, strict=True), key=itemgetter(0))
    ]


def _rows(groups: Sequence[Prompted], able: Abilities) -> tuple[list[Prompted], list[int], list[int]]:
    """Return the rows to score, their lengths, and the index of the group that each belongs to.

    A row is a group, or one of its answers where the model must not be given all of them in one row.
    """
    rows: list[Prompted] = []
    lengths: list[int] = []
    owners: list[int] = []
    for i, group in enumerate(groups):
        own, sizes = [group], [len(Tree(group))]  # of a tree only the size is kept: in Python it is large
        if not (able.trees and sizes[0] <= able.longest):
            own = [Prompted(group.prompt, (answer,)) for answer in group.answers]
            sizes = [len(Tree(row)) for row in own]
        rows += own
        lengths += sizes
        owners += [i] * len(own)
    return rows, lengths, owners


def _batches(lengths: Sequence[int], budget: int, longest: float) -> Iterator[list[int]]:
    """Yield indices of rows in batches by length, those of more than `longest` tokens apart.

    Beside a tree they would get a mask in place of the model's own windows.
    """
    for long in (True, False):
        some = [i for i, n in enumerate(lengths) if (n > longest) is long]
        for batch in by_length([lengths[i] for i in some], budget):
            yield [some[k] for k in batch]
