"""Prompt templates by name: text of a question -> text that the answer follows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
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
# the day that chat templates are rendered on, so that a model is trained and evaluated on one prompt whatever the clock
# says: that of open-unlearning's configurations of Llama 3 (`date_string`)
TODAY = datetime(2025, 4, 10)


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
        return tokenizer.apply_chat_template(
            messages, chat_template=dated(tokenizer.get_chat_template()), tokenize=False,
            date_string=TODAY.strftime("%d %b %Y"), **{"add_generation_prompt": True, **options},
        )  # fmt: skip
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


def dated(template: str) -> str:
    """Return a chat template (Jinja) whose clock, `strftime_now`, stands at TODAY.

    A macro takes the place of the function, as transformers passes no functions on to templates.
    """
    if "strftime_now" not in template:
        return template
    values = {f"%{c}": TODAY.strftime(f"%{c}") for c in "aAbBcdfGHIjmMpSuUVwWxXyY"}
    values |= {f"%-{c}": values[f"%{c}"].lstrip("0") or "0" for c in "dHIjmMSUWy"}
    values = {"%%": "\0", **values, "\0": "%"}
    text = "".join(f"|replace({old!r},{new!r})" for old, new in values.items())
    # a line of its own, so that the template begins where it began; a newline behind a tag is none of the text
    return f"{{% macro strftime_now(format) %}}{{{{ format{text} }}}}{{% endmacro %}}\n{template}"
