"""Batched greedy decoding with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from soul_cli.core import cost
from soul_cli.evaluate.likelihood import Autocast


@torch.inference_mode()
def greedy(
    lm: Any,
    prompts: Sequence[tuple[int, ...]],
    *,
    eos: int,
    max_total: int,
    most_new: Sequence[int] | None = None,
    begun: Sequence[tuple[int, ...]] | None = None,
    budget: int,
    autocast: Autocast = nullcontext,
    progress: Callable[[int], None] = lambda n: None,
) -> list[list[int]]:
    """The greedy continuation of each prompt, without its EOS; prompt + answer have at most max_total tokens.

    most_new: for each prompt the most tokens to generate, where max_total leaves more.
    begun: what each continuation is known to begin with, EOS included where it is known to end (`likelihood.recited`).
    budget: padded tokens a batch.  Prompts are batched by length and padded on the left.  A row that has ended leaves
    the batch, cache and all, as soon as that frees a quarter of it.
    """
    room = [max_total - len(p) for p in prompts]
    if most_new is not None:
        room = [min(r, n) for r, n in zip(room, most_new, strict=True)]
    outputs: list[list[int]] = [[] for _ in prompts]
    if begun is not None:
        outputs = [list(ids[: max(0, r)]) for ids, r in zip(begun, room, strict=True)]
        room = [r - len(ids) if ids[-1:] != [eos] else 0 for ids, r in zip(outputs, room, strict=True)]
        prompts = [(*p, *ids) for p, ids in zip(prompts, outputs, strict=True)]
    order = sorted((i for i, r in enumerate(room) if r > 0), key=lambda i: (len(prompts[i]), i))
    progress(len(prompts) - len(order))
    while order:
        indices: list[int] = []
        most = 0
        for i in order:  # the longest prompt so far
            most = max(most, room[i])
            if indices and (len(prompts[i]) + most) * (len(indices) + 1) > budget:
                break
            indices.append(i)
        order = order[len(indices) :]
        _decode(lm, prompts, indices, outputs, eos, [room[i] for i in indices], autocast)
        progress(len(indices))
    return [ids[:-1] if ids[-1:] == [eos] else ids for ids in outputs]


def _decode(
    lm: Any,
    prompts: Sequence[tuple[int, ...]],
    indices: list[int],
    outputs: list[list[int]],
    eos: int,
    most_new: list[int],
    autocast: Autocast,
) -> None:
    device = lm.device
    width = max(len(prompts[i]) for i in indices)
    ids = torch.tensor([[0] * (width - len(prompts[i])) + list(prompts[i]) for i in indices], device=device)
    mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in indices], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    room = torch.tensor(most_new, device=device)
    rows = torch.tensor(indices, device=device)
    cache = None
    made: list[tuple[torch.Tensor, torch.Tensor]] = []  # (row, token) of every kept token
    active = torch.ones_like(rows, dtype=torch.bool)
    count = 0
    while bool(active.any()):
        if int(active.sum()) <= 0.75 * len(active):
            keep = active.nonzero().squeeze(1)
            ids, mask, positions = ids[keep], mask[keep], positions[keep]
            rows, room, active = rows[keep], room[keep], active[keep]
            if cache is not None:
                cache.batch_select_indices(keep)
        with autocast():
            out = lm(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        cost.count(forward_passes=1)
        cache = out.past_key_values
        token = out.logits[:, -1].argmax(-1)
        count += 1
        written = active & (token != eos)
        made.append((rows[written], token[written]))
        active = written & (room > count)
        ids, positions = token[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    cost.count(generated_tokens=sum(len(tokens) for _, tokens in made))
    for row_ids, tokens in made:
        for row, value in zip(row_ids.tolist(), tokens.tolist(), strict=True):
            outputs[row].append(value)
