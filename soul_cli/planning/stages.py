"""What a run trains, how often and on how much, from the words of its data.  Needs no tokenizer, weights or hub."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from soul_cli.core.types import QA, UserError
from soul_cli.data.batches import plan_epoch, shares
from soul_cli.experiment.config import RunConfig
from soul_cli.models.load import lm_config
from soul_cli.objective.methods import Problem, finetuning, graddiff
from soul_cli.objective.term import Kinds
from soul_cli.optim.build import Optim
from soul_cli.tasks.base import TaskData
from soul_cli.train.config import TrainConfig

TEMPLATE = 8  # tokens of a prompt template, roughly

Sizes = tuple[tuple[int, int], ...]  # tokens of prompt and answer, by row


@dataclass(frozen=True)
class Stage:
    """One training of the run, and what it is made of."""

    name: str
    problem: Problem
    optim: Optim
    train: TrainConfig
    steps: int
    tokens: int
    padded: int  # tokens with what fills rows up to the longest of their micro-batch
    rows: Sizes  # one process's share of the largest micro-batch
    forget: int  # how many of them are forget rows; they come first


def padded(rows: Sequence[tuple[int, int]]) -> int:
    return len(rows) * max((p + a for p, a in rows), default=0)


def architecture(config: RunConfig) -> tuple[Any, float]:
    """-> the transformers configuration of the model, and the tokens a word that its tokenizer makes, roughly."""
    model, target = config.model, config.task.target_model
    known = model.architecture
    folder = target or model.path
    if Path(folder).expanduser().is_dir():
        return lm_config(folder), known.tokens_per_word if known else 1.5
    if known is None:
        raise UserError(
            f"plan=true asks no hub about {folder!r}: give a folder, a model of configs/model, or model.architecture"
        )
    return known.lm_config(), known.tokens_per_word


def sizes(items: Sequence[QA], per_word: float, most: int) -> Sizes:
    """Return what questions and answers take, from their words.  most: tokens of both together."""

    def row(qa: QA) -> tuple[int, int]:
        p, a = (math.ceil(len(text.split()) * per_word) for text in (qa.question, qa.answer))
        prompt = min(p + TEMPLATE, most - 1)
        return prompt, min(a + 1, most - prompt)

    return tuple(map(row, items))


def stages(config: RunConfig, data: TaskData, per_word: float, gpus: int) -> list[Stage]:
    """Return the trainings to be done if nothing were cached."""
    rows = partial(sizes, per_word=per_word, most=config.model.max_length)
    out = []
    recipe = config.model.finetune
    learned = {"target": data.full} if config.task.target_model is None else {}
    if learned and not (config.task.retain_model or config.task.retain_rows):
        learned["retain-trained"] = data.retain
    for name, items in learned.items():
        out.append(stage_of(name, finetuning(), recipe.optim, recipe.train, (), rows(items), config.target_seed, gpus))
    if len(out) == 2:  # much the same; so they can share a trace
        out[1] = replace(out[1], rows=out[0].rows)
    problem = config.problem
    if problem is not None:
        forget = _forgotten(problem, data, rows)
        retain = rows(data.retain) if problem.retain else ()
        out.append(stage_of("unlearning", problem, config.optim, config.train, forget, retain, config.seed, gpus))
    elif config.changes_weights:  # an edit passes over the rows as gradient difference does
        solved = graddiff()
        forget, retain = rows(data.forget), rows(data.retain)
        out.append(stage_of("unlearning", solved, config.optim, config.train, forget, retain, config.seed, gpus))
    return out


def _forgotten(problem: Problem, data: TaskData, rows: Callable[[Sequence[QA]], Sizes]) -> Sizes:
    """Return the rows to forget, a row with all its answers; refusals are dealt out in turn."""
    if problem.forget is None:
        return ()
    refusals = [data.refusals[i % len(data.refusals)] if data.refusals else "" for i in range(len(data.forget))]
    asked = {
        "answer": data.forget,
        "refusal": [QA(qa.question, answer) for qa, answer in zip(data.forget, refusals, strict=True)],
    }
    named = [rows(asked[name]) for name in problem.forget.needs.answers]
    return tuple((sum(p for p, _ in row), sum(a for _, a in row)) for row in zip(*named, strict=True))


def stage_of(
    name: str, problem: Problem, optim: Optim, train: TrainConfig, forget: Sizes, retain: Sizes, seed: int, gpus: int
) -> Stage:
    """Go through the order of the run without its tokens.  gpus: as many processes share each micro-batch."""
    lengths = [[p + a for p, a in rows] for rows in (forget, retain)]
    steps, tokens, full = 0, 0, 0
    largest: tuple[Sizes, int] = (), 0
    order = partial(plan_epoch, *lengths, size=train.batch_size, accumulation=train.accumulation, seed=seed)
    for step in (step for epoch in range(train.epochs) for step in order(epoch=epoch)):
        steps += 1
        for kinds in problem.steps:
            for share in shares(step, 0, 1, forget=Kinds.forget in kinds, retain=Kinds.retain in kinds):
                rows = [forget[i] for i in share.forget] + [retain[i] for i in share.retain]
                tokens, full = tokens + sum(p + a for p, a in rows), full + padded(rows)
                own = tuple(rows[::gpus]), len(share.forget[::gpus])
                largest = max(largest, own, key=lambda rows: padded(rows[0]))
    return Stage(name, problem, optim, train, steps, tokens, full, *largest)


def flops(stage: Stage, parameters: int, *, checkpointing: bool, sharded: bool) -> float:
    """Of all steps and processes: 2 a parameter and token forward, 4 backward, 2 of them for the weights' gradients.

    Checkpointing adds a forward; the curvature estimate a backward, every k steps, and sharded a forward too.
    Attention's products of tokens with tokens are left out, and frozen weights taken to need no gradient.
    """
    again = 2 if checkpointing else 0
    backward = 2 if stage.train.lora else 4
    each = 2.0 + backward + again
    curvature = stage.optim.curvature
    if curvature is not None:
        each += (backward + again + (2 if sharded else 0)) / curvature.every
    return each * parameters * stage.padded
