"""soul_cli.train.loop: the loop against plain PyTorch, accumulation, alternating steps, interruption and resumption."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from soul_cli.core.types import Prompted, UserError
from soul_cli.data.rows import Rows
from soul_cli.evaluate.likelihood import score
from soul_cli.models.answer_model import AnswerModel
from soul_cli.objective.combine import GRU, Alternating, Combine, Gradient, Separate, Sum
from soul_cli.objective.forget.base import Objective
from soul_cli.objective.forget.likelihood import GA, NPO, PO, Normalize
from soul_cli.objective.methods import Problem, finetuning, problem
from soul_cli.objective.perturb import Unperturbed
from soul_cli.objective.retain import CE, NoRetain, Retain
from soul_cli.objective.term import Answers, Counts, Kinds, Needs, Normalise, Reference
from soul_cli.optim.build import AdamW, HessianData, MuonConfig, Optim, SoulConfig, SoulReleasedConfig
from soul_cli.train import checkpoint, loop
from soul_cli.train.config import TrainConfig
from soul_cli.train.gradient import StepGradient
from soul_cli.train.loop import NotFiniteError, TrainData, Trainer, factor

MakeLM = Callable[..., Any]
Records = list[dict[str, Any]]

SUM, ALTERNATING = Sum("sum"), Alternating("alternating")


def solving(method: Objective, weight: float = 1.0, combine: Combine = SUM, retain: Retain | None = None) -> Problem:
    """The method with a retain term, cross-entropy where nothing else is said."""
    return problem(method, retain or CE("ce", weight), combine, Unperturbed("none"))


GRADDIFF = solving(GA("graddiff"), 0.7)
APART = solving(GA("graddiff"), 0.7, ALTERNATING)
NPO_SUM = solving(NPO("npo", beta=0.1, normalize=Normalize.sum))
SOLVED = {"graddiff": GRADDIFF, "npo": NPO_SUM, "po": solving(PO("po")), "finetune": finetuning(), "alternating": APART}
ASCENT = problem(GA("ga"), NoRetain("none"), SUM, Unperturbed("none"))
ADAMW = AdamW("adamw", lr=1e-3, weight_decay=0.1, beta1=0.9, beta2=0.999, eps=1e-8)
RELEASED = SoulReleasedConfig("soul_released", lr=1e-3, weight_decay=0.1, beta1=0.9, beta2=0.95, rho=0.04, bs=5120)
MUON = MuonConfig("muon", lr=1e-3, weight_decay=0.1, momentum=0.95, beta1=0.9, beta2=0.95)


def soul(*, rho: float | None = None, every: int = 4, rows: int | None = 2) -> SoulConfig:
    return SoulConfig(
        "soul", lr=1e-3, weight_decay=0.1, beta1=0.9, beta2=0.95, eps=1e-15, rho=rho,
        unclipped_share=0.3 if rho is None else None, hessian_every=every, hessian_rows=rows,
        hessian_data=HessianData.both,
    )  # fmt: skip


def config(**changed: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "epochs": 2, "batch_size": 2, "accumulation": 1, "normalise": Normalise.token, "warmup": 0.1, "decay": "linear",
        "clip": 1.0, "precision": "no", "master_weights": True, "lora": None, "checkpoint_minutes": 0.0,
    }  # fmt: skip
    return TrainConfig(**values | changed)


def rows(count: int, seed: int) -> list[Prompted]:
    """Random prompts of 2-5 and answers of 2-9 tokens."""
    draw = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randint(3, 47) for _ in range(draw.randint(low, high)))

    return [Prompted(ids(2, 5), ((*ids(1, 8), 2),)) for _ in range(count)]


FORGET, RETAIN = rows(6, seed=1), rows(11, seed=2)
CPU = Accelerator(cpu=True)


def silent(done: int, total: int, record: dict[str, float]) -> None:
    pass


def train(
    lm: Any,
    work: Path,
    solved: Problem = GRADDIFF,
    optim: Optim = ADAMW,
    settings: TrainConfig | None = None,
    *,
    forget: list[Prompted] | Callable[[int], list[Prompted]] = FORGET,
    retain: list[Prompted] = RETAIN,
    progress: Callable[[int, int, dict[str, float]], None] = silent,
    after_epoch: Callable[[int], None] | None = None,
) -> Records:
    rows = named([], solved, lm) if callable(forget) else named(forget, solved, lm)
    (name,) = rows.answers
    data = TrainData(lambda epoch: Rows({name: forget(epoch)}) if callable(forget) else rows, answered(retain))
    return Trainer(lm, data, solved, optim, settings or config(), 3, CPU).train(work, progress, after_epoch)


def named(some: list[Prompted], solved: Problem, lm: Any) -> Rows:
    """Rows to forget under the name that the forget term has for their answers, with what it needs of lm as it is."""
    needs = solved.forget.needs if solved.forget else Needs()
    values = {}
    if needs.reference is Reference.values:
        scored = score(AnswerModel(lm), some, budget=99)
        values = {"answer": [torch.tensor(s[0].logps, dtype=lm.dtype) for s in scored]}
    return Rows({needs.answers[0]: some}, values)


def answered(some: list[Prompted]) -> Rows:
    return Rows({"answer": some})


def weights(lm: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in lm.parameters()])


def nll(lm: Any, some: list[Prompted]) -> Tensor:
    """Mean nats per answer token, from the labels of transformers."""
    total, count = torch.zeros((), dtype=lm.dtype), 0
    for row in some:
        ids = torch.tensor([[*row.prompt, *row.answers[0]]])
        labels = torch.tensor([[-100] * len(row.prompt) + list(row.answers[0])])
        total, count = total + lm(ids, labels=labels).loss * len(row.answers[0]), count + len(row.answers[0])
    return total / count


# --- schedule and configuration ----------------------------------------------------------------------------


def test_factor_by_hand():
    linear = [factor(i, 8, config(warmup=0.25)) for i in range(8)]
    assert linear == pytest.approx([1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    constant = [factor(i, 4, config(warmup=0.5, decay="constant")) for i in range(4)]
    assert constant == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert factor(0, 1, config(warmup=0.0)) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0), ("batch_size", 0), ("accumulation", 0), ("checkpoint_minutes", -1.0), ("decay", "cosine"),
        ("precision", "fp16"), ("warmup", 1.0), ("warmup", -0.1), ("clip", -1.0),
    ],
)  # fmt: skip
def test_bad_settings_are_named(key: str, value: Any):
    with pytest.raises(UserError, match=rf"train.{key}='?{value}'?: must be"):
        config(**{key: value})


# --- one step ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_graddiff_step_is_that_of_plain_pytorch(tiny_lm: MakeLM, tmp_path: Path, clip: float):
    lm, plain, retain = tiny_lm(torch.float64), tiny_lm(torch.float64), RETAIN[:6]
    (record,) = train(lm, tmp_path, settings=config(epochs=1, batch_size=6, warmup=0.0, clip=clip), retain=retain)

    before, forget, kept = weights(plain), nll(plain, FORGET), nll(plain, retain)
    (-forget + 0.7 * kept).backward()
    norm = float(torch.nn.utils.clip_grad_norm_(plain.parameters(), clip or math.inf))
    decayed = [p for p in plain.parameters() if p.ndim > 1]
    groups = [{"params": decayed}, {"params": [p for p in plain.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1).step()

    assert record["loss_forget"] == pytest.approx(-forget.item(), abs=1e-12)
    assert record["loss_retain"] == pytest.approx(kept.item(), abs=1e-12)
    assert record["grad_norm"] == pytest.approx(norm)
    assert record["clip_factor"] == pytest.approx(clip / norm if clip else 1.0, rel=1e-4)
    assert record["displacement"] == pytest.approx(float((weights(plain) - before).norm()))
    assert record["tokens"] == sum(map(len, FORGET + retain))
    # coordinates whose gradient is near Adam's eps feel that clipping divides by norm + 1e-6
    torch.testing.assert_close(weights(lm), weights(plain), rtol=0, atol=1e-9 if not clip else 1e-6)


@pytest.mark.parametrize("optim", [ADAMW, soul(every=1), RELEASED], ids=lambda o: o.name)
@pytest.mark.parametrize("normalise", Normalise)
@pytest.mark.parametrize("name", SOLVED)
def test_accumulation_is_a_larger_batch(tiny_lm: MakeLM, tmp_path: Path, name: str, optim: Optim, normalise: Normalise):
    """Four rows an epoch: 2 x 2 and 1 x 4 take the same rows a step, of different lengths, in different company."""
    runs = []
    for size, accumulation in ((2, 2), (4, 1)):
        lm = tiny_lm(torch.float64)
        settings = config(epochs=3, batch_size=size, accumulation=accumulation, normalise=normalise)
        retain = RETAIN[:4] if name == "finetune" else RETAIN
        records = train(lm, tmp_path / str(size), SOLVED[name], optim, settings, forget=FORGET[:4], retain=retain)
        runs.append((lm, records))
    (a, first), (b, second) = runs
    assert len(first) == len(second) == 3
    for x, y in zip(first, second, strict=True):
        for key in x.keys() - {"tokens_per_s"}:
            assert x[key] == pytest.approx(y[key], abs=1e-9), key
    torch.testing.assert_close(weights(a), weights(b), rtol=0, atol=1e-9)


def test_npo_starts_at_its_known_value(tiny_lm: MakeLM, tmp_path: Path):
    mean = solving(NPO("npo", beta=0.5, normalize=Normalize.mean))
    for i, (solved, expected) in enumerate(((NPO_SUM, 20 * math.log(2)), (mean, 4 * math.log(2)))):
        first = train(tiny_lm(spread=0.3), tmp_path / str(i), solved)[0]
        assert first["loss_forget"] == pytest.approx(expected, rel=1e-5)


def test_signs_and_directions(tiny_lm: MakeLM, tmp_path: Path):
    before = float(nll(tiny_lm(), FORGET).detach())
    for name, solved, rises in (
        ("ga", ASCENT, True), ("graddiff", GRADDIFF, True), ("npo", NPO_SUM, True), ("po", solving(PO("po")), False)
    ):  # fmt: skip
        lm = tiny_lm()
        records = train(lm, tmp_path / name, solved)
        assert (float(nll(lm, FORGET).detach()) > before) is rises
        assert (records[0]["loss_forget"] > 0) is (name in ("npo", "po"))
        assert records[-1]["loss_forget"] < records[0]["loss_forget"]  # all losses are minimised


def test_finetune_lowers_the_loss(tiny_lm: MakeLM, tmp_path: Path):
    lm = tiny_lm()
    before = float(nll(lm, RETAIN).detach())
    fast = AdamW("adamw", lr=1e-2, weight_decay=0.0, beta1=0.9, beta2=0.999, eps=1e-8)
    records = train(lm, tmp_path, finetuning(), fast, config(epochs=15))
    assert len(records) == 15 * 6  # 11 rows in batches of 2
    assert "loss_forget" not in records[0]
    assert float(nll(lm, RETAIN).detach()) < before / 2


# --- which rows are used -----------------------------------------------------------------------------------


def test_ga_never_touches_the_retain_rows(tiny_lm: MakeLM, tmp_path: Path):
    runs = []
    for name, retain in (("a", RETAIN), ("b", [])):
        lm = tiny_lm()
        records = train(lm, tmp_path / name, ASCENT, retain=retain)
        runs.append(weights(lm))
        assert all("loss_retain" not in r for r in records)
        assert sum(r["tokens"] for r in records) == 2 * sum(map(len, FORGET))
    assert torch.equal(*runs)


def test_forget_rows_are_those_of_the_epoch(tiny_lm: MakeLM, tmp_path: Path):
    def forget(epoch: int) -> list[Prompted]:
        return [Prompted((5,), ((*(6,) * (10 * epoch + i), 2),)) for i in range(1, 5)]

    records = train(tiny_lm(), tmp_path, ASCENT, settings=config(epochs=3, batch_size=4), forget=forget)
    assert [r["tokens"] for r in records] == [sum(map(len, forget(e))) for e in range(3)]
    assert [r["epoch"] for r in records] == [1, 2, 3]


def test_curvature_is_renewed_every_k_steps(tiny_lm: MakeLM, tmp_path: Path):
    records = train(tiny_lm(), tmp_path, optim=soul(rho=1.0, every=4))
    h = [r["h_l1"] for r in records]
    assert h[0] == h[1] == h[2] == h[3] != h[4] == h[5]


# --- alternating steps (SOUL, eq. 11) ----------------------------------------------------------------------


@pytest.mark.parametrize("combine", [SUM, ALTERNATING], ids=lambda c: c.name)
def test_without_retain_weight_it_is_the_forget_step_alone(tiny_lm: MakeLM, tmp_path: Path, combine: Combine):
    both, alone = tiny_lm(), tiny_lm()
    records = train(both, tmp_path / "both", solving(GA("graddiff"), 0.0, combine), soul())
    expected = train(alone, tmp_path / "alone", ASCENT, soul())
    assert torch.equal(weights(both), weights(alone))
    assert [r["loss_forget"] for r in records] == [r["loss_forget"] for r in expected]
    assert [r["grad_norm"] for r in records] == [r["grad_norm"] for r in expected]
    assert not any("loss_retain" in r for r in records)  # its rows are not run
    assert float(nll(both, FORGET).detach()) > float(nll(tiny_lm(), FORGET).detach())  # ascent on forget


@pytest.mark.parametrize("optim", [soul(), ADAMW], ids=lambda o: o.name)
def test_alternating_takes_the_retain_step_after_the_forget_step(tiny_lm: MakeLM, tmp_path: Path, optim: Optim):
    """GA on the forget row, then fine-tuning on the retain row at the weight times the rate, each from no state.

    Weights decay in the first of the two alone.
    """
    lm, by_hand = tiny_lm(), tiny_lm()
    settings, forget, retain = config(epochs=1, warmup=0.0), FORGET[:1], RETAIN[:1]
    (record,) = train(lm, tmp_path / "a", APART, optim, settings, forget=forget, retain=retain)
    (first,) = train(by_hand, tmp_path / "b", ASCENT, optim, settings, forget=forget)
    slower = replace(optim, lr=optim.lr * APART.weight, weight_decay=0.0)
    (second,) = train(by_hand, tmp_path / "c", finetuning(), slower, settings, retain=retain)
    assert torch.equal(weights(lm), weights(by_hand))
    for suffix, alone in (("_forget", first), ("_retain", second)):
        assert record["loss" + suffix] == alone["loss" + suffix]
        for key in {"grad_norm", "clip_factor", "unclipped_share", "rho"} & alone.keys():
            assert record[key + suffix] == alone[key]


# --- interruption ------------------------------------------------------------------------------------------


@dataclass
class Remembering(Combine):
    """The forget gradient and a running mean of the retain gradient, which the checkpoint has to hold."""

    def __call__(self, gradient: Any, kinds: Kinds, weight: float, memory: dict[str, Any]) -> Gradient:
        forget, retain = gradient(Kinds.forget), gradient(Kinds.retain)
        memory["times"] = memory.get("times", 0) + 1
        old = memory.get("mean", retain.parts)
        memory["mean"] = [0.5 * a + 0.5 * b for a, b in zip(old, retain.parts, strict=True)]
        parts = [a + b / memory["times"] for a, b in zip(forget.parts, memory["mean"], strict=True)]
        return Gradient(parts, forget.losses | retain.losses)


def gpt2() -> Any:
    """A small model that is float64 throughout; Llama's norms are float32."""
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 48, "n_positions": 64}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, **still)).to(torch.float64)


