"""A causal LM that is asked about its answers only.  Shapes: T answer tokens, K or t of them, V vocabulary, D width."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from soul_cli.core.types import Inputs, UserError
from soul_cli.models.head import Head, body
from soul_cli.objective.losses import token_logps, wide

STANDING = 1 << 25  # logits that stand at a time: 128 MiB in float32, and a few times that beside them


class Look(NamedTuple):
    """A question about the logits of some answer tokens.

    of(logits (t, V) float32 or wider, *columns (t, ...)) -> (t,) or (t, k), each token by itself: it is called with all
    the tokens or with a few at a time.  With `before`, the logits of the kept head come behind those of the model.
    """

    of: Callable[..., Tensor]
    columns: tuple[Tensor, ...]  # each has an entry for each token that is looked at
    at: Tensor | None = None  # (K,) int64, which of the T tokens; None: all of them
    before: Tensor | None = None  # (K, D) their last hidden states before unlearning


class Shift(NamedTuple):
    """Something added to the output of a block, counted from 0, for the first b rows of a batch, at their first l."""

    layer: int
    delta: Tensor  # (b, l, D)


class Found(NamedTuple):
    """What a forward gives."""

    looks: list[Tensor]  # what each look finds, (K,) or (K, k)
    states: Tensor | None  # (T, D) hidden states behind a layer, where they were asked for


class AnswerModel(nn.Module):
    """A causal LM that looks at its predictions at the answer positions only.

    Logits (T, V) do not leave it.  Where they are more than STANDING numbers, they are computed for some tokens at a
    time, and once more in the backward.
    """

    # the head before unlearning; in a tuple, which hides it from the module's parameters and from what shards them
    kept_head: tuple[nn.Module, ...] = ()

    def __init__(self, lm: Any):
        super().__init__()
        self.lm = lm

    def keep_head(self, device: torch.device) -> None:
        """Keep the head as it is now, on the device, for looks that compare with the model before unlearning.

        Whole on each process: call it before the model is sharded.  A head that is not trained serves as it is.
        """
        head = Head(self.lm)
        trained = any(p.requires_grad for p in head.parameters())
        self.kept_head = ((copy.deepcopy(head).requires_grad_(False) if trained else head).to(device),)

    def hidden(self, batch: Inputs) -> Tensor:
        """Return the last hidden states at the answer positions, (T, D)."""
        given: dict[str, Tensor] = {}  # what is left out the model makes itself; not every model takes it
        if batch.position_ids is not None:
            given["position_ids"] = batch.position_ids
        if batch.mask is not None:
            given["attention_mask"] = self._mask(batch.mask)
        states = self.lm.get_submodule(body(self.lm))(
            input_ids=batch.input_ids, use_cache=False, **given
        ).last_hidden_state
        return states.flatten(0, 1)[batch.where]

    def _mask(self, mask: Tensor) -> Tensor:
        """Return a mask, True = may attend, in the form that the model's attention takes: "eager" adds it to scores."""
        if self.lm.config._attn_implementation != "eager":
            return mask
        none = torch.zeros((), dtype=self.lm.dtype, device=mask.device)
        return torch.where(mask, none, torch.finfo(none.dtype).min)

    def forward(
        self,
        batch: Inputs,
        looks: Sequence[Look],
        layer: int | None = None,
        *,
        head: bool = True,
        shift: Shift | None = None,
    ) -> Found:
        """Answer the looks.  layer: the block whose output states are wanted too.

        head: False ends the forward behind that block: there are no logits, and no looks.  shift: acts before that
        block's output is taken.
        """
        with shifted(self.lm, shift), behind(self.lm, layer, last=not head) as caught:
            hidden = self.hidden(batch)
        states = caught[0].flatten(0, 1)[batch.where] if caught else None
        return Found(self._answers(hidden, looks) if head else [], states)

    def _answers(self, hidden: Tensor, looks: Sequence[Look]) -> list[Tensor]:
        head = Head(self.lm)
        shared = wide(head(hidden)) if any(look.at is None for look in looks) and self._stands(len(hidden)) else None
        return [self._answer(head, hidden, look, shared) for look in looks]

    def _answer(self, head: nn.Module, hidden: Tensor, look: Look, shared: Tensor | None) -> Tensor:
        """One look.  shared: the logits of all tokens, where they stand."""
        heads = (head, *self.kept_head) if look.before is not None else (head,)
        if shared is not None and look.before is None:
            return look.of(shared if look.at is None else shared[look.at], *look.columns)
        own = hidden if look.at is None else hidden[look.at]
        states = (own, look.before) if look.before is not None else (own,)
        if self._stands(len(own) * len(heads)):
            return look.of(*(wide(h(s)) for h, s in zip(heads, states, strict=True)), *look.columns)
        # each look by itself: what one backward recomputes and does not use would stay for the other
        return piecewise(heads, look, states)

    def _stands(self, tokens: int) -> bool:
        return tokens * Head(self.lm).out_features <= STANDING

    def logps(self, batch: Inputs) -> Tensor:
        """Return the log-probability of each target, (T,), nats, float32 or wider."""
        return self(batch, [logps_of(batch)]).looks[0]


