"""Influence unlearning, the one-shot baseline that SOUL starts from (Jia et al. 2024, section 4; Izzo et al. 2021).

The target model θ0 minimises the mean cross-entropy of its N training tokens, (1/N) Σ w_i ℓ_i with all w_i = 1.  With
the weights of the n forget tokens at 0 the minimum moves, to first order in them, to

    θ(1 - w) = θ0 + H⁻¹ (1/N) Σ_forget ∇ℓ_i = θ0 + (n/N) H⁻¹ ∇CE_forget,        H = ∇² of the training loss,

an ascent on the forget rows.  Here θ = θ0 + scale (n/N) (H + damping·mean(diag H) I)⁻¹ ∇CE_forget.

H is the Gauss-Newton matrix of the mean CE of micro-batches drawn as in training, half forget and half retain rows, as
many as optim=soul would estimate its diagonal on: `diagonal` takes that estimate, `cg` solves with exact products.
Deviations from the influence function: these rows stand for all training rows, the damping, and the scale.  That is
searched: `line_search` on rows of both kinds that neither gradient nor curvature has seen.

Whole parameters, in eval mode.  Each process takes its share of the rows, and sums are totalled: all hold the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain, count, islice
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from soul_cli.core import cost
from soul_cli.core.distributed import norm, rank, share, total_each, total_numbers, world
from soul_cli.core.types import Batch, Prompted, UserError
from soul_cli.data.batches import Step, collate, deal, epoch_batches, plan_epoch, shuffled
from soul_cli.models.answer_model import AnswerModel, Look, logps_of
from soul_cli.models.head import Head
from soul_cli.models.load import autocast
from soul_cli.objective.edit import IU, Solver
from soul_cli.objective.losses import wide
from soul_cli.optim.curvature import answer_uniforms, drawn_logps
from soul_cli.train.config import TrainConfig
from soul_cli.train.loop import TrainData

T = TypeVar("T")
Vector = list[Tensor]  # a tensor a parameter, in its shape, float32 or wider
Portion = tuple[Batch, tuple[int, ...]]  # this process's rows of a pass, and a name of each
Progress = Callable[[int, int, str], None]  # done, total, what
LOSSES = ("loss_forget", "loss_retain")


class Logits(nn.Module):
    """The logits (T, V) of an AnswerModel, whole."""

    def __init__(self, model: AnswerModel):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return wide(Head(self.model.lm)(self.model.hidden(batch)))


class MeanCE:
    """The mean cross-entropy of a model's answers, and its derivatives by the trained parameters.

    Batches are this process's share; values and derivatives are those of all processes together, per answer token.
    """

    def __init__(self, model: AnswerModel, device: torch.device, precision: str):
        self.model, self.device, self.precision = model, device, precision
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.params = list(self.named.values())

    def value(self, batches: Sequence[Batch]) -> float:
        """Nats a token."""
        with torch.no_grad():
            nll = sum(float(-self._predict(b, logps_of(b)).sum(dtype=torch.float64)) for b in batches)
        return total_numbers([nll], self.device)[0] / self._tokens(batches)

    def gradient(self, batches: Sequence[Batch]) -> Vector:
        return self._mean(batches, lambda batch: self._gradients(batch, logps_of(batch)))

    def gauss_newton(self, batches: Sequence[Batch], vector: Vector) -> Vector:
        """(1/T) Σ Jᵀ (diag(p) - p pᵀ) J v over the T answer tokens; J: Jacobian of a token's logits, p: its softmax."""
        return self._mean(batches, lambda batch: self._product(batch, vector))

    def diagonal(self, steps: Sequence[Sequence[Portion]], seed: int) -> Vector:
        """SOUL's estimate of the Gauss-Newton diagonal, one a step, averaged with their tokens as weights."""
        squares = self._zeros()
        for index, step in enumerate(steps):

            def drawn(portion: Portion, index: int = index) -> Sequence[Tensor | None]:
                batch, keys = portion
                u = answer_uniforms(seed, index, keys, batch.owner.cpu())
                return self._gradients(batch, Look(drawn_logps, (u,)))

            sums = self._sum(step, drawn)
            torch._foreach_addcmul_(squares, sums, sums)
        torch._foreach_div_(squares, self._tokens([batch for step in steps for batch, _ in step]))
        return squares

    def _zeros(self) -> Vector:
        return [torch.zeros_like(wide(p.detach())) for p in self.params]

    def _predict(self, batch: Batch, look: Look) -> Tensor:
        cost.count(forward_passes=1)
        with autocast(self.device, self.precision):
            return self.model(batch, [look]).looks[0]

    def _mean(self, batches: Sequence[Batch], of: Callable[[Batch], Sequence[Tensor | None]]) -> Vector:
        """Return the sums over the batches, then over the processes, by the number of tokens."""
        sums = self._sum(batches, of)
        torch._foreach_div_(sums, self._tokens(batches))
        return sums

    def _sum(self, parts: Sequence[T], of: Callable[[T], Sequence[Tensor | None]]) -> Vector:
        sums = self._zeros()
        for part in parts:
            for whole, own in zip(sums, of(part), strict=True):
                if own is not None:
                    whole.add_(own)
        total_each(sums)
        return sums

    def _tokens(self, batches: Sequence[Batch]) -> float:
        return total_numbers([sum(len(b.targets) for b in batches)], self.device)[0]

    def _gradients(self, batch: Batch, look: Look) -> Sequence[Tensor | None]:
        """Of the sum of the negative log-probabilities that a look finds."""
        loss = -self._predict(batch, look).sum()
        cost.count(backward_passes=1)
        return torch.autograd.grad(loss, self.params, allow_unused=True)

    def _product(self, batch: Batch, vector: Vector) -> Sequence[Tensor | None]:
        """J v by forward-mode differentiation, then Jᵀ by a backward through the same forward."""
        cost.count(forward_passes=1, backward_passes=1)
        # the fused attention kernels have no forward-mode derivative
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), autocast(self.device, self.precision):
            pairs = zip(self.named.items(), vector, strict=True)
            duals = {f"model.{name}": forward_ad.make_dual(p, v.to(p.dtype)) for (name, p), v in pairs}
            logits, moved = forward_ad.unpack_dual(functional_call(Logits(self.model), duals, (batch,)))
        p, moved = logits.detach().softmax(-1), moved.detach()
        pulled = p * (moved - (p * moved).sum(-1, keepdim=True))
        return torch.autograd.grad(logits, self.params, pulled, allow_unused=True)


