"""Batched decoding, greedy where nothing else is said."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from soul_cli.core import cost
from soul_cli.evaluate.abilities import abilities
from soul_cli.evaluate.decoding import Rows
from soul_cli.evaluate.likelihood import Autocast
from soul_cli.evaluate.room import tokens_a_batch

# the logits (B, V) behind some rows, their numbers among the prompts (B,), how many tokens each has -> tokens (B,)
Choose = Callable[[Tensor, Tensor, int], Tensor]


def _likeliest(logits: Tensor, rows: Tensor, count: int) -> Tensor:
    return logits.argmax(-1)


@torch.inference_mode()
def greedy(
    lm: Any,
    prompts: Sequence[tuple[int, ...]],
    *,
    ends: Collection[int],
    most_new: Sequence[int],
    known: Sequence[tuple[int, ...]] | None = None,
    budget: int | None,
    autocast: Autocast = nullcontext,
    progress: Callable[[int], None] = lambda n: None,
    choose: Choose = _likeliest,
) -> list[list[int]]:
    """Return the greedy continuation of each prompt, without the token that ends it.

    ends: the tokens that end a continuation.  most_new: for each prompt the most tokens to generate.
    known: what each continuation begins with, its end included where it is known to end (`likelihood.recited`).
    budget: padded tokens a batch; None: by the room for them.  Prompts are batched by length.  Rows that have ended
    leave the batch as soon as that frees enough of it, where the model can do without them (`abilities`).
    choose: what takes the next token.
    """
    budget = budget or tokens_a_batch(lm)
    outputs: list[list[int]] = [[] for _ in prompts]
    room = list(most_new)
    if known is not None:
        outputs = [list(ids[: max(0, r)]) for ids, r in zip(known, room, strict=True)]
        room = [0 if ids and ids[-1] in ends else r - len(ids) for ids, r in zip(outputs, room, strict=True)]
        prompts = [(*p, *ids) for p, ids in zip(prompts, outputs, strict=True)]
    decoding = abilities(lm).decoding
    wanted = [i for i, r in enumerate(room) if r > 0]
    progress(len(prompts) - len(wanted))
    for indices in _batches([len(p) for p in prompts], room, wanted, budget, mixed=decoding.mixed):
        rows = [prompts[i] for i in indices]
        made = _decode(lm, decoding, rows, indices, [room[i] for i in indices], ends, autocast, choose)
        for i, ids in made.items():
            outputs[i] += ids
        progress(len(indices))
    return [ids[:-1] if ids and ids[-1] in ends else ids for ids in outputs]


def _batches(
    lengths: Sequence[int], room: Sequence[int], wanted: Sequence[int], budget: int, *, mixed: bool
) -> Iterator[list[int]]:
    """Yield the wanted rows in batches, shortest first, each with at most `budget` tokens when it is done.

    mixed: whether rows of several lengths may stand in one batch.
    """
    batch: list[int] = []
    most = 0  # new tokens of a row of the batch
    for i in sorted(wanted, key=lambda i: (lengths[i], i)):
        most = max(most, room[i])
        full = (lengths[i] + most) * (len(batch) + 1) > budget
        if batch and (full or not (mixed or lengths[i] == lengths[batch[0]])):
            yield batch
            batch, most = [], room[i]
        batch.append(i)
    if batch:
        yield batch


def _decode(
    lm: Any,
    decoding: type[Rows],
    prompts: Sequence[tuple[int, ...]],
    numbers: Sequence[int],
    room: Sequence[int],
    ends: Collection[int],
    autocast: Autocast,
    choose: Choose,
) -> dict[int, list[int]]:
    """Return the continuations of one batch by the numbers of their prompts."""
    device = lm.device
    last = torch.tensor(sorted(ends), dtype=torch.long, device=device)
    left, names = torch.tensor(room, device=device), torch.tensor(numbers, device=device)
    rows = decoding(lm, prompts, max(room))
    made: list[tuple[Tensor, Tensor, Tensor]] = []  # row, token, and whether it is kept, a step
    active = torch.ones_like(names, dtype=torch.bool)
    told, count, growing = Told(len(names), late=device.type == "cuda"), 0, len(names)
    while growing and count < max(room):
        if decoding.leaves and growing <= (1 - decoding.worth) * len(active):
            stay = active.nonzero().squeeze(1)
            if not len(stay):
                break
            rows.keep(stay)
            names, left, active = names[stay], left[stay], active[stay]
        with autocast():
            token = choose(rows.predict(), names, count)
        cost.count(forward_passes=1)
        count += 1
        written = active & ~torch.isin(token, last)
        made.append((names, token, written))
        active = written & (left > count)
        growing = told(active)
        rows.append(token)
    outputs: dict[int, list[int]] = {i: [] for i in numbers}
    for i, value, kept in zip(*(torch.cat(some).tolist() for some in zip(*made, strict=True)), strict=True):
        if kept:
            outputs[i].append(value)
    cost.count(generated_tokens=sum(map(len, outputs.values())))
    return outputs


class Told:
    """How many rows still grow, as far as the processor knows.

    late: it is told of the step before, so that a GPU has the next one to do while the processor looks.
    """

    def __init__(self, rows: int, *, late: bool):
        self.known, self.late = rows, late
        self.coming: tuple[Tensor, Any] | None = None

    def __call__(self, active: Tensor) -> int:
        count, before = active.sum(), self.coming
        if not self.late:
            return int(count)
        event = torch.cuda.Event()
        self.coming = count.to("cpu", non_blocking=True), event
        event.record()
        if before is not None:
            before[1].synchronize()
            self.known = int(before[0])
        return self.known
