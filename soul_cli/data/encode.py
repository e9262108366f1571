"""Text to token ids.  The only place that decides which tokens are the answer's.

Prompt and answer are tokenised together, as the model will see them in one text, and cut where the answer's
characters begin.  The answer ends in EOS, the prompt begins with BOS where the tokenizer adds one.
"""

from __future__ import annotations

from typing import Any

from soul_cli.data.prompts import CHAT, prompt_text
from soul_cli.types import Prompted, UserError


class Encoder:
    """Encodes questions and answers for one tokenizer and one template."""

    def __init__(self, tokenizer: Any, template: str, max_length: int, system: str = ""):
        if not tokenizer.is_fast:
            raise UserError(f"{type(tokenizer).__name__} has no character offsets; use a fast tokenizer")
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no EOS token: answers could never end")
        self.tokenizer, self.template, self.system = tokenizer, template, system
        self.max_length = max_length
        # a chat template writes its own BOS
        begins = tokenizer("").input_ids[:1] if tokenizer.bos_token_id is not None else []
        self.bos = tuple(begins) if template != CHAT and begins == [tokenizer.bos_token_id] else ()

    def prompt(self, question: str) -> tuple[int, ...]:
        """Ids that generation starts from."""
        text, _ = prompt_text(self.template, self.tokenizer, question, self.system)
        return self.bos + tuple(self._ids(text)[0])

    def pair(self, question: str, answer: str) -> Prompted:
        """One question with one answer."""
        if not answer.strip():
            raise UserError(f"empty answer to the question {question!r}")
        prompt, gap = prompt_text(self.template, self.tokenizer, question, self.system)
        ids, offsets = self._ids(prompt + gap + answer)
        # a token that straddles the border counts as the answer's: it holds some of its characters
        start = next(i for i, (_, end) in enumerate(offsets) if end > len(prompt))
        body = ids[start:]
        encoded = Prompted(self.bos + tuple(ids[:start]), ((*body, self.tokenizer.eos_token_id),))
        if len(encoded) > self.max_length:
            raise UserError(
                f"the question {question[:60]!r} and its answer take {len(encoded)} tokens, "
                f"model.max_length is {self.max_length}"
            )
        return encoded

    def group(self, question: str, answers: list[str]) -> list[Prompted]:
        """One question with several answers, sharing the prompt's ids where they agree (nearly always)."""
        pairs = [self.pair(question, a) for a in answers]
        if len({p.prompt for p in pairs}) == 1:
            return [Prompted(pairs[0].prompt, tuple(p.answers[0] for p in pairs))]
        return pairs

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _ids(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return out.input_ids, out.offset_mapping
