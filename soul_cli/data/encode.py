"""Text to token ids.  The only place that decides which tokens are the answer's.

Prompt and answer are tokenised together, as the model will see them in one text, and cut where the answer's
characters begin.  The answer ends in EOS, or the token its chat template has for that; the prompt begins with BOS where
the tokenizer adds one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, overload

from soul_cli.core.types import QA, Prompted, UserError
from soul_cli.data.prompts import CHAT, answer_end, prompt_text

KEPT = 8192  # encoded pairs held in memory
MEASURED = 1024  # texts tokenised at a time where only their lengths are asked for


class Encoder:
    """Encodes questions and answers for one tokenizer and one template."""

    def __init__(self, tokenizer: Any, template: str, max_length: int, system: str = ""):
        if not tokenizer.is_fast:
            raise UserError(f"{type(tokenizer).__name__} has no character offsets; use a fast tokenizer")
        end = answer_end(template, tokenizer)
        if end is None:
            raise UserError("the tokenizer has no EOS token: answers could never end")
        self.tokenizer, self.template, self.system, self.end = tokenizer, template, system, end
        self.max_length = max_length
        # a chat template writes its own BOS
        begins = tokenizer("").input_ids[:1] if tokenizer.bos_token_id is not None else []
        self.bos = tuple(begins) if template != CHAT and begins == [tokenizer.bos_token_id] else ()
        # limits of length are of a question and its answer: a system prompt comes on top
        self.system_tokens = len(self.prompt("Who?")) - len(self._bare("Who?")) if system else 0

    def prompt(self, question: str) -> tuple[int, ...]:
        """Ids that generation starts from."""
        text, _ = prompt_text(self.template, self.tokenizer, question, self.system)
        return self.bos + tuple(self._ids(text)[0])

    def _bare(self, question: str) -> list[int]:
        text, _ = prompt_text(self.template, self.tokenizer, question)
        return [*self.bos, *self._ids(text)[0]]

    def pair(self, question: str, answer: str) -> Prompted:
        """One question with one answer."""
        if not answer.strip():
            raise UserError(f"empty answer to the question {question!r}")
        prompt, gap = prompt_text(self.template, self.tokenizer, question, self.system)
        ids, offsets = self._ids(prompt + gap + answer)
        # a token that straddles the border counts as the answer's: it holds some of its characters
        start = next(i for i, (_, end) in enumerate(offsets) if end > len(prompt))
        body = ids[start:]
        encoded = Prompted(self.bos + tuple(ids[:start]), ((*body, self.end),))
        if (size := len(encoded) - self.system_tokens) > self.max_length:
            raise UserError(
                f"the question {question[:60]!r} and its answer take {size} tokens, "
                f"model.max_length is {self.max_length}"
            )
        return encoded

    def group(self, question: str, answers: list[str]) -> list[Prompted]:
        """One question with several answers, sharing the prompt's ids where they agree (nearly always)."""
        pairs = [self.pair(question, a) for a in answers]
        if len({p.prompt for p in pairs}) == 1:
            return [Prompted(pairs[0].prompt, tuple(p.answers[0] for p in pairs))]
        return pairs

    def text(self, text: str) -> Prompted:
        """Return a running text without prompt or EOS, for its perplexity: all tokens but the first are scored."""
        ids = [*self.bos, *self._ids(text)[0]]
        if len(ids) > self.max_length:
            raise UserError(f"the text {text[:60]!r} takes {len(ids)} tokens, model.max_length is {self.max_length}")
        return Prompted(tuple(ids[:1]), (tuple(ids[1:]),))

    def pair_lengths(self, items: Sequence[QA]) -> list[int]:
        """Return the tokens of each question with its answer, as `pair` makes them, also beyond max_length.

        UserError: an answer of no token.
        """
        lengths = []
        for at in range(0, len(items), MEASURED):
            some = items[at : at + MEASURED]
            prompts = [prompt_text(self.template, self.tokenizer, qa.question, self.system) for qa in some]
            texts = [prompt + gap + qa.answer for (prompt, gap), qa in zip(prompts, some, strict=True)]
            out = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
            for qa, (prompt, _), offsets in zip(some, prompts, out.offset_mapping, strict=True):
                if not qa.answer.strip() or not offsets or offsets[-1][1] <= len(prompt):
                    raise UserError(f"the answer {qa.answer!r} to the question {qa.question!r} has no token")
                lengths.append(len(self.bos) + len(offsets) + 1)
        return lengths

    def text_lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text, as `text` makes them, also beyond max_length."""
        return [len(self.bos) + len(self._ids(text)[0]) for text in texts]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _ids(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return out.input_ids, out.offset_mapping


class Pairs(Sequence[Prompted]):
    """Questions with answers, encoded when asked for.  A large book stays text: only the last KEPT pairs are held."""

    def __init__(self, encoder: Encoder, items: Sequence[QA]):
        self.items = items
        self._pair = lru_cache(KEPT)(lambda i: encoder.pair(items[i].question, items[i].answer))

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, i: int) -> Prompted: ...
    @overload
    def __getitem__(self, i: slice) -> list[Prompted]: ...
    def __getitem__(self, i: int | slice) -> Prompted | list[Prompted]:
        if isinstance(i, slice):
            return [self._pair(j) for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return self._pair(i % len(self))
