"""Measured against planned peak memory of training, on models that fit anywhere: python scripts/check_plan.py [--small]

Tensors that exist at one time while the loop runs (soul_cli.planning.memory.LiveBytes), on random weights and rows of
TOFU's lengths, against what plan=true computes.  Ends with an error where they differ by more than 15 %.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from soul_cli.core.types import Prompted
from soul_cli.data.rows import NO_ROWS, Rows
from soul_cli.experiment.config import RunConfig, compose
from soul_cli.models.load import Architecture, untrained
from soul_cli.objective.term import Term
from soul_cli.planning.memory import Footprint, LiveBytes, footprint, work
from soul_cli.planning.plan import settings_of
from soul_cli.planning.stages import Answered, stage_of
from soul_cli.train.loop import TrainData, Trainer

TOLERANCE = 0.15
# hidden, layers, heads, MLP, vocabulary; rows
SIZES = {"2M": (192, 4, 4, 512, 2048, 8), "12M": (384, 6, 6, 1024, 4096, 8), "135M": (576, 30, 9, 1536, 49152, 2)}
OPTIONS = {
    "adamw": ["optim=adamw"],
    "soul": ["optim=soul", "optim.hessian_every=1"],
    "soul, activation checkpointing": ["optim=soul", "optim.hessian_every=1", "activation_checkpointing=true"],
    "adamw, retain=kl": ["optim=adamw", "retain=kl"],
    "soul, bfloat16": ["optim=soul", "optim.hessian_every=1", "model.dtype=bfloat16"],
}


def architecture(hidden: int, layers: int, heads: int, inner: int, vocab: int) -> Architecture:
    return Architecture("llama", hidden, layers, heads, heads, inner, vocab, True, 1.5)


def rows(count: int, seed: int, vocab: int, *, longest: int) -> list[Prompted]:
    draw = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randint(3, vocab - 1) for _ in range(draw.randint(low, high)))

    return [Prompted(ids(longest // 6, longest // 3), (ids(longest // 3, 2 * longest // 3),)) for _ in range(count)]


def compare(config: RunConfig, lm_config: Any, count: int, *, longest: int = 90) -> tuple[float, float]:
    """Bytes at the peak, measured and planned, of unlearning `count` rows."""
    vocab, work_dir = lm_config.vocab_size, Path(tempfile.mkdtemp())
    forget, retain = (rows(n, seed, vocab, longest=longest) for n, seed in ((count, 1), (2 * count, 2)))
    problem = config.problem
    assert problem is not None
    to_forget = needed(problem.forget, forget, lm_config.hidden_size)
    to_keep = needed(problem.retain, retain, lm_config.hidden_size)
    data = TrainData(lambda epoch: to_forget, to_keep)
    train, checkpointing = config.train, config.activation_checkpointing
    with LiveBytes() as live:
        lm = untrained(lm_config, config.model.dtype)
        if train.lora:
            train.lora.attach(lm, 0)
        for p in lm.parameters():
            live.watch(p)
        Trainer(
            lm,
            data,
            problem,
            config.optim,
            train,
            0,
            Accelerator(cpu=True),
            activation_checkpointing=checkpointing,
        ).train(work_dir, lambda *a: None)
    sizes = [
        tuple(tuple((len(r.prompt), len(r.answers[0])) for r in of.row(i)) for i in range(len(of)))
        for of in (to_forget, to_keep)
    ]
    return live.most, plan_of(config, lm_config, *sizes).peak


def needed(term: Term | None, some: list[Prompted], width: int) -> Rows:
    """Return rows with all that a term may need: the same answers under each name."""
    if term is None:
        return NO_ROWS
    names = term.needs.answers
    values = [torch.full((len(r.answers[0]),), -1.0) for r in some]
    states = [torch.ones(len(r.answers[0]), width) for r in some]
    return Rows(dict.fromkeys(names, some), dict.fromkeys(names, values), dict.fromkeys(names, states), norm=1.0)


def plan_of(config: RunConfig, lm_config: Any, forget: Answered, retain: Answered) -> Footprint:
    """What plan=true makes of unlearning rows of these lengths on one GPU."""
    train, problem = config.train, config.problem
    assert problem is not None
    stage = stage_of("unlearning", problem, config.optim, train, forget, retain, seed=config.seed, gpus=1)
    adapters = (train.lora.r, train.lora.alpha) if train.lora else None
    settings = settings_of(stage, config.model.dtype, config.activation_checkpointing, adapters)
    return footprint(
        config.optim, problem, *(work(lm_config, s) for s in settings), master_weights=train.master_weights,
        accumulates=train.accumulation > 1, parts=1, offload=config.offload,
    )  # fmt: skip


def main() -> None:
    worst = 0.0
    print(f"{'model':<6}{'':<34}{'measured MB':>12}{'planned MB':>12}{'ratio':>8}")
    for size, (*shape, count) in SIZES.items():
        if size == "2M" or "--small" not in sys.argv:
            for name, options in OPTIONS.items():
                config = compose([*options, f"train.batch_size={count}", "train.epochs=2", "method=npo"])
                measured, planned = compare(config, architecture(*shape).lm_config(), count)
                worst = max(worst, abs(planned / measured - 1))
                print(
                    f"{size:<6}{name:<34}{measured / 1e6:>12.1f}{planned / 1e6:>12.1f}{planned / measured:>8.3f}",
                    flush=True,
                )
    if worst > TOLERANCE:
        sys.exit(f"they differ by {worst:.0%}")


if __name__ == "__main__":
    main()
