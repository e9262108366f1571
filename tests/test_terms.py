"""Laws of the terms, each over all of them: signs, means, batching; and what each is at the reference, at limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from soul_cli.core.types import UserError
from soul_cli.objective.edit import TaskVector
from soul_cli.objective.forget.base import Objective
from soul_cli.objective.forget.distribution import CEU, IHL, ME, PDU, UNDIAL, Direction
from soul_cli.objective.forget.likelihood import GA, NPO, PO, TNPO, WGA, GradDiff, Normalize, SatImp, SimNPO
from soul_cli.objective.forget.preference import DPO, FLAT, AltPO, Divergence
from soul_cli.objective.forget.representation import RMU, AdaptiveRMU, direction
from soul_cli.objective.losses import token_logps
from soul_cli.objective.methods import METHODS
from soul_cli.objective.retain import AP, CE, KL, RETAINS, Retain, States
from soul_cli.objective.term import Answers, Counts, Logits, Normalise, Reference, Term

FORGET: dict[str, Objective] = {
    "ga": GA("ga"),
    "graddiff": GradDiff("graddiff"),
    "po": PO("po"),
    "npo": NPO("npo", 0.7, Normalize.sum),
    "simnpo": SimNPO("simnpo", 0.7, 0.2),
    "dpo": DPO("dpo", 0.7),
    "altpo": AltPO("altpo", 0.7, 1, 1.0, 9, None, 0),
    "wga": WGA("wga", 0.7),
    "satimp": SatImp("satimp", 2.0, 0.5),
    "tnpo": TNPO("tnpo", 0.7),
    "flat": FLAT("flat", Divergence.kl),
    "undial": UNDIAL("undial", 3.0),
    "ce_u": CEU("ce_u", skip_first=False),
    "me": ME("me", Direction.to_model),
    "pdu": PDU("pdu"),
    "ihl": IHL("ihl"),
    "rmu": RMU("rmu", 0, 2.0, 5),
    "rmu_adaptive": AdaptiveRMU("rmu_adaptive", 0, 2.0, 5),
}
RETAIN: dict[str, Retain] = {
    "ce": CE("ce", 1.0), "kl": KL("kl", 1.0), "states": States("states", 1.0, 0), "ap": AP("ap", 1.0, 0.7),
}  # fmt: skip
VARIANTS: dict[str, Term] = {
    "npo, mean": NPO("npo", 0.7, Normalize.mean),
    "ce_u, skip_first": CEU("ce_u", skip_first=True),
    "me, to_uniform": ME("me", Direction.to_uniform),
    **{f"flat, {d.value}": FLAT("flat", d) for d in Divergence},
}
TERMS: dict[str, Term] = {**FORGET, **RETAIN, **VARIANTS}
# means over rows; the others are means over tokens
BY_ROW = {name for name in TERMS if name.split(",")[0] in ("npo", "simnpo", "dpo", "altpo", "flat", "pdu", "ap")}
VOCABULARY, WIDTH, SIZES = 11, 5, (3, 2, 7)


def test_every_term_is_here():
    assert FORGET.keys() == {n for n, kind in METHODS.items() if issubclass(kind, Objective) and kind.forgets}
    assert RETAIN.keys() == RETAINS.keys() - {"none"}


@pytest.mark.parametrize("kind", [*METHODS.values(), *(RETAINS[name] for name in RETAIN)])
def test_every_term_says_in_a_line_what_it_is(kind: Any):
    first = kind.__doc__.splitlines()[0]
    assert first.endswith((".", ")"))
    assert not first.startswith(f"{kind.__name__}(")  # what a dataclass without docstring has


@dataclass(frozen=True)
class Tokens:
    """Answer tokens of a few rows, for every need.  Rows of several names have the same tokens under each."""

    logits: Tensor  # (T, V), or hidden states (T, D)
    before: Tensor
    targets: Tensor
    sizes: tuple[int, ...]  # tokens of each answer
    norm: float = 1.7

    def of(self, answers: slice, per_row: int) -> Tokens:
        """Rows of a slice."""
        ends = [0, *torch.tensor(self.sizes).cumsum(0).tolist()]
        first, last = (ends[per_row * i] for i in (answers.start, answers.stop))
        logits, before, targets = (t[first:last] for t in (self.logits, self.before, self.targets))
        return replace(
            self, logits=logits, before=before, targets=targets,
            sizes=self.sizes[per_row * answers.start : per_row * answers.stop],
        )  # fmt: skip


def tokens(term: Term, seed: int = 0, *, sizes: tuple[int, ...] = SIZES) -> Tokens:
    """Random ones, with graph.  The likeliest token is the answer's in two of three."""
    every = tuple(n for size in sizes for n in [size] * len(term.needs.answers))
    width = VOCABULARY if term.needs.head else WIDTH
    generator = torch.Generator().manual_seed(seed)
    now, before = torch.randn(2, sum(every), width, generator=generator, dtype=torch.float64).unbind()
    targets = now.argmax(-1) if term.needs.head else torch.zeros(len(now), dtype=torch.long)
    return Tokens(now.requires_grad_(), before, targets % VOCABULARY, every)


