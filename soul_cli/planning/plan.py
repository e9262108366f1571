"""plan=true: what a run needs of memory and time, before a GPU is asked for.

Bytes come from `footprint`, FLOPs from `workload`; both are set against the table of GPUs in configs/gpus.yml.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec

import torch

from soul_cli.core.distributed import Parallel
from soul_cli.experiment.checks import check_layers
from soul_cli.experiment.config import RunConfig, gpus
from soul_cli.models.adapters import LoRA
from soul_cli.objective.methods import finetuning
from soul_cli.planning.memory import Footprint, Setting, Work, footprint, work
from soul_cli.planning.stages import Stage, architecture, flops, padded, stages

EFFICIENCY = 0.4  # share of a GPU's peak that training reaches
RESERVE, FRAGMENTS = 1.0, 0.05  # GiB for driver and libraries; share of the peak lost between tensors
GB, GIB = 1e9, 2.0**30
PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "masters": "master weights",
    "states": "optimizer states",
    "head": "head before unlearning",
    "buffers": "combination, perturbation",
    "activations": "activations, logits",
    "gathered": "gathered by FSDP",
    "peak": "peak",
    "host": "in main memory",
}


@dataclass(frozen=True)
class How:
    """What may be changed to make a run smaller."""

    checkpointing: bool
    offload: bool
    sharded: bool
    gpus: int
    lora: LoRA | None = None  # in every stage; None: each stage's own

    def __str__(self) -> str:
        words = ["activation_checkpointing=true"] if self.checkpointing else []
        words += ["offload=true"] if self.offload else []
        words += [f"parallel=fsdp gpus={self.gpus}"] if self.sharded else []
        if self.lora:
            in_4bit = str(self.lora.load_in_4bit).lower()
            value = f"{{r: {self.lora.r}, alpha: {self.lora.alpha}, load_in_4bit: {in_4bit}}}"
            words += [f"'train.lora={value}' 'model.finetune.train.lora={value}'"]
        return " ".join(words)


@dataclass(frozen=True)
class Need:
    """A stage with the memory of one process."""

    stage: Stage
    work: Work
    bytes: Footprint


class Planner:
    """A run and what it needs, as it is configured or otherwise."""

    def __init__(self, config: RunConfig):
        self.config = config
        self.data = config.task.load(config.cache)
        self.lm, self.per_word = architecture(config)
        config.settle_layers(self.lm.num_hidden_layers)
        if config.problem is not None:
            check_layers(config.problem, self.lm.num_hidden_layers)
        sharded = config.parallel is Parallel.fsdp and config.gpus > 1
        self.how = How(config.activation_checkpointing, config.offload, sharded, config.gpus)
        self.stages = cache(lambda count: stages(config, self.data, self.per_word, count))

    def needs(self, how: How) -> list[Need]:
        """Traced at the shares of the configured number of GPUs, scaled to those of another."""
        pairs = zip(self.stages(how.gpus), self.stages(self.config.gpus), strict=True)
        return [self._need(how, stage, like) for stage, like in pairs]

    def _need(self, how: How, stage: Stage, like: Stage) -> Need:
        train, lora, dtype = stage.train, how.lora or stage.train.lora, self.config.model.dtype
        adapters = (lora.r, lora.alpha) if lora else None
        settings = settings_of(like, dtype, how.checkpointing, adapters)
        rows = zip(settings, (stage.rows, stage.drawn), strict=False)
        works = [work(self.lm, setting).scaled(padded(own) / padded(setting.rows)) for setting, own in rows]
        held = footprint(
            stage.optim, stage.problem, *works, master_weights=train.master_weights, accumulates=stage.passes > 1,
            parts=how.gpus if how.sharded else 1, offload=how.offload,
            element=getattr(torch, dtype).itemsize if lora and lora.load_in_4bit else 0,
        )  # fmt: skip
        return Need(stage, works[0], held)

    def seconds(self, needs: list[Need], how: How, gpu: dict[str, float]) -> float:
        """Of training alone, at the GPU's peak rate times EFFICIENCY."""
        total = sum(flops(n.stage, n.work.parameters, checkpointing=how.checkpointing) for n in needs)
        return total / (gpu["flops"] * EFFICIENCY)

    def smaller(self) -> Iterator[How]:
        """Ways to need less, from the least intrusive on."""
        saving = replace(self.how, checkpointing=True)
        yield saving
        adapted = any(s.train.lora for s in self.stages(self.config.gpus))
        if not adapted:
            yield replace(saving, offload=True)
            yield from (replace(saving, sharded=True, gpus=n) for n in (2, 4, 8, 16) if n > self.config.gpus)
        if find_spec("peft"):
            alone = replace(saving, sharded=False, offload=False)
            yield from (replace(alone, lora=LoRA(8, 32, in_4bit)) for in_4bit in (False, True))


