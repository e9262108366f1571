"""The curvature estimate: labels, the rows that are taken, and its expectation exactly."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from term_rows import rows_for
from test_influence import CPU, Linear, flat, objective
from test_terms import FORGET as FORGET_TERMS
from test_terms import RETAIN as RETAIN_TERMS
from test_train import ADAMW, APART, FORGET, GRADDIFF, RETAIN, answered, config, gpt2, solving, soul, train
from torch import Tensor

from soul_cli.core.types import Prompted
from soul_cli.data.batches import Step, collate
from soul_cli.data.rows import Rows
from soul_cli.objective.forget.likelihood import GA
from soul_cli.objective.methods import Problem
from soul_cli.objective.retain import CE
from soul_cli.objective.term import Kinds
from soul_cli.optim import curvature
from soul_cli.optim.build import Curvature, HessianData
from soul_cli.optim.curvature import sample_labels, scramble, systematic, uniforms
from soul_cli.planning.memory import LiveBytes
from soul_cli.train import gradient as gradients
from soul_cli.train.gradient import StepGradient
from soul_cli.train.loop import TrainData, Trainer

SOME = {Kinds.forget: answered(FORGET), Kinds.retain: answered(RETAIN)}

# --- labels ------------------------------------------------------------------------------------------------


def test_scrambling_one_key_is_splitmix64():
    # the first output of the published generator with seed 0, and the second (its state is the golden ratio by then)
    assert scramble(0).tolist() == [0xE220A8397B1DCDAF]
    assert scramble(np.uint64(0x9E3779B97F4A7C15).astype(np.int64)).tolist() == [0x6E789E6AA1B965F4]


def test_numbers_are_uniform_and_neighbours_do_not_resemble_each_other():
    n = 4096
    index, zeros = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    steps = torch.cat([uniforms(0, step, zeros[:1], zeros[:1]) for step in range(n)])
    seeds = torch.cat([uniforms(seed, 0, zeros[:1], zeros[:1]) for seed in range(-n // 2, n // 2)])
    rows, positions = uniforms(3, 5, index << 40, zeros), uniforms(3, 5, zeros, index)
    for u in (steps, seeds, rows, positions):
        assert kstest(u, "uniform").pvalue > 0.01
        assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 3 / math.sqrt(n)
    for u, v in product((steps, seeds, rows, positions), repeat=2):
        assert u is v or abs(np.corrcoef(u, v)[0, 1]) < 4 / math.sqrt(n)


def test_labels_by_hand():
    logits = torch.tensor([0.25, 0.5, 0.0, 0.25]).log().expand(6, 4)
    u = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2.0**-53], dtype=torch.float64)
    assert sample_labels(logits, u).tolist() == [0, 0, 1, 1, 3, 3]  # the third is impossible
    assert sample_labels(logits[:0], u[:0]).tolist() == []


def test_label_frequencies_are_the_softmax():
    torch.manual_seed(0)
    logits, n = 2 * torch.randn(7), 20_000
    labels = sample_labels(logits.expand(n, 7), uniforms(1, 2, torch.arange(n) % 40, torch.arange(n) // 40))
    p = logits.double().softmax(-1)
    assert chisquare(labels.bincount(minlength=7), n * p / p.sum()).pvalue > 0.01


# --- rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "most"), [(1, 1), (5, 1), (5, 3), (16, 4), (7, 6), (4, 4), (3, 9)])
def test_each_number_is_taken_as_often_and_runs_have_their_share(n: int, most: int):
    times = np.zeros(n, int)
    for start in range(n):
        some = systematic(n, most, start + 7 * n)
        assert len(set(some)) == len(some) == min(n, most)
        times[some] += 1
        for first, last in ((0, n // 2), (n // 3, n)):
            share = (last - first) * min(1, most / n)
            assert abs(sum(first <= i < last for i in some) - share) < 1
    assert set(times) == {min(n, most)}


def step_gradient(
    lm: Any, step: Step, *, index: int = 0, data: dict[Kinds, Rows] = SOME, solved: Problem = GRADDIFF
) -> StepGradient:
    trainer = Trainer(lm, TrainData(lambda e: data[Kinds.forget], data[Kinds.retain]), solved, soul(), config(), 3, CPU)
    return StepGradient(trainer.setup, step, data, index)


def drawn(gradient: StepGradient, rows: int | None, data: HessianData = HessianData.both, kinds: Kinds = Kinds.both):
    """An estimate, (parameters,).  .grad is empty before and after."""
    params = gradient.setup.params
    factor = gradient.draw(kinds, Curvature(1, data, rows))
    found = flat([torch.zeros_like(p) if p.grad is None else p.grad.square() * factor for p in params])
    for p in params:
        p.grad = None
    return found


MICRO = [
    (((0, 1, 2), (3, 5)), ((3, 4), (1, 9, 5))),  # a retain row twice
    (((4, 2, 1, 0, 3), (9, 5, 5, 3, 1)),),
    (((0,), ()), ((), (5, 5)), ((3, 1), (1,)), ((2, 4), (3, 9))),
]


@pytest.mark.parametrize("rows", [None, 1, 4, 9])
def test_estimate_does_not_depend_on_how_rows_are_batched(rows: int | None):
    """No pass has more rows than the step has of one kind in a micro-batch."""
    found = []
    for micro in MICRO:
        lm, passes = gpt2(), []
        lm.transformer.wte.register_forward_pre_hook(lambda module, ids, seen=passes: seen.append(len(ids[0])))
        found.append(drawn(step_gradient(lm, Step(micro)), rows))
        assert max(passes) <= max(len(some) for pair in micro for some in pair)
        assert sum(passes) == (rows or 10)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("data", "kinds", "rows", "taken"),
    [
        (HessianData.both, Kinds.both, 2, {"fr"}), (HessianData.both, Kinds.both, 1, {"f", "r"}),
        (HessianData.both, Kinds.both, None, {"fffrrr"}), (HessianData.forget, Kinds.both, 2, {"ff"}),
        (HessianData.retain, Kinds.both, None, {"rrr"}), (HessianData.retain, Kinds.forget, 2, {"ff"}),
    ],
)  # fmt: skip
def test_rows_that_count(data: HessianData, kinds: Kinds, rows: int | None, taken: set[str]):
    """Which kinds' rows are read, over steps of several numbers."""
    lm, seen, read = gpt2(), set(), []
    lm.transformer.wte.register_forward_pre_hook(lambda module, ids: read.extend(ids[0].tolist()))
    known = {(*r.prompt, *r.answers[0]): name for name, some in (("f", FORGET), ("r", RETAIN)) for r in some}
    for index in range(8):
        drawn(step_gradient(lm, Step((((0, 1, 2), (4, 5, 6)),)), index=index), rows, data, kinds)
        seen.add("".join(sorted(known[tuple(i for i in ids if i)] for ids in read)))
        read.clear()
    assert seen == taken


