"""Prompt templates by name: text of a question -> text that the answer follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from soul_cli.core.types import UserError


@dataclass(frozen=True)
class Template:
    """prompt and with_system have {q} (question) and {s} (system prompt); `gap` stands before the answer."""

    prompt: str
    with_system: str
    gap: str = ""


TEMPLATES: dict[str, Template] = {
    "llama2": Template(  # TOFU's data configuration: no space after the closing tag
        "[INST] {q} [/INST]", "[INST] <<SYS>>\n{s}\n<</SYS>>\n\n{q} [/INST]"
    ),
    # SOUL's released code closes with a backslash, which changes its numbers; for comparison only
    "soul_released": Template("[INST] {q} [\\INST]", "[INST] <<SYS>>\n{s}\n<</SYS>>\n\n{q} [\\INST]", gap=" "),
    # running text, for books: instruction and first words, then the continuation
    "text": Template("{q}", "{s}\n\n{q}", gap=" "),
    # the gap belongs to the answer: tokenizers with byte-level BPE join it to the first word
    "plain": Template("Question: {q}\nAnswer:", "{s}\n\nQuestion: {q}\nAnswer:", gap=" "),
}
CHAT = "chat"  # the tokenizer's own chat template


def prompt_text(template: str, tokenizer: Any, question: str, system: str = "") -> tuple[str, str]:
    """Return (prompt, gap): the model reads prompt + gap + answer."""
    if template == CHAT:
        if not tokenizer.chat_template:
            raise UserError(
                f"model.template=chat, but the tokenizer has no chat template; choose one of {', '.join(TEMPLATES)}"
            )
        if system and takes_system(tokenizer):
            return _chat(tokenizer, {"system": system, "user": question}), ""
        return _chat(tokenizer, {"user": f"{system}\n\n{question}" if system else question}), ""
    if template not in TEMPLATES:
        raise UserError(f"model.template={template!r}: must be one of {', '.join([*TEMPLATES, CHAT])}")
    shape = TEMPLATES[template]
    # replace, not format: questions may contain braces
    text = (shape.with_system if system else shape.prompt).replace("{s}", system).replace("{q}", question)
    return text, shape.gap


def _chat(tokenizer: Any, turns: dict[str, str], **options: bool) -> str:
    """Return the turns (role -> text) as the tokenizer's chat template writes them."""
    messages = [{"role": role, "content": text} for role, text in turns.items()]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **{"add_generation_prompt": True, **options})
    except Exception as error:  # whatever a template raises
        raise UserError(
            f"model.template=chat: the tokenizer's chat template does not take the roles {', '.join(turns)} "
            f"({type(error).__name__}: {error}); choose one of {', '.join(TEMPLATES)}"
        ) from error


def takes_system(tokenizer: Any) -> bool:
    """Return whether the chat template has a system role; where not, a system prompt opens the user's turn."""
    words = "Answer briefly."
    try:
        return words in _chat(tokenizer, {"system": words, "user": "Who?"})
    except UserError:
        return False


def answer_end(template: str, tokenizer: Any) -> int | None:
    """Return the token that ends an answer: EOS, or the one that the chat template ends the assistant's turn with.

    That is the first special token it writes behind an answer.  None: the tokenizer has no EOS.
    """
    if template != CHAT or not tokenizer.chat_template:
        return tokenizer.eos_token_id
    words = "It was Paula."
    try:
        text = _chat(tokenizer, {"user": "Who?", "assistant": words}, add_generation_prompt=False)
    except UserError:
        return tokenizer.eos_token_id
    behind = tokenizer(text.rpartition(words)[2], add_special_tokens=False).input_ids
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((i for i in behind if i in special), tokenizer.eos_token_id)