def test_gradients_of_the_kinds_add_up():
    """One forward for both gives forget + weight * retain, and any number of calls the same."""
    data = {Kinds.forget: answered(FORGET), Kinds.retain: answered(RETAIN)}
    trainer = Trainer(
        gpt2(), TrainData(lambda e: data[Kinds.forget], data[Kinds.retain]), GRADDIFF, ADAMW,
        config(accumulation=2), 0, CPU,
    )  # fmt: skip
    gradient = StepGradient(trainer.setup, trainer.plans[0][0], data, 0)
    both, forget, retain = (gradient(k, 0.7) for k in (Kinds.both, Kinds.forget, Kinds.retain))
    for b, f, r in zip(both.parts, forget.parts, retain.parts, strict=True):
        torch.testing.assert_close(b, f + 0.7 * r, rtol=0, atol=1e-14)
    assert both.losses == pytest.approx(forget.losses | retain.losses)
    assert all(torch.equal(a, b) for a, b in zip(gradient(Kinds.both, 0.7).parts, both.parts, strict=True))
    assert all(p.grad is None for p in trainer.params)


RESUMED = [
    pytest.param(ADAMW, SUM, id="adamw"),
    pytest.param(soul(), SUM, id="soul"),
    pytest.param(soul(rho=1.0), SUM, id="soul-rho"),
    pytest.param(RELEASED, SUM, id="soul_released"),
    pytest.param(MUON, SUM, id="muon"),
    pytest.param(soul(), ALTERNATING, id="alternating"),
    pytest.param(ADAMW, Remembering("remembering"), id="remembering"),
    pytest.param(ADAMW, GRU("gru", 0.8), id="gru"),
    pytest.param(ADAMW, Separate("separate", 1, 2), id="separate"),
]


