"""Optimizers: by hand, laws over all of them, parity with slow references; the curvature estimate exactly."""

import copy
import math

import pytest
import torch
from test_train import ASCENT, solving
from torch import nn

from soul_cli.core.types import UserError
from soul_cli.objective.combine import Alternating
from soul_cli.objective.forget.likelihood import GA
from soul_cli.objective.term import Kinds
from soul_cli.optim.build import (
    OPTIMS,
    AdamW,
    HessianData,
    Lion,
    MuonConfig,
    Optim,
    Signum,
    SoulConfig,
    SoulReleasedConfig,
    parameter_groups,
)
from soul_cli.optim.master import Masters
from soul_cli.optim.sophia import Soul, SoulReleased
from soul_cli.train.loop import Trainer, build_phases

LR, WD = 0.01, 0.1


def soul(**changes) -> SoulConfig:
    fields = {
        "beta1": 0.9, "beta2": 0.95, "eps": 1e-15, "rho": 0.5, "unclipped_share": None, "hessian_every": 2,
        "hessian_rows": 4, "hessian_data": HessianData.both,
    }  # fmt: skip
    return SoulConfig("soul", LR, WD, **fields | changes)


CONFIGS: dict[str, Optim] = {
    "adamw": AdamW("adamw", LR, WD, 0.9, 0.999, 1e-8),
    "soul": soul(),
    "soul_calibrated": soul(rho=None, unclipped_share=0.3),
    "soul_released": SoulReleasedConfig("soul_released", LR, WD, 0.9, 0.95, 0.04, 5120),
    "signum": Signum("signum", LR, WD, 0.9),
    "lion": Lion("lion", LR, WD, 0.9, 0.99),
    "muon": MuonConfig("muon", LR, WD, 0.95, 0.9, 0.95),
}
every_optimizer = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


class Toy(nn.Module):
    """One parameter of each kind; head and body as in a causal LM."""

    def __init__(self):
        super().__init__()
        self.embed, self.body, self.norm = nn.Embedding(6, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.head = nn.Linear(4, 6, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def toy(seed: int = 0, dtype: torch.dtype = torch.float32) -> Toy:
    torch.manual_seed(seed)
    return Toy().to(dtype)


def random_like(params, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params]


def advance(optimizer, params, steps: range, scale: float = 1.0) -> None:
    """Steps with gradients (and every second step a curvature estimate) that depend on the step's number only."""
    for t in steps:
        for p, g in zip(params, random_like(params, t), strict=True):
            p.grad = scale * g
        if isinstance(optimizer, Soul) and t % 2 == 0:
            noise = random_like(params, 1000 + t)
            optimizer.update_hessian((p, x.square()) for p, x in zip(params, noise, strict=True))
        optimizer.step()


def test_every_optimizer_is_covered_here():
    assert {type(c) for c in CONFIGS.values()} == set(OPTIMS.values())


# --- SOUL, Algorithm 1 -------------------------------------------------------------------------------------


def one_parameter(*values: float, **changes) -> tuple[torch.Tensor, Soul]:
    p = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    options = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-15, "weight_decay": 0.0, "rho": 0.5} | changes
    return p, Soul([p], **options)


def test_soul_by_hand():
    p, optimizer = one_parameter(1, 1, 1, 1, 1, weight_decay=0.2)
    optimizer.update_hessian([(p, torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]))])
    p.grad = torch.tensor([2.0, -2.0, 50.0, 1.0, 0.0], dtype=torch.float64)
    optimizer.step()
    # m = 0.1 g; m / (0.5 h) = 0.4, -0.4, 10 -> 1, (0.1 / eps) -> 1, 0; theta (1 - 0.02) - 0.1 clip
    assert p.tolist() == pytest.approx([0.94, 1.02, 0.88, 0.88, 0.98], rel=1e-12)
    assert optimizer.stats["unclipped_share"] == 2 / 4  # the last has no momentum: neither clipped nor unclipped
    assert optimizer.stats["m_norm"] == pytest.approx(math.sqrt(0.2**2 + 0.2**2 + 5**2 + 0.1**2))
    assert optimizer.stats["h_l1"] == 3
    assert optimizer.stats["rho"] == 0.5