def answers(term: Term, some: Tokens) -> Answers:
    """What the loop lays before the term."""
    needs, sizes = term.needs, torch.tensor(some.sizes)
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    which = needs.answers * (len(sizes) // len(needs.answers))
    if not needs.head:
        return Answers(
            owner[:0], owner, sizes, which, states=some.logits, reference_states=some.before, reference_norm=some.norm
        )
    reference = term.token(Logits(some.before, some.targets)) if needs.reference is Reference.values else None
    before = some.before if needs.reference is Reference.logits else None
    return Answers(term.token(Logits(some.logits, some.targets, before)), owner, sizes, which, reference)


def loss(term: Term, some: Tokens, step: Counts | None = None) -> Tensor:
    rows = len(some.sizes) // len(term.needs.answers)
    return term.loss(answers(term, some), step or Counts(rows, len(some.targets)))


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, leaf, retain_graph=True)
    return found


@pytest.mark.parametrize("normalise", Normalise)
@pytest.mark.parametrize("name", TERMS)
def test_micro_batches_of_unequal_size_add_up_to_the_whole(name: str, normalise: Normalise):
    term = TERMS[name]
    some, each = tokens(term), len(term.needs.answers)
    step = Counts(len(SIZES), sum(some.sizes), normalise)
    parts = [loss(term, some.of(rows, each), step) for rows in (slice(0, 1), slice(1, 3))]
    whole = loss(term, some, step)
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(gradient(sum(parts), some.logits), gradient(whole, some.logits))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name, term in TERMS.items() if term.needs.head])
def test_tokens_do_not_see_each_other(name: str):
    """The loop may lay a few at a time before the term."""
    term = TERMS[name]
    some = tokens(term)
    before = some.before if term.needs.reference is Reference.logits else None
    whole = term.token(Logits(some.logits, some.targets, before))
    for at in torch.arange(len(some.targets)).split(5):
        few = term.token(Logits(some.logits[at], some.targets[at], None if before is None else before[at]))
        assert torch.equal(few, whole[at])


@pytest.mark.parametrize("name", sorted(TERMS.keys() - BY_ROW - {"ce_u, skip_first"}))
def test_a_mean_over_tokens_does_not_see_where_answers_end(name: str):
    term = TERMS[name]
    some = tokens(term, sizes=(3, 2))
    cut = replace(some, sizes=(3, 1, 1))
    torch.testing.assert_close(loss(term, some), loss(term, cut))


@pytest.mark.parametrize("name", sorted(BY_ROW))
def test_a_mean_over_rows_is_that_of_each_row_alone(name: str):
    term = TERMS[name]
    some, each = tokens(term), len(term.needs.answers)
    alone = [loss(term, some.of(slice(i, i + 1), each)) for i in range(len(SIZES))]
    torch.testing.assert_close(loss(term, some), torch.stack(alone).mean())


