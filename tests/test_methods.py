"""Terms of the objective by hand.  Two answers: log-probabilities -6 and -3 over 3 and 2 tokens, so CE = 9/5."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from soul_cli.cli import show_choices
from soul_cli.core.types import UserError
from soul_cli.experiment.config import GROUPS, compose
from soul_cli.objective.combine import COMBINES, Alternating, Sum
from soul_cli.objective.edit import IU, Solver
from soul_cli.objective.forget.base import Finetune
from soul_cli.objective.forget.likelihood import GA, NPO, PO, Normalize
from soul_cli.objective.methods import METHODS, problem, usual_retain
from soul_cli.objective.perturb import PERTURBS, Unperturbed
from soul_cli.objective.retain import CE, KL, RETAINS, NoRetain
from soul_cli.objective.term import Answers, Counts, Kinds, Logits, Normalise, Term

NLL = 9 / 5
BY_TOKEN, BY_ROW = Counts(rows=2, tokens=5), Counts(rows=2, tokens=5, normalise=Normalise.row)
LN2, LN3 = math.log(2), math.log(3)
ASCENT, PREFERENCE, KEPT = GA("ga"), PO("po"), CE("ce", 1.0)


def negative_po(beta: float, normalize: Normalize = Normalize.sum) -> NPO:
    return NPO("npo", beta=beta, normalize=normalize)


def two_answers(shift: tuple[float, float] = (0.0, 0.0)) -> Answers:
    """shift: policy minus reference, each; spread over the tokens, of which the first has most."""
    values = torch.tensor([-4.0, -1.0, -1.0, -2.0, -1.0], dtype=torch.float64, requires_grad=True)
    owner, tokens = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([3, 2])
    reference = values.detach() - torch.tensor([shift[0], 0, 0, 0, shift[1]], dtype=torch.float64)
    return Answers(values, owner, tokens, reference=reference)


def gradient(term: Term, answers: Answers, step: Counts) -> list[float]:
    """By the summed log-probability of each answer, which its tokens share."""
    term.loss(answers, step).backward()
    assert answers.values.grad is not None
    return [answers.values.grad[0].item(), answers.values.grad[4].item()]


@pytest.mark.parametrize(("term", "loss"), [(ASCENT, -NLL), (PREFERENCE, NLL), (KEPT, NLL)])
def test_a_loss_is_plus_or_minus_cross_entropy(term: Term, loss: float):
    assert term.loss(two_answers(), BY_TOKEN).item() == pytest.approx(loss, rel=1e-12)
    rows = (6 / 3 + 3 / 2) / 2
    assert term.loss(two_answers(), BY_ROW).item() == pytest.approx(math.copysign(rows, loss), rel=1e-12)


@pytest.mark.parametrize(
    ("term", "shift", "loss"),
    [
        (negative_po(0.1), (0, 0), 20 * LN2),  # (2/b) ln 2, whatever the policy
        (negative_po(1.0), (LN3, 0), (2 * math.log(1 + 3) + 2 * LN2) / 2),
        (negative_po(1.0, Normalize.mean), (3 * LN3, 0), (2 * math.log(1 + 3) + 2 * LN2) / 2),  # ln 3 a token
        (negative_po(1.0, Normalize.mean), (0, -2 * LN3), (2 * LN2 + 2 * math.log(1 + 1 / 3)) / 2),
    ],
)
def test_npo(term: Term, shift: tuple[float, float], loss: float):
    for step in (BY_TOKEN, BY_ROW):  # a mean over answers either way
        assert term.loss(two_answers(shift), step).item() == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (ASCENT, [1 / 5, 1 / 5]),  # descent lowers the log-probabilities
        (PREFERENCE, [-1 / 5, -1 / 5]),  # the refusals become likelier
        (KEPT, [-1 / 5, -1 / 5]),
        (negative_po(1.0), [2 * 3 / 4 / 2, 2 * 1 / 2 / 2]),  # 2 sigmoid(shift) / rows
        (negative_po(1.0, Normalize.mean), [2 * 3**0.5 / (1 + 3**0.5) / 3 / 2, 2 * 1 / 2 / 2 / 2]),  # 1/tokens more
    ],
)
def test_sign_and_size_of_the_gradient(term: Term, expected: list[float]):
    answers = two_answers((LN3 * 1.5, 0) if getattr(term, "normalize", 0) is Normalize.mean else (LN3, 0))
    assert gradient(term, answers, BY_TOKEN) == pytest.approx(expected)


def test_rows_weigh_alike_where_they_should():
    assert gradient(KEPT, two_answers(), BY_ROW) == pytest.approx([-1 / 3 / 2, -1 / 2 / 2])


def test_sum_and_mean_agree_on_one_token_answers():
    values = torch.tensor([-1.0, -2.0])
    answers = Answers(values, torch.arange(2), torch.tensor([1, 1]), reference=values - 0.5)
    losses = [negative_po(0.5, n).loss(answers, Counts(2, 2)) for n in Normalize]
    assert losses[0] == losses[1]


# --- KL ----------------------------------------------------------------------------------------------------


def test_kl_by_hand():
    """p' = (1/2, 1/2), p = (1/4, 3/4): 1/2 ln 2 + 1/2 ln 2/3.  Logits count up to a constant."""
    now, before = torch.tensor([[0.0, LN3]]), torch.tensor([[7.0, 7.0]])
    value = KL("kl", 1.0).token(Logits(now, torch.tensor([1]), before))
    assert value.item() == pytest.approx(0.5 * LN2 + 0.5 * math.log(2 / 3))


