"""Every causal LM of transformers: scores and greedy answers are those of plain forwards, or it is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import KINDS, tiny

from soul_cli.core.types import Prompted, UserError
from soul_cli.evaluate.generate import greedy
from soul_cli.evaluate.likelihood import score
from soul_cli.models.answer_model import AnswerModel

# the second group is longer than the windows of the models that have some, the first is not
GROUPS = [
    Prompted((5, 6, 7), ((8, 9, 12), (8, 11, 3), (10, 2))),
    Prompted((4, 9, 4, 5, 31, 17), ((7, 7, 9, 19, 40, 22, 2), (7, 7, 30, 31, 8, 2), (3, 41, 7))),
    Prompted((9,), ((4, 2),)),
]
PROMPTS = [(9, 14), (5, 6, 17, 8, 21, 30, 4), (30, 31, 7), (12, 13, 14)]
NEW = [8, 5, 6, 4]  # tokens to generate; the second and the third answer end elsewhere than their neighbours
# these read what comes after a token, whatever their configuration says
REFUSED = ("cpmant", "prophetnet", "xlm")


@torch.inference_mode()
def own(lm: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
    """What the model says of an answer by itself: log-probabilities (T, V) of one plain forward."""
    logits = lm(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_plain_forwards(kind: str):
    try:
        lm = tiny(kind)
    except ValueError as reason:
        pytest.skip(f"{kind}: {reason}")
    if kind in REFUSED:
        with pytest.raises(UserError, match=kind):
            score(AnswerModel(lm), GROUPS, budget=99)
        return
    for group, found in zip(GROUPS, score(AnswerModel(lm), GROUPS, budget=99, score_prompt=True), strict=True):
        for answer, scored in zip([group.prompt[1:], *group.answers], found, strict=True):
            prompt = group.prompt[:1] if scored is found[0] else group.prompt
            if answer:
                expected = own(lm, prompt, answer)[range(len(answer)), answer]
                assert scored.logps == pytest.approx(expected.tolist(), abs=1e-4)
    answers = greedy(lm, PROMPTS, ends={2}, most_new=NEW, budget=99)
    for prompt, answer, most in zip(PROMPTS, answers, NEW, strict=True):
        said = (*answer, 2) if len(answer) < most else tuple(answer)
        best, chosen = own(lm, prompt, said).max(-1).values, own(lm, prompt, said)[range(len(said)), said]
        assert chosen.tolist() == pytest.approx(best.tolist(), abs=1e-3)  # another of two equals may be chosen
