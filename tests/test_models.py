"""Predictions at the answer positions: computed at once, or for some tokens at a time."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from soul_cli.core.types import Prompted
from soul_cli.data.batches import collate
from soul_cli.evaluate.likelihood import score
from soul_cli.models import load as models
from soul_cli.models.load import AnswerModel, Predicted, autocast
from soul_cli.optim.curvature import GaussNewtonBartlett, uniforms

VOCAB, TOKENS = 48, 11
GROUPS = [Prompted((5, 6), ((7, 8, 2, 9),)), Prompted((9,), ((4, 2, 3),)), Prompted((4, 4, 5), ((7, 7, 9, 2),))]
KEEP = torch.arange(TOKENS) % 3 != 1


def step(model: AnswerModel, context: Any = nullcontext) -> tuple[Predicted, Tensor, Tensor]:
    """A prediction, its gradient and the curvature: two backwards through one forward, as in a training step."""
    params = list(model.parameters())
    index = torch.arange(TOKENS)
    with context():
        predicted = model(collate(GROUPS), (KEEP, uniforms(1, 2, index, index)), with_best=True)
    curvature = GaussNewtonBartlett(params)
    curvature.add(predicted.drawn)
    grads = torch.autograd.grad((predicted.logps * torch.linspace(-1, 2, TOKENS)).sum(), params)
    return predicted, torch.cat([g.flatten() for g in grads]), torch.cat([*map(torch.flatten, curvature.sums)])


@pytest.mark.parametrize("rows", [1, 3, TOKENS - 1, TOKENS])
def test_some_tokens_at_a_time_are_all_at_once(tiny_lm: Callable[..., Any], monkeypatch: Any, rows: int) -> None:
    model = AnswerModel(tiny_lm(torch.float64, vocab=VOCAB, spread=0.3))
    expected = step(model)
    seen: list[int] = []
    model.lm.lm_head.register_forward_hook(lambda module, inputs, logits: seen.append(len(logits)))
    monkeypatch.setattr(models, "STANDING", rows * VOCAB)
    predicted, grads, curvature = step(model)
    assert max(seen) == rows
    assert sum(seen) == (TOKENS if rows == TOKENS else 4 * TOKENS)  # for scores and labels, forward and backward
    exact = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(predicted.logps, expected[0].logps, **exact)
    torch.testing.assert_close(predicted.drawn, expected[0].drawn, **exact)
    assert torch.equal(predicted.best, expected[0].best)
    torch.testing.assert_close(grads, expected[1], **exact)
    torch.testing.assert_close(curvature, expected[2], **exact)
    assert predicted.drawn.shape == (int(KEEP.sum()),)


def test_predictions_are_the_language_models(tiny_lm: Callable[..., Any]) -> None:
    lm = tiny_lm(torch.float64, vocab=VOCAB, spread=0.3)
    single = Prompted((5, 6), ((7, 8, 2),))
    predicted = AnswerModel(lm)(collate([single]), with_best=True)
    logits = lm(torch.tensor([[5, 6, 7, 8, 2]])).logits[0, 1:4]
    expected = logits.log_softmax(-1)[range(3), (7, 8, 2)]
    torch.testing.assert_close(predicted.logps, expected, rtol=0, atol=1e-12)
    assert predicted.best.tolist() == logits.argmax(-1).tolist()
    assert predicted.drawn is None


def test_under_autocast_the_backward_computes_what_the_forward_did(tiny_lm: Callable[..., Any], monkeypatch: Any):
    model = AnswerModel(tiny_lm(vocab=VOCAB, spread=0.3))
    expected = step(model, lambda: autocast(torch.device("cpu"), "bf16"))
    monkeypatch.setattr(models, "STANDING", 4 * VOCAB)
    predicted, grads, _ = step(model, lambda: autocast(torch.device("cpu"), "bf16"))
    torch.testing.assert_close(predicted.logps, expected[0].logps)
    assert predicted.logps.dtype == torch.float32
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