def test_h_is_the_mean_of_few_estimates_and_starts_where_there_is_one():
    p, optimizer = one_parameter(1, 1)
    for estimate, h in (
        ([0.0, 4.0], [0.0, 4.0]),
        ([20.0, 0.0], [20.0, 2.0]),  # 20: the first that is not 0; (4 + 0) / 2
        ([8.0, 5.0], [16.0, 3.0]),  # a third of the way
    ):
        optimizer.update_hessian([(p, torch.tensor(estimate))])
        assert optimizer.state[p]["h"].tolist() == pytest.approx(h)


def test_many_estimates_are_a_moving_average():
    p, optimizer = one_parameter(1, betas=(0.9, 0.75))
    expected = 0.0
    for k in range(1, 9):
        optimizer.update_hessian([(p, torch.tensor([float(k)]))])
        expected += (k - expected) * max(1 / k, 0.25)
        assert optimizer.state[p]["h"].item() == pytest.approx(expected)


def test_soul_needs_a_curvature_before_its_first_step():
    p, optimizer = one_parameter(1)
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="before the first update_hessian"):
        optimizer.step()


def slow_soul(theta: float, grads: list[float], estimates: dict[int, float], *, rho: float, wd: float) -> float:
    """Algorithm 1 for one coordinate."""
    m = h = 0.0
    for t, g in enumerate(grads):
        m = 0.9 * m + 0.1 * g
        if t in estimates:
            k = 1 + t // 2  # this is the k-th
            h += max(1 / k, 0.05) * (estimates[t] - h)
        update = m / max(rho * h, 1e-15)
        theta = theta * (1 - 0.01 * wd) - 0.01 * min(1, max(-1, update))
    return theta


def test_soul_equals_a_loop_over_coordinates():
    model = toy(dtype=torch.float64)
    params, steps = list(model.parameters()), range(7)
    before = [p.detach().clone() for p in params]
    grads = [random_like(params, t) for t in steps]
    estimates = {t: [x.square() for x in random_like(params, 1000 + t)] for t in steps if t % 2 == 0}
    optimizer = soul().build(parameter_groups(model, WD))
    advance(optimizer, params, steps)
    assert 0.2 < optimizer.stats["unclipped_share"] < 0.9  # both kinds of coordinate are there
    for k, p in enumerate(params):
        slow = [
            slow_soul(
                before[k].flatten()[i].item(),
                [g[k].flatten()[i].item() for g in grads],
                {t: e[k].flatten()[i].item() for t, e in estimates.items()},
                rho=0.5,
                wd=WD if p.ndim > 1 else 0.0,
            )
            for i in range(p.numel())
        ]
        torch.testing.assert_close(p.flatten().tolist(), slow, rtol=0, atol=1e-12)


def test_soul_with_every_coordinate_clipped_is_signum():
    first, second = toy(), toy()
    groups = [parameter_groups(model, WD) for model in (first, second)]
    advance(soul(rho=1e-9).build(groups[0]), list(first.parameters()), range(5))
    advance(CONFIGS["signum"].build(groups[1]), list(second.parameters()), range(5))
    torch.testing.assert_close(first.state_dict(), second.state_dict())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_calibrated_rho_leaves_the_asked_share_unclipped(share):
    model = toy(dtype=torch.float64)
    params = list(model.parameters())
    optimizer = soul(rho=None, unclipped_share=share).build(parameter_groups(model, WD))
    n = sum(p.numel() for p in params)
    for t in range(16):
        before = optimizer.stats.get("rho")
        advance(optimizer, params, range(t, t + 1))
        found = t < 10 or t % 2 == 0  # beta1 = 0.9: m grows for ten steps; every second step has an estimate
        assert (optimizer.stats["rho"] != before) is found
        if found:
            assert abs(optimizer.stats["unclipped_share"] - share) <= 1.01 / n
        assert {g["rho"] for g in optimizer.param_groups} == {optimizer.stats["rho"]}


def test_calibration_by_hand_and_without_coordinates_that_do_not_move():
    p, optimizer = one_parameter(0, 0, 0, 0, 0, 0, rho=None, unclipped_share=0.5, betas=(0, 0.95))
    optimizer.update_hessian([(p, torch.tensor([1.0, 2.0, 1.0, 8.0, 1.0, 1.0]))])
    p.grad = torch.tensor([1.0, -4.0, 3.0, 32.0, 0.0, 0.0], dtype=torch.float64)
    optimizer.step()
    # |m| / h = 1, 2, 3, 4; half of them below the middle -> rho = 2.5
    assert optimizer.stats["rho"] == 2.5
    assert optimizer.stats["unclipped_share"] == 2 / 4
    assert p.tolist() == pytest.approx([-0.1 / 2.5, 0.1 * 2 / 2.5, -0.1, -0.1, 0, 0])


