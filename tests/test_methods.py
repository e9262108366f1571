"""Unlearning objectives by hand.  Two answers: log-probabilities -6 and -3 over 3 and 2 tokens, so CE = 9/5."""

import math
from pathlib import Path

import pytest
import torch

from soul_cli.core.types import UserError
from soul_cli.objective.methods import (
    GA,
    IU,
    METHODS,
    NPO,
    PO,
    Answers,
    Counts,
    Finetune,
    GradDiff,
    InputBased,
    Normalize,
    NoUnlearning,
    Solver,
)

CE = 9 / 5
ALL = Counts(rows=2, tokens=5)
LN2, LN3 = math.log(2), math.log(3)
GRADDIFF, PREFERENCE = GradDiff("graddiff", 0.3), PO("po", 1.0)


def negative_po(beta: float, normalize: Normalize = Normalize.sum) -> NPO:
    return NPO("npo", retain_weight=2.0, beta=beta, normalize=normalize)


def two_answers(shift: tuple[float, float] = (0.0, 0.0)) -> Answers:
    """shift: policy minus reference, each."""
    logps = torch.tensor([-6.0, -3.0], dtype=torch.float64, requires_grad=True)
    return Answers(logps, torch.tensor([3, 2]), logps.detach() - torch.tensor(shift, dtype=torch.float64))


@pytest.mark.parametrize(("method", "loss"), [(GA("ga"), -CE), (GRADDIFF, -CE), (PREFERENCE, CE)])
def test_forget_loss_is_plus_or_minus_cross_entropy(method, loss):
    assert method.forget_loss(two_answers(), ALL).item() == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("method", [Finetune("finetune"), GRADDIFF, PREFERENCE, negative_po(0.1)])
def test_retain_loss_is_cross_entropy_whatever_the_method(method):
    answers = two_answers()
    loss = method.retain_loss(answers, ALL)
    loss.backward()
    assert loss.item() == pytest.approx(CE, rel=1e-12)
    assert answers.logps.grad.tolist() == pytest.approx([-1 / 5, -1 / 5])  # lower loss = likelier answers


@pytest.mark.parametrize(
    ("method", "shift", "loss"),
    [
        (negative_po(0.1), (0, 0), 20 * LN2),  # (2/b) ln 2, whatever the policy
        (negative_po(1.0), (LN3, 0), (2 * math.log(1 + 3) + 2 * LN2) / 2),
        (negative_po(1.0, Normalize.mean), (3 * LN3, 0), (2 * math.log(1 + 3) + 2 * LN2) / 2),  # ln 3 a token
        (negative_po(1.0, Normalize.mean), (0, -2 * LN3), (2 * LN2 + 2 * math.log(1 + 1 / 3)) / 2),
    ],
)
def test_npo_forget_loss(method, shift, loss):
    assert method.forget_loss(two_answers(shift), ALL).item() == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize(
    ("method", "gradient"),
    [
        (GA("ga"), [1 / 5, 1 / 5]),  # descent lowers the log-probabilities
        (GRADDIFF, [1 / 5, 1 / 5]),
        (PREFERENCE, [-1 / 5, -1 / 5]),  # the refusals become likelier
        (negative_po(1.0), [2 * 3 / 4 / 2, 2 * 1 / 2 / 2]),  # 2 sigmoid(shift) / rows
        (negative_po(1.0, Normalize.mean), [2 * 3**0.5 / (1 + 3**0.5) / 3 / 2, 2 * 1 / 2 / 2 / 2]),  # 1/tokens more
    ],
)
def test_sign_and_size_of_the_forget_gradient(method, gradient):
    answers = two_answers((LN3 * 1.5, 0) if getattr(method, "normalize", 0) is Normalize.mean else (LN3, 0))
    method.forget_loss(answers, ALL).backward()
    assert answers.logps.grad.tolist() == pytest.approx(gradient)


