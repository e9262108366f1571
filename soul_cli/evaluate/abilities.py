"""What of the fast ways to score and to generate gives a model's own numbers: tried on a few tokens, once a model.

The measure is `lm(input_ids).logits` of one sequence alone.  What differs from it by more than the rounding of the
model's dtype is not used where there is a slower way, and refused by name where there is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from soul_cli.core.types import Prompted, UserError
from soul_cli.evaluate.decoding import Rows, ways
from soul_cli.evaluate.trees import Tree, plant
from soul_cli.models.answer_model import AnswerModel, Look
from soul_cli.models.checks import positions

TOKENS = 12  # of a sequence that is tried, more where the model has a window of attention of at most LONG tokens
LONG = 256
PROMPT, SHARED = 3, 5  # of them, those of the prompt; and those of it and of the beginning that two answers share

# tokens that attention spans, in the names of all configurations of transformers 5
WINDOWS = re.compile(r"window(_size|_len)?$|attention_chunk_size$|local_attention$|index_topk$|indexer_budget$")


@dataclass(frozen=True)
class Abilities:
    """How a model may be asked."""

    trees: bool  # answers to one prompt in one row, each behind its own beginning
    longest: float  # tokens that such a row may have
    decoding: type[Rows]  # the way to generate


_known: WeakKeyDictionary[Any, dict[str, Abilities]] = WeakKeyDictionary()  # by kind of device


def abilities(lm: Any) -> Abilities:
    """Return how the model may be asked where it lies, tried at the first call.

    UserError: its predictions cannot be had here as it gives them by itself, so that it must not be trained.
    """
    known = _known.setdefault(lm, {})
    if lm.device.type not in known:
        training = lm.training
        lm.eval()
        try:
            known[lm.device.type] = _tried(lm)
        finally:
            lm.train(training)
    return known[lm.device.type]


@torch.inference_mode()
def _tried(lm: Any) -> Abilities:
    try:
        trial = Trial(lm)
        trial.check_causal()
        trial.check_rows()
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model says to a dozen tokens that it cannot take
        raise UserError(
            f"{type(lm).__name__} ({lm.config.model_type}) cannot be trained or scored here: it cannot read "
            f"a dozen tokens ({type(error).__name__}: {error})"
        ) from error
    decoding = next((way for way in ways(lm.device) if trial.holds(partial(trial.decoded, way))), None)
    if decoding is None:
        raise UserError(f"{type(lm).__name__} cannot generate here: what it says in a batch is not what it says alone")
    return Abilities(trial.holds(trial.branched), reach(lm), decoding)


class Trial:
    """Two sequences that begin alike, the model's own predictions in each, and the rounding errors of these."""

    def __init__(self, lm: Any):
        self.lm, self.model = lm, AnswerModel(lm)
        window = min(windows(lm), default=0)
        self.length = max(TOKENS, window + 6 if window <= LONG else 0)
        ids = usable_ids(lm, 2 * self.length - SHARED)
        self.sequences = [ids[: self.length], ids[:SHARED] + ids[self.length :]]
        self.own = [self._alone(s) for s in self.sequences]
        together = self._logits(self.sequences)
        spread = torch.cat(self.own).std().nan_to_num()
        # bfloat16: .06 of the spread.  Trees of 12 random layers are .02 off, a wrong mask or padding .2 to 1
        rounding = max(8 * torch.finfo(lm.dtype).eps, 1e-5) * float(spread)
        self.tolerance = rounding + 4 * max(map(difference, together, self.own))

    def _logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return what the model says of rows of one length, normalised, (B, L, V)."""
        ids = torch.tensor([list(r) for r in rows], device=self.lm.device)
        return normal(self.lm(input_ids=ids).logits)

    def _alone(self, row: Sequence[int]) -> Tensor:
        return self._logits([row])[0]

    def check_causal(self) -> None:
        """Refuse a model that sees what comes after a token."""
        short = self._alone(self.sequences[0][:-2])
        if difference(short, self.own[0][:-2]) > self.tolerance:
            raise UserError(
                f"{type(self.lm).__name__} ({self.lm.config.model_type}) predicts a token from what comes after it: "
                "it is not a causal language model as its configuration has it"
            )

    def check_rows(self) -> None:
        """Refuse a model whose predictions in padded rows of one answer are not its own."""
        first, second = self.sequences
        rows = [Prompted(tuple(first[:PROMPT]), (tuple(first[PROMPT:]),)), Prompted((second[0],), ((second[1],),))]
        found = self._asked([Tree(row) for row in rows])
        expected = torch.cat([self.own[0][PROMPT - 1 : -1], self.own[1][:1]])
        if (off := difference(found, expected)) > self.tolerance:
            raise UserError(
                f"{type(self.lm).__name__} ({self.lm.config.model_type}) cannot be trained or scored here: answer by "
                f"answer its log-probabilities are {off:.2g} nats off those of its own forward"
            )

    def _asked(self, trees: Sequence[Tree]) -> Tensor:
        """Return the predictions (T, V) at the places that trees ask about, by AnswerModel."""
        batch = plant(trees).to(self.lm.device)
        return self.model(batch, [Look(normal, ())]).looks[0]

    def branched(self) -> float:
        """Return how far the predictions in a tree are from the model's own."""
        first, second = (s[:TOKENS] for s in self.sequences)
        prompt = tuple(first[:PROMPT])
        tree = Tree(Prompted(prompt, (tuple(first[PROMPT:]), tuple(second[PROMPT:]))))
        other = Tree(Prompted(tuple(second[:2]), ((second[2],),)))
        found = self._asked([tree, other])
        errors = [
            difference(found[torch.tensor(path, device=found.device)], own[PROMPT - 1 : TOKENS - 1])
            for path, own in zip(tree.paths, self.own, strict=True)
        ]
        return max(errors)

    def decoded(self, way: type[Rows]) -> float:
        """Return how far the predictions behind rows that grow are from the model's own.

        The first row grows beyond a window of the model, and leaves.
        """
        starts = [self.length - 6, self.length - (10 if way.mixed else 6)]
        rows = way(self.lm, [s[:n] for s, n in zip(self.sequences, starts, strict=True)], 4)
        errors: list[float] = []
        for step in range(3):
            errors += self._compare(rows, [(own, n + step) for own, n in zip(self.own, starts, strict=True)])
            rows.append(torch.tensor([s[n + step] for s, n in zip(self.sequences, starts, strict=True)]).to(rows.ids))
        if way.leaves:
            rows.keep(torch.tensor([1], device=self.lm.device))
            errors += self._compare(rows, [(self.own[1], starts[1] + 3)])
        return max(errors)

    @staticmethod
    def _compare(rows: Any, expected: list[tuple[Tensor, int]]) -> list[float]:
        found = normal(rows.predict())
        return [difference(a, own[n - 1]) for a, (own, n) in zip(found, expected, strict=True)]

    def holds(self, attempt: Callable[[], float]) -> bool:
        """Return whether an attempt succeeds and its error is one of rounding."""
        try:
            return attempt() <= self.tolerance
        except Exception:  # whatever a model says to what it cannot take
            return False


