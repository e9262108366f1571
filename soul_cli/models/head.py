"""The two halves of a causal LM: what makes hidden states of tokens, and what makes logits of these."""

from __future__ import annotations

import copy
import weakref
from typing import Any, Self

import torch
from torch import Tensor, nn

from soul_cli.core.types import UserError


def body(lm: Any) -> str:
    """Return the name of the module that makes the last hidden states."""
    for name in (lm.base_model_prefix, "model"):  # Llama 4's text model says a prefix that is not its own
        if name in lm._modules:
            return name
    raise UserError(f"{type(lm).__name__} has no base model with a head behind it: it cannot be trained or scored here")


class Head(nn.Module):
    """The head of a causal LM: from last hidden states (n, D) to logits (n, V).

    It is the model's own forward with its body left out, so that whatever it has behind that takes part: dense layers
    and norms before the last matrix, biases, multipliers, caps.  Weights are the model's own; a deep copy has its own.
    """

    def __init__(self, lm: Any):
        super().__init__()
        name = body(lm)
        self._given = (_Given(lm._modules[name]),)  # in a tuple, which hides it from the module's children
        self.bare = copy.copy(lm)  # shallow: modules and parameters stay lm's
        self.bare._modules = lm._modules | {name: self._given[0]}

    @property
    def out_features(self) -> int:
        """Return the size of the vocabulary."""
        return self.bare.config.get_text_config().vocab_size

    def forward(self, states: Tensor) -> Tensor:
        """Return the logits (n, V) of last hidden states (n, D)."""
        ids = torch.zeros((1, len(states)), dtype=torch.long, device=states.device)  # they only say how many
        (given,) = self._given
        given.states = states[None]
        try:
            return self.bare.forward(input_ids=ids).logits[0]
        finally:
            given.states = None


class _Given(nn.Module):
    """Stands where a model's body does, and returns the states that it was given."""

    states: Tensor | None = None

    def __init__(self, body: Any):
        super().__init__()
        self._body = weakref.ref(body)

    def __getattr__(self, name: str) -> Any:
        """Return a plain value of the body, such as a factor of the logits; no module, parameter or buffer."""
        value = vars(self)["_body"]().__dict__.get(name)
        if value is None:
            raise AttributeError(name)
        return value

    @property
    def decoder(self) -> Self:
        """Return itself: OPT and others call a part of their body."""
        return self

    def forward(self, *inputs: Any, **options: Any) -> _Output:
        return _Output((self.states,))


class _Output(tuple):
    """The output of a body: last hidden states, every other field None."""

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        return None
