"""The training loop, on Accelerate: fine-tuning and unlearning are the same loop with another objective.

One optimizer step is a plan of micro-batches (forget rows, retain rows).  Losses are normalised by counts over the
whole step.  Joint mode has one phase a step, on the sum of both terms; alternating mode (SOUL, eq. 11) has two, each
with its own optimizer state.  The loop checkpoints to safetensors and goes on bit-exactly where it stopped.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from soul_cli.cache import publish, read_json, write_text
from soul_cli.data.batches import Step, collate, plan_epoch
from soul_cli.losses import sum_by, token_logps
from soul_cli.methods import Answers, Counts, Method
from soul_cli.models import AnswerModel, autocast
from soul_cli.optim.build import HessianData, Mode, Optim, SoulConfig, parameter_groups
from soul_cli.optim.curvature import GaussNewtonBartlett
from soul_cli.types import Prompted, UserError


@dataclass
class TrainConfig:
    """How long and in what portions.  batch_size counts forget rows (retain rows where there are no forget rows)."""

    epochs: int
    batch_size: int
    accumulation: int
    warmup: float  # share of the steps
    decay: str  # linear: to 0 at the end; constant
    clip: float  # global gradient norm; 0: off
    precision: str  # bf16: autocast; no: float32
    checkpoint_steps: int

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size", "accumulation", "checkpoint_steps"):
            if getattr(self, key) < 1:
                raise UserError(f"train.{key}={getattr(self, key)}: must be 1 or more")
        if self.decay not in ("linear", "constant"):
            raise UserError(f"train.decay={self.decay!r}: must be linear or constant")
        if self.precision not in ("bf16", "no"):
            raise UserError(f"train.precision={self.precision!r}: must be bf16 or no")
        if not 0 <= self.warmup < 1:
            raise UserError(f"train.warmup={self.warmup}: must be in [0, 1)")
        if self.clip < 0:
            raise UserError(f"train.clip={self.clip}: must be 0 (off) or more")


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


def build_phases(method: Method, optim: Optim, model: nn.Module) -> list[Phase]:
    def optimizer() -> Optimizer:
        return optim.build(parameter_groups(model, optim.weight_decay))

    both = method.uses_forget and method.uses_retain
    if both and isinstance(optim, SoulConfig) and optim.mode is Mode.alternating:
        # inside a clipped step a factor on the loss would cancel: the weight acts on the rate
        return [
            Phase(True, False, optimizer(), optim.lr, 1.0),
            Phase(False, True, optimizer(), optim.lr * method.weight, 1.0),
        ]
    return [Phase(method.uses_forget, method.uses_retain, optimizer(), optim.lr, method.weight)]


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
    ):
        if accelerator.num_processes > 1:
            raise UserError("training on several processes is not supported yet; start a single one")
        self.accelerator, self.data, self.method, self.optim = accelerator, data, method, optim
        self.config, self.seed = config, seed
        self.model = accelerator.prepare_model(AnswerModel(lm.train()))
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.phases = build_phases(method, optim, self.model)
        self.start = [p.detach().clone() for p in self.params]  # for the distance travelled
        self.plans = [self._plan(epoch) for epoch in range(config.epochs)]
        self.total = sum(map(len, self.plans))

    def _plan(self, epoch: int) -> list[Step]:
        rows = self.data.forget(epoch) if self.data.forget and self.method.uses_forget else []
        retain = self.data.retain if self.method.uses_retain else []
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
        moved = [(p.detach().float() - s.float()).norm() for p, s in zip(self.params, self.start, strict=True)]
        return record | {"displacement": float(torch.stack(moved).norm())}

    def _phase(self, phase: Phase, step: Step, index: int, rows: Sequence[Prompted]) -> dict[str, float]:
        forget_counts = self._counts([rows[i] for f, _ in step.micro for i in f])
        retain_counts = self._counts([self.data.retain[i] for _, r in step.micro for i in r])
        curvature = self._curvature(index)
        losses = {"loss_forget": 0.0, "loss_retain": 0.0}
        for f, r in step.micro:
            f, r = (f if phase.forget else ()), (r if phase.retain else ())
            batch = collate([rows[i] for i in f] + [self.data.retain[i] for i in r]).to(self.accelerator.device)
            with autocast(self.accelerator.device, self.config.precision):
                logits = self.model(batch)
            is_forget = batch.owner < len(f)
            if curvature is not None:
                curvature.add(logits, self._hessian_tokens(is_forget))
            logps = sum_by(token_logps(logits, batch.targets), batch.owner, batch.answers)
            tokens = torch.bincount(batch.owner, minlength=batch.answers)
            loss = logits.new_zeros(())
            if f:
                reference = (
                    torch.tensor([self.data.reference[i] for i in f], device=logps.device)
                    if self.method.uses_reference
                    else None
                )
                answers = Answers(logps[: len(f)], tokens[: len(f)], reference)
                term = self.method.forget_loss(answers, forget_counts)
                losses["loss_forget"] += float(term.detach())
                loss = loss + term
            if r:
                term = self.method.retain_loss(Answers(logps[len(f) :], tokens[len(f) :], None), retain_counts)
                losses["loss_retain"] += float(term.detach())
                loss = loss + phase.retain_weight * term
            self.accelerator.backward(loss)
        kept = {k: v for k, v in losses.items() if getattr(phase, k.removeprefix("loss_"))}
        if not all(map(math.isfinite, kept.values())):
            raise NotFiniteError(f"the loss is not finite at step {index + 1} of {self.total}: {kept}")
        return kept | self._update(phase, curvature)

    def _update(self, phase: Phase, curvature: GaussNewtonBartlett | None) -> dict[str, float]:
        grads = [p.grad for p in self.params if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads))
        if not math.isfinite(norm):
            raise NotFiniteError(f"the gradient norm is {norm}")
        ratio = min(1.0, self.config.clip / (norm + 1e-6)) if self.config.clip else 1.0
        if ratio < 1.0:
            torch._foreach_mul_(grads, ratio)
        if curvature is not None:
            phase.optimizer.update_hessian(curvature.estimates())  # type: ignore[attr-defined]
        phase.optimizer.step()
        phase.optimizer.zero_grad()
        return {"grad_norm": norm, "clip_factor": ratio, **getattr(phase.optimizer, "stats", {})}

    def _curvature(self, index: int) -> GaussNewtonBartlett | None:
        if isinstance(self.optim, SoulConfig) and index % self.optim.hessian_every == 0:
            return GaussNewtonBartlett(self.params, self.seed, index)
        return None

    def _hessian_tokens(self, is_forget: Tensor) -> Tensor:
        """Which tokens take part in the curvature.  A phase that has only the other kind uses what it has."""
        assert isinstance(self.optim, SoulConfig)
        if self.optim.hessian_data is HessianData.both or is_forget.all() or not is_forget.any():
            return torch.ones_like(is_forget)
        return is_forget if self.optim.hessian_data is HessianData.forget else ~is_forget

    @staticmethod
    def _counts(rows: list[Prompted]) -> Counts:
        return Counts(len(rows), sum(len(a) for r in rows for a in r.answers))

    # --- the run -------------------------------------------------------------------------------------------

    def train(self, work: Path, progress: Callable[[int, int, dict[str, float]], None]) -> list[dict[str, Any]]:
        """Run from the last checkpoint in `work` (or from the start) to the end.  Returns one record a step."""
        records = self._resume(work)
        index = 0
        for epoch, plan in enumerate(self.plans):
            rows = self.data.forget(epoch) if self.data.forget and self.method.uses_forget else []
            for step in plan:
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
                        }
                    )
                    progress(index + 1, self.total, records[-1])
                    if (index + 1) % self.config.checkpoint_steps == 0 or index + 1 == self.total:
                        self._save(work, records)
                index += 1
        self.model.eval()
        return records

    @staticmethod
    def _kept(work: Path) -> str:
        saved = read_json(work / "checkpoint" / "state.json", None)
        if saved is None:
            return "There is no checkpoint yet"
        return f"The state after step {len(saved['records'])} is kept in {work / 'checkpoint'}"

    def _save(self, work: Path, records: list[dict[str, Any]]) -> None:
        """A checkpoint is a folder of safetensors and JSON, put in place by a rename."""
        folder = work / ".checkpoint"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        tensors = {f"param.{i}": p.detach().contiguous() for i, p in enumerate(self.params)}
        tensors["rng"] = torch.get_rng_state()
        groups, scalars = [], {}
        for k, phase in enumerate(self.phases):
            state = phase.optimizer.state_dict()
            groups.append(state["param_groups"])
            for i, values in state["state"].items():
                for name, value in values.items():
                    if isinstance(value, Tensor):
                        tensors[f"state.{k}.{i}.{name}"] = value.contiguous()
                    else:
                        scalars[f"state.{k}.{i}.{name}"] = value
        save_file(tensors, folder / "tensors.safetensors")
        write_text(folder / "state.json", json.dumps({"groups": groups, "scalars": scalars, "records": records}))
        publish(folder, work / "checkpoint")

    def _resume(self, work: Path) -> list[dict[str, Any]]:
        folder = work / "checkpoint"
        if not (folder / "state.json").is_file():
            return []
        saved = json.loads((folder / "state.json").read_text())
        tensors = load_file(folder / "tensors.safetensors")
        with torch.no_grad():
            for i, p in enumerate(self.params):
                p.copy_(tensors.pop(f"param.{i}"))
        torch.set_rng_state(tensors.pop("rng"))
        for k, phase in enumerate(self.phases):
            state: dict[int, dict[str, Any]] = {}
            for key, value in [*tensors.items(), *saved["scalars"].items()]:
                _, owner, i, name = key.split(".", 3)
                if int(owner) == k:
                    state.setdefault(int(i), {})[name] = value
            fresh = phase.optimizer.state_dict()["param_groups"]
            groups = [_retype(old, new) for old, new in zip(saved["groups"][k], fresh, strict=True)]
            phase.optimizer.load_state_dict({"state": state, "param_groups": groups})
        return saved["records"]


def _retype(saved: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """A parameter group read from JSON.  What did not change keeps the type it had (JSON knows no tuples)."""
    same = {k for k in saved if json.loads(json.dumps(fresh.get(k))) == saved[k]}
    return {k: fresh[k] if k in same and k in fresh else v for k, v in saved.items()}