def test_calibration_without_any_gradient_moves_nothing():
    p, optimizer = one_parameter(1, 2, rho=None, unclipped_share=0.5)
    optimizer.update_hessian([(p, torch.zeros(2))])
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert p.tolist() == [1, 2]


# --- the released code's optimizer -------------------------------------------------------------------------


def slow_released(theta: float, grads: list[float], *, wd: float) -> tuple[float, bool]:
    """facts.md, section 2, line by line -> the parameter, and whether its last step was not clipped."""
    m = h = share = 0.0
    for g in grads:
        h = 0.95 * h + 0.05 * g * g
        m = 0.9 * m + 0.1 * g
        m = 0.9 * m + 0.1 * g
        theta = theta * (1 - 0.01 * wd)
        share = abs(m) / (0.04 * 5120 * h + 1e-15)
        theta = theta - 0.01 * math.copysign(1, m) * min(share, 1)
    return theta, share < 1


def test_released_optimizer_equals_its_recursion():
    model = toy(dtype=torch.float64)
    params, steps, scale = list(model.parameters()), range(6), 0.01
    before = [p.detach().clone() for p in params]
    grads = [random_like(params, t) for t in steps]
    optimizer = CONFIGS["soul_released"].build(parameter_groups(model, WD))
    assert isinstance(optimizer, SoulReleased)
    advance(optimizer, params, steps, scale)
    unclipped = []
    for k, p in enumerate(params):
        for i, got in enumerate(p.flatten().tolist()):
            series = [scale * g[k].flatten()[i].item() for g in grads]
            theta, free = slow_released(before[k].flatten()[i].item(), series, wd=WD if p.ndim > 1 else 0.0)
            assert got == pytest.approx(theta, abs=1e-12)
            unclipped.append(free)
    assert 0.2 < optimizer.stats["unclipped_share"] < 0.95
    assert optimizer.stats["unclipped_share"] == pytest.approx(sum(unclipped) / len(unclipped))


def test_released_momentum_applied_twice_is_one_of_081():
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = SoulReleased([p], lr=0.1, betas=(0.9, 0.95), rho=0.04, bs=5120, weight_decay=0)
    for g, m in [(1.0, 0.19), (-2.0, 0.81 * 0.19 - 0.19 * 2)]:
        p.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        assert optimizer.state[p]["m"].item() == pytest.approx(m)


# --- first order -------------------------------------------------------------------------------------------


def test_adamw_is_torchs():
    ours, theirs = toy(dtype=torch.float64), toy(dtype=torch.float64)
    advance(CONFIGS["adamw"].build(parameter_groups(ours, WD)), list(ours.parameters()), range(5))
    plain = torch.optim.AdamW(parameter_groups(theirs, WD), lr=LR, betas=(0.9, 0.999), eps=1e-8)
    advance(plain, list(theirs.parameters()), range(5))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-12, atol=1e-14)


def test_lion_by_hand():
    p = torch.zeros(1, requires_grad=True)
    optimizer = Lion("lion", 1.0, 0.0, 0.5, 0.9).build([{"params": [p], "weight_decay": 0.0}])
    # step 1: sign(0.5 * 8) = 1, m = 0.8; step 2: sign(0.4 - 0.5) = -1
    for g, after in ((8.0, -1.0), (-1.0, 0.0)):
        p.grad = torch.tensor([g])
        optimizer.step()
        assert p.item() == after


def test_muon_turns_hidden_matrices_and_leaves_the_rest_to_adamw():
    model = toy()
    before = copy.deepcopy(model.state_dict())
    optimizer = MuonConfig("muon", LR, 0.0, 0.95, 0.9, 0.95).build(parameter_groups(model, 0.0))
    advance(optimizer, list(model.parameters()), range(1))
    moved = {k: (v - before[k]) / LR for k, v in model.state_dict().items()}
    gradients = dict(zip(moved, random_like(model.parameters(), 0), strict=True))
    for name, update in moved.items():
        if name == "body.weight":  # orthogonal (five Newton-Schulz steps: roughly), 0.2 a coordinate in the mean
            assert update.square().mean().sqrt().item() == pytest.approx(0.2, abs=0.06)
            assert (torch.linalg.svdvals(update) / (0.2 * 2) - 1).abs().max() < 0.4
        else:  # the first step of AdamW is a sign step
            torch.testing.assert_close(update, -gradients[name].sign(), rtol=0, atol=1e-4)


