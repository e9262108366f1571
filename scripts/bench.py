#!/usr/bin/env python3
"""Speed and memory against what is used today, side by side in one process -> results/bench.md.

    python scripts/bench.py               # everything, at 2M, 12M and 135M parameters
    python scripts/bench.py --only step   # one line (see LINES); the table then holds that line alone
    python scripts/bench.py --size 2M     # one size
    python scripts/bench.py --short       # a few seconds a line on a tiny model: whether it runs, not how fast

Wants a quiet machine.  Baselines stand in bench_baselines.py, sizes and data in bench_setup.py.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from accelerate import Accelerator
from bench_baselines import ReferenceInMemory, evaluate_in_batches, plain_soul_step
from bench_setup import (
    FULL,
    SHORT,
    Clock,
    Effort,
    Measured,
    Table,
    encoder,
    language_model,
    let_answers_end,
    pairs,
    peak_memory,
    questions,
    rate_of_copies,
    rate_of_products,
    seconds,
    seconds_a_step,
    teach,
)
from small_models import tiny_base
from torch.nn.functional import pad

from soul_cli.core.types import Batch, Prompted, Row
from soul_cli.data.batches import collate, epoch_batches, shuffled
from soul_cli.data.rows import Rows
from soul_cli.evaluate import likelihood
from soul_cli.evaluate.abilities import abilities
from soul_cli.evaluate.trees import Tree
from soul_cli.experiment.config import RunConfig, compose
from soul_cli.models.answer_model import AnswerModel
from soul_cli.objective.forget.base import Objective
from soul_cli.objective.methods import METHODS, Problem, finetuning
from soul_cli.objective.term import Kinds, Needs, Reference
from soul_cli.optim.sophia import Soul
from soul_cli.train.loop import TrainData, Trainer


@lru_cache
def settings(*overrides: str) -> RunConfig:
    """The project's own settings, but for a rate that leaves the model nearly as it is."""
    return compose(["optim.lr=1e-6", *overrides])


Lines = Iterator[Measured]


# --- evaluation --------------------------------------------------------------------------------------------


def evaluate(lm: Any, size: str, rows: int) -> list[Row]:
    """The project's own, in its default settings."""
    config, task = settings().eval, settings().task
    return task.evaluate(lm, encoder(size), "forget", questions(rows, 0), config, lambda *progress: None)


def difference(ours: list[Row], theirs: list[Row]) -> float:
    """The largest between numbers; infinite where a text differs."""
    most = 0.0
    for a, b in zip(ours, theirs, strict=True):
        for key, value in b.items():
            if isinstance(value, str):
                most = max(most, 0.0 if a[key] == value else float("inf"))
            else:
                got, wanted = torch.tensor(a[key]).flatten().double(), torch.tensor(value).flatten().double()
                most = max(most, float((got - wanted).abs().max()))
    return most


def evaluation(effort: Effort) -> Lines:
    for size in effort.sizes:
        n = effort.evaluated[size]
        lm = language_model(size)
        let_answers_end(lm)
        yield from _evaluation(effort, lm, size, "")
        if size in effort.taught:
            lm = language_model(size)
            teach(lm, pairs(size, n, 0), 1 if effort is SHORT else 100)
            yield from _evaluation(effort, lm, size, ", of a model that recites")


def _evaluation(effort: Effort, lm: Any, size: str, whose: str) -> Lines:
    n, rows = effort.evaluated[size], dict[str, list[Row]]()

    def keep(name: str, run: Callable[[], list[Row]]) -> Callable[[], None]:
        return lambda: rows.update({name: run()})

    theirs = partial(evaluate_in_batches, lm, encoder(size), questions(n, 0), max_total=200)
    took = seconds(
        {
            "ours": keep("ours", partial(evaluate, lm, size, n)),
            "loop": keep("loop", partial(theirs, size=1)),
            "batched": keep("batched", partial(theirs, size=32)),
        },
        effort.repeats,
    )
    for name, what in (("loop", "batch 1"), ("batched", "batches of 32 in order")):
        yield Measured(
            f"TOFU evaluation, all metrics{whose}, against {what}", size, took[name] / took["ours"], None,
            f"{n} rows: {took['ours']:.1f} s against {took[name]:.1f} s; "
            f"largest difference {difference(rows['ours'], rows[name]):.0e}",
        )  # fmt: skip


