"""soul_cli.train.influence: derivatives against explicit matrices, a step by hand, the law it rests on, line search."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from test_train import GRADDIFF, answered, config
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from soul_cli.core.types import Batch, Prompted, UserError
from soul_cli.data.batches import collate
from soul_cli.models.answer_model import AnswerModel
from soul_cli.objective.edit import IU, Solver
from soul_cli.optim import curvature
from soul_cli.optim.build import HessianData, SoulConfig
from soul_cli.train.influence import Influence, Logits, MeanCE, conjugate_gradient, line_search, split
from soul_cli.train.loop import TrainData, Trainer

CPU = Accelerator(cpu=True)
ROUNDING = 3e-6  # of transformers, whose norms compute in float32


def method(**changed: Any) -> IU:
    values: dict[str, Any] = {
        "solver": Solver.diagonal, "damping": 0.1, "cg_steps": 5, "hessian_every": 2, "validation_share": 0.25,
        "first_scale": 0.5, "last_scale": 2.0,
        "scale_ratio": 2.0, "tolerance": 9.0,
    }  # fmt: skip
    return IU("iu", **values | changed)


def tiny() -> Any:
    """A Llama of 480 parameters in float64, embeddings tied."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.5, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(shape).to(torch.float64).eval()


def rows(count: int, seed: int) -> list[Prompted]:
    """Random prompts of 1-3 and answers of 1-4 tokens."""
    draw = torch.Generator().manual_seed(seed)

    def ids(most: int) -> tuple[int, ...]:
        n = int(torch.randint(1, most + 1, (), generator=draw))
        return tuple(torch.randint(9, (n,), generator=draw).tolist())

    return [Prompted(ids(3), (ids(4),)) for _ in range(count)]


def objective(lm: Any) -> MeanCE:
    return MeanCE(AnswerModel(lm), torch.device("cpu"), "no")


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def like(vector: Tensor, params: list[Tensor]) -> list[Tensor]:
    return [part.view_as(p) for part, p in zip(vector.split([p.numel() for p in params]), params, strict=True)]


def explicit(lm: Any, some: list[Prompted]) -> tuple[Tensor, Tensor]:
    """Gradient and Gauss-Newton matrix of the mean CE, row by row and logit by logit, without our model wrapper."""
    params = list(lm.parameters())
    size = sum(p.numel() for p in params)
    gradient, matrix, tokens = torch.zeros(size).double(), torch.zeros(size, size).double(), 0
    for row in some:
        logits = lm(torch.tensor([[*row.prompt, *row.answers[0]]])).logits[0, len(row.prompt) - 1 : -1]
        for at, target in zip(logits, row.answers[0], strict=True):
            jacobian = torch.stack([flat(torch.autograd.grad(z, params, retain_graph=True)) for z in at])
            p = at.detach().softmax(0)
            gradient += jacobian.T @ (p - nn.functional.one_hot(torch.tensor(target), 9))
            matrix += jacobian.T @ (p.diag() - p.outer(p)) @ jacobian
            tokens += 1
    return gradient / tokens, matrix / tokens


@pytest.fixture(scope="module")
def curved() -> tuple[Any, list[Batch], Tensor, Tensor]:
    """A model, batches, and their explicit gradient and Gauss-Newton matrix."""
    lm, some = tiny(), rows(5, seed=1)
    return lm, [collate(some[:3]), collate(some[3:])], *explicit(lm, some)


Curved = tuple[Any, list[Batch], Tensor, Tensor]


def test_gradient_and_value_against_the_explicit_ones(curved: Curved):
    lm, batches, gradient, _ = curved
    assert flat(objective(lm).gradient(batches)).tolist() == pytest.approx(gradient.tolist(), abs=ROUNDING)
    nll = [-Logits(AnswerModel(lm))(b).log_softmax(-1)[range(len(b.targets)), b.targets] for b in batches]
    assert objective(lm).value(batches) == pytest.approx(torch.cat(nll).mean().item())