def test_muon_steps_as_the_library_does_to_bfloat16():
    """pytorch_optimizer's iterates in bfloat16: an update agrees to its 8 bits, AdamW's part to float32's."""
    from pytorch_optimizer import Muon as Library

    ours, theirs = toy(), toy()
    for model in (ours, theirs):  # matrices that are wide and tall: both lengths count
        torch.manual_seed(1)
        model.body = nn.ModuleList(nn.Linear(*shape, bias=False) for shape in ((4, 4), (8, 3), (3, 8)))
    groups = parameter_groups(theirs, WD)
    for group in groups:
        hidden = {"use_muon": True, "use_adjusted_lr": True, "momentum": 0.95}
        group |= {"lr": LR} | (hidden if group["hidden"] else {"use_muon": False, "betas": (0.9, 0.95)})
    advance(CONFIGS["muon"].build(parameter_groups(ours, WD)), list(ours.parameters()), range(5))
    advance(Library(groups), list(theirs.parameters()), range(5))
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0.02 * LR if "body" in name else 1e-6)


# --- all optimizers ----------------------------------------------------------------------------------------


@every_optimizer
def test_without_gradient_weight_decay_alone_acts_and_spares_vectors(config):
    model = toy()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = config.build(parameter_groups(model, WD))
    advance(optimizer, list(model.parameters()), range(1), scale=0.0)
    for name, p in model.state_dict().items():
        torch.testing.assert_close(p, before[name] * (1 - LR * WD if p.ndim > 1 else 1))


@every_optimizer
def test_first_step_goes_against_the_gradient(config):
    model = toy()
    params = list(model.parameters())
    before = [p.detach().clone() for p in params]
    advance(config.build(parameter_groups(model, 0.0)), params, range(1))
    for p, b, g in zip(params, before, random_like(params, 0), strict=True):
        assert ((p - b) * g).sum() < 0


def unmastered(model: nn.Module) -> Masters:
    return Masters(list(model.parameters()), wide=False, offload=False)


def bare_trainer(config: Optim, model: nn.Module) -> Trainer:
    """The two things that saving and resuming look at, without a language model or data."""
    trainer = Trainer.__new__(Trainer)
    trainer.params = list(model.parameters())
    trainer.masters = unmastered(model)
    trainer.phases = build_phases(solving(GA("graddiff"), 2.0), config, model, trainer.masters)
    trainer.memory = {}
    return trainer


def advance_all(trainer: Trainer, steps: range) -> None:
    for t in steps:
        for k, phase in enumerate(trainer.phases):
            for group in phase.optimizer.param_groups:
                group["lr"] = phase.lr / (1 + t)  # a schedule, as in the loop
            advance(phase.optimizer, trainer.params, range(t, t + 1), scale=1 + k)


@every_optimizer
def test_a_resumed_run_goes_on_bit_by_bit(config, tmp_path):
    whole = bare_trainer(config, toy())
    advance_all(whole, range(8))

    stopped = bare_trainer(config, toy())
    advance_all(stopped, range(3))
    stopped._save(tmp_path, [{"step": 3}])
    resumed = bare_trainer(config, toy(seed=1))
    assert resumed._resume(tmp_path) == [{"step": 3}]
    advance_all(resumed, range(3, 8))

    states = [[phase.optimizer.state_dict() for phase in trainer.phases] for trainer in (whole, resumed)]
    for p, q in zip(whole.params, resumed.params, strict=True):
        assert torch.equal(p, q)
    for a, b in zip(*states, strict=True):
        torch.testing.assert_close(a["state"], b["state"], rtol=0, atol=0)