def floors(effort: Effort) -> Lines:
    """An evaluation's seconds over what its arithmetic takes at the machine's own rates, those before and after it."""
    for size in effort.sizes:
        lm = language_model(size)
        let_answers_end(lm)
        abilities(lm)  # tried once a model, and no part of an evaluation's work
        work = Work(lm)
        with work.watched():
            evaluate(lm, size, effort.evaluated[size])
        rates, took = [machine_rates()], []
        for _ in range(effort.repeats):
            took.append(evaluate_clocked(lm, size, effort.evaluated[size]))
            rates.append(machine_rates())
        meanwhile = [[mean(rate) for rate in zip(*two, strict=True)] for two in pairwise(rates)]
        products, copies = (median(rate) for rate in zip(*meanwhile, strict=True))
        for what, least, goal, detail in (
            ("scoring", work.scoring, 1.3 if size in ("12M", "135M") else None, "products, padding not counted"),
            ("generating", work.decoding, 1.5, "prompts; at each step the weights read once or the products"),
        ):
            floor = [least(*rate) for rate in meanwhile]
            ratio = median(t[what] / f for t, f in zip(took, floor, strict=True))
            yield Measured(
                f"TOFU evaluation, {what}, seconds over its floor", size, ratio, ("<=", goal) if goal else None,
                f"{median(t[what] for t in took):.2f} s, floor {median(floor):.2f} s: {detail}; "
                f"{products / 1e9:.0f} GFLOP/s, {copies / 1e9:.1f} GB/s",
            )  # fmt: skip


def machine_rates() -> tuple[float, float]:
    return rate_of_products(), rate_of_copies()


def evaluate_clocked(lm: Any, size: str, rows: int) -> dict[str, float]:
    clock = Clock()
    settings().task.evaluate(lm, encoder(size), "forget", questions(rows, 0), settings().eval, clock)
    return clock.took()