def test_terms_without_a_head_change_no_estimate():
    """It is of what the model predicts on these rows, whatever is minimised on them."""
    found = []
    for method, retain in ((FORGET_TERMS["rmu"], RETAIN_TERMS["states"]), (GA("ga"), CE("ce", 1.0))):
        data = {Kinds.forget: rows_for(method, FORGET, 32), Kinds.retain: rows_for(retain, RETAIN, 32)}
        solved = solving(method, retain=retain)  # type: ignore[arg-type]
        found.append(drawn(step_gradient(gpt2(), Step(MICRO[0]), data=data, solved=solved), 4))
    assert found[0].any()
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-15)


# --- expectation -------------------------------------------------------------------------------------------


def regression() -> tuple[Linear, dict[Kinds, Rows], Step, Tensor]:
    """A softmax regression, five rows of one or two answer tokens, and the Gauss-Newton diagonal of their mean CE."""
    torch.manual_seed(0)
    lm = Linear(torch.randn(6, 2), 2)
    torch.nn.init.normal_(lm.head.weight)
    some = [Prompted((i,), (answer,)) for i, answer in enumerate([(3,), (1, 2), (2,), (0, 1), (1, 1)])]
    data = {Kinds.forget: answered(some[:2]), Kinds.retain: answered(some[2:])}
    own, size = objective(lm), lm.head.weight.numel()
    units = torch.eye(size, dtype=torch.float64)
    products = [own.gauss_newton([collate(some)], [unit.view_as(lm.head.weight)])[0].flatten() for unit in units]
    return lm, data, Step((((0, 1), (0, 1, 2)),)), torch.stack(products).diagonal()


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_expected_estimate_is_the_gauss_newton_diagonal(monkeypatch: pytest.MonkeyPatch, rows: int):
    """Over all choices of rows, and all labels that their tokens may get with their probabilities."""
    lm, data, step, expected = regression()
    gradient = step_gradient(lm, step, data=data)
    labels: list[int] = []
    chances: list[float] = []

    def given(logits: Tensor, u: Tensor) -> Tensor:
        some = torch.tensor((labels or [0] * len(logits))[: len(logits)])
        chances.extend(logits.detach().softmax(-1)[range(len(some)), some].tolist())
        return some

    monkeypatch.setattr(curvature, "sample_labels", given)
    mean = torch.zeros_like(expected)
    for start in range(5):
        monkeypatch.setattr(gradients, "systematic", lambda n, most, _, start=start: systematic(n, most, start))
        labels.clear()
        drawn(gradient, rows)
        tokens = len(chances)
        for some in product(range(2), repeat=tokens):
            labels[:] = some
            chances.clear()
            mean += drawn(gradient, rows) * math.prod(chances) / 5
        chances.clear()
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=0)


