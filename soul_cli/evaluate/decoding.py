"""Rows of tokens that grow one token at a time, and what a model predicts behind each.

Four ways to read, from the fastest to the one that every causal model has.  Each gives what the model predicts behind a
row alone; which of them a model has is tried once (`abilities`).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

CACHES = ("past_key_values", "cache_params", "state")  # what models call what they keep of the tokens they have read


class Rows:
    """All tokens of rows of one length are read again for each new one."""

    mixed: ClassVar[bool] = False  # whether rows of several lengths may stand in one batch
    leaves: ClassVar[bool] = True  # whether a row may leave it

    def __init__(self, lm: Any, rows: Sequence[Sequence[int]]):
        self.lm, self.ids = lm, torch.tensor([list(r) for r in rows], device=lm.device)

    def predict(self) -> Tensor:
        """Return the logits (B, V) behind each row."""
        return self.lm(input_ids=self.ids).logits[:, -1]

    def append(self, tokens: Tensor) -> None:
        """Put a token, tokens (B,), behind each row."""
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)

    def keep(self, index: Tensor) -> None:
        """Let all rows but those of index (k,) leave."""
        self.ids = self.ids[index]


class Kept(Rows):
    """Rows of one length; what was read is kept in whatever form the model has, and no row leaves."""

    leaves = False

    def __init__(self, lm: Any, rows: Sequence[Sequence[int]]):
        super().__init__(lm, rows)
        takes = inspect.signature(lm.forward).parameters
        self.name = next(name for name in CACHES if name in takes)
        self.last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        # those that a model makes itself are wrong where its first layer keeps no keys
        self.positions = torch.arange(self.ids.shape[1], device=lm.device)[None] if "position_ids" in takes else None
        self.cache: Any = None

    def predict(self) -> Tensor:
        """Return the logits (B, V) behind each row."""
        given = {} if self.positions is None else {"position_ids": self.positions}
        out = self.lm(input_ids=self.ids, use_cache=True, **{self.name: self.cache}, **self.last, **given)
        self.cache = out[self.name]
        return out.logits[:, -1]

    def append(self, tokens: Tensor) -> None:
        """Put a token, tokens (B,), behind each row."""
        self.ids = tokens[:, None]
        if self.positions is not None:
            self.positions = self.positions[:, -1:] + 1


class Staying(Rows):
    """Rows of any length, padded on the left; what was read is kept, and no row leaves."""

    mixed, leaves = True, False

    def __init__(self, lm: Any, rows: Sequence[Sequence[int]]):
        width = max(map(len, rows))
        super().__init__(lm, [[0] * (width - len(r)) + list(r) for r in rows])
        self.mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=lm.device)
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.cache: Any = None

    def predict(self) -> Tensor:
        """Return the logits (B, V) behind each row."""
        out = self.lm(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = out.past_key_values
        return out.logits[:, -1]

    def append(self, tokens: Tensor) -> None:
        """Put a token, tokens (B,), behind each row."""
        self.ids, self.positions = tokens[:, None], self.positions[:, -1:] + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)


class Leaving(Staying):
    """Rows of any length, padded on the left; what was read is kept, and a row can leave with its part of that."""

    leaves = True

    def keep(self, index: Tensor) -> None:
        """Let all rows but those of index (k,) leave."""
        self.ids, self.mask, self.positions = self.ids[index], self.mask[index], self.positions[index]
        if self.cache is not None:
            self.cache.batch_select_indices(index)


WAYS: tuple[type[Rows], ...] = (Leaving, Staying, Kept, Rows)