class Work:
    """What a model is asked, and the least seconds that it takes: its products, or its weights once a step."""

    def __init__(self, lm: Any):
        self.lm = lm
        self.head = lm.get_output_embeddings().weight.numel()
        self.body = sum(p.numel() for p in lm.parameters()) - self.head  # the head is tied to the embedding
        self.scored = 0.0  # operations
        self.decoded: list[float] = []  # the same, a step

    def scoring(self, products: float, copies: float) -> float:
        return self.scored / products

    def decoding(self, products: float, copies: float) -> float:
        weights = 4 * (self.body + self.head) / copies
        return sum(max(step / products, weights) for step in self.decoded)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Add up what is asked in the block."""
        plant = likelihood.plant
        hook = self.lm.register_forward_pre_hook(self._note_step, with_kwargs=True)

        def scored(trees: Sequence[Tree]) -> Any:
            tokens, answers = sum(map(len, trees)), sum(len(tree.pairs) for tree in trees)
            self.scored += 2 * (self.body * tokens + self.head * answers)
            return plant(trees)

        with patch.object(likelihood, "plant", scored):
            yield
        hook.remove()

    def _note_step(self, module: Any, args: Any, given: dict[str, Any]) -> None:
        if not given.get("use_cache"):
            return
        ids = given["input_ids"]
        tokens = int(given["attention_mask"].sum()) if ids.shape[1] > 1 else len(ids)
        self.decoded.append(2 * (self.body * tokens + self.head * len(ids)))


def growth(effort: Effort) -> Lines:
    """Rows x1, x4, x16: seconds and memory; then the size of the model; then the length of the rows."""
    size = effort.sizes[0]
    base = effort.evaluated[size]
    lm = language_model(size)
    let_answers_end(lm)
    took = seconds({str(k): partial(evaluate, lm, size, base * k) for k in effort.multiples}, effort.repeats)
    memory = {str(k): peak_memory(effort, evaluate_anew, size, base * k) for k in effort.multiples}
    for k in effort.multiples[1:]:
        yield Measured(
            f"evaluation, time a row at {k} times the rows", size, took[str(k)] / took["1"] / k, ("<=", 1.0),
            f"{base * k} rows in {took[str(k)]:.1f} s, {base} in {took['1']:.1f} s",
        )  # fmt: skip
        yield Measured(
            f"evaluation, memory at {k} times the rows", size, memory[str(k)] / memory["1"], ("<=", 1.1),
            f"{memory[str(k)]:.0f} MiB, {memory['1']:.0f} MiB",
            "scores and encoded rows, all alive until the end, take about 24 kB a row; the rest is the allocator's",
        )  # fmt: skip
    yield from _by_size(effort)
    model = AnswerModel(language_model(size))
    for length in effort.lengths:
        rows = [Prompted((5,) * 16, (tuple([7] * (length - 16)),))] * (1024 // length)
        one = seconds({"": lambda rows=rows: forward_backward(model, collate(rows))}, effort.repeats)[""]
        yield Measured("training, tokens/s by length of the rows", f"{size}, {length}", 1024 / one, None, "1024 tokens")


def _by_size(effort: Effort) -> Lines:
    """An evaluation and a training step per parameter, against those of the smallest model."""
    few, params, models = 8, dict[str, int](), dict[str, Any]()
    for size in effort.sizes:
        models[size] = language_model(size)
        let_answers_end(models[size])
        params[size] = sum(p.numel() for p in models[size].parameters())
    evaluated = seconds({s: partial(evaluate, lm, s, few) for s, lm in models.items()}, effort.repeats)
    steps = {s: stepper(trainer(s, finetuning(), "adamw", effort), 1) for s in effort.sizes}
    trained = seconds(steps, effort.repeats)
    first = effort.sizes[0]
    for size in effort.sizes[1:]:
        for what, took in (("evaluation", evaluated), ("training step", trained)):
            yield Measured(
                f"{what}, time a parameter against {first}", size,
                took[size] / took[first] * params[first] / params[size], ("<=", 1.0),
                f"{took[size]:.2f} s with {params[size]:.2e} parameters, {took[first]:.2f} s with {params[first]:.2e}",
            )  # fmt: skip


def evaluate_anew(size: str, rows: int) -> None:
    lm = language_model(size)
    let_answers_end(lm)
    evaluate(lm, size, rows)


# --- training ----------------------------------------------------------------------------------------------


def trainer(
    size: str, problem: Problem, optim: str, effort: Effort, kind: type[Trainer] = Trainer, **options: Any
) -> Trainer:
    n = effort.batch * effort.batches
    asked = {kind: term.needs for kind, term in problem.terms.items()}
    rows = rows_of(asked.get(Kinds.forget, Needs()), size, n, 0)
    others = rows_of(asked.get(Kinds.retain, Needs()), size, 4 * n, 2)
    data = TrainData(lambda epoch: rows, others)
    config = settings("train.epochs=1", f"train.batch_size={effort.batch}", "train.checkpoint_minutes=1000").train
    optimizer, machine = settings(*f"optim={optim}".split()).optim, Accelerator(cpu=True)
    return kind(language_model(size), data, problem, optimizer, config, 0, machine, **options)


def rows_of(needs: Needs, size: str, n: int, seed: int) -> Rows:
    """Rows with every answer that a term asks for, and stand-ins for what is kept of the model before unlearning."""
    width = language_model(size).config.hidden_size
    answers = {name: pairs(size, n, seed + 10 * k) for k, name in enumerate(needs.answers)}
    lengths = {name: [len(row.answers[0]) for row in some] for name, some in answers.items()}
    values, states = {}, {}
    if needs.reference is Reference.values:
        values = {name: [torch.full((t,), -2.0) for t in some] for name, some in lengths.items()}
    if needs.reference in (Reference.logits, Reference.states):
        states = {name: [torch.ones(t, width) for t in some] for name, some in lengths.items()}
    return Rows(answers, values, states, 1.0 if needs.reference is Reference.norm else None)


def stepper(one: Trainer, steps: int) -> Callable[[], None]:
    """A function that takes so many steps further, round and round over the plan."""
    plan, rows = [step for epoch in one.plans for step in epoch], one._rows(0)
    one.total, done = 10**9, 0  # the rate neither rises to the end nor falls

    def run() -> None:
        nonlocal done
        for _ in range(steps):
            one._step(plan[done % len(plan)], done, rows)
            done += 1

    return run


def problem_of(size: str, *overrides: str) -> Problem:
    config = copy.deepcopy(settings(*overrides))
    config.settle_layers(language_model(size).config.num_hidden_layers)
    assert config.problem is not None
    return config.problem


def npo_problem(size: str, weight: float) -> Problem:
    return problem_of(size, "method=npo", f"retain.weight={weight}")


GRADDIFF = "method=graddiff"
# options -> at most so much of graddiff's time and of its memory; None: no goal
OBJECTIVES: dict[str, tuple[float | None, float | None]] = {
    **{
        f"method={name} retain=ce": (None, None)
        for name, kind in METHODS.items()
        if issubclass(kind, Objective) and kind.forgets and f"method={name}" != GRADDIFF
    },
    f"{GRADDIFF} retain=kl": (1.25, 1.15),
    "method=undial retain=ce": (1.25, 1.15),
    "method=rmu": (1.0, None),
    "method=rmu_adaptive": (1.0, None),
    **{f"{GRADDIFF} combine={name}": (1.1, None) for name in ("ngdiff", "munba", "gru")},
    **{f"{GRADDIFF} combine={name}": (None, None) for name in ("alternating", "separate", "dual")},
    f"{GRADDIFF} perturb=sam": (2.1, None),
    **{f"{GRADDIFF} perturb={name}": (None, None) for name in ("smooth", "lat")},
}


def objectives(effort: Effort) -> Lines:
    """A step with AdamW of every objective, on as many questions, against graddiff's."""
    for size in effort.sizes[:2]:
        todo = {GRADDIFF: (None, None), **OBJECTIVES}
        steps = {o: stepper(trainer(size, problem_of(size, *o.split()), "adamw", effort), effort.batches) for o in todo}
        took = seconds(steps, effort.repeats)
        del steps
        memory = {o: peak_memory(effort, two_steps, size, o, effort) for o in todo}
        for options, (time_goal, memory_goal) in OBJECTIVES.items():
            yield Measured(
                f"step, {options} against graddiff", size, took[options] / took[GRADDIFF],
                ("<=", time_goal) if time_goal else None,
                f"{took[options] / effort.batches:.3f} s against {took[GRADDIFF] / effort.batches:.3f} s",
            )  # fmt: skip
            yield Measured(
                f"peak memory, {options} against graddiff", size, memory[options] / memory[GRADDIFF],
                ("<=", memory_goal) if memory_goal else None,
                f"{memory[options]:.0f} MiB against {memory[GRADDIFF]:.0f} MiB",
            )  # fmt: skip


