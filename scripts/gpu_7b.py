"""Stage 7b: LLaMA2-7B with random weights made on the device: steps of NPO, an evaluation, memory against the plan.

Rows have the lengths of TOFU's, from its words, as the plan takes them; the evaluation reads its texts.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

import torch
from bench_setup import Clock, let_answers_end
from check_plan import plan_of
from gpu_setup import Job, job, rates, seconds, wait
from small_models import train_tokenizer

from soul_cli.core import cost
from soul_cli.core.types import QA, Prompted
from soul_cli.data.batches import Step
from soul_cli.data.encode import Encoder
from soul_cli.data.rows import Rows
from soul_cli.evaluate.abilities import abilities
from soul_cli.experiment.config import RunConfig, compose
from soul_cli.models.load import untrained
from soul_cli.objective.term import Kinds
from soul_cli.planning.memory import Footprint
from soul_cli.planning.plan import FRAGMENTS, GIB, RESERVE
from soul_cli.planning.stages import Sizes, alone, sizes
from soul_cli.train.loop import TrainData, Trainer

# name, overrides; each with adamw and soul
KINDS = {
    "adapters": ["experiment=llama2_7b/lora"],
    "adapters, no activation checkpointing": ["experiment=llama2_7b/lora", "activation_checkpointing=false"],
    "adapters, 32 rows a step": ["experiment=llama2_7b/lora", "train.batch_size=32"],
    "adapters, 16 rows a step, no activation checkpointing": [
        "experiment=llama2_7b/lora",
        "train.batch_size=16",
        "activation_checkpointing=false",
    ],
    "all weights, steps in bfloat16": ["experiment=llama2_7b/one_gpu", "offload=false", "train.master_weights=false"],
    "all weights, steps in float32": ["experiment=llama2_7b/one_gpu", "offload=false"],
    "all weights, offload": ["experiment=llama2_7b/one_gpu"],
}
SMALL = [  # of the rehearsal
    "model.architecture.hidden_size=64", "model.architecture.intermediate_size=64", "model.architecture.vocab_size=512",
    "model.architecture.num_hidden_layers=2", "model.architecture.num_attention_heads=2",
    "model.architecture.num_key_value_heads=2", "task.source=embedded", "train.batch_size=2",
]  # fmt: skip
EVERY = 2  # step estimates the curvature, so that a few steps show both kinds
KEEP = 2.0  # GiB of main memory that an offloaded run leaves alone
VOCABULARY = 4096  # of the tokenizer made of TOFU's own text


@dataclass
class Machine:
    bandwidth: float  # bytes a second
    products: float  # operations a second


def configured(one: Job, overrides: list[str], optim: str) -> list[str]:
    source = [f"task.source={one.tofu}"] if one.tofu else []
    every = [f"optim.hessian_every={EVERY}"] if optim == "soul" else []
    return ["method=npo", "task=tofu", f"optim={optim}", *overrides, *every, *source, *(SMALL if one.rehearse else [])]


def model(config: RunConfig, device: torch.device) -> Any:
    """With random weights, in the configured type, made where they stay."""
    torch.manual_seed(0)
    with torch.device(device):
        return untrained(config.model.architecture.lm_config(), config.model.dtype).eval()


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# --- training ----------------------------------------------------------------------------------------------


def rows(lengths: Sizes, vocab: int, seed: int) -> list[Prompted]:
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, vocab, (n,), generator=generator).tolist())

    return [Prompted(ids(p), (ids(a),)) for p, a in lengths]


def lengths_of(config: RunConfig) -> tuple[Sizes, Sizes]:
    """Of the forget and the retain rows."""
    data, per_word = config.task.load(config.cache), config.model.architecture.tokens_per_word
    return tuple(sizes(items, per_word, config.model.max_length) for items in (data.forget, data.retain))


def in_the_way(held: Footprint, device: torch.device) -> str:
    """Why the planned run does not fit; empty if it does."""
    if device.type == "cpu":
        return ""
    there = torch.cuda.get_device_properties(device).total_memory / GIB
    wanted = held.peak * (1 + FRAGMENTS) / GIB + RESERVE
    if wanted > there:
        return f"plan: {wanted:.0f} GiB of the card's {there:.0f}"
    main = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / GIB
    wanted = held.host / GIB + KEEP
    return f"plan: {wanted:.0f} GiB of main memory, {main:.0f} are free" if held.host and wanted > main else ""


def ordered(trainer: Trainer, forget: Sizes, retain: Sizes) -> Iterator[Step]:
    """The step with the largest micro-batch first, then those of the plan."""

    def largest(step: Step) -> int:
        return max(
            (len(f) + len(r)) * max(sum(x) for x in [*(forget[i] for i in f), *(retain[i] for i in r)])
            for f, r in step.micro
        )

    plan = [step for epoch in trainer.plans for step in epoch]
    yield max(plan, key=largest)
    yield from plan


def plan(overrides: list[str]) -> Footprint:
    """What plan=true says of a run; a process of its own can call it."""
    config = compose(overrides)
    return plan_of(config, config.model.architecture.lm_config(), *map(alone, lengths_of(config)))


def train(one: Job, what: str, overrides: list[str], held: Footprint, machine: Machine, count: int) -> None:
    """Seconds of a step and what they are made of, and the peak of memory.

    held: the plan; count: steps that are timed.
    """
    config = compose(overrides)
    lm_config = config.model.architecture.lm_config()
    forget, retain = lengths_of(config)
    if why := in_the_way(held, one.device):
        return one.note(f"{what}: does not fit; {why}")
    free(one.device)
    lm = model(config, one.device)
    work = Work.of(lm, config)
    if config.train.lora:
        config.train.lora.attach(lm, seed=0)
    made = rows(forget, lm_config.vocab_size, 0)
    values = [torch.full((len(row.answers[0]),), -2.0) for row in made]
    to_forget, to_keep = (
        Rows({"answer": made}, {"answer": values}),
        Rows({"answer": rows(retain, lm_config.vocab_size, 1)}),
    )
    assert config.problem is not None
    trainer = Trainer(
        lm, TrainData(lambda epoch: to_forget, to_keep), config.problem, config.optim, config.train, 0,
        SimpleNamespace(device=one.device),  # type: ignore[arg-type]
        offload=config.offload, activation_checkpointing=config.activation_checkpointing,
    )  # fmt: skip
    steps, kinds = ordered(trainer, forget, retain), {Kinds.forget: to_forget, Kinds.retain: to_keep}
    for index in range(2):  # the largest, and one that warms up
        trainer._step(next(steps), index, kinds)
    took: dict[bool, float] = {}
    for index in range(2, 2 + count):
        step = next(steps)
        work.add([[*(forget[i] for i in f), *(retain[i] for i in r)] for f, r in step.micro])
        value = seconds(lambda step=step, index=index: trainer._step(step, index, kinds), one.device)
        estimates = config.optim.name == "soul" and index % EVERY == 0
        took[estimates] = took.get(estimates, 0.0) + value / (count / EVERY if config.optim.name == "soul" else count)
    say_step(one, what, work, took, count, machine)
    if one.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
        parts = ", ".join(f"{k} {getattr(held, k) / 1e9:.2f}" for k in ("weights", "gradients", "masters", "states"))
        one.measured(
            f"{what}: peak memory against the plan", "7B", peak / held.peak, None,
            f"{peak / 1e9:.2f} GB allocated (and {torch.cuda.max_memory_reserved() / 1e9:.2f} reserved) against "
            f"{held.peak / 1e9:.2f} planned: {parts}, "
            f"activations {held.activations / 1e9:.2f}",
        )  # fmt: skip


@dataclass
class Work:
    """Products of the steps that were timed, in operations: with weights, those of tokens with tokens left out."""

    body: int  # parameters of the linear layers but the head
    head: int
    each: int  # operations a parameter and token: 2 forward, 4 backward (2 with frozen weights)
    again: int  # of them those of activation checkpointing
    tokens: int = 0
    padded: int = 0
    answers: int = 0  # tokens whose logits are computed

    @staticmethod
    def of(lm: Any, config: RunConfig) -> Work:
        head = lm.get_output_embeddings().weight.numel()
        body = sum(p.numel() for p in lm.parameters() if p.ndim > 1) - head - lm.get_input_embeddings().weight.numel()
        return Work(body, head, 4 if config.train.lora else 6, 2 if config.activation_checkpointing else 0)

    def add(self, micro: list[list[tuple[int, int]]]) -> None:
        """Rows of a step's micro-batches, as tokens of prompt and answer."""
        for some in micro:
            self.tokens += sum(p + a for p, a in some)
            self.padded += len(some) * max(p + a for p, a in some)
            self.answers += sum(a for _, a in some)

    @property
    def useful(self) -> int:
        return self.each * (self.body * self.tokens + self.head * self.answers)

    @property
    def done(self) -> int:
        return (self.each + self.again) * self.body * self.padded + self.each * self.head * self.answers


