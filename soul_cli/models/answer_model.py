"""A causal LM that is asked about its answers only.  Shapes: T answer tokens, K or t of them, V vocabulary, D width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from soul_cli.core.types import Inputs
from soul_cli.models.head import Head, body
from soul_cli.objective.losses import token_logps, wide

STANDING = 1 << 25  # logits that stand at a time: 128 MiB in float32, and a few times that beside them


class Look(NamedTuple):
    """A question about the logits of some answer tokens.

    of(logits (t, V) float32 or wider, *columns (t, ...)) -> (t,) or (t, k), each token by itself: it is called with all
    the tokens or with a few at a time.
    """

    of: Callable[..., Tensor]
    columns: tuple[Tensor, ...]  # each has an entry for each token that is looked at
    at: Tensor | None = None  # (K,) int64, which of the T tokens; None: all of them


class AnswerModel(nn.Module):
    """A causal LM that looks at its predictions at the answer positions only.

    Logits (T, V) do not leave it.  Where they are more than STANDING numbers, they are computed for some tokens at a
    time, and once more in the backward.
    """

    def __init__(self, lm: Any):
        super().__init__()
        self.lm = lm

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

    def forward(self, batch: Inputs, looks: Sequence[Look]) -> list[Tensor]:
        """Return what each look finds, (K,) or (K, k)."""
        hidden = self.hidden(batch)
        head = Head(self.lm)
        if len(hidden) * head.out_features <= STANDING:
            logits = wide(head(hidden))
            return [look.of(logits if look.at is None else logits[look.at], *look.columns) for look in looks]
        # each by itself: what one backward recomputes and does not use would stay for the other
        return [piecewise(head, look, hidden if look.at is None else hidden[look.at]) for look in looks]

    def logps(self, batch: Inputs) -> Tensor:
        """Return the log-probability of each target, (T,), nats, float32 or wider."""
        return self(batch, [logps_of(batch)])[0]


def logps_of(batch: Inputs) -> Look:
    """Return the look that finds the log-probability of each target."""
    return Look(token_logps, (batch.targets,))


def piecewise(head: Any, look: Look, hidden: Tensor) -> Tensor:
    """Return what a look finds, whole, with the logits of a few tokens at a time.

    hidden: (K, D), of the tokens that are looked at.  Each backward computes the logits once more.
    """

    def compute(hidden: Tensor, *columns: Tensor) -> Tensor:
        return look.of(wide(head(hidden)), *columns)

    n = max(1, STANDING // head.out_features)
    chunks = zip(hidden.split(n), *(t.split(n) for t in look.columns), strict=True)
    return torch.cat([checkpoint(compute, *some, use_reentrant=False, preserve_rng_state=False) for some in chunks])