def test_average_of_estimates_approaches_the_diagonal():
    """With the rows and labels of steps of many numbers."""
    lm, data, step, expected = regression()
    gradient = step_gradient(lm, step, data=data)
    many, mean = 400, torch.zeros_like(expected)
    for gradient.index in range(many):
        mean += drawn(gradient, 2) / many
    torch.testing.assert_close(mean, expected, rtol=0.25, atol=0)


def test_labels_depend_on_seed_and_step_alone():
    gradient, state = step_gradient(gpt2(), Step(MICRO[1])), torch.get_rng_state()
    first, again = drawn(gradient, None), drawn(gradient, None)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again, first)
    gradient.index += 1
    assert not torch.allclose(drawn(gradient, None), first)
    gradient.index, gradient.setup = 0, replace(gradient.setup, seed=4)
    assert not torch.allclose(drawn(gradient, None), first)


# --- memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solved", [GRADDIFF, APART], ids=lambda p: p.combine.name)
def test_no_gradient_stands_beside_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solved: Problem):
    """Where the step's gradient begins: weights and two states an optimizer.  At the peak: what AdamW has."""
    standing, take = set(), StepGradient.__call__
    most = []
    for optim in (ADAMW, soul(rho=1.0, every=1, rows=2)):
        with LiveBytes() as live:
            lm = gpt2().float()
            for p in lm.parameters():
                live.watch(p)
            whole = live.now

            def watched(self: StepGradient, *args: Any, live: LiveBytes = live, whole: int = whole) -> Any:
                standing.add(round(live.now / whole, 1))
                return take(self, *args)

            monkeypatch.setattr(StepGradient, "__call__", watched)
            train(lm, tmp_path / optim.name, solved, optim, config(batch_size=3, accumulation=2))
            most.append(live.most)
    assert max(standing) == 1 + 2 * len(solved.steps)
    assert most[1] - most[0] < whole / 50