def without_speed(records: Records) -> Records:
    return [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in records]


def interrupt_at(step: int) -> Callable[[int, int, dict[str, float]], None]:
    def progress(done: int, total: int, record: dict[str, float]) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(("optim", "combine"), RESUMED)
def test_resumed_run_is_bitwise_the_uninterrupted_one(tiny_lm: MakeLM, tmp_path: Path, optim: Optim, combine: Combine):
    whole, resumed, seen = tiny_lm(), tiny_lm(), []
    solved = solving(NPO("npo", beta=0.1, normalize=Normalize.sum), combine=combine)
    expected = train(whole, tmp_path / "whole", solved, optim)
    for step in (1, 3, 5):  # before the first checkpoint, and after one
        with pytest.raises(KeyboardInterrupt):
            train(tiny_lm(), tmp_path / "parts", solved, optim, progress=interrupt_at(step))
    records = train(
        resumed, tmp_path / "parts", solved, optim, progress=lambda done, total, record: seen.append((done, total))
    )
    assert seen == [(5, 6), (6, 6)]  # it went on from the checkpoint of step 4
    assert torch.equal(weights(resumed), weights(whole))
    assert without_speed(records) == without_speed(expected)


def test_killed_while_a_checkpoint_is_replaced_the_new_one_counts(tiny_lm: MakeLM, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_lm(), tmp_path, progress=interrupt_at(5))
    (tmp_path / "checkpoint").rename(tmp_path / ".checkpoint")
    seen: list[int] = []
    train(tiny_lm(), tmp_path, progress=lambda done, total, record: seen.append(done))
    assert seen == [5, 6]