def test_gauss_newton_products_against_the_explicit_matrix(curved: Curved):
    lm, batches, _, matrix = curved
    own = objective(lm)
    for seed in range(3):
        vector = torch.randn(len(matrix), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        product = flat(own.gauss_newton(batches, like(vector, own.params)))
        assert product.tolist() == pytest.approx((matrix @ vector).tolist(), abs=ROUNDING)
    assert all(p.grad is None for p in own.params)


def test_conjugate_gradient_against_a_dense_solve(curved: Curved):
    lm, batches, gradient, matrix = curved
    own, damping = objective(lm), float(matrix.diagonal().mean())
    damped = matrix + damping * torch.eye(len(matrix), dtype=torch.float64)
    exact = torch.linalg.solve(damped, gradient)
    b = like(gradient, own.params)
    errors = []
    for steps in (3, 60):
        x, residual = conjugate_gradient(lambda v: own.gauss_newton(batches, v), b, steps, damping)
        assert residual == pytest.approx(float((gradient - damped @ flat(x)).norm() / gradient.norm()), abs=1e-5)
        errors.append(float((flat(x) - exact).norm() / exact.norm()))
    assert errors[1] < 1e-4 < 1e-2 < errors[0] < 1


def test_conjugate_gradient_by_hand():
    """diag(1, 3) + 1, b = (2, 4): first step 20/72 b, then exact; a zero right side needs no product."""
    product = lambda v: [v[0] * torch.tensor([1.0, 3.0]).double()]  # noqa: E731
    b = [torch.tensor([2.0, 4.0]).double()]
    assert conjugate_gradient(product, b, 1, 1.0)[0][0].tolist() == pytest.approx([2 * 20 / 72, 4 * 20 / 72])
    x, residual = conjugate_gradient(product, b, 9, 1.0)
    assert (x[0].tolist(), residual) == (pytest.approx([1, 1]), pytest.approx(0))
    assert conjugate_gradient(lambda v: 1 / 0, [torch.zeros(2)], 9, 1.0)[0][0].tolist() == [0, 0]


# --- a softmax regression: the Gauss-Newton matrix is the Hessian there ------------------------------------


class Linear(nn.Module):
    """logits = W x of the prompt's last token, features x fixed, in float64.  W starts at 0."""

    base_model_prefix = "model"

    def __init__(self, features: Tensor, vocab: int):
        super().__init__()
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=vocab))
        self.model = Features(features.double())
        self.head = nn.Linear(features.shape[1], vocab, bias=False).double()
        nn.init.zeros_(self.head.weight)

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(logits=self.head(self.model(input_ids).last_hidden_state))


class Features(nn.Module):
    """Each token's features, which are not trained."""

    def __init__(self, features: Tensor):
        super().__init__()
        self.features = features

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        return SimpleNamespace(last_hidden_state=self.features[input_ids])


def test_a_step_by_hand(monkeypatch: pytest.MonkeyPatch):
    """Every row has x = 1 and the answer 0 of two, so p = 1/2 each and ∇CE = (-1/2, 1/2).

    A curvature step has two rows; of sampled labels 0, 0 the gradients sum to (-1, 1): h = 1/2 = its mean.  With a
    damping of 1 mean, the direction is (-1/2, 1/2).  Half of the tokens are to be forgotten: scale 2 is a step of 1.
    """
    monkeypatch.setattr(curvature, "sample_labels", lambda logits, u: torch.zeros(len(logits), dtype=torch.long))
    lm, row = Linear(torch.ones(1, 1), 2), Prompted((0,), ((0,),))
    data = TrainData(lambda epoch: answered([row] * 4), answered([row] * 4))
    wanted = method(damping=1.0, first_scale=1.0, tolerance=0.7)
    (record,) = Influence(lm, data, wanted, config(batch_size=1), 0, CPU).unlearn(lambda done, total, what: None)
    assert lm.head.weight.flatten().tolist() == pytest.approx([-0.5, 0.5])
    ln = math.log(2), math.log(1 + math.e**0.5), math.log(1 + math.e)
    assert [p["loss_forget"] for p in record["line_search"]] == pytest.approx(ln)
    assert record["line_search"] == [
        {"scale": s, "loss_forget": p["loss_forget"], "loss_retain": p["loss_forget"]}
        for s, p in zip((0, 1, 2), record["line_search"], strict=True)
    ]
    assert {k: record[k] for k in ("scale", "step_size", "damping", "curvature_estimates")} == {
        "scale": 2.0, "step_size": 1.0, "damping": 0.5, "curvature_estimates": 4,
    }  # fmt: skip
    assert record["displacement"] == pytest.approx(0.5**0.5)
    assert (record["loss_forget_after"], record["loss_retain"]) == pytest.approx((ln[2], ln[0]))