@every_optimizer
def test_state_dict_round_trip(config):
    one, other = toy(), toy()
    first, second = (config.build(parameter_groups(model, WD)) for model in (one, other))
    advance(first, list(one.parameters()), range(3))
    other.load_state_dict(one.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    advance(first, list(one.parameters()), range(3, 6))
    advance(second, list(other.parameters()), range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_a_calibration_that_is_due_survives_the_state_dict():
    model = toy()
    params = list(model.parameters())
    first, second = (soul(rho=None, unclipped_share=0.3).build(parameter_groups(model, WD)) for _ in "ab")
    first.update_hessian((p, torch.ones_like(p)) for p in params)
    second.load_state_dict(first.state_dict())
    advance(second, params, range(1, 2))  # no estimate at odd steps: rho comes from the loaded flag
    assert second.stats["unclipped_share"] == pytest.approx(0.3, abs=1 / 60)


# --- configuration and groups ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rho": None}, "set exactly one"),
        ({"unclipped_share": 0.3}, "set exactly one"),
        ({"rho": 0.0}, "rho=0.0: must be above 0"),
        ({"rho": None, "unclipped_share": 0.0}, "unclipped_share=0.0: must be between 0 and 1"),
        ({"rho": None, "unclipped_share": 1.0}, "unclipped_share=1.0: must be between 0 and 1"),
        ({"hessian_every": 0}, "hessian_every=0: must be 1 or more"),
        ({"hessian_rows": 0}, "hessian_rows=0: must be 1 or more"),
        ({"beta1": 1.0}, r"beta1=1.0: must be in \[0, 1\)"),
        ({"beta2": -0.1}, r"beta2=-0.1: must be in \[0, 1\)"),
    ],
)
def test_bad_soul_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        soul(**changes)


@pytest.mark.parametrize("both", [{"rho": None}, {"unclipped_share": 0.3}])
def test_soul_takes_exactly_one_of_rho_and_share(both):
    with pytest.raises(ValueError, match="exactly one"):
        one_parameter(1, **both)


@pytest.mark.parametrize(("lr", "wd"), [(-1.0, 0.0), (math.inf, 0.0), (math.nan, 0.0), (0.1, -1.0)])
def test_bad_rates_are_refused(lr, wd):
    with pytest.raises(UserError, match="must be 0 or more"):
        AdamW("adamw", lr, wd, 0.9, 0.999, 1e-8)


def test_bad_momentum_is_refused():
    with pytest.raises(UserError, match="momentum=1"):
        Signum("signum", 0.1, 0.0, 1.0)


def test_alternating_steps_have_an_optimizer_each_and_the_weight_acts_on_the_rate():
    model, solved = toy(), solving(GA("graddiff"), 2.0, Alternating("alternating"))
    forget, retain = build_phases(solved, CONFIGS["soul"], model, unmastered(model))
    assert (forget.kinds, forget.lr) == (Kinds.forget, LR)
    assert (retain.kinds, retain.lr) == (Kinds.retain, 2 * LR)
    assert forget.optimizer is not retain.optimizer
    decays = [[g["weight_decay"] for g in p.optimizer.param_groups] for p in (forget, retain)]
    assert max(decays[0]) == WD  # once a step
    assert max(decays[1]) == 0


def test_sums_and_methods_of_one_term_have_one_phase():
    model = toy()
    (joint,) = build_phases(solving(GA("graddiff"), 2.0), CONFIGS["soul"], model, unmastered(model))
    assert (joint.kinds, joint.lr) == (Kinds.both, LR)
    (ascent,) = build_phases(ASCENT, CONFIGS["soul"], model, unmastered(model))
    assert (ascent.kinds, ascent.lr) == (Kinds.forget, LR)


@pytest.mark.parametrize("wrapped", [False, True])
def test_parameter_groups_cover_every_trained_parameter_once(wrapped):
    lm = toy()
    lm.norm.bias.requires_grad_(False)
    model = nn.Module() if wrapped else lm
    if wrapped:
        model.lm = lm  # as in AnswerModel
    names = {id(p): name for name, p in lm.named_parameters()}
    groups = [
        ([names[id(p)] for p in g["params"]], g["weight_decay"], g["hidden"]) for g in parameter_groups(model, WD)
    ]
    assert groups == [
        (["body.weight"], WD, True),
        (["embed.weight", "head.weight"], WD, False),
        (["body.bias", "norm.weight"], 0.0, False),
    ]


def test_tied_embeddings_appear_once():
    model = toy()
    model.head.weight = model.embed.weight
    members = [p for g in parameter_groups(model, WD) for p in g["params"]]
    assert len(members) == len({id(p) for p in members}) == 5


def test_calibration_ignores_coordinates_without_curvature() -> None:
    p = torch.nn.Parameter(torch.zeros(4))
    soul = Soul([p], lr=0.1, betas=(0.0, 0.9), eps=1e-15, weight_decay=0.0, unclipped_share=0.5)
    soul.update_hessian([(p, torch.tensor([0.0, 0.0, 0.0, 1.0]))])
    p.grad = torch.full((4,), 5.0)
    soul.step()
    assert soul.stats["rho"] == 5.0  # |m| / h of the one coordinate with curvature
    assert p.tolist() == pytest.approx([-0.1] * 4)  # the others take the full step
