"""soul_cli.train.loop: the loop against plain PyTorch, accumulation, alternating steps, interruption and resumption."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from soul_cli.core.types import Prompted, UserError
from soul_cli.data.batches import Share, collate
from soul_cli.evaluate.likelihood import score
from soul_cli.models.answer_model import AnswerModel
from soul_cli.objective.methods import GA, NPO, PO, Answers, Counts, Finetune, GradDiff, Method, Normalize
from soul_cli.optim.build import AdamW, HessianData, Mode, Muon, Optim, SoulConfig, SoulReleasedConfig
from soul_cli.train.config import TrainConfig
from soul_cli.train.loop import NotFiniteError, Phase, TrainData, Trainer, factor

MakeLM = Callable[..., Any]
Records = list[dict[str, Any]]

GRADDIFF = GradDiff("graddiff", retain_weight=0.7)
NPO_SUM = NPO("npo", retain_weight=1.0, beta=0.1, normalize=Normalize.sum)
ADAMW = AdamW("adamw", lr=1e-3, weight_decay=0.1, beta1=0.9, beta2=0.999, eps=1e-8)
RELEASED = SoulReleasedConfig("soul_released", lr=1e-3, weight_decay=0.1, beta1=0.9, beta2=0.95, rho=0.04, bs=5120)
MUON = Muon("muon", lr=1e-3, weight_decay=0.1, momentum=0.95, beta1=0.9, beta2=0.95)


def soul(mode: Mode = Mode.joint, *, rho: float | None = None, every: int = 4) -> SoulConfig:
    return SoulConfig(
        "soul", lr=1e-3, weight_decay=0.1, beta1=0.9, beta2=0.95, eps=1e-15, rho=rho,
        unclipped_share=0.3 if rho is None else None, hessian_every=every, hessian_data=HessianData.both, mode=mode,
    )  # fmt: skip


def config(**changed: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "epochs": 2, "batch_size": 2, "accumulation": 1, "warmup": 0.1, "decay": "linear", "clip": 1.0,
        "precision": "no", "master_weights": True, "lora": None, "checkpoint_steps": 2,
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
    method: Method = GRADDIFF,
    optim: Optim = ADAMW,
    settings: TrainConfig | None = None,
    *,
    forget: list[Prompted] | Callable[[int], list[Prompted]] = FORGET,
    retain: list[Prompted] = RETAIN,
    progress: Callable[[int, int, dict[str, float]], None] = silent,
    after_epoch: Callable[[int], None] | None = None,
) -> Records:
    reference = []
    if method.uses_reference:
        reference = [sum(s[0].logps) for s in score(AnswerModel(lm), FORGET, budget=99)]
    data = TrainData(forget if callable(forget) else lambda epoch: forget, retain, reference)
    return Trainer(lm, data, method, optim, settings or config(), 3, CPU).train(work, progress, after_epoch)


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
        ("epochs", 0), ("batch_size", 0), ("accumulation", 0), ("checkpoint_steps", 0), ("decay", "cosine"),
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
@pytest.mark.parametrize("method", [GRADDIFF, NPO_SUM, PO("po", 1.0), Finetune("finetune")], ids=lambda m: m.name)
def test_accumulation_is_a_larger_batch(tiny_lm: MakeLM, tmp_path: Path, method: Method, optim: Optim):
    """Four rows an epoch: 2 x 2 and 1 x 4 take the same rows a step, of different lengths, in different company."""
    runs = []
    for size, accumulation in ((2, 2), (4, 1)):
        lm = tiny_lm(torch.float64)
        settings = config(epochs=3, batch_size=size, accumulation=accumulation)
        retain = RETAIN[:4] if method.name == "finetune" else RETAIN
        records = train(lm, tmp_path / str(size), method, optim, settings, forget=FORGET[:4], retain=retain)
        runs.append((lm, records))
    (a, first), (b, second) = runs
    assert len(first) == len(second) == 3
    for x, y in zip(first, second, strict=True):
        for key in x.keys() - {"tokens_per_s"}:
            assert x[key] == pytest.approx(y[key], abs=1e-9), key
    torch.testing.assert_close(weights(a), weights(b), rtol=0, atol=1e-9)


def test_npo_starts_at_its_known_value(tiny_lm: MakeLM, tmp_path: Path):
    method = NPO("npo", retain_weight=1.0, beta=0.5, normalize=Normalize.mean)
    for m, expected in ((NPO_SUM, 20 * math.log(2)), (method, 4 * math.log(2))):
        first = train(tiny_lm(spread=0.3), tmp_path / str(m.beta), m)[0]
        assert first["loss_forget"] == pytest.approx(expected, rel=1e-5)


def test_signs_and_directions(tiny_lm: MakeLM, tmp_path: Path):
    before = float(nll(tiny_lm(), FORGET).detach())
    for method, rises in ((GA("ga"), True), (GRADDIFF, True), (NPO_SUM, True), (PO("po", 1.0), False)):
        lm = tiny_lm()
        records = train(lm, tmp_path / method.name, method)
        assert (float(nll(lm, FORGET).detach()) > before) is rises
        assert (records[0]["loss_forget"] > 0) is (method.name in ("npo", "po"))
        assert records[-1]["loss_forget"] < records[0]["loss_forget"]  # all losses are minimised


def test_finetune_lowers_the_loss(tiny_lm: MakeLM, tmp_path: Path):
    lm = tiny_lm()
    before = float(nll(lm, RETAIN).detach())
    fast = AdamW("adamw", lr=1e-2, weight_decay=0.0, beta1=0.9, beta2=0.999, eps=1e-8)
    records = train(lm, tmp_path, Finetune("finetune"), fast, config(epochs=15))
    assert len(records) == 15 * 6  # 11 rows in batches of 2
    assert "loss_forget" not in records[0]
    assert float(nll(lm, RETAIN).detach()) < before / 2


# --- which rows are used -----------------------------------------------------------------------------------


def test_ga_never_touches_the_retain_rows(tiny_lm: MakeLM, tmp_path: Path):
    runs = []
    for name, retain in (("a", RETAIN), ("b", [])):
        lm = tiny_lm()
        records = train(lm, tmp_path / name, GA("ga"), retain=retain)
        runs.append(weights(lm))
        assert all("loss_retain" not in r for r in records)
        assert sum(r["tokens"] for r in records) == 2 * sum(map(len, FORGET))
    assert torch.equal(*runs)


def test_forget_rows_are_those_of_the_epoch(tiny_lm: MakeLM, tmp_path: Path):
    def forget(epoch: int) -> list[Prompted]:
        return [Prompted((5,), ((*(6,) * (10 * epoch + i), 2),)) for i in range(1, 5)]

    records = train(tiny_lm(), tmp_path, GA("ga"), settings=config(epochs=3, batch_size=4), forget=forget)
    assert [r["tokens"] for r in records] == [sum(map(len, forget(e))) for e in range(3)]
    assert [r["epoch"] for r in records] == [1, 2, 3]


def test_hessian_tokens(tiny_lm: MakeLM):
    def kept(data: HessianData, share: Share, *, both: bool = True) -> list[bool]:
        """Whether each row of a share takes part."""
        optim = soul()
        optim.hessian_data = data
        trainer = Trainer(tiny_lm(), TrainData(lambda epoch: FORGET, RETAIN), GRADDIFF, optim, config(), 0, CPU)
        phase = Phase(both or bool(share.forget), both or bool(share.retain), trainer.phases[0].optimizer, 0.0, 1.0)
        batch = collate([FORGET[i] for i in share.forget] + [RETAIN[i] for i in share.retain])
        keep, u = trainer._labels(phase, share, batch, index=0)
        assert len(u.unique()) == len(keep)
        return [bool(keep[batch.owner == i].unique()) for i in range(batch.answers)]

    mixed, alone = Share((0, 1), (2,), (0, 2, 5)), Share((), (1, 2), (3, 5))
    assert kept(HessianData.both, mixed) == [True, True, True]
    assert kept(HessianData.forget, mixed) == [True, True, False]
    assert kept(HessianData.retain, mixed) == [False, False, True]
    assert kept(HessianData.forget, alone) == [False, False]  # the forget rows are with another process
    assert kept(HessianData.forget, alone, both=False) == [True, True]  # an alternating phase has one kind only


def test_curvature_is_renewed_every_k_steps(tiny_lm: MakeLM, tmp_path: Path):
    records = train(tiny_lm(), tmp_path, optim=soul(rho=1.0, every=4))
    h = [r["h_l1"] for r in records]
    assert h[0] == h[1] == h[2] == h[3] != h[4] == h[5]


# --- alternating steps (SOUL, eq. 11) ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
def test_without_retain_weight_it_is_the_forget_step_alone(tiny_lm: MakeLM, tmp_path: Path, mode: Mode):
    both, alone = tiny_lm(), tiny_lm()
    optim = soul(mode)
    records = train(both, tmp_path / "both", GradDiff("graddiff", retain_weight=0.0), optim)
    expected = train(alone, tmp_path / "alone", GA("ga"), optim)
    assert torch.equal(weights(both), weights(alone))
    assert [r["loss_forget"] for r in records] == [r["loss_forget"] for r in expected]
    assert [r["grad_norm"] for r in records] == [r["grad_norm"] for r in expected]
    assert not any("loss_retain" in r for r in records)  # its rows are not run
    assert float(nll(both, FORGET).detach()) > float(nll(tiny_lm(), FORGET).detach())  # ascent on forget


def test_alternating_takes_the_retain_step_after_the_forget_step(tiny_lm: MakeLM, tmp_path: Path):
    """GA on the forget row, then fine-tuning on the retain row at retain_weight times the rate, each from no state."""
    lm, by_hand = tiny_lm(), tiny_lm()
    settings, forget, retain = config(epochs=1, warmup=0.0), FORGET[:1], RETAIN[:1]
    (record,) = train(lm, tmp_path / "a", optim=soul(Mode.alternating), settings=settings, forget=forget, retain=retain)
    (first,) = train(by_hand, tmp_path / "b", GA("ga"), soul(), settings, forget=forget)
    slower = soul()
    slower.lr *= GRADDIFF.retain_weight
    (second,) = train(by_hand, tmp_path / "c", Finetune("finetune"), slower, settings, retain=retain)
    assert torch.equal(weights(lm), weights(by_hand))
    for suffix, alone in (("_forget", first), ("_retain", second)):
        assert record["loss" + suffix] == alone["loss" + suffix]
        for key in ("grad_norm", "clip_factor", "unclipped_share", "rho"):
            assert record[key + suffix] == alone[key]


# --- interruption ------------------------------------------------------------------------------------------

RESUMED = [
    pytest.param(ADAMW, id="adamw"),
    pytest.param(soul(), id="soul"),
    pytest.param(soul(rho=1.0), id="soul-rho"),
    pytest.param(RELEASED, id="soul_released"),
    pytest.param(MUON, id="muon"),
    pytest.param(soul(Mode.alternating), id="alternating"),
]


def without_speed(records: Records) -> Records:
    return [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in records]


def interrupt_at(step: int) -> Callable[[int, int, dict[str, float]], None]:
    def progress(done: int, total: int, record: dict[str, float]) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("optim", RESUMED)
def test_resumed_run_is_bitwise_the_uninterrupted_one(tiny_lm: MakeLM, tmp_path: Path, optim: Optim):
    whole, resumed, seen = tiny_lm(), tiny_lm(), []
    expected = train(whole, tmp_path / "whole", NPO_SUM, optim)
    for step in (1, 3, 6):  # before the first checkpoint, after it, at the very end
        with pytest.raises(KeyboardInterrupt):
            train(tiny_lm(), tmp_path / "parts", NPO_SUM, optim, progress=interrupt_at(step))
    records = train(
        resumed, tmp_path / "parts", NPO_SUM, optim, progress=lambda done, total, record: seen.append((done, total))
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


def test_finished_run_is_not_run_again(tiny_lm: MakeLM, tmp_path: Path):
    first, second = tiny_lm(), tiny_lm()
    records = train(first, tmp_path)
    assert train(second, tmp_path, progress=lambda *a: pytest.fail("a step was taken")) == records
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


@dataclass
class Breaking(GradDiff):
    """The loss of one kind of rows is NaN in one step."""

    kind: str
    step: int
    calls: int = 0

    def spoiled(self, kind: str, loss: Tensor) -> Tensor:
        if kind != self.kind:
            return loss
        self.calls += 1
        return loss * math.nan if self.calls == self.step else loss

    def forget_loss(self, answers: Answers, counts: Counts) -> Tensor:
        return self.spoiled("forget", super().forget_loss(answers, counts))

    def retain_loss(self, answers: Answers, counts: Counts) -> Tensor:
        return self.spoiled("retain", super().retain_loss(answers, counts))


@pytest.mark.parametrize(
    ("optim", "kind"),
    [
        pytest.param(ADAMW, "forget", id="adamw"),
        pytest.param(soul(), "retain", id="soul"),
        pytest.param(soul(Mode.alternating), "forget", id="alternating-forget"),
        pytest.param(soul(Mode.alternating), "retain", id="alternating-retain"),
    ],
)
def test_not_finite_loss_keeps_the_last_whole_step(tiny_lm: MakeLM, tmp_path: Path, optim: Optim, kind: str):
    whole, resumed, states = tiny_lm(), tiny_lm(), []
    work, broken = tmp_path / "parts", tiny_lm()
    with pytest.raises(NotFiniteError, match=rf"not finite at step 4 of 6: .*'loss_{kind}': nan.*{work}/checkpoint"):
        train(
            broken, work, Breaking("graddiff", 0.7, kind, step=4), optim,
            progress=lambda *a: states.append(weights(broken).clone()),
        )  # fmt: skip
    kept = load_file(work / "checkpoint" / "tensors.safetensors")
    # in alternating mode half of step 4 has been taken when the retain loss breaks: then the last checkpoint counts
    last = 2 if kind == "retain" and getattr(optim, "mode", None) is Mode.alternating else 3
    assert len(json.loads((work / "checkpoint" / "state.json").read_text())["records"]) == last
    params = torch.cat([kept[f"param.{i}"].flatten() for i in range(len(list(broken.parameters())))])
    assert torch.equal(params, states[last - 1])
    expected = train(whole, tmp_path / "whole", optim=optim)
    assert without_speed(train(resumed, work, optim=optim)) == without_speed(expected)
    assert torch.equal(weights(resumed), weights(whole))


def test_not_finite_gradient_stops_the_run(tiny_lm: MakeLM, tmp_path: Path):
    class Cliff(GA):
        def forget_loss(self, answers: Answers, counts: Counts) -> Tensor:
            return (answers.logps.sum() * 0).abs().sqrt()  # 0, with an infinite slope

    with pytest.raises(NotFiniteError, match="the gradient norm is nan"):
        train(tiny_lm(), tmp_path, Cliff("ga"))