@pytest.mark.parametrize("name", [name for name, term in TERMS.items() if term.needs.head])
def test_descent_makes_answers_to_forget_less_likely_and_those_to_learn_more(name: str):
    """From the model before unlearning, which is sure of its answers.  KL is at its least there."""
    term = TERMS[name]
    some = tokens(term)
    some = replace(some, before=some.logits.detach())
    pull = gradient(loss(term, some), some.logits)
    sure = Answers(token_logps(some.logits, some.targets), *vars_of(answers(term, some)))
    for which in term.needs.answers:
        sums = sure.sums()[sure.named(which)]
        change = -(pull * gradient(sums.sum(), some.logits)).sum().item()
        learns = which != "answer" if isinstance(term, Objective) else which == "answer"
        assert abs(change) < 1e-12 if name == "kl" else (change if learns else -change) > 1e-3


def vars_of(some: Answers) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    return some.owner, some.tokens, some.which


@pytest.mark.parametrize("name", ["kl", "states"])
def test_what_keeps_the_model_is_nothing_at_the_reference(name: str):
    some = tokens(RETAIN[name])
    value = loss(RETAIN[name], replace(some, before=some.logits.detach()))
    assert value.item() == pytest.approx(0, abs=1e-14)
    assert gradient(value, some.logits).abs().max() < 1e-14


# --- limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", [WGA("wga", 0.0), SatImp("satimp", 0.0, 0.0)])
def test_without_weights_it_is_gradient_ascent(term: Term):
    some = tokens(term)
    assert loss(term, some).item() == pytest.approx(loss(GA("ga"), some).item(), rel=1e-12)


@pytest.mark.parametrize(("term", "weight"), [(WGA("wga", 2.0), 1 / 16), (SatImp("satimp", 1.0, 2.0), 1 / 4 * 9 / 16)])
def test_weights_by_hand(term: Term, weight: float):
    """One token of probability 1/4."""
    one = Answers(torch.tensor([0.25]).log(), torch.tensor([0]), torch.tensor([1]))
    assert term.loss(one, Counts(1, 1)).item() == pytest.approx(weight * math.log(0.25))