# --- solving and searching ---------------------------------------------------------------------------------


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(float((x * y).sum(dtype=torch.float64)) for x, y in zip(a, b, strict=True))


def conjugate_gradient(
    product: Callable[[Vector], Vector], b: Vector, steps: int, damping: float
) -> tuple[Vector, float]:
    """Solve (G + damping I) x = b from x = 0 in at most `steps` products with G, positive semi-definite.

    Returns x and the norm of the residual relative to that of b.  Ends early where nothing is left to solve.
    """
    x, r = [torch.zeros_like(t) for t in b], [t.clone() for t in b]
    p = [t.clone() for t in b]
    first = left = dot(r, r)
    done = torch.finfo(b[0].dtype).eps ** 2 * first
    for _ in range(steps):
        if left <= done:
            break
        image = product(p)
        torch._foreach_add_(image, p, alpha=damping)
        size = left / dot(p, image)
        torch._foreach_add_(x, p, alpha=size)
        torch._foreach_add_(r, image, alpha=-size)
        before, left = left, dot(r, r)
        torch._foreach_mul_(p, left / before)
        torch._foreach_add_(p, r)
    return x, math.sqrt(left / first) if first else 0.0


def line_search(
    measure: Callable[[float], tuple[float, float]], scales: Sequence[float], tolerance: float
) -> tuple[float, list[dict[str, float]]]:
    """Return the step that forgets most among those that keep what must stay.

    measure: a scale -> CE of the forget and of the retain rows held out, nats a token.  Scales are walked upwards until
    the retain CE first exceeds that of scale 0 by more than `tolerance`: beyond, the step is not trusted, even where it
    should come back.  Of those before, the one with the highest forget CE is chosen, of equal ones the smaller.
    Retained behaviour is what the step may not cost, so it is the constraint; how far to forget has no such limit that
    could be known without a retain-trained model.  Returns the scale and all that was measured, from scale 0 on.
    """
    points: list[dict[str, float]] = []
    best: dict[str, float] = {}
    for scale in (0.0, *scales):
        forget, retain = measure(scale)
        points.append({"scale": scale, **dict(zip(LOSSES, (forget, retain), strict=True))})
        if not (math.isfinite(forget) and retain <= points[0]["loss_retain"] + tolerance):
            break
        if scale and forget > best.get("loss_forget", -math.inf):
            best = points[-1]
    if not best:
        raise UserError(
            f"method.first_scale={scales[0]}: it takes the CE of the retain rows held out from "
            f"{points[0]['loss_retain']:.4g} to {points[-1]['loss_retain']:.4g}, further than "
            f"method.tolerance={tolerance}; give a smaller one"
        )
    return best["scale"], points


# --- rows --------------------------------------------------------------------------------------------------


def split(rows: Sequence[Prompted], held: float, seed: int, what: str) -> tuple[list[Prompted], list[Prompted]]:
    """Rows for gradient and curvature, and a share `held` of them, at least one, for the line search."""
    if len(rows) < 2:
        raise UserError(f"method=iu needs two {what} rows or more, one of them for the line search; got {len(rows)}")
    order = shuffled(len(rows), seed, -1)  # epochs are numbered from 0
    n = min(len(rows) - 1, max(1, round(held * len(rows))))
    return [rows[i] for i in sorted(order[n:])], [rows[i] for i in sorted(order[:n])]


def curvature_steps(
    forget: Sequence[Prompted], retain: Sequence[Prompted], config: TrainConfig, seed: int, wanted: int
) -> list[Step]:
    """Return the first `wanted` steps of a training run on these rows."""
    lengths = [len(r) for r in forget], [len(r) for r in retain]
    epochs = (
        plan_epoch(*lengths, size=config.batch_size, accumulation=config.accumulation, seed=seed, epoch=epoch)
        for epoch in count()
    )
    return list(islice(chain.from_iterable(epochs), wanted))


