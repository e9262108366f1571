"""The training loop, on Accelerate: fine-tuning and unlearning are the same loop with another objective.

One optimizer step is a plan of micro-batches (forget rows, retain rows).  Losses are normalised by counts over the
whole step.  Joint mode has one phase a step, on the sum of both terms; alternating mode (SOUL, eq. 11) has two, each
with its own optimizer state.  The loop goes on from its checkpoints bit-exactly where it stopped.

On several processes the plan is the same on each, which takes its share of the rows of every micro-batch.  As losses
are normalised over the whole step, the sum of the gradients over the processes is the gradient of one process: whole
models add theirs up once a step, sharded ones (FSDP2) in each backward.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from soul_cli.core import cost, interrupt
from soul_cli.core.distributed import local, norm, rank, shard, total_gradients, total_numbers, world
from soul_cli.core.files import read_json
from soul_cli.core.types import Batch, Prompted, UserError
from soul_cli.data.batches import Share, Step, collate, plan_epoch, shares
from soul_cli.models.answer_model import AnswerModel, Look, logps_of
from soul_cli.models.load import autocast, checkpoint_activations
from soul_cli.objective.losses import sum_by, wide
from soul_cli.objective.methods import Answers, Counts, Method
from soul_cli.optim.build import HessianData, Mode, Optim, SoulConfig, parameter_groups
from soul_cli.optim.curvature import GaussNewtonBartlett, answer_uniforms, drawn_logps, scramble
from soul_cli.optim.master import Masters
from soul_cli.optim.sophia import pieces
from soul_cli.train import checkpoint
from soul_cli.train.config import TrainConfig

NOTHING = Prompted((0,), ((0,),))  # stands in where a process has no row and must still take part in collectives


@dataclass
class TrainData:
    """What the loop reads.  forget(epoch) may differ between epochs (refusals are drawn anew)."""

    forget: Callable[[int], Sequence[Prompted]] | None
    retain: Sequence[Prompted]
    reference: list[float] = field(default_factory=list)  # per forget row, summed log-probability before unlearning


class NotFiniteError(UserError):
    """The loss stopped being a number.  half_step: another phase of the same step had already been applied."""

    half_step = False


def factor(step: int, total: int, config: TrainConfig) -> float:
    """Learning-rate factor of step 0..total-1: linear warm-up, then linear decay to 0 or constant."""
    warm = math.ceil(config.warmup * total)
    if step < warm:
        return (step + 1) / (warm + 1)
    return 1.0 if config.decay == "constant" else (total - step) / max(1, total - warm)


@dataclass
class Phase:
    """One backward and one optimizer step, on the forget term, the retain term, or both."""

    forget: bool
    retain: bool
    optimizer: Optimizer
    lr: float
    retain_weight: float


def build_phases(method: Method, optim: Optim, model: nn.Module, masters: Masters) -> list[Phase]:
    def optimizer() -> Optimizer:
        return optim.build(masters.groups(parameter_groups(model, optim.weight_decay)))

    both = method.uses_forget and method.needs_retain
    if both and isinstance(optim, SoulConfig) and optim.mode is Mode.alternating:
        # inside a clipped step a factor on the loss would cancel: the weight acts on the rate
        return [
            Phase(True, False, optimizer(), optim.lr, 1.0),
            Phase(False, True, optimizer(), optim.lr * method.weight, 1.0),
        ]
    return [Phase(method.uses_forget, method.needs_retain, optimizer(), optim.lr, method.weight)]


class Trainer:
    """State of one run.  `train` is the whole story."""

    def __init__(
        self,
        lm: nn.Module,
        data: TrainData,
        method: Method,
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
        self.device, self.data, self.method, self.optim = accelerator.device, data, method, optim
        self.config, self.seed, self.sharded = config, seed, sharded
        self.model = AnswerModel(lm.train())
        if activation_checkpointing:
            checkpoint_activations(lm)
        if sharded:
            shard(self.model, self.model.lm._no_split_modules or (), self.device, offload=offload)
        else:
            self.model.to(self.device)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.masters = Masters(self.params, wide=config.master_weights, offload=offload and not sharded)
        self.phases = build_phases(method, optim, self.model, self.masters)
        self.plans = [self._plan(epoch) for epoch in range(config.epochs)]
        self.total = sum(map(len, self.plans))

    def _plan(self, epoch: int) -> list[Step]:
        rows = self.data.forget(epoch) if self.data.forget and self.method.uses_forget else []
        retain = self.data.retain if self.method.needs_retain else []
        return plan_epoch(
            [len(r) for r in rows],
            [len(r) for r in retain],
            size=self.config.batch_size,
            accumulation=self.config.accumulation,
            seed=self.seed,
            epoch=epoch,
        )

    # --- one step ------------------------------------------------------------------------------------------

    def _step(self, step: Step, index: int, rows: Sequence[Prompted]) -> dict[str, float]:
        # dropout of its own on each process, the same in a run that goes on from a checkpoint
        torch.manual_seed(int(scramble(self.seed, index, rank())[0]))
        record: dict[str, float] = {}
        scale = factor(index, self.total, self.config)
        for phase in self.phases:
            suffix = "" if len(self.phases) == 1 else ("_forget" if phase.forget else "_retain")
            for group in phase.optimizer.param_groups:
                group["lr"] = phase.lr * scale
            try:
                numbers = self._phase(phase, step, index, rows)
            except NotFiniteError as error:
                error.half_step = phase is not self.phases[0]
                raise
            record |= {k if k.startswith("loss_") else k + suffix: v for k, v in numbers.items()}
        return record

    def _phase(self, phase: Phase, step: Step, index: int, rows: Sequence[Prompted]) -> dict[str, float]:
        counts = (
            self._counts([rows[i] for f, _ in step.micro for i in f]),
            self._counts([self.data.retain[i] for _, r in step.micro for i in r]),
        )
        curvature = self._curvature(index)
        sums = [0.0, 0.0]
        for share in shares(step, rank(), world(), forget=phase.forget, retain=phase.retain):
            if share.keys or self.sharded:
                terms = self._backward(phase, share, index, rows, counts, curvature)
                sums = [a + b for a, b in zip(sums, terms, strict=True)]
        forget, retain = total_numbers(sums, self.device)
        kept = {"loss_forget": forget} if phase.forget else {}
        kept |= {"loss_retain": retain} if phase.retain else {}
        if not all(map(math.isfinite, kept.values())):
            raise NotFiniteError(f"the loss is not finite at step {index + 1} of {self.total}: {kept}")
        return kept | self._update(phase, curvature)

    def _backward(
        self,
        phase: Phase,
        share: Share,
        index: int,
        rows: Sequence[Prompted],
        counts: tuple[Counts, Counts],
        curvature: GaussNewtonBartlett | None,
    ) -> list[float]:
        """Add the gradients of this process's rows of one micro-batch.  Returns their forget and retain loss."""
        n = len(share.forget)
        own = [rows[i] for i in share.forget] + [self.data.retain[i] for i in share.retain]
        batch = collate(own or [NOTHING]).to(self.device)
        look = logps_of(batch)
        if curvature is None:
            (values,) = self._predict(batch, [look])
        else:
            values, drawn = self._predict(batch, [look, self._labels(phase, share, batch, index)])
            curvature.add(drawn)
            if self.sharded:  # the estimate's backward has used that forward up
                (values,) = self._predict(batch, [look])
        logps = sum_by(values, batch.owner, batch.answers)
        tokens = torch.bincount(batch.owner, minlength=batch.answers)
        terms = [0 * logps.sum()] * 2  # what stays where there are no such rows
        if share.forget:
            uses = self.method.uses_reference
            reference = logps.new_tensor([self.data.reference[i] for i in share.forget]) if uses else None
            terms[0] = self.method.forget_loss(Answers(logps[:n], tokens[:n], reference), counts[0])
        if share.retain:
            terms[1] = self.method.retain_loss(Answers(logps[n:], tokens[n:], None), counts[1])
        (terms[0] + phase.retain_weight * terms[1]).backward()
        cost.count(backward_passes=1, training_tokens=sum(map(len, own)))
        return [float(t.detach()) for t in terms]

    def _predict(self, batch: Batch, looks: list[Look]) -> list[Tensor]:
        cost.count(forward_passes=1)
        with autocast(self.device, self.config.precision):
            return self.model(batch, looks)

    def _update(self, phase: Phase, curvature: GaussNewtonBartlett | None) -> dict[str, float]:
        if not self.sharded:
            total_gradients(self.params)
        self.masters.take_gradients()
        grads = [w.grad for w in self.masters.weights if w.grad is not None]
        size = norm(grads, self.masters.weights[0])
        if not math.isfinite(size):
            raise NotFiniteError(f"the gradient norm is {size}")
        ratio = min(1.0, self.config.clip / (size + 1e-6)) if self.config.clip else 1.0
        if ratio < 1.0:
            torch._foreach_mul_([local(g) for g in grads], ratio)
        if curvature is not None:
            phase.optimizer.update_hessian(curvature.estimates())  # type: ignore[attr-defined]
        phase.optimizer.step()
        phase.optimizer.zero_grad()
        self.masters.give_weights()
        return {"grad_norm": size, "clip_factor": ratio, **getattr(phase.optimizer, "stats", {})}

    def _curvature(self, index: int) -> GaussNewtonBartlett | None:
        if isinstance(self.optim, SoulConfig) and index % self.optim.hessian_every == 0:
            return GaussNewtonBartlett(self.params, self.masters.weights)
        return None

    def _labels(self, phase: Phase, share: Share, batch: Batch, index: int) -> Look:
        """Return the look that draws labels for the curvature, for the tokens that take part.

        A phase that has only the kind of rows that optim.hessian_data leaves out uses what it has.
        """
        assert isinstance(self.optim, SoulConfig)
        both_kinds = phase.forget and phase.retain and self.data.retain
        wanted = self.optim.hessian_data if both_kinds else HessianData.both
        keep = [wanted is not HessianData.retain] * len(share.forget)
        keep += [wanted is not HessianData.forget] * len(share.retain)
        owner = batch.owner.cpu()
        at = torch.tensor(keep or [False])[owner].nonzero().squeeze(1)
        u = answer_uniforms(self.seed, index, share.keys or (0,), owner)
        return Look(drawn_logps, (u[at],), at.to(batch.where.device))

    @staticmethod
    def _counts(rows: list[Prompted]) -> Counts:
        return Counts(len(rows), sum(len(a) for r in rows for a in r.answers))

    # --- the run -------------------------------------------------------------------------------------------

    @interrupt.deferred()
    def train(
        self,
        work: Path,
        progress: Callable[[int, int, dict[str, float]], None],
        after_epoch: Callable[[int], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Run from the last checkpoint in `work` (or from the start) to the end.  Returns one record a step.

        after_epoch: called in eval mode with 0 before the first step and with the number of each epoch after its last,
        before any checkpoint of a later step.  A run that goes on calls it again for the epochs that its checkpoint has
        not left behind.  A signal ends the run after a step, whose state is kept.
        """
        checkpoint.keep_start(work, self.params)
        records = self._resume(work)
        taken, index = len(records), 0
        if not taken:
            self._between(0, after_epoch, work, records)
        for epoch, plan in enumerate(self.plans):
            rows = self.data.forget(epoch) if self.data.forget and self.method.uses_forget else []
            for step in plan:
                last = step is plan[-1]
                if index >= len(records):
                    began = time.perf_counter()
                    try:
                        numbers = self._step(step, index, rows)
                    except NotFiniteError as error:
                        if not error.half_step:
                            self._save(work, records)
                        raise NotFiniteError(
                            f"{error}. {self._kept(work)}. Lower optim.lr, or set train.precision=no"
                        ) from None
                    tokens = sum(len(rows[i]) for f, _ in step.micro for i in f)
                    tokens += sum(len(self.data.retain[i]) for _, r in step.micro for i in r)
                    took = time.perf_counter() - began
                    lr = self.phases[0].optimizer.param_groups[0]["lr"]
                    records.append(
                        {
                            "step": index + 1,
                            "epoch": epoch + 1,
                            "lr": lr,
                            **numbers,
                            "tokens": tokens,
                            "tokens_per_s": round(tokens / took, 1),
                            **({"displacement": self._displacement(work)} if last else {}),
                        }
                    )
                    progress(index + 1, self.total, records[-1])
                    stop = interrupt.requested()
                    if stop or (index + 1) % self.config.checkpoint_steps == 0 or index + 1 == self.total:
                        self._save(work, records)
                    if stop:
                        raise interrupt.Stopped(stop, f"after step {index + 1} of {self.total}")
                index += 1
            if index >= taken:
                self._between(epoch + 1, after_epoch, work, records)
        self.model.eval()
        states = (t for phase in self.phases for state in phase.optimizer.state.values() for t in state.values())
        cost.count(
            parameter_bytes=cost.tensor_bytes(self.model.parameters()),
            optimizer_state_bytes=cost.tensor_bytes(t for t in states if isinstance(t, Tensor)),
        )
        return records

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

    @staticmethod
    def _kept(work: Path) -> str:
        saved = read_json(work / "checkpoint" / "state.json", None)
        if saved is None:
            return "There is no checkpoint yet"
        return f"The state after step {len(saved['records'])} is kept in {work / 'checkpoint'}"

    def _save(self, work: Path, records: list[dict[str, Any]]) -> None:
        checkpoint.save(work, self.masters.weights, [phase.optimizer for phase in self.phases], records)

    def _resume(self, work: Path) -> list[dict[str, Any]]:
        records = checkpoint.load(work, self.masters.weights, [phase.optimizer for phase in self.phases])
        self.masters.give_weights()
        return records