def normal(logits: Tensor) -> Tensor:
    """Return log-probabilities in float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def difference(a: Tensor, b: Tensor) -> float:
    """Return the root mean square of a - b.  What is not finite in both is no difference: the model is destroyed."""
    gap = a - b
    gap[~(a.isfinite() | b.isfinite())] = 0.0
    return float(gap.square().mean().sqrt())


def usable_ids(lm: Any, count: int) -> list[int]:
    """Return ids spread over the vocabulary, none of them one that the configuration gives a meaning."""
    config = lm.config.get_text_config()
    meant = {v for k, v in config.to_dict().items() if k.endswith("token_id") and isinstance(v, int)}
    ids = [i for i in range(config.vocab_size) if i not in meant]
    return [ids[(i + 1) * len(ids) // (count + 2)] for i in range(count)]


def reach(lm: Any) -> float:
    """Return how many tokens a tree may have: in it, siblings count as tokens between.

    No window of the model's attention may be shorter (some models replace it by the tree's mask), nor the table that
    an attention of the model's own may hold for as many positions as it reads.
    """
    table = positions(lm.config) if lm.config._attn_implementation == "eager" else None
    return min([*windows(lm), table or float("inf")])


def windows(lm: Any) -> list[int]:
    """Return the numbers of tokens that attentions of the model span where they do not span all."""
    values = lm.config.get_text_config().to_dict()
    return [v for k, v in values.items() if WINDOWS.search(k) and isinstance(v, int) and v > 0]