@pytest.mark.parametrize("method", [GA("ga"), GRADDIFF, PREFERENCE, negative_po(0.1), negative_po(0.1, Normalize.mean)])
def test_micro_batches_of_unequal_size_add_up_to_the_whole(method):
    logps, tokens = torch.tensor([-6.0, -3.0, -9.0]), torch.tensor([3, 2, 7])
    whole = Answers(logps, tokens, logps + 1)
    parts = [Answers(x.logps[i], x.tokens[i], x.reference[i]) for x in [whole] for i in (slice(1), slice(1, 3))]
    counts = Counts(rows=3, tokens=12)
    for term in (method.forget_loss, method.retain_loss):
        torch.testing.assert_close(sum(term(p, counts) for p in parts), term(whole, counts))


def test_sum_and_mean_agree_on_one_token_answers():
    logps = torch.tensor([-1.0, -2.0])
    answers = Answers(logps, torch.tensor([1, 1]), logps - 0.5)
    losses = [negative_po(0.5, n).forget_loss(answers, Counts(2, 2)) for n in Normalize]
    assert losses[0] == losses[1]


def test_each_method_says_what_the_loop_has_to_provide():
    flags = ("trains", "one_shot", "uses_forget", "uses_retain", "learns_refusal", "uses_reference", "prompts")
    said = {name: [flag for flag in flags if getattr(method, flag)] for name, method in METHODS.items()}
    both = ["trains", "uses_forget", "uses_retain"]
    assert said == {
        "none": ["uses_forget", "uses_retain"],
        "input_based": ["uses_forget", "uses_retain", "prompts"],
        "finetune": ["trains", "uses_retain"],
        "ga": ["trains", "uses_forget"],
        "graddiff": both,
        "po": [*both, "learns_refusal"],
        "npo": [*both, "uses_reference"],
        "iu": ["trains", "one_shot", "uses_forget", "uses_retain"],
    }


def test_the_optimizer_is_for_methods_that_take_many_steps():
    every = [NoUnlearning("none"), InputBased("input_based"), influence(), Finetune("finetune"), GA("ga"), GRADDIFF]
    assert [m.optimizes for m in every] == [False, False, False, True, True, True]


def influence(**changed: float) -> IU:
    values = {
        "damping": 1.0, "cg_steps": 1, "hessian_every": 1, "validation_share": 0.1, "first_scale": 0.5,
        "last_scale": 4.0, "scale_ratio": 2.0, "tolerance": 0.1, **changed,
    }  # fmt: skip
    return IU("iu", solver=Solver.diagonal, **values)


@pytest.mark.parametrize(
    ("first", "last", "ratio", "scales"),
    [(0.5, 4.0, 2.0, [0.5, 1, 2, 4]), (0.1, 0.3, 3.0, [0.1, 0.3]), (1.0, 1.0, 2.0, [1]), (1.0, 7.9, 2.0, [1, 2, 4])],
)
def test_scales_of_influence_unlearning(first: float, last: float, ratio: float, scales: list[float]):
    assert influence(first_scale=first, last_scale=last, scale_ratio=ratio).scales == pytest.approx(scales)


def test_every_method_has_a_config_file_and_no_other_does():
    folder = Path(__file__).resolve().parents[1] / "configs" / "method"
    assert {p.stem for p in folder.glob("*.yaml")} == set(METHODS)


def test_weight_is_the_retain_weight_or_one():
    plain = [NoUnlearning("none"), InputBased("input_based"), Finetune("finetune"), GA("ga")]
    assert [m.weight for m in plain] == [1.0] * 4
    assert [m.weight for m in (GRADDIFF, PREFERENCE, negative_po(0.1))] == [0.3, 1.0, 2.0]
    assert GradDiff("graddiff", 0.0).weight == 0.0


@pytest.mark.parametrize("make", [GradDiff, PO, lambda n, w: NPO(n, w, 0.1, Normalize.sum)])
def test_negative_retain_weight_is_refused(make):
    with pytest.raises(UserError, match=r"retain_weight=-0.1: must be 0 or more"):
        make("method", -0.1)


@pytest.mark.parametrize("beta", [0.0, -0.1])
def test_beta_must_be_positive(beta):
    with pytest.raises(UserError, match=f"beta={beta}: must be above 0"):
        negative_po(beta)


def test_finetune_has_no_forget_term():
    with pytest.raises(NotImplementedError, match="finetune"):
        Finetune("finetune").forget_loss(two_answers(), ALL)
