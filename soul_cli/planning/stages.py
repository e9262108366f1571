"""What a run trains, how often and on how much, from the words of its data.  Needs no tokenizer, weights or hub."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from soul_cli.core.types import QA, UserError
from soul_cli.data.batches import Share, deal, plan_epoch
from soul_cli.experiment.config import RunConfig
from soul_cli.models.load import lm_config, tokens_per_word
from soul_cli.objective.edit import TaskVector
from soul_cli.objective.forget.preference import AltPO
from soul_cli.objective.methods import Problem, finetuning, graddiff
from soul_cli.objective.term import Kinds, Term
from soul_cli.optim.build import Optim
from soul_cli.tasks.base import TaskData
from soul_cli.train.config import TrainConfig

TEMPLATE = 8  # tokens of a prompt template, roughly

Sizes = tuple[tuple[int, int], ...]  # tokens of prompt and answer, by answer
Answered = tuple[Sizes, ...]  # rows with all their answers


@dataclass(frozen=True)
class Stage:
    """One training of the run, and what it is made of."""

    name: str
    problem: Problem
    optim: Optim
    train: TrainConfig
    steps: int
    tokens: int
    padded: int  # tokens with what fills rows up to the longest of their batch
    longest: int  # the same of the largest share in each pass, for which the other processes wait
    passes: int  # the most that a gradient is made of
    rows: Sizes  # all answers of the largest share of a pass
    forget: int  # how many of them are of forget rows; they come first
    drawn: Sizes = ()  # those of a pass for the curvature, at most


def padded(rows: Sequence[tuple[int, int]]) -> int:
    return len(rows) * max((p + a for p, a in rows), default=0)


def architecture(config: RunConfig) -> tuple[Any, float]:
    """-> the transformers configuration of the model, and the tokens a word that its tokenizer makes, roughly."""
    model, target = config.model, config.task.target_model
    known = model.architecture
    folder = target or model.path
    if Path(folder).expanduser().is_dir():
        return lm_config(folder), tokens_per_word(known)
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
        out.append(
            stage_of(name, finetuning(), recipe.optim, recipe.train, (), alone(rows(items)), config.target_seed, gpus)
        )
    if len(out) == 2:  # much the same; so they can share a trace
        out[1] = replace(out[1], rows=out[0].rows)
    problem = config.problem
    if problem is not None:
        forget, retain = (_answered(term, data, items, rows) for term, items in
                          ((problem.forget, data.forget), (problem.retain, data.retain)))  # fmt: skip
        out.append(stage_of("unlearning", problem, config.optim, config.train, forget, retain, config.seed, gpus))
    elif isinstance(config.method, TaskVector):
        rows_of, solved = alone(rows(data.forget)), finetuning()
        out.append(stage_of("unlearning", solved, config.optim, config.train, (), rows_of, config.seed, gpus))
    elif config.changes_weights:  # an edit passes over the rows as gradient difference does
        solved = graddiff()
        forget, retain = alone(rows(data.forget)), alone(rows(data.retain))
        out.append(stage_of("unlearning", solved, config.optim, config.train, forget, retain, config.seed, gpus))
    return out


def alone(rows: Sizes) -> Answered:
    """Return rows of one answer each."""
    return tuple((row,) for row in rows)


def _answered(term: Term | None, data: TaskData, items: list[QA], rows: Callable[[Sequence[QA]], Sizes]) -> Answered:
    """Return the rows of one kind; refusals are dealt out in turn, alternatives taken to be as long as the answer."""
    if term is None:
        return ()
    if isinstance(term, AltPO):
        items = [qa for qa in items for _ in range(term.alternatives)]
    refusals = [data.refusals[i % len(data.refusals)] if data.refusals else "" for i in range(len(items))]
    refused = [QA(qa.question, refusal) for qa, refusal in zip(items, refusals, strict=True)]
    asked = {"answer": items, "alternative": items, "refusal": refused}
    return tuple(zip(*(rows(asked[name]) for name in term.needs.answers), strict=True))


def stage_of(
    name: str,
    problem: Problem,
    optim: Optim,
    train: TrainConfig,
    forget: Answered,
    retain: Answered,
    seed: int,
    gpus: int,
) -> Stage:
    """Go through the order of the run without its tokens.  gpus: as many processes share the rows of each step."""
    lengths = [[sum(p + a for p, a in row) for row in rows] for rows in (forget, retain)]
    steps, tokens, full, waited, most = 0, 0, 0, 0, 0
    largest: tuple[Sizes, int] = (), 0
    order = partial(
        plan_epoch, *lengths, size=train.batch_size, accumulation=train.accumulation, seed=seed, turns=problem.turns
    )
    for step in (step for epoch in range(train.epochs) for step in order(epoch=epoch)):
        steps += 1
        for turn, kinds in product(step.turns, problem.passes):
            passes = deal(turn, gpus, forget=Kinds.forget in kinds, retain=Kinds.retain in kinds)
            most = max(most, len(passes))
            for shares in passes:
                parts = [_answers_of(share, forget, retain) for share in shares]
                sizes = [padded(rows) for rows, _ in parts]
                tokens += sum(p + a for rows, _ in parts for p, a in rows)
                full, waited = full + sum(sizes), waited + max(sizes)
                largest = max(largest, *parts, key=lambda rows: padded(rows[0]))
    drawn = _drawn(problem, optim, *largest, gpus)
    return Stage(name, problem, optim, train, steps, tokens, full, waited, most, *largest, drawn)


def _answers_of(share: Share, forget: Answered, retain: Answered) -> tuple[Sizes, int]:
    """Return all answers of the rows of a share, and how many of them are of forget rows."""
    first = [answer for i in share.forget for answer in forget[i]]
    return (*first, *(answer for i in share.retain for answer in retain[i])), len(first)


def _drawn(problem: Problem, optim: Optim, rows: Sizes, forget: int, gpus: int) -> Sizes:
    """Return the longest rows that a process may have in a pass for the curvature: no more than it has of one kind."""
    if optim.curvature is None:
        return ()
    most = max(forget, len(rows) - forget)
    if optim.curvature.rows:
        answers = max(len(term.needs.answers) for term in problem.terms.values())
        most = min(most, math.ceil(optim.curvature.rows / gpus) * answers)
    return tuple(sorted(rows, key=sum))[-most:]


def flops(stage: Stage, parameters: int, *, checkpointing: bool) -> float:
    """Of all steps, on the process that the others wait for.

    2 a parameter and token forward, 4 backward, 2 of them for the weights' gradients.  Checkpointing adds a forward;
    the curvature estimate passes over some of the rows once more, every k steps.
    Attention's products of tokens with tokens are left out, and frozen weights taken to need no gradient.
    """
    each = 2.0 + (2 if stage.train.lora else 4) + (2 if checkpointing else 0)
    curvature = stage.optim.curvature
    if curvature is not None:
        step = stage.train.batch_size * stage.train.accumulation * len(stage.problem.steps[0])
        each *= 1 + min(1.0, (curvature.rows or step) / step) / curvature.every
    return each * parameters * stage.longest