def two_steps(size: str, options: str, effort: Effort) -> None:
    stepper(trainer(size, problem_of(size, *options.split()), "adamw", effort), 2)()


KINDS: dict[str, type[Trainer]] = {"cached": Trainer, "memory": ReferenceInMemory}


def npo(effort: Effort) -> Lines:
    for size in effort.sizes:
        for weight, goal in ((1.0, 0.90), (0.0, 0.78)):
            problem = npo_problem(size, weight)
            took = seconds(
                {k: stepper(trainer(size, problem, "adamw", effort, v), effort.batches) for k, v in KINDS.items()},
                effort.repeats,
            )
            yield Measured(
                f"NPO step, reference cached against in memory, retain weight {weight:g}", size,
                took["cached"] / took["memory"], ("<=", goal),
                f"{took['cached'] / effort.batches:.3f} s against {took['memory'] / effort.batches:.3f} s a step",
            )  # fmt: skip


def npo_memory(effort: Effort) -> Lines:
    for size in effort.sizes:
        for checkpointing in (False, True):
            memory = {k: peak_memory(effort, train_anew, size, v, effort, checkpointing) for k, v in KINDS.items()}
            yield Measured(
                "NPO step, peak memory, reference cached against in memory"
                + (", activation checkpointing" if checkpointing else ""),
                size, memory["cached"] / memory["memory"], ("<=", 0.85) if size == "135M" else None,
                f"{memory['cached']:.0f} MiB against {memory['memory']:.0f} MiB",
                f"activations of {2 * effort.batch} rows stand in both",
            )  # fmt: skip


def train_anew(size: str, kind: type[Trainer], effort: Effort, checkpointing: bool) -> None:
    one = trainer(size, npo_problem(size, 1.0), "adamw", effort, kind, activation_checkpointing=checkpointing)
    stepper(one, 2)()


def forward_backward(model: AnswerModel, batch: Batch) -> None:
    (-model.logps(batch).mean()).backward()
    model.zero_grad()


def widened(batch: Batch, width: int) -> Batch:
    """The same rows padded further."""
    old = batch.input_ids.shape[1]
    where = batch.where // old * width + batch.where % old
    ids = pad(batch.input_ids, (0, width - old))
    return Batch(ids, None, None, where, batch.targets, batch.owner)