def logps_of(batch: Inputs) -> Look:
    """Return the look that finds the log-probability of each target."""
    return Look(token_logps, (batch.targets,))


def piecewise(heads: Sequence[Any], look: Look, states: Sequence[Tensor]) -> Tensor:
    """Return what a look finds, whole, with the logits of a few tokens at a time.

    states: for each head the hidden states (K, D) of the tokens that are looked at.  Each backward computes the logits
    once more.
    """

    def compute(*inputs: Tensor) -> Tensor:
        logits = [wide(head(some)) for head, some in zip(heads, inputs, strict=False)]
        return look.of(*logits, *inputs[len(heads) :])

    n = max(1, STANDING // (heads[0].out_features * len(heads)))
    chunks = zip(*(t.split(n) for t in (*states, *look.columns)), strict=True)
    return torch.cat([checkpoint(compute, *some, use_reentrant=False, preserve_rng_state=False) for some in chunks])


@contextmanager
def behind(lm: Any, layer: int | None, *, last: bool) -> Iterator[list[Tensor]]:
    """Catch the output (B, L, D) of a block, counted from 0.  last: the forward leaves out the blocks behind it."""
    caught: list[Tensor] = []
    if layer is None:
        yield caught
        return
    place, name, every = blocks(lm)
    hook = every[layer].register_forward_hook(
        lambda module, inputs, out: caught.append(out[0] if isinstance(out, tuple) else out)
    )
    try:
        if last:
            setattr(place, name, every[: layer + 1])
        yield caught
    finally:
        setattr(place, name, every)
        hook.remove()


@contextmanager
def shifted(lm: Any, shift: Shift | None) -> Iterator[None]:
    """Add a shift to what a block puts out."""
    if shift is None:
        yield
        return

    def add(module: nn.Module, inputs: Any, out: Any) -> Any:
        states = out[0] if isinstance(out, tuple) else out
        rows, positions, _ = (whole - own for whole, own in zip(states.shape, shift.delta.shape, strict=True))
        moved = states + pad(shift.delta, (0, 0, 0, positions, 0, rows)).to(states.dtype)
        return (moved, *out[1:]) if isinstance(out, tuple) else moved

    hook = blocks(lm)[2][shift.layer].register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def blocks(lm: Any) -> tuple[nn.Module, str, nn.ModuleList]:
    """Return the list of a model's transformer blocks, with the module that holds it and its name there."""
    kinds = set(lm._no_split_modules or ())
    for module in lm.modules():
        for name, child in module.named_children():
            # in the order of resolution: FSDP2 derives a class of its own
            if isinstance(child, nn.ModuleList) and kinds & {k.__name__ for b in child for k in type(b).__mro__}:
                return module, name, child
    raise UserError(
        f"{type(lm).__name__}: no list of transformer blocks was found, which a term on hidden states needs"
    )