def test_kl_is_that_of_torch_and_nothing_at_the_reference():
    torch.manual_seed(0)
    now, before = torch.randn(2, 6, 11, dtype=torch.float64).unbind()
    targets = torch.zeros(6, dtype=torch.long)
    found = KL("kl", 1.0).token(Logits(now, targets, before))
    expected = F.kl_div(now.log_softmax(-1), before.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(found, expected)
    moved = before.clone().requires_grad_()
    at_start = KL("kl", 1.0).token(Logits(moved, targets, before))
    at_start.sum().backward()
    assert at_start.abs().max() < 1e-15
    assert moved.grad is not None
    assert moved.grad.abs().max() < 1e-15  # the least there is


# --- methods and what goes with them -----------------------------------------------------------------------


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


def test_every_group_has_its_config_files_and_no_other():
    folder = Path(__file__).resolve().parents[1] / "configs"
    for group, registry in {"method": METHODS, "retain": RETAINS, "combine": COMBINES, "perturb": PERTURBS}.items():
        assert {p.stem for p in (folder / group).glob("*.yaml")} == set(registry)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_brings_its_usual_retain_term(method: str):
    assert compose([f"method={method}", "model=hub", "model.path=x"]).retain.name == usual_retain(method)


@pytest.mark.parametrize(
    ("overrides", "title"),
    [
        (["method=npo"], "npo"),
        (["method=ga"], "ga"),
        (["method=ga", "retain=ce"], "ga+ce"),
        (["method=npo", "retain=kl", "combine=alternating"], "npo+kl+alternating"),
        (["method=none", "retain=kl"], "none"),
        (["method=iu", "combine=alternating"], "iu"),
    ],
)
def test_a_title_names_what_is_unusual(overrides: list[str], title: str):
    config = compose(overrides)
    assert config.title == title
    loop = {"retain", "combine", "perturb", "optim"}
    assert loop & config.identity().keys() == (loop if config.optimizes else set())  # no effect, no part of the key


def test_a_problem_has_the_kinds_that_are_run():
    summed, apart, here = Sum("sum"), Alternating("alternating"), Unperturbed("none")
    both = problem(ASCENT, CE("ce", 0.3), summed, here)
    assert (both.kinds, both.weight, both.steps) == (Kinds.both, 0.3, [Kinds.both])
    assert problem(ASCENT, CE("ce", 0.3), apart, here).steps == [Kinds.forget, Kinds.retain]
    alone = problem(ASCENT, NoRetain("none"), summed, here)
    assert (alone.kinds, alone.weight, alone.steps) == (Kinds.forget, 1.0, [Kinds.forget])
    unweighted = problem(ASCENT, CE("ce", 0.0), apart, here)  # its rows are left out
    assert (unweighted.kinds, unweighted.steps) == (Kinds.forget, [Kinds.forget])
    tuned = problem(Finetune("finetune"), CE("ce", 5.0), summed, here)
    assert (tuned.kinds, tuned.weight) == (Kinds.retain, 1.0)


@pytest.mark.parametrize("make", [CE, KL])
def test_negative_retain_weight_is_refused(make: type):
    with pytest.raises(UserError, match=r"retain.weight=-0.1: must be 0 or more"):
        make("name", -0.1)


@pytest.mark.parametrize("beta", [0.0, -0.1])
def test_beta_must_be_positive(beta: float):
    with pytest.raises(UserError, match=f"beta={beta}: must be above 0"):
        negative_po(beta)


def test_finetune_has_no_loss():
    with pytest.raises(NotImplementedError, match="finetune"):
        Finetune("finetune").loss(two_answers(), BY_TOKEN)


def test_answers_by_name():
    answers = Answers(torch.zeros(3), torch.tensor([0, 1, 1]), torch.tensor([1, 2]), which=("refusal", "answer"))
    assert answers.named("answer").tolist() == [False, True]
    assert isinstance(answers.sums(), Tensor)


@pytest.mark.parametrize("group", ["method", "retain"])
def test_help_says_what_there_is(group: str, capsys: pytest.CaptureFixture[str]):
    show_choices(group)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(GROUPS[group])
    assert all(line.endswith(")") for line in lines if line.split()[0] not in ("none", "finetune"))  # its paper


def test_help_on_what_is_no_group_names_the_groups():
    with pytest.raises(UserError, match="abacus=help: there is help on task, method, retain"):
        show_choices("abacus")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=flat", "method.divergence=hellinger"], ["method.divergence", "hellinger", "tv, kl, js, pearson"]),
        (["method=me", "method.direction=up"], ["method.direction", "up", "to_model, to_uniform"]),
        (["method=undial", "combine=alternating"], ["combine=alternating", "there is no retain term"]),
        (["method=task_vector", "parallel=fsdp"], ["parallel=fsdp", "task_vector", "parallel=ddp"]),
    ],
)
def test_what_is_not_known_is_named(overrides: list[str], words: list[str]):
    with pytest.raises(UserError) as error:
        compose(overrides)
    assert all(w in str(error.value) for w in words), str(error.value)


def test_states_are_kept_behind_the_block_that_is_steered():
    assert compose(["method=rmu", "method.layer=3"]).retain.layer == 3  # type: ignore[union-attr]
    kept = compose(["method=npo", "retain=states"])
    kept.settle_layers(32)
    assert kept.retain.layer == 7  # type: ignore[union-attr]
    steered = compose(["method=rmu", "seed=5"]).method
    assert steered.seed == 5  # type: ignore[union-attr]


def test_a_task_vector_has_an_optimizer_and_no_terms():
    config = compose(["method=task_vector", "retain=kl"])
    assert (config.optimizes, config.problem, config.title) == (True, None, "task_vector")
    assert config.identity().keys() & {"retain", "combine", "perturb", "optim"} == {"optim"}
