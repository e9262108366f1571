"""Teacher-forced scores: one forward a row gives every likelihood metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from soul_cli import cost
from soul_cli.data.batches import by_length, collate
from soul_cli.models import AnswerModel
from soul_cli.types import Prompted

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
    """
    device = next(model.parameters()).device
    results: list[list[Scored]] = [[] for _ in groups]
    for indices in by_length([len(g) for g in groups], budget):
        batch = collate([groups[i] for i in indices], score_prompt=score_prompt).to(device)
        with autocast():
            logps, best, _ = model(batch, with_best=True)
        cost.count(forward_passes=1, scored_tokens=sum(len(groups[i]) for i in indices))
        logps, correct = logps.cpu(), (best == batch.targets).int().cpu()
        sizes = torch.bincount(batch.owner.cpu(), minlength=batch.answers).tolist()
        scores = iter(
            [
                Scored(tuple(a.tolist()), tuple(b.tolist()))
                for a, b in zip(logps.split(sizes), correct.split(sizes), strict=True)
            ]
        )
        for i in indices:
            results[i] = [next(scores) for _ in range(len(groups[i].answers) + score_prompt)]
        progress(len(indices))
    return results
