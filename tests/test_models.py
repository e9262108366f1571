"""Predictions at the answer positions: computed at once, or for some tokens at a time."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from soul_cli.core.types import Prompted
from soul_cli.data.batches import collate
from soul_cli.evaluate.likelihood import score, scores
from soul_cli.models import answer_model as models
from soul_cli.models.answer_model import AnswerModel, Look
from soul_cli.models.load import ModelRef, autocast, load
from soul_cli.optim.curvature import drawn_logps, uniforms

VOCAB, TOKENS = 48, 11
GROUPS = [Prompted((5, 6), ((7, 8, 2, 9),)), Prompted((9,), ((4, 2, 3),)), Prompted((4, 4, 5), ((7, 7, 9, 2),))]
KEEP = torch.arange(TOKENS) % 3 != 1


def step(model: AnswerModel, context: Any = nullcontext) -> tuple[list[Tensor], Tensor, Tensor]:
    """Scores and drawn labels, and the gradient of each: two backwards through one forward."""
    params = list(model.parameters())
    index = torch.arange(TOKENS)
    with context():
        batch, at = collate(GROUPS), KEEP.nonzero().squeeze(1)
        labels = Look(drawn_logps, (uniforms(1, 2, index, index)[at],), at)
        found, drawn = model(batch, [Look(scores, (batch.targets,)), labels]).looks
    of = (-drawn.sum(), (found[:, 0] * torch.linspace(-1, 2, TOKENS)).sum())
    curvature, grads = (torch.autograd.grad(loss, params, retain_graph=True) for loss in of)
    return [found, drawn], *(torch.cat([g.flatten() for g in some]) for some in (grads, curvature))


@pytest.mark.parametrize("rows", [1, 3, TOKENS - 1, TOKENS])
def test_some_tokens_at_a_time_are_all_at_once(tiny_lm: Callable[..., Any], monkeypatch: Any, rows: int) -> None:
    model = AnswerModel(tiny_lm(torch.float64, vocab=VOCAB, spread=0.3))
    expected = step(model)
    seen: list[int] = []
    model.lm.lm_head.register_forward_hook(lambda module, inputs, logits: seen.append(logits.shape[-2]))
    monkeypatch.setattr(models, "STANDING", rows * VOCAB)
    found, grads, curvature = step(model)
    assert max(seen) == rows
    # forward and backward for the scores, and for the labels where they are too many as well
    drawn = int(KEEP.sum())
    assert sum(seen) == (TOKENS if rows == TOKENS else 2 * TOKENS + drawn * (2 if drawn > rows else 1))
    exact = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(found, expected[0], **exact)
    torch.testing.assert_close(grads, expected[1], **exact)
    torch.testing.assert_close(curvature, expected[2], **exact)
    assert found[1].shape == (int(KEEP.sum()),)


def test_predictions_are_the_language_models(tiny_lm: Callable[..., Any]) -> None:
    lm = tiny_lm(torch.float64, vocab=VOCAB, spread=0.3)
    single = Prompted((5, 6), ((7, 8, 2),))
    batch = collate([single])
    (found,) = AnswerModel(lm)(batch, [Look(scores, (batch.targets,))]).looks
    logits = lm(torch.tensor([[5, 6, 7, 8, 2]])).logits[0, 1:4]
    expected = logits.log_softmax(-1)[range(3), (7, 8, 2)]
    torch.testing.assert_close(found[:, 0], expected, rtol=0, atol=1e-12)
    assert found[:, 1].tolist() == (logits.argmax(-1) == torch.tensor([7, 8, 2])).tolist()


def test_under_autocast_the_backward_computes_what_the_forward_did(tiny_lm: Callable[..., Any], monkeypatch: Any):
    model = AnswerModel(tiny_lm(vocab=VOCAB, spread=0.3))
    expected = step(model, lambda: autocast(torch.device("cpu"), "bf16"))
    monkeypatch.setattr(models, "STANDING", 4 * VOCAB)
    found, grads, _ = step(model, lambda: autocast(torch.device("cpu"), "bf16"))
    torch.testing.assert_close(found, expected[0])
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(grads, expected[1], rtol=0.02, atol=0.02)  # sums of bf16 products, in another order


def test_scores_do_not_depend_on_how_many_logits_stand(tiny_lm: Callable[..., Any], monkeypatch: Any) -> None:
    model = AnswerModel(tiny_lm(torch.float64, vocab=VOCAB, spread=0.3))
    groups = [*GROUPS, Prompted((9, 4), ((4, 2), (3,), (4, 5)))]
    expected = score(model, groups, budget=99, score_prompt=True)
    monkeypatch.setattr(models, "STANDING", 2 * VOCAB)
    for some, others in zip(score(model, groups, budget=99, score_prompt=True), expected, strict=True):
        for a, b in zip(some, others, strict=True):
            assert a.logps == pytest.approx(b.logps, abs=1e-12)
            assert a.correct == b.correct


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_weights_are_read_straight_to_a_gpu(
    tiny_lm: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    tiny_lm().save_pretrained(tmp_path)
    read, given = AutoModelForCausalLM.from_pretrained, []

    def noted(path: str, *, device_map: Any = None, **options: Any) -> Any:
        given.append(device_map)
        return read(path, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", noted)
    load(ModelRef(str(tmp_path), ""), torch.device(device), "bfloat16")
    assert given == [None if device == "cpu" else {"": torch.device(device)}]
