"""The training loop, on Accelerate: fine-tuning and unlearning are the same loop with another objective.

One step is a plan of micro-batches (forget rows, retain rows).  It is made of one optimizer step or more, as
`combine=` says, each on a gradient of some kinds of rows (gradient.py) and with an optimizer of its own.  The loop goes
on from its checkpoints bit-exactly where it stopped.

On several processes the plan is the same on each, which takes its share of the rows of every step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from soul_cli.core import cost, interrupt
from soul_cli.core.distributed import broadcast, local, norm, rank, shard, world
from soul_cli.core.files import read_json
from soul_cli.core.types import UserError
from soul_cli.data.batches import Step, plan_epoch
from soul_cli.data.rows import NO_ROWS, Rows
from soul_cli.models.answer_model import AnswerModel
from soul_cli.models.load import checkpoint_activations
from soul_cli.objective.combine import Gradient
from soul_cli.objective.losses import wide
from soul_cli.objective.methods import Problem
from soul_cli.objective.term import Kinds, Reference
from soul_cli.optim.build import Curvature, Optim, parameter_groups
from soul_cli.optim.curvature import scramble
from soul_cli.optim.master import Masters
from soul_cli.optim.sophia import pieces
from soul_cli.train import checkpoint
from soul_cli.train.config import TrainConfig
from soul_cli.train.gradient import Setup, StepGradient

Progress = Callable[[int, int, dict[str, float]], None]  # steps done, of how many, the last one's record


@dataclass
class TrainData:
    """What the loop reads.  forget(epoch) may differ between epochs (refusals are drawn anew)."""

    forget: Callable[[int], Rows] | None
    retain: Rows


class NotFiniteError(UserError):
    """The loss stopped being a number.  half_step: weights, curvature or memory are not those before it."""

    half_step = False


def factor(step: int, total: int, config: TrainConfig) -> float:
    """Return the learning-rate factor of step 0..total-1: linear warm-up, then linear decay to 0 or constant."""
    warm = math.ceil(config.warmup * total)
    if step < warm:
        return (step + 1) / (warm + 1)
    return 1.0 if config.decay == "constant" else (total - step) / max(1, total - warm)


@dataclass
class Phase:
    """The optimizer steps of each step on the rows of some kinds."""

    kinds: Kinds
    optimizer: Optimizer
    lr: float
    turns: int  # how many times in each step, each on rows of its own


def build_phases(problem: Problem, optim: Optim, model: nn.Module, masters: Masters) -> list[Phase]:
    """Return the phases of a step."""
    phases: list[Phase] = []
    for kinds in problem.steps:
        decays = kinds & problem.combine.decays
        groups = masters.groups(parameter_groups(model, optim.weight_decay if decays else 0.0))
        lr = optim.lr * problem.combine.rate(kinds, problem.weight)
        phases.append(Phase(kinds, optim.build(groups), lr, problem.combine.turns(kinds)))
    return phases


def has_rows(step: Step, kinds: Kinds) -> bool:
    """Return whether an optimizer step has rows of some of these kinds."""
    return any((f and Kinds.forget in kinds) or (r and Kinds.retain in kinds) for f, r in step.micro)


class Trainer:
    """State of one run.  `train` is the whole story."""

    def __init__(
        self,
        lm: nn.Module,
        data: TrainData,
        problem: Problem,
        optim: Optim,
        config: TrainConfig,
        seed: int,
        accelerator: Accelerator,
        *,
        sharded: bool = False,
        offload: bool = False,
        activation_checkpointing: bool = False,
    ):
        """sharded: spread the parameters over the processes (in place: lm is sharded from then on).

        offload: optimizer states in main memory, sharded parameters too.  activation_checkpointing: keep the input of
        each block alone for the backward, which computes the rest again.  Neither changes what is computed.
        """
        self.data, self.problem, self.optim, self.config, self.seed = data, problem, optim, config, seed
        self.device = accelerator.device
        self.model = AnswerModel(lm.train())
        if activation_checkpointing:
            checkpoint_activations(lm)
        if any(term.needs.reference is Reference.logits for term in problem.terms.values()):
            self.model.keep_head(self.device)
        if sharded:
            shard(self.model, self.model.lm._no_split_modules or (), self.device, offload=offload)
        else:
            self.model.to(self.device)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.masters = Masters(self.params, wide=config.master_weights, offload=offload and not sharded)
        self.phases = build_phases(problem, optim, self.model, self.masters)
        self.setup = Setup(
            self.model, self.params, problem, config.normalise, config.precision, self.device, sharded, seed
        )
        self.memory: dict[str, Any] = {}  # of problem.combine
        self.kept_at = time.monotonic()  # when the last checkpoint was complete
        self.plans = [self._plan(epoch) for epoch in range(config.epochs)]
        self.total = sum(map(len, self.plans))

    def _rows(self, epoch: int) -> dict[Kinds, Rows]:
        """Return the rows that are run in an epoch."""
        forget = self.data.forget(epoch) if self.data.forget and self.problem.forget else NO_ROWS
        return {Kinds.forget: forget, Kinds.retain: self.data.retain if self.problem.retain else NO_ROWS}

    def _plan(self, epoch: int) -> list[Step]:
        rows = self._rows(epoch)
        return plan_epoch(
            rows[Kinds.forget].lengths,
            rows[Kinds.retain].lengths,
            size=self.config.batch_size,
            accumulation=self.config.accumulation,
            seed=self.seed,
            epoch=epoch,
            turns=self.problem.turns,
        )

    # --- one step ------------------------------------------------------------------------------------------

    def _step(self, step: Step, index: int, rows: Mapping[Kinds, Rows]) -> dict[str, float]:
        # dropout of its own on each process, the same in a run that goes on from a checkpoint
        torch.manual_seed(int(scramble(self.seed, index, rank())[0]))
        record: dict[str, float] = {}
        scale = factor(index, self.total, self.config)
        for phase in self.phases:
            suffix = "" if len(self.phases) == 1 else f"_{phase.kinds.name}"
            for group in phase.optimizer.param_groups:
                group["lr"] = phase.lr * scale
            turns: list[dict[str, float]] = []
            for turn, part in enumerate(step.turns[: phase.turns]):
                if not has_rows(part, phase.kinds):  # the last step of an epoch
                    continue
                try:
                    turns.append(self._phase(phase, part, index, turn, rows))
                except NotFiniteError as error:
                    error.half_step = bool(record or turns or self.memory or self._estimates(index))
                    raise
            numbers = {k: sum(some[k] for some in turns) / len(turns) for k in turns[0]}
            record |= {k if k.startswith("loss_") else k + suffix: v for k, v in numbers.items()}
        return record

    def _phase(self, phase: Phase, step: Step, index: int, turn: int, rows: Mapping[Kinds, Rows]) -> dict[str, float]:
        """Take an optimizer step.  turn: the number of those on the same kinds before it in this step."""
        gradient = StepGradient(self.setup, step, rows, index)
        if (wanted := self._estimates(index)) and turn == 0:
            self._estimate(phase, gradient, wanted)
        around = self.problem.perturb.around(gradient, self.params, int(scramble(self.seed, index, turn)[0]))
        found = self.problem.combine(around, phase.kinds, self.problem.weight, self.memory)
        if not all(map(math.isfinite, found.losses.values())):
            raise NotFiniteError(f"the loss is not finite at step {index + 1} of {self.total}: {found.losses}")
        return found.losses | self._update(phase, found)

    def _estimates(self, index: int) -> Curvature | None:
        """Return which estimate of the curvature the optimizer takes before a step, if any."""
        wanted = self.optim.curvature
        return None if wanted is None or index % wanted.every else wanted

    def _estimate(self, phase: Phase, gradient: StepGradient, wanted: Curvature) -> None:
        """Give the optimizer an estimate of the curvature.

        Its gradient comes before the step's own and is used up: no other stands beside it.
        """
        factor = gradient.draw(phase.kinds, wanted)

        def squares() -> Iterator[tuple[Tensor, Tensor]]:
            for p, w in zip(self.params, self.masters.weights, strict=True):
                grad, p.grad = p.grad, None
                part = torch.zeros_like(local(w)) if grad is None else wide(local(grad).to(w.device))
                yield w, part.square_().mul_(factor)

        phase.optimizer.update_hessian(squares())  # type: ignore[attr-defined]

    def _update(self, phase: Phase, found: Gradient) -> dict[str, float]:
        for p, part in zip(self.params, found.parts, strict=True):
            p.grad = part
        self.masters.take_gradients()
        grads = [w.grad for w in self.masters.weights if w.grad is not None]
        size = norm(grads, self.masters.weights[0])
        if not math.isfinite(size):
            raise NotFiniteError(f"the gradient norm is {size}")
        ratio = min(1.0, self.config.clip / (size + 1e-6)) if self.config.clip else 1.0
        if ratio < 1.0:
            torch._foreach_mul_([local(g) for g in grads], ratio)
        phase.optimizer.step()
        phase.optimizer.zero_grad()
        self.masters.give_weights()
        return {"grad_norm": size, "clip_factor": ratio, **getattr(phase.optimizer, "stats", {})}

    # --- the run -------------------------------------------------------------------------------------------

    @interrupt.deferred()
    def train(
        self, work: Path, progress: Progress, after_epoch: Callable[[int], None] | None = None
    ) -> list[dict[str, Any]]:
        """Run from the last checkpoint in `work` (or from the start) to the end.  Returns one record a step.

        after_epoch: called in eval mode with 0 before the first step and with the number of each epoch after its last,
        before any checkpoint of a later step.  A run that goes on calls it again for the epochs that its checkpoint has
        not left behind.  A signal ends the run after a step, whose state is kept.  UserError: `work` lies on a disk
        that is too small for the checkpoints.
        """
        checkpoint.check_room(work, self._disk())
        checkpoint.keep_start(work, self.params)
        records = self._resume(work)
        self.kept_at = time.monotonic()
        resumed, first = len(records), 0  # steps of the checkpoint, and before the epoch
        if not resumed:
            self._between(0, after_epoch, work, records)
        for epoch, plan in enumerate(self.plans):
            if first + len(plan) > resumed:
                self._epoch(epoch, first, work, records, progress)
            first += len(plan)
            if first >= resumed:
                self._between(epoch + 1, after_epoch, work, records)
        self.model.eval()
        states = (t for phase in self.phases for state in phase.optimizer.state.values() for t in state.values())
        cost.count(
            parameter_bytes=cost.tensor_bytes(self.model.parameters()),
            optimizer_state_bytes=cost.tensor_bytes(t for t in states if isinstance(t, Tensor)),
        )
        return records

    def _epoch(self, epoch: int, first: int, work: Path, records: list[dict[str, Any]], progress: Progress) -> None:
        """Take the steps of an epoch that are not yet among the records.  first: the number of steps before it."""
        plan, rows = self.plans[epoch], self._rows(epoch)
        for index in range(len(records), first + len(plan)):
            step = plan[index - first]
            began = time.perf_counter()
            numbers = self._taken(step, index, rows, work, records)
            took = time.perf_counter() - began
            micro = [pair for turn in step.turns for pair in turn.micro]
            tokens = sum(rows[Kinds.forget].tokens(i) for f, _ in micro for i in f)
            tokens += sum(rows[Kinds.retain].tokens(i) for _, r in micro for i in r)
            record = {"step": index + 1, "epoch": epoch + 1, "lr": self.phases[0].optimizer.param_groups[0]["lr"]}
            record |= {**numbers, "tokens": tokens, "tokens_per_s": round(tokens / took, 1)}
            if step is plan[-1]:
                record["displacement"] = self._displacement(work)
            records.append(record)
            progress(index + 1, self.total, record)
            stop = interrupt.requested()
            if stop or (index + 1 < self.total and self._due()):
                self._save(work, records)
            if stop:
                raise interrupt.Stopped(stop, f"after step {index + 1} of {self.total}")

    def _taken(
        self, step: Step, index: int, rows: Mapping[Kinds, Rows], work: Path, records: list[dict[str, Any]]
    ) -> dict[str, float]:
        """Take a step; where its loss is no number, keep the state before it and end."""
        try:
            return self._step(step, index, rows)
        except NotFiniteError as error:
            if not error.half_step:
                self._save(work, records)
            raise NotFiniteError(f"{error}. {self._kept(work)}. Lower optim.lr, or set train.precision=no") from None

    def _between(
        self, epoch: int, act: Callable[[int], None] | None, work: Path, records: list[dict[str, Any]]
    ) -> None:
        """Call `act`.  A signal ends it at once, and the state is kept; several processes go on to the next step."""
        if act is None:
            return
        self.model.eval()
        try:
            with interrupt.deferred(world() > 1):
                act(epoch)
        except interrupt.Stopped:
            if records:
                self._save(work, records)
            raise
        self.model.train()

    def _displacement(self, work: Path) -> float:
        """‖Δθ‖ of the masters since the start of the run.

        The start is read from disk, once an epoch: it takes the place of gradients and activations, which are gone by
        then, where a copy kept in memory would add as much as a reference model.
        """
        weights = self.masters.weights
        pairs = zip(weights, checkpoint.start(work, self.params), strict=True)
        some = (piece for w, s in pairs for piece in pieces(local(w.detach()), local(s)))
        moved = (wide(new) - wide(old.to(new.device)) for new, old in some)  # one at a time in memory
        return norm(moved, weights[0])

    def _due(self) -> bool:
        """Return whether it is time for a checkpoint, by rank 0's clock.  All processes call it."""
        return broadcast(time.monotonic() - self.kept_at >= 60 * self.config.checkpoint_minutes)

    def _disk(self) -> float:
        """Return the bytes that the training takes on disk at most."""
        every = self.params, self.masters.weights, self.model.parameters()
        params, masters, model = (sum(map(checkpoint.stored, tensors)) for tensors in every)
        states = self.optim.states * len(self.phases) * masters
        return checkpoint.disk(params, masters + states + self.problem.combine.kept * params, model)

    @staticmethod
    def _kept(work: Path) -> str:
        saved = read_json(work / "checkpoint" / "state.json", None)
        if saved is None:
            return "There is no checkpoint yet"
        return f"The state after step {len(saved['records'])} is kept in {work / 'checkpoint'}"

    def _save(self, work: Path, records: list[dict[str, Any]]) -> None:
        checkpoint.save(work, self.masters.weights, [phase.optimizer for phase in self.phases], records, self.memory)
        self.kept_at = time.monotonic()

    def _resume(self, work: Path) -> list[dict[str, Any]]:
        optimizers = [phase.optimizer for phase in self.phases]
        records, self.memory = checkpoint.load(work, self.masters.weights, optimizers)
        self.masters.give_weights()
        return records
