"""soul_cli.evaluate.abilities: what is tried of a model, and what follows from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import tiny
from test_architectures import GROUPS, NEW, PROMPTS, own

from soul_cli.core.types import Prompted, UserError
from soul_cli.data.batches import collate
from soul_cli.evaluate import abilities as module
from soul_cli.evaluate import likelihood
from soul_cli.evaluate.abilities import abilities
from soul_cli.evaluate.decoding import Kept, Leaving, Rows, Staying
from soul_cli.evaluate.generate import greedy
from soul_cli.evaluate.likelihood import score
from soul_cli.models.answer_model import AnswerModel


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gptj", "gpt_neox", "opt"])
def test_the_fast_ways_stay_where_they_are_right(kind: str, dtype: torch.dtype):
    found = abilities(tiny(kind).to(dtype))
    assert found.trees
    assert found.decoding is Leaving


def test_rounding_in_a_deep_model_is_no_error():
    assert abilities(tiny("llama", num_hidden_layers=12).bfloat16()).trees


@pytest.mark.parametrize(
    ("kind", "decoding"),
    [("mpt", Leaving), ("lfm2", Staying), ("qwen3_next", Staying), ("mamba", Kept), ("minimax", Kept), ("rwkv", Rows)],
)
def test_where_they_are_wrong_there_are_others(kind: str, decoding: type[Rows]):
    """ALiBi counts siblings as tokens between; recurrent layers run from one branch into the other."""
    found = abilities(tiny(kind))
    assert not found.trees
    assert found.decoding is decoding


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_way_attention_is_computed_changes_nothing(attention: str):
    lm, other = tiny("llama"), tiny("llama")
    other.set_attn_implementation(attention)
    assert abilities(other).trees
    for some, others in zip(*(score(AnswerModel(m), GROUPS, budget=99) for m in (lm, other)), strict=True):
        for a, b in zip(some, others, strict=True):
            assert a.logps == pytest.approx(b.logps, abs=1e-5)


def test_trees_are_no_longer_than_windows(monkeypatch: pytest.MonkeyPatch):
    lm, rows = tiny("mistral", sliding_window=18), []
    assert abilities(lm).trees
    groups = [*GROUPS, Prompted((5, 4), (tuple(range(3, 21)), tuple(range(9, 40))))]
    plant = likelihood.plant
    monkeypatch.setattr(likelihood, "plant", lambda trees: (rows.extend(map(len, trees)), plant(trees))[1])
    for group, scores in zip(groups, score(AnswerModel(lm), groups, budget=99), strict=True):
        for answer, scored in zip(group.answers, scores, strict=True):
            expected = own(lm, group.prompt, answer)[range(len(answer)), answer]
            assert scored.logps == pytest.approx(expected.tolist(), abs=1e-5)
    assert sorted(rows) == [2, 7, 17, 19, 32]  # the answers of the last group stand alone


def test_decoding_is_tried_beyond_a_window():
    """Moshi's cache ends at its window, its plain forward does not."""
    assert abilities(tiny("moshi", sliding_window=8)).decoding is Rows
    assert abilities(tiny("moshi", sliding_window=100)).decoding is Rows


def test_each_model_is_tried_once_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch):
    lm, tried = tiny("llama").train(), []
    monkeypatch.setattr(module, "_tried", lambda lm: (tried.append(lm.training), 1)[1])
    assert abilities(lm) == abilities(lm) == 1
    assert tried == [False]
    assert lm.training


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_model_that_sees_the_answer_is_refused(kind: str):
    with pytest.raises(UserError, match=rf"{kind}.* from what comes after it"):
        abilities(tiny(kind, is_decoder=False))
    abilities(tiny(kind))


def test_a_head_that_is_not_the_models_is_refused():
    """As when one day a model does something behind its body that a plain call shows and the head here does not."""
    lm = tiny("llama")
    lm.register_forward_hook(lambda module, inputs, out: out.__setitem__("logits", 2 * out.logits))
    with pytest.raises(UserError, match=r"LlamaForCausalLM \(llama\) cannot be trained or scored here.* nats off"):
        abilities(lm)


def test_a_model_that_cannot_be_called_is_refused_in_one_message():
    lm = tiny("llama")
    lm.model.embed_tokens = torch.nn.Embedding(3, 32)
    with pytest.raises(UserError, match=r"llama\) cannot be trained or scored here.*IndexError"):
        abilities(lm)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e20])
@pytest.mark.parametrize("kind", ["llama", "lfm2"])
def test_a_destroyed_model_is_no_reason_to_stop(kind: str, weight: float):
    lm = tiny(kind)
    torch.nn.init.constant_(lm.model.layers[0].input_layernorm.weight if kind == "llama" else lm.lm_head.weight, weight)
    assert len(score(AnswerModel(lm), GROUPS, budget=99)) == len(GROUPS)
    assert len(greedy(lm, PROMPTS, ends={2}, most_new=NEW, budget=99)) == len(PROMPTS)


def test_progress_counts_groups_whatever_the_rows_are():
    for kind in ("llama", "mamba"):
        done: list[int] = []
        score(AnswerModel(tiny(kind)), GROUPS, budget=8, progress=done.append)
        assert sum(done) == len(GROUPS)


@pytest.mark.parametrize("kind", ["gemma2", "falcon_h1", "granite", "cohere", "modernbert-decoder", "recurrent_gemma"])
def test_training_sees_the_models_own_loss(kind: str, exact: None):
    """Caps, factors and layers behind the last hidden state take part in the gradient too."""
    values: dict[str, Any] = {"granite": {"logits_scaling": 3.0}, "gemma2": {"final_logit_softcapping": 1.5}}
    lm = tiny(kind, **values.get(kind, {})).double()
    group = GROUPS[0]
    answer = group.answers[0]
    ids = torch.tensor([[*group.prompt, *answer]])
    labels = torch.tensor([[-100] * len(group.prompt) + list(answer)])
    lm(ids, labels=labels).loss.backward()
    expected = [p.grad.clone() for p in lm.parameters() if p.grad is not None]
    lm.zero_grad()
    (-AnswerModel(lm).logps(collate([Prompted(group.prompt, (answer,))])).mean()).backward()
    found = [p.grad for p in lm.parameters() if p.grad is not None]
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
