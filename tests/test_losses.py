"""Losses: by hand, a law, parity with a slow implementation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soul_cli.objective.losses import npo, sum_by, token_logps

logp = st.floats(-60, 0)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_npo_by_hand():
    # policy = reference -> (2/b) ln 2
    assert npo(torch.zeros(1), torch.zeros(1), beta=0.5).item() == pytest.approx(4 * math.log(2))
    # policy - reference = ln 3, b = 1 -> 2 softplus(ln 3) = 2 ln(1 + 3); the other way round 2 ln(1 + 1/3)
    assert npo(f64(0), f64(-math.log(3)), beta=1).item() == pytest.approx(2 * math.log(4), rel=1e-12)
    assert npo(f64(-math.log(3)), f64(0), beta=1).item() == pytest.approx(2 * math.log(4 / 3), rel=1e-12)


@given(logp, logp, st.floats(0.01, 5))
def test_npo_is_a_softplus_and_its_gradient_a_weighted_ascent(policy, reference, beta):
    x = f64(policy).requires_grad_()
    value = npo(x, f64(reference), beta=beta)
    value.sum().backward()
    exponent = beta * (policy - reference)
    softplus = max(exponent, 0) + math.log1p(math.exp(-abs(exponent)))
    assert value.item() == pytest.approx(2 / beta * softplus, rel=1e-9)
    assert x.grad.item() == pytest.approx(2 / (1 + math.exp(-exponent)), rel=1e-9)  # never negative: it descends


@given(logp, logp)
def test_npo_with_beta_to_zero_is_gradient_ascent(policy, reference):
    # (2/b) softplus(b d) = (2/b) ln 2 + d + O(b): GA's loss, d = log p, plus a constant; gradient 1
    x = f64(policy).requires_grad_()
    value = npo(x, f64(reference), beta=1e-6)
    value.sum().backward()
    assert x.grad.item() == pytest.approx(1, abs=1e-4)
    assert value.item() - 2e6 * math.log(2) == pytest.approx(policy - reference, abs=2e-3)


def test_no_gradient_enters_the_reference():
    policy, reference = f64(-1, -2).requires_grad_(), f64(-2, -1).requires_grad_()
    npo(policy, reference, beta=0.1).sum().backward()
    assert reference.grad is None
    assert (policy.grad > 0).all()


def test_token_logps_by_hand():
    # two classes, logits ln 3 and 0 -> 3/4 and 1/4
    logits = f64(math.log(3), 0).expand(2, 2)
    assert token_logps(logits, torch.tensor([0, 1])).exp().tolist() == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_logps_is_log_softmax_in_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(7, 11, generator=generator)).to(dtype)
    targets = torch.randint(11, (7,), generator=generator)
    got = token_logps(logits, targets)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, logits.float().log_softmax(-1)[torch.arange(7), targets])


def test_sum_by_adds_up_each_answer_and_keeps_the_graph():
    values = f64(1, 2, 3, 4).requires_grad_()
    sums = sum_by(values, torch.tensor([2, 0, 2, 0]), 4)
    assert sums.tolist() == [6, 0, 4, 0]  # 2 + 4, nothing, 1 + 3, nothing
    sums[2].backward()
    assert values.grad.tolist() == [1, 0, 1, 0]
