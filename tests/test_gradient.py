"""soul_cli.train.gradient: every kind of need, against plain forwards of the language model in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from term_rows import rows_for
from test_terms import FORGET as FORGET_TERMS
from test_terms import RETAIN as RETAIN_TERMS
from test_train import ADAMW, ASCENT, CPU, FORGET, RETAIN, SUM, answered, config, gpt2, rows, solving
from torch import Tensor

from soul_cli.core.types import Prompted, UserError
from soul_cli.data.rows import Rows
from soul_cli.experiment.checks import check_layers
from soul_cli.models import answer_model
from soul_cli.objective.combine import Gradient
from soul_cli.objective.forget.base import Objective
from soul_cli.objective.forget.likelihood import GA
from soul_cli.objective.methods import Problem, problem
from soul_cli.objective.perturb import Unperturbed
from soul_cli.objective.retain import CE, KL, Retain
from soul_cli.objective.term import Answers, Counts, Kinds, Logits, Needs, Reference, Term
from soul_cli.train.gradient import StepGradient
from soul_cli.train.loop import TrainData, Trainer

EXACT = {"rtol": 0, "atol": 1e-12}
TERMS: dict[str, Term] = {**FORGET_TERMS, **RETAIN_TERMS}


@dataclass
class Steered(Objective):
    """States behind block 0 are drawn to what they were before, shifted by 1 (as RMU does), mean over the tokens."""

    needs: ClassVar[Needs] = Needs(layer=0, head=False, reference=Reference.states)

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        assert answers.states is not None
        assert answers.reference_states is not None
        return step.mean(answers, (answers.states - answers.reference_states - 1).square().mean(-1))


@dataclass
class Preferred(Objective):
    """The refusal before the answer, each against its reference (DPO)."""

    needs: ClassVar[Needs] = Needs(answers=("refusal", "answer"), reference=Reference.values)

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        gain = answers.sums() - answers.reference_sums()
        return -F.logsigmoid(gain[answers.named("refusal")] - gain[answers.named("answer")]).sum() / step.rows


def moved(lm: Any) -> Any:
    """The same model a little further on."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in lm.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return lm


def states(lm: Any, some: list[Prompted], layer: int) -> list[Tensor]:
    """(T, D) of each row, where its answer's tokens are predicted; layer -1: the last, as the head sees it."""
    out = []
    for row in some:
        ids = torch.tensor([[*row.prompt, *row.answers[0]]])
        found = lm(ids, output_hidden_states=True).hidden_states[layer if layer < 0 else layer + 1][0]
        out.append(found[len(row.prompt) - 1 : -1])
    return out


def logits(lm: Any, row: Prompted) -> Tensor:
    ids = torch.tensor([[*row.prompt, *row.answers[0]]])
    return lm(ids).logits[0, len(row.prompt) - 1 : -1]


def logps(lm: Any, row: Prompted) -> Tensor:
    return logits(lm, row).log_softmax(-1)[range(len(row.answers[0])), row.answers[0]]


def step(lm: Any, solved: Problem, forget: Rows, retain: Rows, kinds: Kinds = Kinds.both, **changed: Any) -> Gradient:
    """The gradient of a whole epoch, as one step of micro-batches of two rows."""
    settings = config(epochs=1, batch_size=2, accumulation=9, **changed)
    trainer = Trainer(lm, TrainData(lambda epoch: forget, retain), solved, ADAMW, settings, 3, CPU)
    (plan,) = trainer.plans[0]
    data = {Kinds.forget: forget, Kinds.retain: retain}
    return StepGradient(trainer.setup, plan, data, 0)(kinds, solved.weight)


def check(found: Gradient, lm: Any, loss: Tensor) -> None:
    expected = torch.autograd.grad(loss, list(lm.parameters()), allow_unused=True)
    for part, wanted in zip(found.parts, expected, strict=True):
        assert (part is None or not part.any()) is (wanted is None or not wanted.any())
        if wanted is not None and part is not None:
            torch.testing.assert_close(part, wanted, **EXACT)


def test_states_of_a_layer_end_the_forward_there():
    lm, before = moved(gpt2()), gpt2()
    with torch.no_grad():
        kept = states(before, FORGET, 0)
    solved = problem(Steered("steered"), CE("ce", 0.5), SUM, Unperturbed("none"))
    forget = Rows({"answer": FORGET}, states={"answer": kept})
    ran: list[int] = []
    lm.transformer.h[1].register_forward_pre_hook(lambda *a: ran.append(1))
    found = step(lm, solved, forget, answered(RETAIN[:6]), Kinds.forget)
    assert not ran
    pulls = [(s - k - 1).square().mean(-1) for s, k in zip(states(lm, FORGET, 0), kept, strict=True)]
    check(found, lm, torch.cat(pulls).mean())
    both = step(lm, solved, forget, answered(RETAIN[:6]))
    used = sum(len(r.answers[0]) for r in RETAIN[:6])
    kept_loss = -sum(logps(lm, r).sum() for r in RETAIN[:6]) / used
    pulls = [(s - k - 1).square().mean(-1) for s, k in zip(states(lm, FORGET, 0), kept, strict=True)]
    check(both, lm, torch.cat(pulls).mean() + 0.5 * kept_loss)
    assert both.losses["loss_retain"] == pytest.approx(kept_loss.item())


