"""Rows of tokens that grow one token at a time, and what a model predicts behind each.

Four ways to read, from the fastest to the one that every causal model has, and a faster one on GPUs.  Each gives what
the model predicts behind a row alone; which of them a model has is tried once (`abilities`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache, StaticLayer

CACHES = ("past_key_values", "cache_params", "state")  # what models call what they keep of the tokens they have read


class Rows:
    """All tokens of rows of one length are read again for each new one."""

    mixed: ClassVar[bool] = False  # whether rows of several lengths may stand in one batch
    leaves: ClassVar[bool] = True  # whether a row may leave it
    worth: ClassVar[float] = 0.25  # share of the rows from which on it pays that they leave

    def __init__(self, lm: Any, rows: Sequence[Sequence[int]], most: int):
        """most: how many tokens will be put behind a row."""
        self.lm, self.most, self.ids = lm, most, torch.tensor([list(r) for r in rows], device=lm.device)

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

    def __init__(self, lm: Any, rows: Sequence[Sequence[int]], most: int):
        super().__init__(lm, rows, most)
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

    def __init__(self, lm: Any, rows: Sequence[Sequence[int]], most: int):
        self.width = width = max(map(len, rows))
        super().__init__(lm, [[0] * (width - len(r)) + list(r) for r in rows], most)
        self.mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=lm.device)
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.cache: Any = None

    def predict(self) -> Tensor:
        """Return the logits (B, V) behind each row."""
        out = self._forward()
        self.cache = out.past_key_values
        return out.logits[:, -1]

    def _forward(self) -> Any:
        return self.lm(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )

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


class Recorded(Leaving):
    """Leaving on a CUDA GPU: a step is recorded with all that the processor has to launch for it, and replayed.

    A decoded step is little work in hundreds of launches: without a recording the GPU waits most of the time.  Keys and
    values stand in slots whose place the recording knows, and a mask says which are filled.  When rows leave, it is
    made anew; the first step with those that stay is not recorded: it loads what must not be loaded meanwhile.
    """

    worth = 0.5

    def __init__(self, lm: Any, rows: Sequence[Sequence[int]], most: int):
        super().__init__(lm, rows, most)
        self.filled = 0  # slots with keys and values; the newest token's are still to come
        self.graph: Any = None
        self.fresh = True  # no step has been taken with these rows
        self.logits = torch.empty(0)  # where a replay puts them

    def predict(self) -> Tensor:
        """Return the logits (B, V) behind each row; they hold until the next call."""
        if self.cache is None:
            logits = super().predict()
            self.filled = self.width
            self._place(self._pairs())
            return logits
        if self.graph is not None:
            self.graph.replay()
            logits = self.logits
        elif self.fresh:
            self.fresh, logits = False, self._step()
        else:
            self.graph = self._record()
            self.graph.replay()
            logits = self.logits
        self.filled += 1
        return logits

    def append(self, tokens: Tensor) -> None:
        """Put a token, tokens (B,), behind each row."""
        if self.ids.shape[1] > 1:  # the prompts
            self.ids, self.positions = tokens[:, None].clone(), self.positions[:, -1:] + 1
        else:
            self.ids.copy_(tokens[:, None])
            self.positions += 1
        self.mask[..., self.filled] = True

    def keep(self, index: Tensor) -> None:
        """Let all rows but those of index (k,) leave."""
        self.ids, self.mask, self.positions = self.ids[index], self.mask[index], self.positions[index]
        if self.cache is not None:
            self._place((keys[index], values[index]) for keys, values in self._pairs())

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values of each layer, as far as they are there."""
        return [(x.keys[:, :, : self.filled], x.values[:, :, : self.filled]) for x in self.cache.layers]

    def _place(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Put keys and values into slots, with room for those that are to come."""
        self.graph, self.fresh, self.logits = None, True, torch.empty(0)
        slots = self.width + self.most
        self.cache = StaticCache(config=self.lm.config, max_cache_len=slots)
        if any(type(layer) is not StaticLayer for layer in self.cache.layers):
            raise NotImplementedError("only full attention keeps all that was read")
        for layer, (keys, values) in zip(self.cache.layers, pairs, strict=True):
            layer.lazy_initialization(keys, values)
            layer.keys[:, :, : self.filled] = keys
            layer.values[:, :, : self.filled] = values
            layer.cumulative_length.fill_(self.filled)
        seen = self.mask.reshape(len(self.mask), 1, 1, -1)[..., : self.filled + 1]  # the newest token sees itself
        self.mask = torch.zeros(len(seen), 1, 1, slots, dtype=torch.bool, device=seen.device)
        self.mask[..., : seen.shape[-1]] = seen.bool()

    def _step(self) -> Tensor:
        return self._forward().logits[:, -1]

    def _record(self) -> Any:
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        aside = torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self.logits = self._step()
            finally:
                graph.capture_end()
        here.wait_stream(aside)
        return graph


WAYS: tuple[type[Rows], ...] = (Leaving, Staying, Kept, Rows)


def ways(device: torch.device) -> tuple[type[Rows], ...]:
    """Return the ways to be tried on a device, in order."""
    return (Recorded, *WAYS) if device.type == "cuda" else WAYS