def test_killed_twice_while_a_checkpoint_is_replaced_none_is_lost(
    tiny_lm: MakeLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the renames, and while the next one is being written to the place of the first."""
    with pytest.raises(KeyboardInterrupt):
        train(tiny_lm(), tmp_path, progress=interrupt_at(5))
    (tmp_path / "checkpoint").rename(tmp_path / ".checkpoint")
    (tmp_path / ".checkpoint.old.17").mkdir()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_lm(), tmp_path)
    seen: list[int] = []
    train(tiny_lm(), tmp_path, progress=lambda done, total, record: seen.append(done))
    assert seen == [5, 6]
    assert not list(tmp_path.glob(".checkpoint*"))


def test_random_numbers_go_on_where_they_stopped(tiny_lm: MakeLM, tmp_path: Path):
    def noisy() -> Any:
        lm = tiny_lm()
        for layer in lm.model.layers:
            layer.self_attn.attention_dropout = 0.5
        return lm

    whole, stopped, resumed = noisy(), noisy(), noisy()
    torch.manual_seed(7)
    train(whole, tmp_path / "whole")
    torch.manual_seed(7)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, tmp_path / "parts", progress=interrupt_at(3))
    torch.manual_seed(8)
    train(resumed, tmp_path / "parts")
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize(("minutes", "kept"), [(0, [1, 2, 3, 4, 5]), (1, [2, 4]), (9, [])])
def test_checkpoints_by_the_clock(
    tiny_lm: MakeLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, kept: list[int]
) -> None:
    """40 seconds a step, and as long for a checkpoint, after which the time begins anew; none after the last step."""
    now, saved, write = [0.0], [], checkpoint.save

    def tick(*_: Any) -> None:
        now[0] += 40

    def save(work: Path, params: Any, optimizers: Any, records: Records, memory: Any) -> None:
        saved.append(len(records))
        tick()
        write(work, params, optimizers, records, memory)

    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoint, "save", save)
    train(tiny_lm(), tmp_path, settings=config(checkpoint_minutes=minutes), progress=tick)
    assert saved == kept


@pytest.mark.parametrize("there", [0, 1])
def test_a_disk_that_is_too_small_is_named(
    tiny_lm: MakeLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int
) -> None:
    """By hand: the weights before the first step, and twice weights with AdamW's two states; what is there counts."""
    lm = tiny_lm()
    size = 4 * sum(p.numel() for p in lm.parameters())
    (tmp_path / ".start").mkdir()
    (tmp_path / ".start" / "left").write_bytes(b"." * there)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: SimpleNamespace(free=7 * size - 1))
    if there:
        assert train(lm, tmp_path)
        return
    with pytest.raises(UserError, match=f"{7 * size / 1e9:.2f} GB in {tmp_path} .* make room, or set cache_dir"):
        train(lm, tmp_path, progress=lambda *_: pytest.fail("a step was taken"))


