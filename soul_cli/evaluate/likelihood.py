"""Teacher-forced scores: one forward a row gives every likelihood metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from soul_cli.core import cost
from soul_cli.core.types import Prompted
from soul_cli.data.batches import by_length
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
        """Mean nats per token."""
        return -sum(self.logps) / len(self.logps)


def recited(prompt: tuple[int, ...], pair: Prompted, scored: Scored) -> tuple[int, ...]:
    """What greedy decoding from the prompt begins with: the answer's tokens before the first that is not the arg-max.

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
    budget: int,
    autocast: Autocast = nullcontext,
) -> list[Tensor]:
    """Return what a function of (logits, targets) makes of the answer tokens of each row of one answer, (T,) or (T, k).

    look: the function; None: the hidden states (T, D) behind the layer, where that is None the last.  Rows are batched
    as in scoring; the result lies on the CPU.
    """
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
    budget: int,
    score_prompt: bool = False,
    autocast: Autocast = nullcontext,
    progress: Callable[[int], None] = lambda n: None,
) -> list[list[Scored]]:
    """Per group one Scored an answer, in order; with score_prompt the prompt's own (less its first token) first.

    budget: padded tokens a batch.  Groups are batched by length; the result does not depend on the batching.
    A prompt is read once, and so is what several answers to it begin with.
    """
    device = next(model.parameters()).device
    lengths = [len(Tree(g)) for g in groups]  # only those of a batch are kept: in Python a tree is large
    results: list[list[Scored]] = [[] for _ in groups]
    for indices in by_length(lengths, budget):
        trees = [Tree(groups[i], score_prompt=score_prompt) for i in indices]
        batch = plant(trees).to(device)
        with autocast():
            (found,) = model(batch, [Look(scores, (batch.targets,))]).looks
        cost.count(forward_passes=1, scored_tokens=sum(len(groups[i]) for i in indices))
        values, correct = found[:, 0].tolist(), found[:, 1].int().tolist()
        start = 0
        for i, tree in zip(indices, trees, strict=True):
            results[i] = [
                Scored(tuple(values[start + k] for k in path), tuple(correct[start + k] for k in path))
                for path in tree.paths
            ]
            start += len(tree.pairs)
        progress(len(indices))
    return results