def test_token_wise_npo_begins_as_gradient_ascent():
    """At the reference the weight is 1, whatever beta."""
    some = tokens(FORGET["tnpo"])
    some = replace(some, before=some.logits.detach())
    torch.testing.assert_close(
        *(gradient(loss(t, some), some.logits) for t in (TNPO("tnpo", 4.0), GA("ga"))), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize(
    ("term", "gain"),
    [
        (SimNPO("simnpo", 1e-6, 0.0), lambda a: -a.sums() / a.tokens),
        (NPO("npo", 1e-6, Normalize.sum), lambda a: a.reference_sums() - a.sums()),
        (DPO("dpo", 1e-6), lambda a: (a.sums() - a.reference_sums())[0::2] - (a.sums() - a.reference_sums())[1::2]),
    ],
)
def test_with_beta_to_zero_a_preference_is_a_straight_line(term: Term, gain: Any):
    """(2/b) softplus(-b gain) = (2/b) ln 2 - gain + O(b), mean over the questions."""
    some = tokens(term)
    line = -gain(answers(term, some)).mean()
    assert loss(term, some).item() - 2e6 * math.log(2) == pytest.approx(line.item(), abs=1e-3)
    torch.testing.assert_close(*(gradient(v, some.logits) for v in (loss(term, some), line)), rtol=1e-3, atol=1e-6)


def test_answer_preservation_has_half_the_factor():
    some = tokens(RETAIN["ap"])
    sums = answers(RETAIN["ap"], some).sums()
    line = -(sums[0::2] - sums[1::2]).mean() / 2
    assert loss(AP("ap", 1.0, 1e-6), some).item() - 1e6 * math.log(2) == pytest.approx(line.item(), abs=1e-3)


def test_simnpo_by_hand():
    """Answers of -2 and -1.5 nats a token, margin 0.5: 2 ln(1 + e^(-2 + 0.5)), 2 ln(1 + e^(-1.5 + 0.5))."""
    values = torch.tensor([-4.0, -1.0, -1.0, -2.0, -1.0], dtype=torch.float64)
    two = Answers(values, torch.tensor([0, 0, 0, 1, 1]), torch.tensor([3, 2]))
    value = SimNPO("simnpo", 1.0, 0.5).loss(two, Counts(2, 5)).item()
    assert value == pytest.approx(math.log(1 + math.exp(-1.5)) + math.log(1 + math.exp(-1.0)))


# --- distributions -----------------------------------------------------------------------------------------


def at(logits: list[float], target: int = 0, before: list[float] | None = None) -> Logits:
    reference = None if before is None else torch.tensor([before], dtype=torch.float64)
    return Logits(torch.tensor([logits], dtype=torch.float64), torch.tensor([target]), reference)


LN3 = math.log(3)


@pytest.mark.parametrize(
    ("term", "given", "value"),
    [
        # p = (3/4, 1/4); adjusted by ln 3 the target is (1/2, 1/2)
        (UNDIAL("undial", LN3), at([LN3, 0.0], before=[LN3, 0.0]), -math.log(3 / 16) / 2),
        (UNDIAL("undial", 0.0), at([LN3, 0.0], before=[0.0, 0.0]), -math.log(3 / 16) / 2),
        (CEU("ce_u", False), at([LN3, 0.0]), -math.log(1 / 4)),  # the only other token
        (CEU("ce_u", False), at([LN3, 0.0], target=1), -math.log(3 / 4)),
        (ME("me", Direction.to_model), at([LN3, 0.0]), -math.log(3 / 16) / 2 - math.log(2)),
        (ME("me", Direction.to_uniform), at([LN3, 0.0]), math.log(2) - (LN3 * -3 / 4 + math.log(4))),
        (ME("me", Direction.to_model), at([5.0, 5.0]), 0.0),
        (ME("me", Direction.to_uniform), at([5.0, 5.0]), 0.0),
        (PDU("pdu"), at([5.0, 1.0]), 4.0),  # largest 5, mean 3
        (PDU("pdu"), at([5.0, 5.0]), 0.0),
        (IHL("ihl"), at([LN3, 0.0]), 1 + 3 / 4 - 1 / 4),
        (IHL("ihl"), at([LN3, 0.0], target=1), 1 + 1 / 4 - 3 / 4),
        (IHL("ihl"), at([0.25, 0.25]), 1.0),  # logits in [0, 1] are no probabilities
    ],
)
def test_distributions_by_hand(term: Term, given: Logits, value: float):
    assert term.token(given).item() == pytest.approx(value, abs=1e-12)


def test_undial_without_adjustment_keeps_the_model():
    term = UNDIAL("undial", 0.0)
    some = tokens(term)
    some = replace(some, before=some.logits.detach())
    assert gradient(loss(term, some), some.logits).abs().max() < 1e-14


def test_no_gradient_enters_the_target_of_ce_u():
    """Its gradient by the logits is p - target, as cross-entropy has it."""
    given = tokens(FORGET["ce_u"])
    value = CEU("ce_u", False).token(Logits(given.logits, given.targets)).sum()
    target = given.logits.detach().clone()
    target[torch.arange(len(target)), given.targets] = -math.inf
    expected = given.logits.detach().softmax(-1) - target.softmax(-1)
    torch.testing.assert_close(gradient(value, given.logits), expected)


@pytest.mark.parametrize("normalise", Normalise)
def test_skipped_tokens_count_nothing(normalise: Normalise):
    """Answers of 3 and 1 tokens: two tokens of one answer are left, half the rows' mean."""
    term = CEU("ce_u", skip_first=True)
    some = tokens(term, sizes=(3, 1))
    values = term.token(Logits(some.logits, some.targets))
    rest = values[1:3].mean() if normalise is Normalise.token else values[1:3].mean() / 2
    torch.testing.assert_close(loss(term, some, Counts(2, 4, normalise)), rest)
    alone = tokens(term, sizes=(1,))
    assert loss(term, alone).item() == 0


# --- divergences -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("divergence", "value"),
    [
        (Divergence.tv, math.tanh(0.25) / 2 - math.tanh(0.5) / 2),
        (Divergence.kl, math.exp(0.25 - 1) - 0.5),
        # g = ln 2 - ln(1 + e^-v), f* = -ln(2 - e^t)
        (
            Divergence.js,
            -math.log(2 - 2 / (1 + math.exp(-0.25))) - math.log(2) + math.log(1 + math.exp(-0.5)),
        ),
        (Divergence.pearson, 0.25**2 / 4 + 0.25 - 0.5),
    ],
)
def test_flat_by_hand(divergence: Divergence, value: float):
    """The refusal's tokens have probabilities 3/4 and 1/4, the answer's 1/4."""
    logps = torch.tensor([0.75, 0.25, 0.25], dtype=torch.float64).log()
    two = Answers(logps, torch.tensor([0, 0, 1]), torch.tensor([2, 1]), ("refusal", "answer"))
    assert FLAT("flat", divergence).loss(two, Counts(1, 3)).item() == pytest.approx(value)


