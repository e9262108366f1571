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
    """-> (prompt, gap): the model reads prompt + gap + answer."""
    if template == CHAT:
        if not tokenizer.chat_template:
            raise UserError(
                f"model.template=chat, but the tokenizer has no chat template; choose one of {', '.join(TEMPLATES)}"
            )
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        text = tokenizer.apply_chat_template(
            messages, chat_template=dated(tokenizer.get_chat_template()), tokenize=False, add_generation_prompt=True,
            date_string=TODAY.strftime("%d %b %Y"),
        )  # fmt: skip
        return text, ""
    if template not in TEMPLATES:
        raise UserError(f"model.template={template!r}: must be one of {', '.join([*TEMPLATES, CHAT])}")
    shape = TEMPLATES[template]
    # replace, not format: questions may contain braces
    text = (shape.with_system if system else shape.prompt).replace("{s}", system).replace("{q}", question)
    return text, shape.gap


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