def settings_of(stage: Stage, dtype: str, checkpointing: bool, adapters: tuple[int, int] | None) -> list[Setting]:
    """Return what a stage's forward and backward depend on, and those of a curvature estimate, where it has any.

    adapters: r and alpha.
    """
    own = Setting(dtype, stage.train.precision, checkpointing, adapters, stage.rows, stage.forget, stage.problem)
    if not stage.drawn:
        return [own]
    return [own, replace(own, rows=stage.drawn, forget=0, problem=finetuning(), drawn=True)]


def outlook(config: RunConfig) -> str:
    """Return the whole plan, as text."""
    table = gpus()
    planner = Planner(config)
    needs = planner.needs(planner.how)
    if not needs:
        return "nothing is trained"
    one, data = needs[-1].work, planner.data
    lines = [
        f"model    {planner.lm.model_type}, {one.parameters / 1e6:,.1f}M parameters in {config.model.dtype}, "
        f"{one.trained / 1e6:,.1f}M of them trained by {needs[-1].stage.name}",
        f"data     {len(data.full)} pairs, {len(data.forget)} to forget; {planner.per_word:g} tokens a word assumed",
        f"how      {config.gpus} GPU{'s' * (config.gpus > 1)}; {str(planner.how) or 'no option that saves memory'}",
        "",
        *_table(planner, needs),
        "",
    ]
    for name in [config.gpu] if config.gpu else table:
        lines.append(_verdict(planner, needs, name, table[name]))
    if config.gpu and not fits(needs, table[config.gpu]):
        found = [how for how in planner.smaller() if fits(planner.needs(how), table[config.gpu])]
        fewest = min((how.gpus for how in found if how.sharded), default=0)
        texts = [str(how) for how in found if not how.sharded or how.gpus == fewest]
        lines += ["It would fit with", *(f"  {text}" for text in texts or ["none of the options of this plan"])]
    return "\n".join(lines)


def _table(planner: Planner, needs: list[Need]) -> Iterator[str]:
    def line(name: str, cells: list[str]) -> str:
        return f"{name:<28}" + "".join(f"{c:>16}" for c in cells)

    yield line("", [n.stage.name for n in needs])
    yield line("optimizer", [n.stage.optim.name for n in needs])
    yield line("steps", [f"{n.stage.steps:,}" for n in needs])
    yield line("tokens", [f"{n.stage.tokens:,}" for n in needs])
    yield line("  padded", [f"{n.stage.padded:,}" for n in needs])
    yield line("largest batch, a GPU", [f"{len(n.stage.rows)} x {max(map(sum, n.stage.rows))}" for n in needs])
    yield line("GB on each GPU", [""] * len(needs))
    how = planner.how
    other = planner.needs(replace(how, checkpointing=not how.checkpointing))
    for key, name in PARTS.items():
        values = [getattr(n.bytes, key) / GB for n in needs]
        if any(values):
            yield line(f"  {name}", [f"{v:.2f}" for v in values])
        if key == "activations":
            name = f"    {'without' if how.checkpointing else 'with'} checkpointing"
            yield line(name, [f"{n.bytes.activations / GB:.2f}" for n in other])
            logits = [sum(a for _, a in n.stage.rows) * planner.lm.vocab_size * 4 / GB for n in needs]
            yield line("    one copy of the logits", [f"{v:.2f}" for v in logits])
    if how.sharded:
        yield line("GB in main memory, loading", [f"{n.work.weights / GB:.2f}" for n in needs])
    yield line("GB on disk", [""] * len(needs))
    yield line("  a checkpoint", [f"{n.bytes.checkpoint / GB:.2f}" for n in needs])
    yield line("    every so many minutes", [f"{n.stage.train.checkpoint_minutes:g}" for n in needs])
    yield line("  at most in training", [f"{n.bytes.disk / GB:.2f}" for n in needs])


def fits(needs: list[Need], gpu: dict[str, float]) -> bool:
    return all(n.bytes.peak * (1 + FRAGMENTS) / GIB + RESERVE <= gpu["memory"] for n in needs)


def _verdict(planner: Planner, needs: list[Need], name: str, gpu: dict[str, float]) -> str:
    peak = max(n.bytes.peak for n in needs)
    room = (
        f"{peak / GB:.1f} of {gpu['memory'] * GIB / GB:.1f} GB, of which {RESERVE:g} GiB and {FRAGMENTS:.0%} stay free"
    )
    if not fits(needs, gpu):
        return f"{name:<12} does not fit: {room}"
    took = planner.seconds(needs, planner.how, gpu)
    time = f"{took / 60:.0f} min" if took >= 90 else f"{took:.0f} s"
    time += " (updates in main memory not counted)" if planner.how.offload else ""
    return f"{name:<12} fits: {room}; training about {time} at {EFFICIENCY:.0%} of {gpu['flops'] / 1e12:.0f} TFLOP/s"