def padding(effort: Effort) -> Lines:
    for size in effort.sizes:
        model, n = AnswerModel(language_model(size)), 2 * effort.batch
        data = pairs(size, 16 * n, 0)
        lengths = [len(row) for row in data]
        bucketed = epoch_batches(lengths, n, 0, 0)
        at_random = shuffled(len(data), 0, 0)
        in_order = [at_random[i : i + n] for i in range(0, len(data), n)]
        bucketed = sorted(bucketed, key=lambda batch: lengths[batch[0]])  # some of all lengths
        bucketed, in_order = (batches[:: 16 // effort.padded[size]] for batches in (bucketed, in_order))
        few = max(1, effort.batches // 4)  # a long time each

        def run(batches: list[list[int]], width: int, model: Any = model, data: list[Prompted] = data) -> None:
            for indices in batches:
                batch = collate([data[i] for i in indices])
                forward_backward(model, widened(batch, max(width, batch.input_ids.shape[1])))

        took = seconds(
            {
                "bucketed": partial(run, bucketed, 0),
                "longest": partial(run, in_order, 0),
                "512": partial(run, in_order[:few], 512),
            },
            effort.repeats,
        )
        ran = {"bucketed": bucketed, "longest": in_order, "512": in_order[:few]}
        rate = {k: sum(lengths[i] for batch in batches for i in batch) / took[k] for k, batches in ran.items()}
        for name, what, goal in (("512", "to 512", 5.0), ("longest", "to the longest of a random batch", 1.25)):
            yield Measured(
                f"training on batches of like length against padding {what}", size, rate["bucketed"] / rate[name],
                (">=", goal),
                f"{rate['bucketed']:.0f} against {rate[name]:.0f} tokens/s, {len(ran[name])} x {n} rows",
                "the generator's rows differ less in length than TOFU's" if name == "longest" else "",
            )  # fmt: skip


def throughput(effort: Effort) -> Lines:
    peak = rate_of_products()
    for size in effort.sizes:
        one = trainer(size, finetuning(), "adamw", effort)
        run = stepper(one, 2)
        run()
        plan, rows = [step for epoch in one.plans for step in epoch][2:4], one._rows(0)
        steps = partial(lambda one, plan, rows: [one._step(s, 0, rows) for s in plan], one, plan, rows)
        took = seconds({"": steps}, effort.repeats)[""]
        real = sum(one.data.retain.tokens(i) for step in plan for _, r in step.micro for i in r)
        work = 6 * sum(p.numel() for p in one.params) * real / took
        yield Measured(
            "training, share of the machine's matrix-product rate at 6 FLOP a parameter and token", size, work / peak,
            (">=", 0.6) if size == "135M" else None, f"{real / took:.0f} tokens/s, {work / 1e9:.0f} of "
            f"{peak / 1e9:.0f} GFLOP/s",
        )  # fmt: skip


# --- the optimizer -----------------------------------------------------------------------------------------


def step(effort: Effort) -> Lines:
    """optimizer.step() alone: against AdamW, a plain loop, and the time that six arrays take at copy bandwidth."""
    for size in effort.sizes:
        params = [torch.nn.Parameter(p.detach()) for p in language_model(size).parameters()]
        for p in params:
            p.grad = torch.randn_like(p)
        n = sum(p.numel() for p in params)
        foreach, fused = (
            torch.optim.AdamW(params, lr=1e-6, weight_decay=0.1, **{k: True}) for k in ("foreach", "fused")
        )
        soul = Soul(params, lr=1e-6, betas=(0.9, 0.95), eps=1e-15, weight_decay=0.1, rho=0.5)
        soul.update_hessian((p, torch.rand_like(p)) for p in params)
        states = [(p, soul.state[p]["m"], soul.state[p]["h"]) for p in params]
        loop = partial(plain_soul_step, states, lr=1e-6, beta1=0.9, rho=0.5, eps=1e-15, wd=0.1)
        contenders = {"soul": soul.step, "foreach": foreach.step, "fused": fused.step, "loop": loop}
        took = seconds(contenders, 5 * effort.repeats)
        for name, goal in (("foreach", 0.4), ("fused", 1.3)):
            yield Measured(
                f"optimizer step, soul against AdamW {name}", size, took["soul"] / took[name], ("<=", goal),
                f"{took['soul'] * 1e3:.2f} ms against {took[name] * 1e3:.2f} ms",
            )  # fmt: skip
        yield Measured(
            "optimizer step, soul against a plain loop over tensors", size, took["loop"] / took["soul"],
            (">=", 2.5) if size == "135M" else None, f"{took['soul'] * 1e3:.2f} ms against {took['loop'] * 1e3:.2f} ms",
        )  # fmt: skip
        least = 6 * 4 * n / rate_of_copies()
        yield Measured(
            "optimizer step, time against six arrays at copy bandwidth", size, took["soul"] / least, ("<=", 1.5),
            f"{took['soul'] * 1e3:.2f} ms against {least * 1e3:.2f} ms",
        )  # fmt: skip
        held = [sum(t.numel() * t.element_size() for s in o.state.values() for t in s.values()) for o in (soul, fused)]
        yield Measured(
            "optimizer state, soul against AdamW", size, held[0] / held[1], ("<=", 1.0), f"{held[0]}, {held[1]} bytes"
        )


def soul_step(effort: Effort) -> Lines:
    """Steps with and without an estimate of the curvature and AdamW's, in turn; then the memory of an epoch."""
    for size in effort.sizes:
        contenders = ("soul optim.hessian_every=1", f"soul optim.hessian_every={10**9}", "adamw")
        one = {optim: stepper(trainer(size, npo_problem(size, 1.0), optim, effort), 1) for optim in contenders}
        took = seconds_a_step(one, effort.batches, effort.rounds[size])
        estimate, plain = (took[optim] / took["adamw"] for optim in contenders[:2])
        yield Measured(
            "whole training step, soul (k = 10) against AdamW fused", size, (estimate + 9 * plain) / 10, ("<=", 1.05),
            f"{estimate:.3f} with an estimate, {plain:.3f} without; AdamW {took['adamw']:.3f} s",
            "a pass over 4 of 16 rows in every tenth step alone is 1.025",
        )  # fmt: skip
        memory = {name: peak_memory(effort, npo_steps, size, name, effort) for name in ("soul", "adamw")}
        yield Measured(
            "NPO step, peak memory, soul against AdamW", size, memory["soul"] / memory["adamw"],
            ("<=", 1.0) if size == "135M" else None, f"{memory['soul']:.0f} MiB against {memory['adamw']:.0f} MiB",
            "both have the same arrays at the peak; the rest is the allocator's",
        )  # fmt: skip


def npo_steps(size: str, optim: str, effort: Effort) -> None:
    """All batches, the first of them twice: AdamW has no states before its first step."""
    stepper(trainer(size, npo_problem(size, 1.0), optim, effort), effort.batches + 1)()


# --- sweeps ------------------------------------------------------------------------------------------------


def sweep(effort: Effort) -> Lines:
    """Runs that differ in the rate, of a model smaller than the embedded one: what the cache holds afterwards."""
    from soul_cli.experiment.run import run

    small = [f"model.path={tiny_base()}", "eval.limit=2", "train.epochs=1", "model.finetune.train.epochs=1"]
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {"SOUL_CACHE": f"{folder}/cache"}):
        took = []
        for k in range(effort.members):
            began = time.perf_counter()
            run(compose([*small, f"optim.lr={(k + 1) * 1e-5}", f"output_dir={folder}/out"]))
            took.append(time.perf_counter() - began)
        made = {kind: len(list(Path(folder, "cache", kind).glob("*/"))) for kind in ("models", "reference")}
    yield Measured(
        f"a sweep of {effort.members} runs: models and references made", "0.03M", sum(made.values()), ("<=", 3),
        f"{made['models']} models (target, retain-trained), {made['reference']} set of reference "
        f"log-probabilities; first run {took[0]:.0f} s, the others {sum(took[1:]) / len(took[1:]):.1f} s each",
    )  # fmt: skip


LINES: dict[str, Callable[[Effort], Lines]] = {
    "step": step,
    "soul_step": soul_step,
    "padding": padding,
    "npo": npo,
    "npo_memory": npo_memory,
    "objectives": objectives,
    "throughput": throughput,
    "evaluation": evaluation,
    "floors": floors,
    "growth": growth,
    "sweep": sweep,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="whether it runs, not how fast")
    parser.add_argument("--only", choices=LINES, action="append", help="one line; may be given several times")
    parser.add_argument("--size", choices=FULL.sizes, action="append", help="at this size; may be given several times")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "results" / "bench.md")
    args = parser.parse_args()
    effort = SHORT if args.short else replace(FULL, sizes=tuple(args.size or FULL.sizes))
    table = Table(args.out, short=args.short)
    for name in args.only or LINES:
        for measured in LINES[name](effort):
            table.add(measured)


if __name__ == "__main__":
    main()
