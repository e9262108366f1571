"""What a run will do, in plain words and with a rough time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from soul_cli.core.distributed import world
from soul_cli.experiment.config import RunConfig
from soul_cli.experiment.context import Context
from soul_cli.experiment.evaluation import splits
from soul_cli.experiment.models import missing, unlearned_config
from soul_cli.models import packaged
from soul_cli.models.load import count_parameters, tokens_per_word

TRAINS_AT = {2e6: 0.37, 12e6: 0.51, 135e6: 0.62}  # share of the rate of matrix products, by size (results/bench.md)
SCORES_AT = 0.4  # the same share


def describe(context: Context, folder: Path, notes: Sequence[str]) -> str:
    """Return the header that is printed before anything costly happens.  notes: what the checks found worth saying."""
    config, data = context.config, context.data
    model = config.model
    target = config.task.target_model or f"{model.path}, fine-tuned on {len(data.full)} pairs"
    weights = None if config.task.target_model else packaged.note(model.path)
    questions = ", ".join(f"{name} {len(items)}" for name, items in splits(context).items())
    general = ", ".join(config.eval.lm_eval.names())
    processes = f" x {world()} ({config.parallel.value})" if world() > 1 else ""
    lines = [
        f"task     {config.task.name} ({config.task.source}): forget {len(data.forget)} of {len(data.full)} pairs",
        *(f"         {note}" for note in data.notes),
        f"model    {target}; {parameters(context) / 1e6:,.1f}M parameters",
        *(f"         {note}" for note in [weights, *notes] if note),
        f"unlearn  {method_label(config)}"
        + (f", {config.train.epochs} epochs, lr {config.optim.lr:g}" if config.optimizes else "")
        + (f" (settings of configs/{config.preset}.yaml)" if config.optimizes and config.preset else ""),
        f"evaluate {questions} questions" + (f"; lm-eval (not in the time below): {general}" if general else ""),
        *([epochs_line(context)] if config.evaluates_epochs else []),
        f"device   {context.accelerator.device}{processes}, seed {config.seed}, target seed {config.target_seed}",
        f"results  {folder}",
    ]
    lines.append(f"time     about {format_time(estimate(context))}")
    return "\n".join(lines)


def epochs_line(context: Context) -> str:
    """Return the header's line on evaluation during unlearning."""
    settings = context.config.epoch_eval
    count = sum(map(len, splits(context, settings.limit).values()))
    choice = f"{settings.select.value} epoch kept"
    return f"epochs   {count} questions every {settings.every} epochs (not in the time below); {choice}"


def method_label(config: RunConfig) -> str:
    """Return the method, and the optimizer where it has one."""
    return f"{config.title} with {config.optim.name}" if config.optimizes else config.title


def parameters(context: Context) -> int:
    """Return how many parameters the model that is unlearned has, counted without weights."""
    return count_parameters(unlearned_config(context))


def estimate(context: Context) -> float:
    """Return seconds, from 6 FLOPs a parameter and token and the measured matrix-product rate.  A rough guess."""
    config, data = context.config, context.data
    rate, size = matmul_rate(context.accelerator.device), float(parameters(context))
    trains_at = np.interp(math.log(size), [math.log(n) for n in TRAINS_AT], list(TRAINS_AT.values()))
    per_word = tokens_per_word(config.model.architecture)

    def count_words(rows: list[Any]) -> int:
        return sum(len(f"{r.question} {r.answer} {' '.join(r.perturbed_answer)}".split()) for r in rows)

    def training_time(rows: list[Any], epochs: int) -> float:
        return 6 * size * count_words(rows) * per_word * epochs / rate / trains_at

    evaluated = [r for items in splits(context).values() for r in items]
    evaluation = 2 * size * count_words(evaluated) * 4 * per_word / rate / SCORES_AT + len(evaluated) / 40
    seconds = evaluation
    untrained = missing(context)
    epochs = config.model.finetune.train.epochs
    for part, rows in (("target", data.full), ("retain", data.retain)):
        if part in untrained:
            seconds += training_time(rows, epochs) + evaluation
    if config.changes_weights:
        seconds += 2 * training_time(data.forget, config.train.epochs)
    return seconds


def matmul_rate(device: torch.device, size: int = 512, dtype: torch.dtype = torch.float32) -> float:
    """Return the FLOP/s of a matrix product on this machine, best of a few.

    Of a processor, one thread's times their number: where others are at work too, threads wait for each other, and
    products as short as these for most of their time.
    """
    a = torch.randn(size, size, device=device, dtype=dtype)
    best, threads = float("inf"), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(5):
            began = time.perf_counter()
            (a @ a).sum().item()  # waits for the device
            best = min(best, time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return 2 * size**3 / best * (threads if device.type == "cpu" else 1)


def format_time(seconds: float) -> str:
    """Return a time in words, to ten seconds or a minute."""
    return f"{max(10, round(seconds, -1)):.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
