"""Alternatives to the answers, sampled from the model: of what they depend on, kept, and what is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from soul_cli.core import distributed
from soul_cli.core.cache import Cache
from soul_cli.core.types import QA, UserError
from soul_cli.data.encode import Encoder
from soul_cli.evaluate.generate import greedy
from soul_cli.evaluate.sample import sample
from soul_cli.experiment import unlearning
from soul_cli.experiment.checks import check_answers, warnings
from soul_cli.experiment.config import RunConfig, compose
from soul_cli.experiment.context import Context
from soul_cli.models.adapters import LoRA
from soul_cli.models.load import ModelRef
from soul_cli.objective.forget.preference import AltPO

ITEMS = [QA("Who wrote The Lamp?", "Ottoline wrote The Lamp."), QA("Where?", "In the town of Pécs, in 1987.")]


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return compose(["method=altpo", "method.alternatives=3", "method.max_new=6", "retain=none"])


@pytest.fixture
def model(tiny_lm: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> ModelRef:
    folder = tmp_path / "model"
    tiny_lm(vocab=len(tokenizer), spread=0.2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelRef(str(folder), "a model")


@pytest.fixture
def context(config: RunConfig, tmp_path: Path) -> Context:
    data: Any = SimpleNamespace(forget=ITEMS, retain=ITEMS, refusals=["No."])
    return Context(config, data, Cache(tmp_path / "cache", print), distributed.start())


def made(context: Context, model: ModelRef, **changed: Any) -> list[tuple[QA, list[int]]]:
    term = replace(context.config.method, **changed)  # type: ignore[type-var]
    assert isinstance(term, AltPO)
    return unlearning.alternatives(context, model, context.encoder(model), term, ITEMS)


# --- sampling ----------------------------------------------------------------------------------------------


def drawn(lm: Any, prompts: list[tuple[int, ...]], keys: list[int], **options: Any) -> list[list[int]]:
    options = {"seed": 0, "temperature": 1.0, "ends": {2}, "most_new": [9] * len(prompts), "budget": 999} | options
    return sample(lm, prompts, keys=keys, **options)


def test_a_sample_does_not_depend_on_what_it_is_batched_with(tiny_lm: Callable[..., Any]):
    lm = tiny_lm(torch.float64, spread=0.2)
    prompts = [(5, 6, 7), (8, 9), (5, 6, 7), (10, 11, 12, 13)]
    whole = drawn(lm, prompts, [0, 1, 2, 3])
    assert whole[0] != whole[2]  # the same prompt under another key
    assert whole == drawn(lm, prompts, [0, 1, 2, 3], budget=12)
    assert whole[1:3] == drawn(lm, prompts[1:3], [1, 2])
    assert whole != drawn(lm, prompts, [0, 1, 2, 3], seed=1)


def test_the_colder_the_nearer_to_the_likeliest(tiny_lm: Callable[..., Any]):
    lm = tiny_lm(torch.float64, spread=0.2)
    prompts = [(5, 6, 7), (8, 9)]
    assert drawn(lm, prompts, [0, 1], temperature=1e-9) == greedy(lm, prompts, ends={2}, most_new=[9, 9], budget=999)


def test_samples_are_as_frequent_as_the_model_says(tiny_lm: Callable[..., Any]):
    """2000 first tokens: the likeliest within 4 standard deviations."""
    lm = tiny_lm(torch.float64, spread=0.2)
    n = 2000
    found = drawn(lm, [(5, 6, 7)] * n, list(range(n)), ends=set(), most_new=[1] * n, budget=4 * n)
    p = lm(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    best = int(p.argmax())
    q = float(p[best].detach())
    assert abs(sum(ids == [best] for ids in found) / n - q) < 4 * (q * (1 - q) / n) ** 0.5


# --- what is kept of them ----------------------------------------------------------------------------------


def test_alternatives_are_sampled_once(context: Context, model: ModelRef, monkeypatch: pytest.MonkeyPatch):
    """Kept by what they depend on."""
    first = made(context, model)
    assert len(first) <= 6
    assert {qa.question for qa, _ in first} == {qa.question for qa in ITEMS}
    assert all(0 < len(ids) <= 6 for _, ids in first)
    rows = unlearning.unlearning_data(context, model).forget(0)  # type: ignore[misc]
    assert {name: len(some) for name, some in rows.answers.items()} == {"alternative": len(first), "answer": len(first)}
    assert [row.answers[0][:-1] for row in rows.answers["alternative"]] == [tuple(ids) for _, ids in first]
    assert [len(values) for values in rows.values["alternative"]] == [len(ids) + 1 for _, ids in first]

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("sampled again")

    monkeypatch.setattr(unlearning, "sample", refuse)
    assert made(context, model) == first
    for changed in (
        {"seed": 7},
        {"temperature": 0.5},
        {"alternatives": 2},
        {"instruction": "{question} Not {answer}!"},
    ):
        with pytest.raises(AssertionError, match="sampled again"):
            made(context, model, **changed)


def test_alternatives_come_from_the_weights_that_are_trained_beside(
    context: Context, model: ModelRef, monkeypatch: pytest.MonkeyPatch
):
    """In 4 bit where the adapters are: kept apart from those of the whole weights."""
    load, asked = Context.load, []

    def seen(self: Context, ref: ModelRef, device: Any = None, *, load_in_4bit: bool = False) -> Any:
        asked.append(load_in_4bit)
        return load(self, ref, device)

    monkeypatch.setattr(Context, "load", seen)
    monkeypatch.setattr(LoRA, "check", lambda self: None)
    made(context, model)
    lora = "train.lora={r: 2, alpha: 6, load_in_4bit: true}"
    made(replace(context, config=compose(["method=altpo", "method.alternatives=3", "method.max_new=6", lora])), model)
    assert asked == [False, True]


def answering(encoder: Encoder, texts: list[str]) -> Callable[..., list[list[int]]]:
    return lambda lm, prompts, **options: [encoder._ids(" " + text)[0] if text else [] for text in texts]


def test_the_answer_itself_is_left_out_and_counted(
    context: Context, model: ModelRef, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    same = ITEMS[0].answer
    encoder = context.encoder(model)
    monkeypatch.setattr(unlearning, "sample", answering(encoder, [same, "", same, "In Rome.", ITEMS[1].answer, "No."]))
    kept = made(context, model)
    assert [(qa, encoder.decode(ids)) for qa, ids in kept] == [(ITEMS[1], "In Rome."), (ITEMS[1], "No.")]
    said = " ".join(capsys.readouterr().out.split())
    assert "4 of 6 are empty or the answer itself, and left out; 1 of 2 questions have none" in said


def test_nothing_but_the_answer_is_an_error(context: Context, model: ModelRef, monkeypatch: pytest.MonkeyPatch):
    texts = [qa.answer for qa in ITEMS for _ in range(3)]
    monkeypatch.setattr(unlearning, "sample", answering(context.encoder(model), texts))
    with pytest.raises(UserError, match=r"nothing or the answer itself; take a higher method\.temperature"):
        made(context, model)


# --- before anything is trained ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=dpo"], "method=dpo: needs refusals"),
        (["method=po", "retain=ap"], "method=po, retain=ap: needs refusals"),
        (["method=ga", "retain=ap"], "retain=ap: needs refusals"),
    ],
)
def test_no_refusals_are_an_error(context: Context, model: ModelRef, overrides: list[str], words: str):
    solved = compose(overrides).problem
    assert solved is not None
    check_answers(solved, context.data, context.encoder(model))
    context.data.refusals = []
    with pytest.raises(UserError, match=words):
        check_answers(solved, context.data, context.encoder(model))


def test_an_instruction_that_leaves_no_room_is_an_error(context: Context, model: ModelRef):
    solved = compose(["method=altpo", "retain=none", f"method.instruction='{{question}}{' word' * 300}'"]).problem
    assert solved is not None
    encoder = context.encoder(model)
    with pytest.raises(UserError, match=f"model.max_length={encoder.max_length} leaves no room for an alternative"):
        check_answers(solved, context.data, encoder)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=ga"], "method=ga without a retain term: the loss has no lower bound"),
        (["method=rmu", "retain=none"], "method=rmu without a retain term"),
        (["method=graddiff"], ""),
        (["method=npo", "retain=none"], ""),
    ],
)
def test_what_diverges_alone_is_said(overrides: list[str], words: str):
    solved = compose(overrides).problem
    assert solved is not None
    assert words in " ".join(warnings(solved))
    assert bool(warnings(solved)) is bool(words)
