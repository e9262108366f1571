"""Token ids to batches, and the order of a training run: pure functions of (data, seed, epoch)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from operator import itemgetter
from typing import TypeVar

import torch

from soul_cli.core.types import Batch, Prompted

T = TypeVar("T")

BUCKET = 16  # batches that are sorted by length together


def collate(rows: Sequence[Prompted]) -> Batch:
    """Right-pad rows of one answer each to a batch.

    Pads need no mask in a causal model: they stand after every real token.
    """
    width = max(map(len, rows))
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    where: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    for b, row in enumerate(rows):
        (answer,) = row.answers
        input_ids[b, : len(row)] = torch.tensor([*row.prompt, *answer])
        # the prompt's last token predicts the first answer token, each answer token the next
        start = b * width + len(row.prompt) - 1
        where += range(start, start + len(answer))
        targets += answer
        owner += [b] * len(answer)
    return Batch(input_ids, None, None, torch.tensor(where), torch.tensor(targets), torch.tensor(owner))


def by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Return indices in batches of at most `budget` padded tokens, longest first (so that memory peaks at once)."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        size = max(1, budget // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


def shuffled(n: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n, generator=generator).tolist()


def epoch_batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Every index once, in batches of `size` rows of similar length, in random order."""
    order = shuffled(len(lengths), seed, epoch)
    batches: list[list[int]] = []
    for at in range(0, len(order), BUCKET * size):
        bucket = sorted(order[at : at + BUCKET * size], key=lambda i: (lengths[i], i))
        batches += [bucket[j : j + size] for j in range(0, len(bucket), size)]
    return [batches[i] for i in shuffled(len(batches), seed + 1, epoch)]


def cycle(n: int, start: int, count: int, seed: int) -> list[int]:
    """`count` indices from an endless sequence of shuffled passes over 0..n-1, beginning at `start`."""
    picked: list[int] = []
    while len(picked) < count:
        lap, offset = divmod(start + len(picked), n)
        picked += shuffled(n, seed + 2, lap)[offset : offset + count - len(picked)]
    return picked


@dataclass(frozen=True)
class Step:
    """One step of the run: per micro-batch the indices of its forget and its retain rows.

    more: the same of further optimizer steps, where one on some kind of rows is followed by another on that kind.
    """

    micro: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    more: tuple[Step, ...] = ()

    @property
    def turns(self) -> tuple[Step, ...]:
        return (self, *self.more)


def plan_epoch(
    forget: Sequence[int],
    retain: Sequence[int],
    *,
    size: int,
    accumulation: int,
    seed: int,
    epoch: int,
    turns: tuple[int, int] = (1, 1),
) -> list[Step]:
    """Return the steps of one epoch over the forget rows (over the retain rows where there are no forget rows).

    forget, retain: lengths in tokens.  Each forget batch meets as many retain rows as it has itself, taken in turn
    from shuffled passes over all of them, so that the pairs differ between epochs.  turns: how many optimizer steps on
    forget and on retain rows a step has; where there are more of the one, the sizes of the other's are gone through
    again.
    """
    if not forget:
        alone = [((), tuple(batch)) for batch in epoch_batches(retain, size, seed, epoch)]
        return [Step(tuple(some)) for some in runs(alone, accumulation)]
    groups = list(runs(list(runs(epoch_batches(forget, size, seed, epoch), accumulation)), turns[0]))
    # of each step the retain rows of each of its turns' micro-batches, as numbers first
    counts = [[[len(b) for b in group[j % len(group)]] for j in range(turns[1])] for group in groups]
    many = sum(n for step in counts for turn in step for n in turn) if retain else 0
    picked = iter(cycle(len(retain), epoch * len(forget) * turns[1], many, seed))
    steps = []
    for group, sizes in zip(groups, counts, strict=True):
        met = [[tuple(islice(picked, n)) for n in turn] for turn in sizes]
        pairs = zip_longest(group, met, fillvalue=())
        first, *more = [Step(tuple((tuple(f), r) for f, r in zip_longest(*pair, fillvalue=()))) for pair in pairs]
        steps.append(Step(first.micro, tuple(more)))
    return steps


def runs(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield runs of `size` items; the last may be shorter."""
    for i in range(0, len(items), size):
        yield items[i : i + size]


@dataclass(frozen=True)
class Share:
    """What one process takes in one pass: indices of forget and of retain rows, possibly none at all.

    keys name the rows in that order within their step.  They are the same whichever process or pass has a row.
    """

    forget: tuple[int, ...]
    retain: tuple[int, ...]
    keys: tuple[int, ...]


def deal(step: Step, world: int, *, forget: bool, retain: bool) -> list[list[Share]]:
    """Return the passes of an optimizer step, each with the share of every process.

    forget, retain: whether such rows take part.  Micro-batches go together in one pass while no process gets more rows
    of it than of the largest of them alone.  Rows are dealt out in turn, forget rows first, and the next pass goes on
    with the next process: over the step no process has more than one row more than another.
    """
    met: Counter[tuple[int, int]] = Counter()
    named: list[list[tuple[int, int, int]]] = []  # of each micro-batch: kind, index, key
    for f, r in step.micro:
        named.append([])
        for kind, i in [*((0, i) for i in f if forget), *((1, i) for i in r if retain)]:
            # a retain row may come twice in one step, where one pass over the rows ends and the next begins
            named[-1].append((kind, i, met[kind, i] << 40 | i << 1 | kind))
            met[kind, i] += 1
    most = world * math.ceil(max(map(len, named)) / world)
    passes: list[list[tuple[int, int, int]]] = []
    for rows in filter(None, named):
        if passes and len(passes[-1]) + len(rows) <= most:
            passes[-1] += rows
        else:
            passes.append([*rows])
    dealt, first = [], 0
    for rows in passes:
        rows.sort(key=itemgetter(0))
        dealt.append([_share(rows[(rank - first) % world :: world]) for rank in range(world)])
        first = (first + len(rows)) % world
    return dealt


def _share(rows: Sequence[tuple[int, int, int]]) -> Share:
    forget, retain = (tuple(i for kind, i, _ in rows if kind == wanted) for wanted in (0, 1))
    return Share(forget, retain, tuple(key for *_, key in rows))