class Influence:
    """One run of influence unlearning.  `unlearn` is the whole story."""

    def __init__(self, lm: Any, data: TrainData, method: IU, config: TrainConfig, seed: int, accelerator: Accelerator):
        self.method, self.config, self.seed, self.device = method, config, seed, accelerator.device
        self.objective = MeanCE(AnswerModel(lm.eval()).to(self.device), self.device, config.precision)
        assert data.forget is not None
        forget, retain = data.forget(0).answers["answer"], data.retain.answers["answer"]
        self.forget, held_forget = split(forget, method.validation_share, seed, "forget")
        self.retain, held_retain = split(retain, method.validation_share, seed, "retain")
        self.held = self._batches(held_forget), self._batches(held_retain)
        tokens = [sum(len(r.answers[0]) for r in rows) for rows in (forget, retain)]
        self.share = tokens[0] / sum(tokens)  # n/N
        per_epoch = math.ceil(math.ceil(len(forget) / config.batch_size) / config.accumulation)
        self.estimates = math.ceil(config.epochs * per_epoch / method.hessian_every)  # of a run with optim=soul

    def _batches(self, rows: Sequence[Prompted]) -> list[Batch]:
        """Return this process's share of the rows, rows of similar length together."""
        own = share(rows)
        groups = epoch_batches([len(r) for r in own], self.config.batch_size, self.seed, 0)
        return [collate([own[i] for i in group]).to(self.device) for group in groups]

    def _portions(self, step: Step) -> list[Portion]:
        """Return this process's rows of each pass of a step."""
        out = []
        for mine in (of[rank()] for of in deal(step, world(), forget=True, retain=True)):
            if mine.keys:
                rows = [self.forget[i] for i in mine.forget] + [self.retain[i] for i in mine.retain]
                cost.count(training_tokens=sum(map(len, rows)))
                out.append((collate(rows).to(self.device), mine.keys))
        return out

    def unlearn(self, progress: Progress) -> list[dict[str, Any]]:
        """Take the step, in place.  Returns its record for train.jsonl.

        Losses are the CE of the rows held out, nats a token, before and after; line_search has every point measured.
        """
        params, method = self.objective.params, self.method
        passes = 3 + len(method.scales) + (method.cg_steps if method.solver is Solver.cg else 0)
        told = count(1)

        def log(what: str) -> None:
            progress(next(told), passes, what)

        direction, record = self._direction(log)
        start = [p.detach().clone() for p in params]

        def move(scale: float) -> None:
            with torch.no_grad():
                for p, s, d in zip(params, start, direction, strict=True):
                    p.copy_(wide(s) + scale * self.share * d)

        def measure(scale: float) -> tuple[float, float]:
            move(scale)
            forget, retain = map(self.objective.value, self.held)
            log(f"scale {scale:g}: forget {forget:.3f}, retain {retain:.3f}")
            return forget, retain

        cost.count(parameter_bytes=cost.tensor_bytes(params))
        scale, points = line_search(measure, method.scales, method.tolerance)
        move(scale)
        before, after = points[0], next(p for p in points if p["scale"] == scale)
        losses = {key: before[key] for key in LOSSES} | {f"{key}_after": after[key] for key in LOSSES}
        size = scale * self.share
        step = {"scale": scale, "step_size": size, "displacement": size * norm(direction, params[0])}
        return [{"step": 1, **losses, **step, **record, "line_search": points}]

    def _direction(self, log: Callable[[str], None]) -> tuple[Vector, dict[str, float]]:
        """(H + damping)⁻¹ ∇CE_forget, and what is worth recording of it."""
        steps = [
            self._portions(step)
            for step in curvature_steps(self.forget, self.retain, self.config, self.seed, self.estimates)
        ]
        log("gradient")
        cost.count(training_tokens=sum(map(len, share(self.forget))))
        gradient = self.objective.gradient(self._batches(self.forget))
        log("curvature")
        diagonal = self.objective.diagonal(steps, self.seed)
        size = sum(t.numel() for t in diagonal)
        damping = self.method.damping * math.fsum(float(t.sum(dtype=torch.float64)) for t in diagonal) / size
        record = {"curvature_estimates": len(steps), "damping": damping, "grad_norm": norm(gradient, gradient[0])}
        if self.method.solver is Solver.diagonal:
            return [g / (h + damping) for g, h in zip(gradient, diagonal, strict=True)], record
        batches = [batch for step in steps for batch, _ in step]
        done = 0

        def product(vector: Vector) -> Vector:
            nonlocal done
            done += 1
            log(f"conjugate gradient, product {done} of at most {self.method.cg_steps}")
            return self.objective.gauss_newton(batches, vector)

        direction, residual = conjugate_gradient(product, gradient, self.method.cg_steps, damping)
        return direction, record | {"cg_steps": done, "cg_residual": residual}
