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
    """-> (prompt, gap): the model reads prompt + gap + answer."""
    if template == CHAT:
        if not tokenizer.chat_template:
            raise UserError(
                f"model.template=chat, but the tokenizer has no chat template; choose one of {', '.join(TEMPLATES)}"
            )
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), ""
    if template not in TEMPLATES:
        raise UserError(f"model.template={template!r}: must be one of {', '.join([*TEMPLATES, CHAT])}")
    shape = TEMPLATES[template]
    # replace, not format: questions may contain braces
    text = (shape.with_system if system else shape.prompt).replace("{s}", system).replace("{q}", question)
    return text, shape.gap
