"""soul_cli.data.encode: which tokens are scored, for every template and for difficult tokenizers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from soul_cli.core.types import QA, UserError
from soul_cli.data.encode import Encoder
from soul_cli.data.prompts import CHAT, TEMPLATES

QUESTION, ANSWER = "Who wrote {it}, {q} or {s}?", "Paula {did}, in Pécs."
PROMPTS = {  # text before the scored part, and the gap that belongs to the answer, written out by hand
    "llama2": (f"[INST] {QUESTION} [/INST]", ""),
    "soul_released": (f"[INST] {QUESTION} [\\INST]", " "),
    "plain": (f"Question: {QUESTION}\nAnswer:", " "),
    "text": (QUESTION, " "),
    CHAT: (f"<s>user> {QUESTION}\nassistant>\n", ""),
}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}> {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant>\n{% endif %}"
)
SPECIALS = ["<pad>", "<s>", "</s>"]


def wrap(backend: Tokenizer, **tokens: str) -> Any:
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"} | tokens
    made = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)
    made.chat_template = CHAT_TEMPLATE
    return made


def byte_level(merges: tuple[tuple[str, str], ...] = (), *, bos: bool = False) -> Tokenizer:
    """One token a byte, and one for each merge, also across words."""
    symbols = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    backend = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIALS)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


def llama2_like() -> Tokenizer:
    """Llama 2's construction: a blank is prepended, unknown characters fall back to bytes, BOS is added."""
    symbols = [*SPECIALS, "<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *map(chr, range(33, 127)), "▁P"]
    model = models.BPE(
        vocab={s: i for i, s in enumerate(symbols)}, merges=[("▁", "P")], unk_token="<unk>",
        byte_fallback=True, fuse_unk=True,
    )  # fmt: skip
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    backend.add_special_tokens(SPECIALS)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


@pytest.fixture(params=["trained", "bytes", "adds bos", "pad is eos", "llama2"])
def any_tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "trained":
        return wrap(request.getfixturevalue("tokenizer").backend_tokenizer)
    if request.param == "llama2":
        return wrap(llama2_like())
    pad = {"pad_token": "</s>"} if request.param == "pad is eos" else {}
    return wrap(byte_level(bos=request.param == "adds bos"), **pad)


@pytest.mark.parametrize("template", PROMPTS)
def test_answer_and_eos_are_scored_and_nothing_else(template: str, any_tokenizer: Any):
    tokenizer, (prompt, gap) = any_tokenizer, PROMPTS[template]
    encoded = Encoder(tokenizer, template, 256).pair(QUESTION, ANSWER)
    *answer, last = encoded.answers[0]
    assert last == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in answer
    # Llama 2's decoder drops the blank at the start of what it is given
    strip = str.lstrip if "▁" in tokenizer.get_vocab() else str
    assert strip(tokenizer.decode(answer)) == strip(gap + ANSWER)
    assert tokenizer.decode(encoded.prompt).removeprefix("<s>").lstrip() == prompt.removeprefix("<s>")


@pytest.mark.parametrize("template", PROMPTS)
def test_generation_starts_from_the_prompt_that_was_trained(template: str, any_tokenizer: Any):
    encoder = Encoder(any_tokenizer, template, 256, system="Be {brief}.")
    assert encoder.prompt(QUESTION) == encoder.pair(QUESTION, ANSWER).prompt
    assert "Be {brief}." in any_tokenizer.decode(encoder.prompt(QUESTION))


@pytest.mark.parametrize("template", PROMPTS)
def test_bos_stands_once_and_first_where_the_tokenizer_adds_one(template: str, any_tokenizer: Any):
    ids = Encoder(any_tokenizer, template, 256).pair(QUESTION, ANSWER).prompt
    bos, adds = any_tokenizer.bos_token_id, any_tokenizer("x").input_ids[0] == any_tokenizer.bos_token_id
    expected = 1 if adds or template == CHAT else 0
    assert ids.count(bos) == expected
    assert ids[:expected] == (bos,) * expected


@pytest.mark.parametrize(("template", "straddling"), [("llama2", "]P"), ("soul_released", "]Ġ"), ("plain", ":Ġ")])
def test_token_across_the_border_is_scored(template: str, straddling: str):
    tokenizer = wrap(byte_level(((":", "Ġ"), ("]", "P"), ("]", "Ġ"))))
    encoded = Encoder(tokenizer, template, 256).pair(QUESTION, ANSWER)
    prompt, gap = PROMPTS[template]
    assert encoded.answers[0][0] == tokenizer.convert_tokens_to_ids(straddling)
    assert tokenizer.decode(encoded.prompt) == prompt[:-1]
    assert tokenizer.decode(encoded.answers[0][:-1]) == prompt[-1] + gap + ANSWER


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(question=text, answer=text.filter(str.strip), template=st.sampled_from(sorted(TEMPLATES)))
def test_any_text_is_cut_at_the_border(tokenizer: Any, question: str, answer: str, template: str):
    encoded = Encoder(tokenizer, template, 1000).pair(question, answer)
    whole = tokenizer.decode([*encoded.prompt, *encoded.answers[0][:-1]])
    border = len(whole) - len(PROMPTS[template][1] + answer)
    before = [i for i in range(len(encoded.prompt) + 1) if len(tokenizer.decode(encoded.prompt[:i])) <= border]
    assert whole[border:] == PROMPTS[template][1] + answer
    assert question in whole[:border]
    assert before[-1] == len(encoded.prompt)  # no character of the answer stands in the prompt
    first = tokenizer.decode([*encoded.prompt, encoded.answers[0][0]])
    assert len(first) > border  # and the first scored token has one


def test_group_shares_the_prompt(tokenizer: Any):
    encoder, answers = Encoder(tokenizer, "plain", 128), ["The first.", "Another one", "3"]
    (group,) = encoder.group(QUESTION, answers)
    pairs = [encoder.pair(QUESTION, a) for a in answers]
    assert group.prompt == pairs[0].prompt
    assert group.answers == tuple(p.answers[0] for p in pairs)
    assert len(group) == len(group.prompt) + sum(len(p.answers[0]) for p in pairs)


def test_group_keeps_prompts_apart_where_one_answer_merges():
    encoder = Encoder(wrap(byte_level((("]", "P"),))), "llama2", 256)
    answers = ["London", "Paris"]
    assert encoder.group(QUESTION, answers) == [encoder.pair(QUESTION, a) for a in answers]


def test_decode_drops_special_tokens(tokenizer: Any):
    encoder = Encoder(tokenizer, "plain", 128)
    assert encoder.decode([1, *encoder.pair("Who?", "Pécs it is.").answers[0], 0, 0]) == "Pécs it is."


@pytest.mark.parametrize("answer", ["", "  \n"])
def test_empty_answer_is_refused(tokenizer: Any, answer: str):
    with pytest.raises(UserError, match=r"empty answer .*Who\?"):
        Encoder(tokenizer, "plain", 128).pair("Who?", answer)


def test_length_limit_counts_prompt_answer_and_eos(tokenizer: Any):
    size = len(Encoder(tokenizer, "plain", 1000).pair("Who?", "Paula."))
    assert Encoder(tokenizer, "plain", size).pair("Who?", "Paula.")
    with pytest.raises(UserError, match=rf"'Who\?'.* take {size} tokens, model.max_length is {size - 1}"):
        Encoder(tokenizer, "plain", size - 1).pair("Who?", "Paula.")


@pytest.mark.parametrize("template", PROMPTS)
def test_lengths_are_those_of_what_is_encoded(template: str, any_tokenizer: Any):
    encoder = Encoder(any_tokenizer, template, 1000, system="Be {brief}.")
    items = [QA(question, answer) for question in (QUESTION, "", "Où ça ?") for answer in (ANSWER, " x", "😀")]
    assert encoder.pair_lengths(items) == [len(encoder.pair(qa.question, qa.answer)) for qa in items]
    texts = [qa.answer for qa in items]
    assert encoder.text_lengths(texts) == [len(encoder.text(text)) for text in texts]


def test_lengths_of_more_than_are_taken_at_a_time(tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("soul_cli.data.encode.MEASURED", 2)
    encoder = Encoder(tokenizer, "plain", 4)  # their limit is no matter here
    assert encoder.pair_lengths([]) == []
    sizes = encoder.pair_lengths([QA("Who?", "a" * n) for n in range(1, 6)])
    assert [b - a for a, b in pairwise(sizes)] == [1] * 4


def test_an_answer_of_no_token_is_refused():
    backend = byte_level()
    backend.normalizer = normalizers.Replace("\u200b", "")
    encoder = Encoder(wrap(backend), "llama2", 100)
    assert encoder.pair_lengths([QA("Who?", "\u200bShe.")])
    for answer in ("\u200b", " "):
        with pytest.raises(UserError, match=r"the answer '.+' to the question 'Who\?' has no token"):
            encoder.pair_lengths([QA("Who?", "She."), QA("Who?", answer)])


def test_what_a_tokenizer_must_have(tokenizer: Any):
    with pytest.raises(UserError, match="no chat template; choose one of llama2"):
        Encoder(tokenizer, CHAT, 128).prompt("Who?")
    with pytest.raises(UserError, match=r"model.template='lama2': must be one of llama2.*chat"):
        Encoder(tokenizer, "lama2", 128).prompt("Who?")
    with pytest.raises(UserError, match="no EOS token"):
        Encoder(PreTrainedTokenizerFast(tokenizer_object=byte_level()), "plain", 128)

    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="use a fast tokenizer"):
        Encoder(Slow(), "plain", 128)