def test_two_answers_to_a_question():
    lm, before = moved(gpt2()), gpt2()
    refusals = [Prompted(row.prompt, other.answers) for row, other in zip(FORGET, rows(6, seed=9), strict=True)]
    named = {"refusal": refusals, "answer": FORGET}
    with torch.no_grad():
        values = {name: [logps(before, r) for r in some] for name, some in named.items()}
    solved = problem(Preferred("preferred"), CE("ce", 1.0), SUM, Unperturbed("none"))
    found = step(lm, solved, Rows(named, values), answered(RETAIN), Kinds.forget)
    gains = [
        sum((logps(lm, p) - values[name][i]).sum() * sign for name, p, sign in pairs)
        for i, pairs in enumerate(
            [(("refusal", a, 1), ("answer", b, -1)) for a, b in zip(refusals, FORGET, strict=True)]
        )
    ]
    check(found, lm, -F.logsigmoid(torch.stack(gains)).mean())


@pytest.mark.parametrize("standing", [1 << 25, 48, 3 * 48, 5 * 48])
def test_logits_of_the_model_before_without_a_second_model(monkeypatch: pytest.MonkeyPatch, standing: int):
    """KL from kept states and a kept head, with all logits or a few at a time, and nothing at the start."""
    monkeypatch.setattr(answer_model, "STANDING", standing)
    some = RETAIN[:6]
    before = gpt2()
    with torch.no_grad():
        kept = states(before, some, -1)
        own = [logits(before, r).log_softmax(-1) for r in some]
    solved = solving(ASCENT.forget, retain=KL("kl", 0.3))  # type: ignore[arg-type]
    retain = Rows({"answer": some}, states={"answer": kept})
    at_start = step(gpt2(), solved, answered(FORGET), retain, Kinds.retain)
    assert max(float(p.abs().max()) for p in at_start.parts if p is not None) < 1e-12
    assert at_start.losses["loss_retain"] == pytest.approx(0, abs=1e-12)

    lm = gpt2()
    settings = config(epochs=1, batch_size=2, accumulation=9)
    trainer = Trainer(lm, TrainData(lambda epoch: answered(FORGET), retain), solved, ADAMW, settings, 3, CPU)
    moved(lm)  # the head was kept when the trainer was built
    data = {Kinds.forget: answered(FORGET), Kinds.retain: retain}
    found = StepGradient(trainer.setup, trainer.plans[0][0], data, 0)(Kinds.both, solved.weight)
    pairs = zip(own, [logits(lm, r).log_softmax(-1) for r in some], strict=True)
    tokens = sum(len(r.answers[0]) for r in some)
    kl = sum((p.exp() * (p - q)).sum() for p, q in pairs) / tokens
    ascent = sum(logps(lm, r).sum() for r in FORGET) / sum(len(r.answers[0]) for r in FORGET)
    check(found, lm, ascent + 0.3 * kl)


def test_a_step_holds_few_logits(monkeypatch: pytest.MonkeyPatch):
    """Neither model's logits stand for all tokens."""
    monkeypatch.setattr(answer_model, "STANDING", 4 * 48)
    lm = gpt2()
    with torch.no_grad():
        kept = states(lm, RETAIN[:6], -1)
    seen: list[int] = []

    class Watched(KL):
        def token(self, at: Logits) -> Tensor:
            assert at.reference is not None
            seen.append(len(at.policy) + len(at.reference))
            return super().token(at)

    solved = solving(ASCENT.forget, retain=Watched("kl", 1.0))  # type: ignore[arg-type]
    step(lm, solved, answered(FORGET), Rows({"answer": RETAIN[:6]}, states={"answer": kept}))
    assert max(seen) <= 4


@pytest.mark.parametrize("name", TERMS)
def test_no_term_sees_how_rows_are_batched(monkeypatch: pytest.MonkeyPatch, name: str):
    """One micro-batch, or six with other padding and a token at a time."""
    term, found = TERMS[name], []
    method, retain = (term, CE("ce", 0.3)) if isinstance(term, Objective) else (GA("ga"), term)
    assert isinstance(retain, Retain)
    solved = solving(method, retain=retain)
    data = (rows_for(solved.terms[kind], some, 32) for kind, some in ((Kinds.forget, FORGET), (Kinds.retain, RETAIN)))
    forget, kept = data
    for size, standing in ((6, 1 << 25), (1, 48)):
        monkeypatch.setattr(answer_model, "STANDING", standing)
        lm = moved(gpt2())
        settings = config(epochs=1, batch_size=size, accumulation=6)
        trainer = Trainer(lm, TrainData(lambda epoch: forget, kept), solved, ADAMW, settings, 3, CPU)
        rows = {Kinds.forget: forget, Kinds.retain: kept}
        found.append(StepGradient(trainer.setup, trainer.plans[0][0], rows, 0)(Kinds.both))
    assert found[0].losses == pytest.approx(found[1].losses)
    for a, b in zip(found[0].parts, found[1].parts, strict=True):
        assert (a is None) is (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, **EXACT)


def test_the_kept_head_stays_as_it_was(tiny_lm: Callable[..., Any]):
    model = answer_model.AnswerModel(tiny_lm())
    weight = copy.deepcopy(model.lm.lm_head.weight)
    model.keep_head(torch.device("cpu"))
    moved(model.lm)
    (kept,) = model.kept_head[0].parameters()
    assert torch.equal(kept, weight)
    assert len(list(model.parameters())) == len(list(model.lm.parameters()))


def test_a_layer_that_the_model_has_not_is_refused():
    @dataclass
    class Deep(Steered):
        needs: ClassVar[Needs] = Needs(layer=7, head=False)

    check_layers(problem(Deep("deep"), CE("ce", 1.0), SUM, Unperturbed("none")), 8)
    with pytest.raises(UserError, match=r"method.layer=7 \(deep\): the model has the layers 0 to 6"):
        check_layers(problem(Deep("deep"), CE("ce", 1.0), SUM, Unperturbed("none")), 7)
