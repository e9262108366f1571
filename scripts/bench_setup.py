"""What the benchmark measures on and with: models by size, data of TOFU's length, clocks, memory, the table."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from generator import generate_authors
from measured import Measured
from small_models import train_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from soul_cli.core.files import write_text
from soul_cli.core.machine import processor
from soul_cli.core.types import QA, Prompted
from soul_cli.data.batches import collate, epoch_batches
from soul_cli.data.encode import Encoder
from soul_cli.models.answer_model import AnswerModel

# hidden, layers, heads, key-value heads, intermediate, vocabulary
SHAPES = {
    "tiny": (32, 2, 2, 2, 64, 320),
    "2M": (192, 4, 4, 4, 512, 2048),  # the embedded model
    "12M": (384, 6, 6, 6, 1024, 4096),
    "135M": (576, 30, 9, 3, 1536, 49152),  # SmolLM2-135M
}
ENDING = (30, 600)  # position and square of a width: where the answers of random models end, as long as TOFU's


@dataclass(frozen=True)
class Effort:
    """How much is measured: rows of an evaluation, rows a training batch and batches, by size."""

    sizes: tuple[str, ...]
    repeats: int
    evaluated: dict[str, int]
    rounds: dict[str, int]  # of an epoch's batches, that optimizers train on in turn
    padded: dict[str, int]  # of 16 batches, those trained on in the comparison with padding
    taught: tuple[str, ...]  # sizes at which a model that recites is evaluated too
    batch: int
    batches: int
    multiples: tuple[int, ...]  # of the rows of an evaluation
    lengths: tuple[int, ...]  # of training rows, tokens
    members: int  # of the sweep


ROWS = {"2M": 100, "12M": 100, "135M": 20}
ROUNDS = {"2M": 15, "12M": 9, "135M": 3}
PADDED = {"2M": 16, "12M": 16, "135M": 4}
FULL = Effort(("2M", "12M", "135M"), 3, ROWS, ROUNDS, PADDED, ("2M", "12M"), 8, 4, (1, 4, 16), (64, 128, 256, 512), 12)
SHORT = Effort(("tiny",), 1, {"tiny": 3}, {"tiny": 2}, {"tiny": 2}, ("tiny",), 2, 2, (1, 2), (64, 128), 2)


@dataclass
class Table:
    """Written anew after every line, so that an interrupted run keeps what it has."""

    path: Path
    short: bool
    lines: list[Measured] = field(default_factory=list)

    def add(self, measured: Measured) -> None:
        self.lines.append(measured)
        print(f"{measured.what} [{measured.size}]: {measured.value:.3g} ({measured.verdict()}); {measured.detail}")
        head = ["what", "size", "measured", "goal", "", "in numbers"]
        rows = [
            [m.what, m.size, f"{m.value:.3g}", " ".join(map(str, m.goal)) if m.goal else "", m.verdict(), m.detail]
            for m in self.lines
        ]
        table = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
        warning = ["**Short mode: this shows that it runs. The numbers mean nothing.**", ""] if self.short else []
        text = ["# Speed and memory", "", *warning, *machine(), "", *table, ""]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, "\n".join(text))


def machine() -> list[str]:
    cpu, load = processor(), os.getloadavg()[0]
    return [
        f"{cpu}, {os.cpu_count()} cores, torch {torch.__version__} on {torch.get_num_threads()} threads, float32; "
        f"load of the machine while measuring: {load:.1f} (above the number of threads others were at work too, and "
        "the ratios are provisional).",
        "",
        "Ratios of medians over repeats that take turns in one process. Models have random weights, but for those that "
        "recite; written by scripts/bench.py, which holds the baselines too.",
    ]


# --- models and data ---------------------------------------------------------------------------------------


def language_model(size: str) -> Any:
    hidden, layers, heads, kv_heads, intermediate, vocab = SHAPES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def let_answers_end(lm: Any) -> None:
    """Make a random model's answers end like TOFU's: a hazard that grows with the position, the same in every batch."""
    start, square = ENDING

    def end(module: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        if not kwargs.get("use_cache"):
            return
        last, position = kwargs["input_ids"][:, -1], kwargs["position_ids"][:, -1]
        chance = (last * 40503 + position * 9973) % 1000 / 1000
        out.logits[:, -1, 2] = torch.where(chance < (position - start) / square, 1e4, out.logits[:, -1, 2])

    lm.register_forward_hook(end, with_kwargs=True)


def teach(lm: Any, rows: Sequence[Prompted], most: int) -> None:
    """Train a model on the rows, at most so many passes, until it recites them: an original model, or what was kept."""
    model, optimizer = AnswerModel(lm.train()), torch.optim.AdamW(lm.parameters(), lr=1e-3, fused=True)
    for epoch in range(most):
        losses = []
        for indices in epoch_batches([len(r) for r in rows], 8, 0, epoch):
            loss = -model.logps(collate([rows[i] for i in indices])).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        if max(losses) < 0.02:
            break
    lm.eval()


@lru_cache
def questions(n: int, seed: int) -> list[QA]:
    """n rows in TOFU's schema."""
    rows = [row for author in generate_authors(-(-n // 20), seed=seed) for row in author["rows"]]
    return [QA(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}) for row in rows[:n]]


@lru_cache
def encoder(size: str) -> Encoder:
    texts = [f"Question: {qa.question}\nAnswer: {qa.answer}" for qa in questions(400, 1)]
    return Encoder(train_tokenizer(texts, min(2048, SHAPES[size][-1]), 512), "plain", 512)


def pairs(size: str, n: int, seed: int) -> list[Prompted]:
    return [encoder(size).pair(qa.question, qa.answer) for qa in questions(n, seed)]


# --- measuring ---------------------------------------------------------------------------------------------


def seconds(contenders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each; they take turns, after one run each that does not count (with one repeat, without)."""
    took: dict[str, list[float]] = {name: [] for name in contenders}
    warm = repeats > 1
    for repeat in range(repeats + warm):
        for name, run in contenders.items():
            took_now = clocked(run)
            if repeat >= warm:
                took[name].append(took_now)
    return {name: statistics.median(values) for name, values in took.items()}


def seconds_a_step(steppers: dict[str, Callable[[], Any]], batches: int, rounds: int) -> dict[str, float]:
    """Mean over the batches of each stepper's median seconds, after a round that warms up.

    A machine's speed drifts by more than optimizers differ: they take turns step by step, and so does who begins.
    """
    took: dict[str, list[list[float]]] = {name: [[] for _ in range(batches)] for name in steppers}
    names = list(steppers)
    for step in range(batches * (rounds + 1)):
        begins = step // batches % len(names)
        for name in names[begins:] + names[:begins]:
            took[name][step % batches].append(clocked(steppers[name]))
    return {name: statistics.mean(statistics.median(t[1:]) for t in every) for name, every in took.items()}


def clocked(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


class Clock:
    """A progress callback that tells scoring from generating."""

    def __init__(self, wait: Callable[[], Any] = lambda: None):
        """wait: until what was begun is done."""
        self.wait = wait
        self.marks: list[tuple[str, float]] = []
        self("", 0, 0)

    def __call__(self, what: str, done: int, total: int) -> None:
        self.wait()
        self.marks.append((what, time.perf_counter()))

    def took(self) -> dict[str, float]:
        """Seconds until each callback, by its kind."""
        out: dict[str, float] = {}
        for (_, before), (what, after) in zip(self.marks, self.marks[1:], strict=False):
            out[what] = out.get(what, 0.0) + after - before
        return out


def peak_memory(effort: Effort, function: Callable[..., Any], *args: Any) -> float:
    """MiB that function(*args) adds at its peak; nan where the system does not tell.

    In a process of its own; in the short mode here, where what came before counts too.
    """
    if effort is SHORT:
        function(*args)
        return resident("VmHWM")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_peak, args=(theirs, torch.get_num_threads(), function, *args))
    process.start()
    theirs.close()
    try:
        return float(ours.recv())
    finally:
        process.join()


def _peak(wire: Any, threads: int, function: Callable[..., Any], *args: Any) -> None:
    torch.set_num_threads(threads)
    before = resident("VmRSS")
    function(*args)
    wire.send(resident("VmHWM") - before)


def resident(key: str) -> float:
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith(key))


def rate_of_products() -> float:
    """Float32 operations a second of a large matrix product."""
    a = torch.randn(2048, 2048)
    return 2 * 2048**3 / seconds({"": lambda: a @ a}, 5)[""]


def rate_of_copies() -> float:
    """Bytes a second, read or written, of copying an array that no cache holds."""
    a, b = torch.randn(1 << 25), torch.empty(1 << 25)
    return 2 * a.nbytes / seconds({"": lambda: b.copy_(a)}, 5)[""]


def tokens(rows: Sequence[Prompted]) -> int:
    return sum(map(len, rows))