def say_step(one: Job, what: str, work: Work, took: dict[bool, float], count: int, machine: Machine) -> None:
    k = 10  # Sophia's
    step = took[False] if True not in took else (took[True] + (k - 1) * took[False]) / k
    kinds = "".join(f"; {'with' if e else 'without'} an estimate {t:.3f} s" for e, t in sorted(took.items()))
    one.measured(
        f"{what}: seconds a step", "7B", step, None,
        f"{work.tokens / count:.0f} tokens, {work.padded / count:.0f} with padding{kinds}",
    )  # fmt: skip
    one.measured(
        f"{what}: tokens a second", "7B", work.tokens / count / step, None, "prompts and answers, without padding"
    )  # fmt: skip
    one.measured(
        f"{what}: share of the bf16 rate, all that the card computed", "7B",
        work.done / count / took[False] / machine.products, (">=", 0.45),
        "a step without an estimate; padding and what is computed again count",
    )  # fmt: skip
    one.measured(
        f"{what}: share of the bf16 rate, what training needs", "7B",
        work.useful / count / took[False] / machine.products, None,
        "the same step; padding and what is computed again do not count",
    )  # fmt: skip


# --- evaluation --------------------------------------------------------------------------------------------


class Watch:
    """What the forwards of an evaluation read: calls and tokens of scoring, tokens of prompts to decode from."""

    def __init__(self, lm: Any):
        self.calls = self.scored = self.prompted = 0
        self.hook = lm.base_model.register_forward_pre_hook(self._asked, with_kwargs=True)

    def _asked(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"]
        if not kwargs.get("use_cache"):
            self.calls, self.scored = self.calls + 1, self.scored + ids.numel()
        elif ids.shape[1] > 1:
            self.prompted += ids.numel()


def evaluate(one: Job, machine: Machine) -> None:
    """The forget rows of forget10 as the task evaluates them: scoring, then decoding."""
    config = compose(configured(one, KINDS["adapters"], "adamw"))
    free(one.device)
    lm = model(config, one.device)
    let_answers_end(lm)
    items = config.task.load(config.cache).splits["forget"][: 6 if one.rehearse else None]
    most = config.model.architecture.vocab_size
    tokenizer = train_tokenizer([f"{q.question} {q.answer}" for q in items] * 2, min(VOCABULARY, most), 512)
    encoder = Encoder(tokenizer, "plain", 512)
    able = abilities(lm)
    one.note(f"way to generate: {able.decoding.__name__}; answers that share a prompt in one row: {able.trees}")
    for budget in (8192,) if one.rehearse else (8192, 65536):
        if one.left < 40:
            return one.note(f"evaluation with eval.batch_tokens={budget}: no time left")
        config.eval.batch_tokens = budget
        _evaluate(one, lm, encoder, items, config, machine)


def _evaluate(one: Job, lm: Any, encoder: Encoder, items: list[QA], config: RunConfig, machine: Machine) -> None:
    free(one.device)
    clock, watch = Clock(partial(wait, one.device)), Watch(lm)
    with cost.measure():
        config.task.evaluate(lm, encoder, "forget", items, config.eval, clock)
        spent = cost.spent()
    watch.hook.remove()
    took, size = clock.took(), f"{len(items)} rows, budget {config.eval.batch_tokens}"
    parameters = sum(p.numel() for p in lm.parameters())
    weights = sum(p.numel() * p.element_size() for p in lm.parameters())
    work = 2 * parameters * watch.scored / machine.products
    one.measured(
        "scoring, seconds over (FLOP / bf16 rate)", size, took["scoring"] / work, None,
        f"{took['scoring']:.2f} s, {watch.scored} tokens with padding in {watch.calls} forwards",
    )  # fmt: skip
    steps, made = spent["forward_passes"] - watch.calls, spent["generated_tokens"]
    c, rows = lm.config, 2 * len(items)  # the question and its paraphrase
    token = 4 * c.num_hidden_layers * c.num_key_value_heads * (c.hidden_size // c.num_attention_heads)
    read = steps * weights + made * token * (watch.prompted / rows + made / rows / 2)
    products = 2 * parameters * (watch.prompted + made) / machine.products
    one.measured(
        "decoding, seconds over its floor", size, took["generating"] / (read / machine.bandwidth + products), None,
        f"{took['generating']:.2f} s; {made} tokens in {steps} steps of "
        f"{took['generating'] / max(1, steps) * 1e3:.1f} ms; floor: weights at each step and the cache at copy "
        f"bandwidth {read / machine.bandwidth:.2f} s, products {products:.2f} s",
    )  # fmt: skip
    if one.device.type == "cuda":
        one.note(f"evaluation, {size}: peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")


def main() -> None:
    one = job("7b")
    machine = Machine(*rates(one.device, tiny=one.rehearse))
    one.note(
        f"copies {machine.bandwidth / 1e12:.3f} TB/s, read and written; bfloat16 products "
        f"{machine.products / 1e12:.0f} TFLOP/s"
    )
    runs = {f"{name}, {o}": configured(one, more, o) for name, more in KINDS.items() for o in ("adamw", "soul")}
    if one.rehearse:
        runs = {what: runs[what] for what in ("adapters, soul", "all weights, offload, soul")}
    # by other processes, and before anything is timed: most steps here wait for Python
    with ProcessPoolExecutor(max(1, (os.cpu_count() or 1) // 2), get_context("spawn")) as pool:
        each = map if one.rehearse else pool.map
        plans = dict(zip(runs, each(plan, runs.values()), strict=True))
    for what, overrides in runs.items():
        offloads = "offload" in what
        if one.left < (70 if offloads else 25) and not one.rehearse:
            one.note(f"{what}: no time left")
            continue
        try:
            train(one, what, overrides, plans[what], machine, EVERY if offloads else 2 * EVERY)
        except torch.cuda.OutOfMemoryError as error:
            one.note(f"{what}: {str(error).splitlines()[0]}")
        if what == "adapters, soul":
            evaluate(one, machine)


if __name__ == "__main__":
    main()