def test_diagonal_averages_steps_by_their_tokens(monkeypatch: pytest.MonkeyPatch):
    """x = 1, 3 with labels 0, 1: gradients sum to (1, -1), h = 1/2 each; x = 2 with label 0: (-1, 1), h = 1."""
    labels = iter([[0, 1], [0]])
    monkeypatch.setattr(curvature, "sample_labels", lambda logits, u: torch.tensor(next(labels)))
    lm = Linear(torch.tensor([[1.0], [3.0], [2.0]]), 2)
    batches = [collate([Prompted((i,), ((0,),)) for i in some]) for some in ((0, 1), (2,))]
    (h,) = objective(lm).diagonal([[(batches[0], (0, 1))], [(batches[1], (2,))]], seed=0)
    assert h.flatten().tolist() == pytest.approx([(2 * 0.5 + 1 * 1) / 3] * 2)


def fit(features: Tensor, some: list[Prompted]) -> tuple[Linear, Tensor]:
    """The model at the minimum of its mean CE."""
    lm, batch = Linear(features, 3), collate(some)
    search = torch.optim.LBFGS(lm.parameters(), max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = nn.functional.cross_entropy(Logits(AnswerModel(lm))(batch), batch.targets)
        loss.backward()
        return loss

    search.step(closure)
    lm.zero_grad()
    return lm, lm.head.weight.detach().clone()


@pytest.mark.parametrize("solver", Solver)
def test_the_step_comes_near_to_training_without_the_forget_rows(solver: Solver):
    """At the optimum of a softmax regression scale 1 is the change to first order; the diagonal is cruder."""
    draw = torch.Generator().manual_seed(0)
    n, forgotten = 240, 24
    features = torch.randn(n, 3, generator=draw)
    labels = (features @ torch.randn(3, 3, generator=draw) + 1.5 * torch.randn(n, 3, generator=draw)).argmax(1)
    every = [Prompted((i,), ((int(label),),)) for i, label in enumerate(labels)]
    lm, start = fit(features, every)
    _, retrained = fit(features, every[forgotten:])
    own = objective(lm)
    gradient = own.gradient([collate(every[:forgotten])])
    if solver is Solver.cg:
        (step,), _ = conjugate_gradient(lambda v: own.gauss_newton([collate(every)], v), gradient, 30, 1e-6)
    else:
        many = [[(collate(every[i : i + 2]), (i, i + 1))] for i in range(0, n, 2)]
        step = gradient[0] / own.diagonal(many, seed=0)[0]
    left = {scale: float((start + scale * forgotten / n * step - retrained).norm()) for scale in (-1, 0, 1)}
    assert left[1] < {Solver.cg: 0.2, Solver.diagonal: 0.7}[solver] * left[0] < left[-1]


# --- line search -------------------------------------------------------------------------------------------

Points = dict[float, tuple[float, float]]


@pytest.mark.parametrize(
    ("points", "chosen", "measured"),
    [
        ({0: (1, 2), 1: (2, 2.1), 2: (3, 2.5), 4: (4, 2.6)}, 2, 4),  # the last is beyond 2 + 0.5
        ({0: (1, 2), 1: (2, 2.1), 2: (9, 3.0), 4: (5, 2.0)}, 1, 3),  # not trusted once it has been beyond
        ({0: (1, 2), 1: (5, 1.5), 2: (3, 1.9), 4: (4, 2.2)}, 1, 4),  # most forgotten, not the largest step
        ({0: (1, 2), 1: (3, 2.1), 2: (3, 2.2), 4: (3, 2.3)}, 1, 4),  # the smallest of equal ones
        ({0: (1, 2), 1: (3, 2.1), 2: (math.inf, 2.2), 4: (3, 2.3)}, 1, 3),
        ({0: (1, 2), 1: (3, 2.1), 2: (4, math.nan), 4: (5, 2.3)}, 1, 3),
    ],
)
def test_line_search(points: Points, chosen: float, measured: int):
    scale, seen = line_search(lambda s: points[s], [s for s in points if s], 0.5)
    assert (scale, len(seen)) == (chosen, measured)
    for point, (scale, losses) in zip(seen, points.items(), strict=False):
        assert list(point.values()) == pytest.approx([scale, *losses], nan_ok=True)


def test_line_search_without_an_admissible_step():
    with pytest.raises(UserError, match=r"first_scale=1: .* from 1 to 3, further than method\.tolerance=0\.5"):
        line_search(lambda s: (s, 1 + 2 * s), [1, 2], 0.5)


# --- the whole step ----------------------------------------------------------------------------------------


def unlearn(lm: Any, seed: int = 3, forget: Any = None, retain: Any = None, **changed: Any) -> tuple[Any, Influence]:
    data = TrainData(lambda epoch: answered(forget or rows(8, 1)), answered(retain or rows(12, 2)))
    run = Influence(lm, data, method(**changed), config(), seed, CPU)
    (record,) = run.unlearn(lambda done, total, what: None)
    return record, run


@pytest.mark.parametrize("solver", Solver)
def test_the_step_forgets_and_depends_on_the_seed_alone(solver: Solver):
    def once(seed: int) -> tuple[Any, Tensor]:
        lm = tiny()
        torch.manual_seed(seed + 7)  # must not matter
        return unlearn(lm, seed, solver=solver)[0], flat(lm.parameters()).detach()

    record, weights = once(3)
    assert record["loss_forget_after"] > record["loss_forget"]
    assert record["displacement"] == pytest.approx(float((weights - flat(tiny().parameters()).detach()).norm()))
    again, same = once(3)
    assert record == again
    assert torch.equal(weights, same)
    assert not torch.equal(weights, once(4)[1])


@pytest.mark.parametrize("solver", Solver)
def test_held_out_rows_enter_neither_gradient_nor_curvature(solver: Solver):
    plain, run = unlearn(tiny(), solver=solver)
    forget, retain = rows(8, 1), rows(12, 2)
    changed: Callable[[list[Prompted], list[Prompted]], list[Prompted]] = lambda every, kept: [  # noqa: E731
        r if r in kept else Prompted(r.prompt, (tuple(8 - i for i in r.answers[0]),)) for r in every
    ]
    other, _ = unlearn(tiny(), forget=changed(forget, run.forget), retain=changed(retain, run.retain), solver=solver)
    assert other["loss_forget"] != plain["loss_forget"]
    keys = {"grad_norm", "damping", *(["cg_residual"] if solver is Solver.cg else [])}
    assert {k: other[k] for k in keys} == {k: plain[k] for k in keys}
    assert other["displacement"] / other["scale"] == pytest.approx(plain["displacement"] / plain["scale"], rel=1e-12)


def test_split():
    every = rows(10, 5)
    kept, held = split(every, 0.3, 1, "forget")
    assert (len(kept), len(held)) == (7, 3)
    assert sorted(map(repr, kept + held)) == sorted(map(repr, every))
    assert held != split(every, 0.3, 2, "forget")[1]
    assert [len(part) for part in split(every, 0.001, 1, "forget")] == [9, 1]
    assert [len(part) for part in split(every, 0.999, 1, "forget")] == [1, 9]
    with pytest.raises(UserError, match="two retain rows"):
        split(every[:1], 0.3, 1, "retain")


@pytest.mark.parametrize(("n", "accumulation", "every"), [(8, 1, 2), (7, 2, 3), (5, 1, 1)])
def test_as_many_estimates_as_a_run_with_soul(n: int, accumulation: int, every: int):
    settings = config(accumulation=accumulation)
    data = TrainData(lambda epoch: answered(rows(n, 1)), answered(rows(12, 2)))
    soul = SoulConfig(
        "soul", lr=1e-3, weight_decay=0.1, beta1=0.9, beta2=0.95, eps=1e-15, rho=1.0, unclipped_share=None,
        hessian_every=every, hessian_rows=1, hessian_data=HessianData.both,
    )  # fmt: skip
    trainer = Trainer(tiny(), data, GRADDIFF, soul, settings, 0, CPU)
    estimates = sum(trainer._estimates(i) is not None for i in range(trainer.total))
    assert Influence(tiny(), data, method(hessian_every=every), settings, 0, CPU).estimates == estimates
