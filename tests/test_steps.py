"""combine= and perturb=: published numbers, laws, the curvature's labels, what a step costs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from test_train import (
    ADAMW,
    CPU,
    FORGET,
    RETAIN,
    SUM,
    answered,
    config,
    gpt2,
    nll,
    silent,
    solving,
    soul,
    train,
    weights,
)  # fmt: skip
from torch import Tensor, nn

from soul_cli.core.types import UserError
from soul_cli.experiment.checks import check_layers
from soul_cli.objective import perturb
from soul_cli.objective.combine import (
    COMBINES,
    GRU,
    Alternating,
    Combine,
    Dual,
    Gradient,
    MUNBa,
    NGDiff,
    Separate,
    product,
    size,
)  # fmt: skip
from soul_cli.objective.forget.likelihood import GA
from soul_cli.objective.methods import Problem, problem
from soul_cli.objective.perturb import LAT, PERTURBS, SAM, Perturb, Smooth, Unperturbed
from soul_cli.objective.retain import CE
from soul_cli.objective.term import Kinds
from soul_cli.optim.build import AdamW
from soul_cli.optim.master import Masters
from soul_cli.optim.sophia import Soul
from soul_cli.planning.memory import LiveBytes
from soul_cli.train.gradient import StepGradient
from soul_cli.train.loop import TrainData, Trainer, build_phases

NONE = Unperturbed("none")
RULES: dict[str, Combine] = {
    "sum": SUM,
    "alternating": Alternating("alternating"),
    "separate": Separate("separate", 1, 1),
    "ngdiff": NGDiff("ngdiff"),
    "munba": MUNBa("munba"),
    "gru": GRU("gru", 0.8),
    "dual": Dual("dual", 5.0, 0.3, 0),
}
MOVES: dict[str, Perturb] = {
    "none": NONE,
    "sam": SAM("sam", 0.1),
    "smooth": Smooth("smooth", 0.01, 3),
    "lat": LAT("lat", 0, 1.0, 3, 0.05),
}


def test_every_rule_is_tested_here():
    assert RULES.keys() == COMBINES.keys()
    assert MOVES.keys() == PERTURBS.keys()


def given_gradients(forget: Sequence[Any], retain: Sequence[Any]) -> Callable[..., Gradient]:
    """The gradient of one step, as it is written down.  None: a parameter that a term does not use."""

    def gradient(kinds: Kinds, weight: float = 1.0) -> Gradient:
        assert kinds in (Kinds.forget, Kinds.retain)
        values = forget if kinds is Kinds.forget else retain
        parts = [None if v is None else torch.tensor(v, dtype=torch.float64) for v in values]
        return Gradient(parts, {f"loss_{kinds.name}": 1.0})

    return gradient


# --- published numbers -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "data" / "objectives" / "golden_steps.json").read_text())


def entries(golden: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [e for e in golden["steps"] if e["name"] == name]


def close(walked: list[Tensor], wanted: list[Any], rtol: float = 1e-9) -> None:
    torch.testing.assert_close(torch.stack(walked), torch.tensor(wanted, dtype=torch.float64), rtol=rtol, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "version", "make", "longest", "rtol"),
    [
        ("ngdiff", "paper", lambda hyper: NGDiff("ngdiff"), math.inf, 1e-9),
        ("munba", "paper", lambda hyper: MUNBa("munba"), math.inf, 1e-9),
        # clipped, as train.clip=1 does; its weights are rounded to float32
        ("munba", "released", lambda hyper: MUNBa("munba"), 1.0, 1e-5),
        ("gru", "released", lambda hyper: GRU("gru", hyper["gamma"]), math.inf, 1e-9),
    ],
)
def test_steps_from_two_gradients_are_the_published_ones(
    golden: dict[str, Any], name: str, version: str, make: Callable[..., Combine], longest: float, rtol: float
):
    (entry,) = entries(golden, name)
    of, rule, memory, walked = golden["inputs"], make(entry["hyper"]), {}, []
    w = torch.tensor(of["start"], dtype=torch.float64)
    for f, r in zip(of["forget_gradients"], of["retain_gradients"], strict=True):
        (step,) = rule(given_gradients([f], [r]), Kinds.both, 3.0, memory).parts
        assert step is not None
        w = w - entry["hyper"]["lr"] * step * min(1.0, longest / float(step.norm()))
        walked.append(w)
    close(walked, entry["versions"][version]["weights"], rtol)


def test_multiplier_is_the_published_one(shared: Path):
    everything = json.loads((shared / "data" / "objectives" / "golden.json").read_text())["objectives"]
    (entry,) = [e for e in everything if e["name"] == "pdu_dual"]
    hyper, memory = entry["hyper"], {}
    rule = Dual("dual", hyper["step"], hyper["eps"], 0)
    pairs = zip(hyper["forget_losses"], hyper["retain_losses"], strict=True)
    for (f, r), loss, after in zip(pairs, entry["loss"], entry["dual_after_step"], strict=True):
        used = []

        def gradient(kinds: Kinds, weight: float = 1.0, f: float = f, r: float = r, used: list[float] = used) -> Any:
            used.append(f + weight * (r - hyper["eps"]))
            return Gradient([], {"loss_forget": f, "loss_retain": r})

        rule(gradient, Kinds.both, hyper["start"], memory)
        assert used == [pytest.approx(loss, rel=1e-6)]  # its dual variable is rounded to float32
        assert memory["dual"] == pytest.approx(after, rel=1e-9, abs=1e-12)


def test_two_optimizers_are_the_published_ones(golden: dict[str, Any]):
    of = golden["inputs"]
    for entry in entries(golden, "dualoptim"):
        hyper = entry["hyper"]
        lm = nn.Linear(4, 3, bias=False, dtype=torch.float64)
        with torch.no_grad():
            lm.weight.copy_(torch.tensor(of["start"], dtype=torch.float64).view(3, 4))
        rule = Separate("separate", hyper["forget_steps"], hyper["retain_steps"])
        solved = solving(GA("ga"), hyper["lr_retain"] / hyper["lr_forget"], rule)
        optim = AdamW("adamw", hyper["lr_forget"], hyper["weight_decay"], *hyper["betas"], hyper["eps"])
        phases = build_phases(solved, optim, lm, Masters([lm.weight], wide=True, offload=False))
        walked: list[Tensor] = []
        while len(walked) < 10:
            for phase in (p for p in phases for _ in range(p.turns)):
                kind = "forget" if phase.kinds is Kinds.forget else "retain"
                if len(walked) < 10:
                    lm.weight.grad = torch.tensor(of[f"{kind}_gradients"][len(walked)], dtype=torch.float64).view(3, 4)
                    for group in phase.optimizer.param_groups:
                        group["lr"] = phase.lr
                    phase.optimizer.step()
                    walked.append(lm.weight.detach().flatten().clone())
        close(walked, entry["versions"]["released"]["weights"])


@pytest.mark.parametrize("name", ["sam", "rs"])
def test_perturbed_steps_are_the_published_ones(golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str):
    (entry,) = entries(golden, name)
    of, hyper = golden["inputs"], entry["hyper"]
    w = nn.Parameter(torch.tensor(of["start"], dtype=torch.float64))

    def gradient(kinds: Kinds, weight: float = 1.0) -> Gradient:
        (kind,) = kinds
        some = of["toy"][kind.name]
        x, y = torch.tensor(some["x"], dtype=torch.float64), torch.tensor(some["y"])
        loss = F.cross_entropy(x @ w.view(3, 4).T, y) * (-1 if kind is Kinds.forget else 1)
        return Gradient(list(torch.autograd.grad(loss, w)), {f"loss_{kind.name}": loss.item()})

    move = SAM("sam", hyper["rho"]) if name == "sam" else Smooth("smooth", hyper["sigma"], 3)
    walked = []
    for drawn in of["noise"]:
        numbers = iter(torch.tensor(drawn, dtype=torch.float64))
        monkeypatch.setattr(perturb, "noise", lambda *_, numbers=numbers: next(numbers))
        (step,) = move.around(gradient, [w], seed=0)(Kinds.both, hyper["gamma"]).parts
        with torch.no_grad():
            w -= hyper["lr"] * step
        walked.append(w.detach().clone())
    close(walked, entry["versions"]["released"]["weights"])


# --- laws --------------------------------------------------------------------------------------------------

VECTORS = st.lists(st.floats(-3, 3).map(lambda x: round(x, 3)), min_size=4, max_size=4).filter(lambda v: any(v))


def step_of(rule: Combine, forget: Sequence[Any], retain: Sequence[Any], memory: dict[str, Any] | None = None) -> Any:
    return rule(given_gradients(forget, retain), Kinds.both, 2.0, {} if memory is None else memory).parts


def test_normalised_parts_have_length_one():
    """Apart from each other: of a parameter each, one of them longer by far."""
    parts = step_of(NGDiff("ngdiff"), [[3e4, 4e4], None, [0.0], None], [None, [5e-5, 12e-5], None, None])
    assert [None if p is None else float(p.norm()) for p in parts] == pytest.approx([1.0, 1.0, 0.0, None])
    assert parts[3] is None


def test_a_gradient_of_zero_stays_zero():
    for rule in (NGDiff("ngdiff"), MUNBa("munba")):
        (part,) = step_of(rule, [[3.0, 4.0]], [[0.0, 0.0]])
        assert part.tolist() == pytest.approx([0.6, 0.8])


@given(VECTORS, VECTORS)
def test_bargain_is_normalised_difference_times_a_number(f: list[float], r: list[float]):
    a, b = torch.tensor([f, r], dtype=torch.float64)
    cosine = float(F.cosine_similarity(a, b, dim=0))
    (bargain,), (normed,) = step_of(MUNBa("munba"), [f], [r]), step_of(NGDiff("ngdiff"), [f], [r])
    if cosine > -1 + 1e-9:
        torch.testing.assert_close(bargain, normed * (1 + cosine) ** -0.5, rtol=1e-6, atol=1e-9)
    if cosine > -0.99:
        assert float(bargain.norm()) == pytest.approx(math.sqrt(2), rel=1e-9)


def test_gradients_that_oppose_each_other_give_no_step():
    (part,) = step_of(MUNBa("munba"), [[3.0, -4.0]], [[-6.0, 8.0]])
    assert part.abs().max() == 0


@given(VECTORS, VECTORS, VECTORS)
def test_rectified_gradient_is_never_against_the_retain_rows(f: list[float], r: list[float], before: list[float]):
    memory: dict[str, Any] = {}
    rule = GRU("gru", 0.8)
    step_of(rule, [before], [before], memory)
    parts = step_of(rule, [f], [r], memory)
    smooth = 0.8 * torch.tensor(r, dtype=torch.float64) + 0.2 * 0.8 * torch.tensor(before, dtype=torch.float64)
    torch.testing.assert_close(memory["retain"][0], smooth, rtol=1e-12, atol=1e-12)
    assert product(parts, memory["retain"]) > -1e-9
    if product([torch.tensor(f, dtype=torch.float64)], memory["retain"]) >= 0:
        assert parts[0].tolist() == f


def test_rectifying_knows_parameters_that_a_term_does_not_use():
    memory: dict[str, Any] = {}
    rule = GRU("gru", 0.5)
    parts = step_of(rule, [[1.0], None, [2.0], None], [[-1.0], [1.0], None, None], memory)
    assert [m if m is None else m.tolist() for m in memory["retain"]] == [[-0.5], [0.5], None, None]
    assert [p if p is None else p.tolist() for p in parts] == [[0.5], [0.5], [2.0], None]
    step_of(rule, [[1.0]] * 4, [None, [1.0], [4.0], None], memory)
    assert [m if m is None else m.tolist() for m in memory["retain"]] == [[-0.25], [0.75], [2.0], None]


def test_multiplier_waits_and_is_never_negative():
    memory: dict[str, Any] = {}
    rule, seen = Dual("dual", 2.0, 1.0, warmup=2), []
    for loss in (1.5, 1.5, 1.5, 0.5, 0.1, 1.25):
        rule(lambda kinds, weight: (seen.append(weight), Gradient([], {"loss_retain": loss}))[1],  # noqa: B023
             Kinds.both, 0.5, memory)  # fmt: skip
    assert seen == [0.5, 0.5, 0.5, 1.5, 0.5, 0.0]
    assert memory == {"dual": 0.5, "taken": 6}


# --- on a model --------------------------------------------------------------------------------------------


def solved(combine: Combine = SUM, move: Perturb = NONE, weight: float = 0.7) -> Problem:
    return problem(GA("graddiff"), CE("ce", weight), combine, move)


def step_gradient(lm: Any, task: Problem, size: int = 2) -> tuple[Trainer, StepGradient]:
    """All forget rows and as many retain rows as one step of micro-batches of `size` rows each."""
    data = {Kinds.forget: answered(FORGET), Kinds.retain: answered(RETAIN)}
    settings = config(epochs=1, batch_size=size, accumulation=9)
    trainer = Trainer(lm, TrainData(lambda e: data[Kinds.forget], data[Kinds.retain]), task, ADAMW, settings, 3, CPU)
    return trainer, StepGradient(trainer.setup, trainer.plans[0][0], data, 0)


def found(lm: Any, move: Perturb, kinds: Kinds = Kinds.both, size: int = 2, seed: int = 5) -> Gradient:
    trainer, gradient = step_gradient(lm, solved(move=move), size=size)
    return move.around(gradient, trainer.params, seed)(kinds, 0.7)


def flat(gradient: Gradient) -> Tensor:
    return torch.cat([p.flatten() for p in gradient.parts if p is not None])


@pytest.mark.parametrize("kinds", [Kinds.both, Kinds.forget, Kinds.retain], ids=str)
@pytest.mark.parametrize("still", [SAM("sam", 0.0), Smooth("smooth", 0.0, 3), LAT("lat", 1, 1.0, 0, 0.05)],
                         ids=lambda m: m.name)  # fmt: skip
def test_a_perturbation_of_nothing_is_none(still: Perturb, kinds: Kinds):
    plain, other = found(gpt2(), NONE, kinds), found(gpt2(), still, kinds)
    torch.testing.assert_close(flat(other), flat(plain), rtol=1e-12, atol=1e-15)
    assert other.losses == pytest.approx(plain.losses, rel=1e-12)


@pytest.mark.parametrize("name", ["sam", "smooth", "lat"])
def test_retain_rows_are_not_perturbed(name: str):
    plain, other = (found(gpt2(), move, Kinds.retain) for move in (NONE, MOVES[name]))
    assert torch.equal(flat(plain), flat(other))
    assert not torch.allclose(flat(found(gpt2(), NONE, Kinds.forget)), flat(found(gpt2(), MOVES[name], Kinds.forget)))
    both = found(gpt2(), MOVES[name])
    assert both.losses["loss_retain"] == pytest.approx(plain.losses["loss_retain"], rel=1e-12)
    apart = flat(found(gpt2(), MOVES[name], Kinds.forget)) + 0.7 * flat(plain)
    torch.testing.assert_close(flat(both), apart, rtol=1e-10, atol=1e-13)


def test_sharpness_is_that_along_the_gradient():
    """By hand, and to first order: the gradient at w + rho u differs from that at w by rho H u."""
    lm = gpt2()
    here = found(gpt2(), NONE, Kinds.forget)
    with torch.no_grad():
        for p, g in zip(lm.parameters(), here.parts, strict=True):
            p += 0.1 * g / size(here.parts) if g is not None else 0.0
    torch.testing.assert_close(
        flat(found(gpt2(), SAM("sam", 0.1), Kinds.forget)), flat(found(lm, NONE, Kinds.forget)), rtol=1e-9, atol=1e-13
    )
    ratios = [
        float((flat(found(gpt2(), SAM("sam", rho), Kinds.forget)) - flat(here)).norm()) / rho for rho in (1e-4, 1e-5)
    ]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["sam", "smooth", "lat"])
def test_weights_are_put_back_bit_for_bit(name: str, dtype: torch.dtype):
    lm = gpt2().to(dtype)
    before, moved = weights(lm).clone(), []
    lm.transformer.register_forward_pre_hook(lambda *_: moved.append(not torch.equal(weights(lm), before)))
    found(lm, replace(MOVES[name], **{"rho": 50.0} if name == "sam" else {}))
    assert torch.equal(weights(lm), before)
    assert any(moved) is (name != "lat")


def test_weights_are_put_back_where_a_gradient_fails():
    lm, calls = gpt2(), count()
    trainer, gradient = step_gradient(lm, solved())
    before = weights(lm).clone()

    def failing(kinds: Kinds, weight: float = 1.0) -> Gradient:
        if next(calls):
            raise KeyboardInterrupt
        return gradient(kinds)

    with pytest.raises(KeyboardInterrupt):
        SAM("sam", 1.0).around(failing, trainer.params, 0)(Kinds.forget)
    assert torch.equal(weights(lm), before)


def test_noise_is_that_of_the_seed():
    a, again, other = (flat(found(gpt2(), MOVES["smooth"], seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(a, again)
    assert not torch.allclose(a, other)


@pytest.mark.parametrize("name", ["sam", "smooth", "lat"])
def test_accumulation_changes_no_perturbed_gradient(name: str):
    a, b = (found(gpt2(), MOVES[name], size=size) for size in (1, 6))
    torch.testing.assert_close(flat(a), flat(b), rtol=1e-8, atol=1e-12)
    assert a.losses == pytest.approx(b.losses, rel=1e-10)


# --- hidden states -----------------------------------------------------------------------------------------


def test_the_adversary_raises_the_loss_within_its_ball():
    seen: list[Tensor] = []

    class Watched(LAT):
        def states(self, loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
            delta = super().states(loss, start)
            seen.append(delta)
            return delta

    losses = [
        found(gpt2(), Watched("lat", 0, epsilon, steps, 0.05)).losses["loss_forget"]
        for epsilon, steps in ((0.0, 3), (0.2, 1), (0.2, 8), (2.0, 8))
    ]
    assert losses == sorted(losses)
    assert losses[0] < losses[1] < losses[3]
    assert losses[0] == pytest.approx(found(gpt2(), NONE).losses["loss_forget"])
    lengths = [float(d.norm(dim=-1).max()) for d in seen]
    assert max(lengths[:3]) == 0
    assert max(lengths[3:9]) == pytest.approx(0.2)


def test_states_are_moved_behind_the_block(monkeypatch: pytest.MonkeyPatch):
    """Against a model whose block adds the same to every token itself."""
    monkeypatch.setattr(LAT, "states", lambda self, loss, start: torch.full_like(start, 0.3))
    for layer in (0, 1):
        by_hand = gpt2()
        by_hand.transformer.h[layer].register_forward_hook(
            lambda module, inputs, out: (out[0] + 0.3, *out[1:]) if isinstance(out, tuple) else out + 0.3
        )
        for lm in (gpt2(), checkpointed(gpt2())):
            other = found(lm, LAT("lat", layer, 1.0, 1, 0.1), Kinds.forget)
            torch.testing.assert_close(flat(other), flat(found(by_hand, NONE, Kinds.forget)), rtol=1e-10, atol=1e-14)


def checkpointed(lm: Any) -> Any:
    from soul_cli.models.load import checkpoint_activations

    checkpoint_activations(lm)
    return lm


def test_a_layer_to_perturb_that_the_model_has_not_is_refused():
    task = solved(move=LAT("lat", 7, 1.0, 1, 0.1))
    check_layers(task, 8)
    with pytest.raises(UserError, match=r"perturb.layer=7 \(lat\): the model has the layers 0 to 6"):
        check_layers(task, 7)


# --- curvature ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ngdiff", "sam", "smooth", "lat"])
def test_curvature_is_that_of_the_unmoved_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """The first estimate of SOUL, in the loop, does not feel how the gradient is taken."""
    estimates: list[list[Tensor]] = []
    update = Soul.update_hessian

    def watched(self: Soul, made: Iterable[tuple[Tensor, Tensor]]) -> None:
        every = [(p, h.clone()) for p, h in made]
        estimates.append([h for _, h in every])
        update(self, every)

    monkeypatch.setattr(Soul, "update_hessian", watched)
    rule, move = RULES.get(name, SUM), MOVES.get(name, NONE)
    for i, task in enumerate((solved(), solved(rule, move))):
        train(gpt2(), tmp_path / str(i), task, soul(rho=1.0, every=100), config(epochs=1, accumulation=2))
    for a, b in zip(*estimates, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


# --- costs -------------------------------------------------------------------------------------------------

# passes over forget rows and over retain rows
PASSES = {"sam": (2, 1), "smooth": (3, 1), "lat": (4, 1)}


def read(lm: Any) -> list[int]:
    """Tokens, pads aside, of each forward that follows."""
    seen: list[int] = []
    lm.transformer.wte.register_forward_hook(lambda module, inputs, out: seen.append(int((inputs[0] > 0).sum())))
    return seen


@pytest.mark.parametrize("name", [*RULES, *PASSES])
def test_forwards_of_a_step(tmp_path: Path, name: str):
    """Two gradients read no row twice; perturbations read forget rows as often as they say, and the plan knows."""
    lm, task = gpt2(), solved(RULES.get(name, SUM), MOVES.get(name, NONE))
    seen = read(lm)
    (record,) = train(lm, tmp_path, task, settings=config(epochs=1, batch_size=6), retain=RETAIN[:6])
    forget, retain = (sum(map(len, rows)) for rows in (FORGET, RETAIN[:6]))
    times = PASSES.get(name, (1, 1))
    assert sum(seen) == times[0] * forget + times[1] * retain
    assert record["tokens"] == forget + retain
    assert times == tuple(sum(kind in p for p in task.passes) for kind in (Kinds.forget, Kinds.retain))


@pytest.mark.parametrize("name", [n for n in (*RULES, *PASSES) if n not in ("alternating", "separate", "sum")])
def test_buffers_of_a_step(name: str):
    """Gradient-sized lists that stand while a gradient is computed, as the plan counts them."""
    lm, most = gpt2(), [0]
    task = solved(RULES.get(name, SUM), MOVES.get(name, NONE))
    trainer, gradient = step_gradient(lm, task)
    with LiveBytes() as live:
        for p in trainer.params:
            live.watch(p)
        whole = live.now

        def watched(kinds: Kinds, weight: float = 1.0) -> Gradient:
            most[0] = max(most[0], round(live.now / whole) - 1)
            return gradient(kinds, weight)

        memory: dict[str, Any] = {}
        for _ in range(2):
            around = task.perturb.around(watched, trainer.params, 0)
            task.combine(around, Kinds.both, 0.7, memory)
    assert most[0] == task.buffers


# --- m forget steps, n retain steps ------------------------------------------------------------------------


def test_separate_steps_one_each_are_alternating_ones(tmp_path: Path):
    """Where weights do not decay."""
    still = replace(ADAMW, weight_decay=0.0)
    ran = []
    for rule in (RULES["alternating"], RULES["separate"]):
        lm = gpt2()
        records = train(lm, tmp_path / rule.name, solved(rule), still)
        ran.append((weights(lm), [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in records]))
    assert torch.equal(ran[0][0], ran[1][0])
    assert ran[0][1] == ran[1][1]


@pytest.mark.parametrize(("forget", "retain"), [(1, 3), (2, 1), (2, 3)])
def test_separate_steps_follow_each_other(tmp_path: Path, forget: int, retain: int):
    """6 forget rows one by one: the kinds of the optimizer steps in order, and what each optimizer counts."""
    rule = Separate("separate", forget, retain)
    lm, data = gpt2(), {Kinds.forget: answered(FORGET), Kinds.retain: answered(RETAIN)}
    settings = config(epochs=1, batch_size=1)
    trainer = Trainer(lm, TrainData(lambda e: data[Kinds.forget], data[Kinds.retain]), solved(rule), ADAMW, settings,
                      3, CPU)  # fmt: skip
    taken: list[str] = []
    for phase in trainer.phases:
        phase.optimizer.register_step_post_hook(lambda *_, name=phase.kinds.name: taken.append(name[0]))
    seen = read(lm)
    records = trainer.train(tmp_path, silent)
    assert "".join(taken) == ("f" * forget + "r" * retain) * (6 // forget)
    assert len(records) == 6 // forget
    assert sum(r["tokens"] for r in records) == sum(seen)


def test_loss_of_several_steps_is_their_mean(tmp_path: Path):
    lm = gpt2()
    still = replace(ADAMW, lr=0.0)
    (record,) = train(lm, tmp_path, solved(Separate("separate", 6, 6)), still, config(epochs=1, batch_size=1),
                      retain=RETAIN[:6])  # fmt: skip
    for key, rows, sign in (("loss_forget", FORGET, -1), ("loss_retain", RETAIN[:6], 1)):
        each = [sign * float(nll(lm, [row]).detach()) for row in rows]
        assert record[key] == pytest.approx(sum(each) / 6, rel=1e-5)