# --- hidden states -----------------------------------------------------------------------------------------


def test_states_are_steered_along_one_direction():
    """Uniform numbers of length 1, of the seed alone; at coefficient times them nothing is left."""
    unit = direction(WIDTH, 5)
    assert unit.norm().item() == pytest.approx(1)
    assert (unit >= 0).all()
    assert torch.equal(unit, direction(WIDTH, 5))
    assert not torch.equal(unit, direction(WIDTH, 6))
    some = tokens(FORGET["rmu"])
    for name, length in (("rmu", 2.0), ("rmu_adaptive", 2.0 * some.norm)):
        steered = replace(some, logits=(length * unit).expand_as(some.logits))
        assert loss(FORGET[name], steered).item() == pytest.approx(0, abs=1e-14)
        away = replace(steered, logits=steered.logits + 3)
        assert loss(FORGET[name], away).item() == pytest.approx(9)


def test_states_in_bfloat16_are_measured_in_float32():
    some = tokens(FORGET["rmu"])
    low = replace(some, logits=some.logits.detach().bfloat16(), before=some.before.bfloat16())
    for term in (FORGET["rmu"], RETAIN["states"]):
        assert loss(term, low).dtype == torch.float32
        assert loss(term, low).item() == pytest.approx(loss(term, some).item(), rel=0.02)


# --- numbers that make no sense ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SimNPO("simnpo", 0.0, 0.0), "method.beta=0.0: must be above 0"),
        (lambda: SimNPO("simnpo", 1.0, -1.0), "method.margin=-1.0: must be 0 or more"),
        (lambda: DPO("dpo", math.inf), "method.beta=inf: must be above 0"),
        (lambda: WGA("wga", -0.5), "method.beta=-0.5: must be 0 or more"),
        (lambda: SatImp("satimp", 1.0, math.nan), "method.beta2=nan: must be 0 or more"),
        (lambda: TNPO("tnpo", -1.0), "method.beta=-1.0: must be above 0"),
        (lambda: UNDIAL("undial", -1.0), "method.beta=-1.0: must be 0 or more"),
        (lambda: RMU("rmu", 0, 0.0, 0), "method.coefficient=0.0: must be above 0"),
        (lambda: AltPO("altpo", 0.1, 0, 1.0, 9, None, 0), "method.alternatives=0: must be above 0"),
        (lambda: AltPO("altpo", 0.1, 1, 0.0, 9, None, 0), "method.temperature=0.0: must be above 0"),
        (lambda: AltPO("altpo", 0.1, 1, 1.0, 9, "Make one up.", 0), "must hold {question}"),
        (lambda: AP("ap", 1.0, 0.0), "retain.beta=0.0: must be above 0"),
        (lambda: States("states", -1.0, 0), "retain.weight=-1.0: must be 0 or more"),
        (lambda: TaskVector("task_vector", 0.0), "method.alpha=0.0: must be above 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make: Any, words: str):
    with pytest.raises(UserError) as error:
        make()
    assert words in str(error.value)


def test_what_is_asked_for_an_alternative():
    asks = replace(FORGET["altpo"], instruction="{question} Not {answer}!")
    assert isinstance(asks, AltPO)
    assert asks.asked("Who {answer}?", "Ann {question}") == "Who {answer}? Not Ann {question}!"
    assert replace(asks, instruction=None).asked("Who?", "Ann") == "Who?"