def test_weights_in_4_bit_are_written_whole() -> None:
    packed = torch.nn.Parameter(torch.zeros(50, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = SimpleNamespace(shape=torch.Size([10, 10]), dtype=torch.bfloat16)  # type: ignore[attr-defined]
    assert checkpoint.stored(packed) == 200


def test_finished_run_goes_on_from_its_last_checkpoint(tiny_lm: MakeLM, tmp_path: Path):
    first, second, seen = tiny_lm(), tiny_lm(), []
    records = train(first, tmp_path)
    again = train(second, tmp_path, progress=lambda done, total, record: seen.append(done))
    assert seen == [6]
    assert without_speed(again) == without_speed(records)
    assert torch.equal(weights(first), weights(second))
    assert not second.training
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "start"]


def test_displacement_is_measured_from_the_first_weights_at_the_end_of_epochs(tiny_lm: MakeLM, tmp_path: Path):
    """Two epochs of three steps; the run stops in the second and goes on with weights that are not the first."""
    far: dict[int, float] = {}
    start = weights(tiny_lm()).double().clone()

    def run(stop: int) -> list[dict[str, Any]]:
        lm = tiny_lm()

        def measure(done: int, total: int, record: dict[str, float]) -> None:
            far[done] = float((weights(lm).double() - start).norm())
            if done == stop:
                raise KeyboardInterrupt

        return train(lm, tmp_path, progress=measure)

    with pytest.raises(KeyboardInterrupt):
        run(5)
    measured = {r["step"]: r["displacement"] for r in run(0) if "displacement" in r}
    assert measured == {k: pytest.approx(far[k], rel=1e-6) for k in (3, 6)}
    assert 0 < measured[3] < measured[6]


# --- a loss that is no number ------------------------------------------------------------------------------


def breaking(kind: str, step: int, combine: Combine) -> Problem:
    """Gradient difference; the loss of one kind of rows is NaN in one step."""
    calls = [0]

    def spoiled(loss: Tensor) -> Tensor:
        calls[0] += 1
        return loss * math.nan if calls[0] == step else loss

    class Forget(GA):
        def loss(self, answers: Answers, step: Counts) -> Tensor:
            loss = super().loss(answers, step)
            return spoiled(loss) if kind == "forget" else loss

    class Kept(CE):
        def loss(self, answers: Answers, step: Counts) -> Tensor:
            loss = super().loss(answers, step)
            return spoiled(loss) if kind == "retain" else loss

    return solving(Forget("graddiff"), combine=combine, retain=Kept("ce", 0.7))


@pytest.mark.parametrize(
    ("optim", "combine", "kind"),
    [
        pytest.param(ADAMW, SUM, "forget", id="adamw"),
        pytest.param(soul(), SUM, "retain", id="soul"),
        pytest.param(soul(), ALTERNATING, "forget", id="alternating-forget"),
        pytest.param(soul(), ALTERNATING, "retain", id="alternating-retain"),
    ],
)
def test_not_finite_loss_keeps_the_last_whole_step(
    tiny_lm: MakeLM, tmp_path: Path, optim: Optim, combine: Combine, kind: str
):
    whole, resumed, states = tiny_lm(), tiny_lm(), []
    work, broken = tmp_path / "parts", tiny_lm()
    with pytest.raises(NotFiniteError, match=rf"not finite at step 4 of 6: .*'loss_{kind}': nan.*{work}/checkpoint"):
        train(
            broken, work, breaking(kind, 4, combine), optim,
            progress=lambda *a: states.append(weights(broken).clone()),
        )  # fmt: skip
    kept = load_file(work / "checkpoint" / "tensors.safetensors")
    # in alternating mode half of step 4 has been taken when the retain loss breaks: then the last checkpoint counts
    assert len(json.loads((work / "checkpoint" / "state.json").read_text())["records"]) == 3
    params = torch.cat([kept[f"param.{i}"].flatten() for i in range(len(list(broken.parameters())))])
    assert torch.equal(params, states[2])
    solved = solving(GA("graddiff"), 0.7, combine)
    expected = train(whole, tmp_path / "whole", solved, optim)
    assert without_speed(train(resumed, work, solved, optim)) == without_speed(expected)
    assert torch.equal(weights(resumed), weights(whole))


def test_not_finite_loss_behind_an_estimate_keeps_no_half_step(tiny_lm: MakeLM, tmp_path: Path):
    """In step 5 h has moved when the loss breaks: the state after it is not that after step 4, nor kept as such."""
    whole, resumed, work, solved = tiny_lm(), tiny_lm(), tmp_path / "parts", solving(GA("graddiff"), 0.7)
    with pytest.raises(NotFiniteError, match=r"not finite at step 5 of 6.* after step 4 is kept"):
        train(tiny_lm(), work, breaking("forget", 5, SUM), soul(every=4))
    expected = train(whole, tmp_path / "whole", solved, soul(every=4))
    assert without_speed(train(resumed, work, solved, soul(every=4))) == without_speed(expected)
    assert torch.equal(weights(resumed), weights(whole))


def test_not_finite_gradient_stops_the_run(tiny_lm: MakeLM, tmp_path: Path):
    class Cliff(GA):
        def loss(self, answers: Answers, step: Counts) -> Tensor:
            return (answers.values.sum() * 0).abs().sqrt()  # 0, with an infinite slope

    with pytest.raises(NotFiniteError, match="the gradient norm is nan"):
        train(tiny_lm(), tmp_path, replace(ASCENT, forget=Cliff("ga")))
