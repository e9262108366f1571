"""plan=true against arithmetic and against real training: counts, lengths, bytes, FLOPs, and what fits."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from soul_cli.core.types import QA, UserError
from soul_cli.experiment.config import compose
from soul_cli.models.load import count_parameters
from soul_cli.objective.methods import finetuning
from soul_cli.planning.memory import LiveBytes
from soul_cli.planning.plan import Planner, fits, gpus, outlook
from soul_cli.planning.stages import Stage, alone, architecture, flops, stage_of, stages
from soul_cli.tasks.base import TaskData

LORA = "train.lora={r: 4, alpha: 8, load_in_4bit: false}"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    path = Path(__file__).parents[1] / "scripts" / "check_plan.py"
    spec = importlib.util.spec_from_file_location("check_plan", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- counting ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("llama2_7b", 6_738_415_616), ("llama2_7b_chat", 6_738_415_616), ("phi_1_5", 1_418_270_720),
        ("smollm2_135m", 134_515_008),
    ],
)  # fmt: skip
def test_parameters_are_those_of_the_published_models(model: str, parameters: int):
    lm, _ = architecture(compose([f"model={model}"]))
    assert count_parameters(lm) == parameters


def test_live_bytes_by_hand():
    with LiveBytes() as live:
        a = torch.zeros(100)  # 400 bytes
        b = a[:50]  # the same memory
        c = a + 1
        assert (live.now, live.most) == (800, 800)
        del a
        assert live.now == 800  # b holds it
        del b
        assert live.now == 400
        live.release(c)
        del c
    assert (live.now, live.most) == (0, 800)


def data(full: int, forget: int) -> TaskData:
    """Questions of 3 words; answers of 5, those to forget of 7."""
    kept = [QA("w " * 3, "w " * 5)] * (full - forget)
    gone = [QA("w " * 3, "w " * 7)] * forget
    return TaskData(kept + gone, gone, kept, ["no " * 2], "", {}, [], "")


@pytest.mark.parametrize(("count", "rows", "waited"), [(1, 4, 10), (4, 1, 3), (8, 1, 3)])
def test_stages_by_hand(count: int, rows: int, waited: int):
    """2 tokens a word, 8 of the template, EOS: rows of 14 + 11 and, to forget, 14 + 15 tokens.

    waited: of 10 rows an epoch, in micro-batches of 4, 4 and 2, those of the process that has most in each.
    """
    settings = ["model=llama2_7b", "model.finetune.train={epochs: 2, batch_size: 4, accumulation: 3}"]
    more = ["train.epochs=3", "train.batch_size=2", "method=npo"]
    target, retain, unlearning = stages(compose([*settings, *more]), data(21, 5), 2.0, count)
    assert [s.name for s in (target, retain, unlearning)] == ["target", "retain-trained", "unlearning"]
    assert (target.steps, retain.steps) == (2 * 2, 2 * 2)  # 6 and 4 micro-batches in threes
    assert target.tokens == 2 * (16 * 25 + 5 * 29)
    assert unlearning.steps == 3 * 3
    assert unlearning.tokens == 3 * 5 * (29 + 25)
    assert unlearning.padded == {1: 3 * 10 * 29, 4: 3 * 5 * (29 + 25), 8: 3 * 5 * (29 + 25)}[count]
    assert unlearning.longest == 3 * waited * 29
    assert unlearning.passes == 1
    assert target.passes == {1: 3, 4: 3, 8: 2}[count]
    assert len(unlearning.rows) == rows
    assert max(unlearning.rows) == (14, 15)


def test_phases_of_their_own_have_smaller_batches():
    rows = alone(((10, 10),) * 4)
    joint, apart = (compose(["optim=soul", "train.batch_size=4", f"combine={c}"]) for c in ("sum", "alternating"))
    a, b = (stage_of("", c.problem, c.optim, c.train, rows, rows, seed=0, gpus=1) for c in (joint, apart))
    assert (len(a.rows), len(b.rows)) == (8, 4)
    assert a.tokens == b.tokens


def test_flops_by_hand():
    def each(optim: str, *more: str, checkpointing: bool = False) -> float:
        config = compose([f"optim={optim}", "train.batch_size=4", "train.accumulation=4", *more])
        stage = Stage("", finetuning(), config.optim, config.train, 1, 90, 200, 100, 1, (), 0)
        return flops(stage, 7, checkpointing=checkpointing) / 700

    assert each("adamw") == 6
    assert each("adamw", LORA) == 4
    assert each("adamw", checkpointing=True) == 8
    every = "optim.hessian_every=10"
    assert each("soul", every, "optim.hessian_rows=4") == pytest.approx(6 * (1 + 4 / 16 / 10))
    assert each("soul", every, "optim.hessian_rows=null") == pytest.approx(6 * 1.1)
    assert each("soul", every, "optim.hessian_rows=99", checkpointing=True) == pytest.approx(8 * 1.1)


# --- memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["optim=adamw"],
        ["optim=adamw", "train.accumulation=2", "train.batch_size=2"],
        ["optim=adamw", "activation_checkpointing=true"],
        ["optim=adamw", "model.dtype=bfloat16"],
        ["optim=soul_released", "model.dtype=bfloat16", "train.master_weights=false"],
        ["optim=soul"],
        ["optim=soul", "train.accumulation=2", "train.batch_size=2"],
        ["optim=soul", "activation_checkpointing=true"],
        ["optim=soul", "model.dtype=bfloat16", "train.precision=bf16"],
        ["optim=soul", "combine=alternating"],
        ["optim=adamw", "combine=gru", "perturb=sam"],
        ["optim=adamw", "combine=ngdiff", "train.accumulation=2", "train.batch_size=2"],
        ["optim=soul", "perturb=smooth"],
        ["optim=adamw", "retain=kl"],
        ["optim=soul", "retain=kl"],
        ["optim=adamw", "method=undial"],
        ["optim=soul", "method=dpo"],
        ["optim=adamw", "method=rmu", "method.layer=1"],
        ["optim=soul", "method=rmu", "method.layer=2", "retain=ce"],
        ["optim=soul", LORA],
        ["optim=lion"],
    ],
    ids=" ".join,
)
def test_planned_peak_is_that_of_training(check: ModuleType, options: list[str]):
    every = ["optim.hessian_every=1"] if "optim=soul" in options else []
    config = compose(["train.batch_size=4", "train.epochs=2", *every, *options])
    measured, planned = check.compare(config, check.architecture(64, 5, 4, 128, 512).lm_config(), 4, longest=48)
    assert planned == pytest.approx(measured, rel=check.TOLERANCE)


def test_the_looks_of_every_term_are_counted(check: ModuleType):
    """retain=kl has logits of two models and their log-probabilities at each token of the retain rows."""
    lm, vocab, rows = check.architecture(64, 3, 4, 128, 4096).lm_config(), 4096, alone(((8, 40),) * 4)
    ce, kl = (
        check.plan_of(compose(["optim=adamw", "train.batch_size=4", f"retain={name}"]), lm, rows, rows).activations
        for name in ("ce", "kl")
    )
    assert kl - ce > 2 * 4 * 40 * vocab * 4


@pytest.mark.parametrize(
    ("options", "count"),
    [(["combine=sum"], 0), (["combine=ngdiff"], 1), (["combine=gru"], 1), (["combine=dual"], 0), (["perturb=sam"], 1),
     (["perturb=smooth"], 2), (["perturb=lat"], 0), (["combine=munba", "perturb=smooth"], 2),
     (["combine=gru", "perturb=smooth"], 3)],
    ids=str,
)  # fmt: skip
def test_gradient_sized_buffers_are_counted(options: list[str], count: int):
    def peak(*more: str) -> Any:
        planner = Planner(compose(["plan=true", "model=smollm2_135m", "optim=adamw", *more]))
        return planner.needs(planner.how)[-1].bytes

    found = peak(*options)
    assert found.buffers == count * found.gradients
    assert ("combination, perturbation" in outlook(compose(["plan=true", *options]))) is (count > 0)


EXPERIMENTS = [
    ("one_gpu", "a100_80g"), ("four_gpus", "a100_80g"), ("eight_gpus", "a100_80g"), ("lora", "rtx4090_24g"),
    ("qlora", "rtx4090_24g"),
]  # fmt: skip


@pytest.mark.parametrize(("experiment", "gpu"), EXPERIMENTS)
def test_experiment_fits_where_it_says_and_needs_what_adamw_needs(experiment: str, gpu: str):
    soul, adamw = (
        planner.needs(planner.how)
        for optim in ("soul", "adamw")
        if (planner := Planner(compose([f"experiment=llama2_7b/{experiment}", f"optim={optim}", "plan=true"])))
    )
    assert len(soul) == 3
    assert fits(soul, gpus()[gpu])
    assert (soul[-1].bytes.peak, soul[-1].bytes.host) == (adamw[-1].bytes.peak, adamw[-1].bytes.host)


def test_plan_of_7b_without_hub(monkeypatch: pytest.MonkeyPatch):
    """By hand: 2 bytes a weight and a gradient, 4 its master, 8 AdamW's or SOUL's states."""

    def refuse(*args: Any) -> None:
        raise AssertionError("the plan opens a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    text = outlook(compose(["plan=true", "model=llama2_7b_chat", "gpu=a100_80g"]))
    rows = {line[:28].strip(): line[28:].split() for line in text.splitlines()}
    p = 6_738_415_616 / 1e9
    for name, size in (
        ("weights", 2), ("gradients", 2), ("master weights", 4), ("optimizer states", 8)
    ):  # fmt: skip
        assert [float(v) for v in rows[name]] == pytest.approx([size * p] * 3, abs=0.01)
    assert [float(v) for v in rows["a checkpoint"]] == pytest.approx([12 * p] * 3, abs=0.01)
    assert [float(v) for v in rows["at most in training"]] == pytest.approx([26 * p] * 3, abs=0.01)
    assert "6,738.4M parameters" in text
    verdict, *ways = text.splitlines()[text.splitlines().index("It would fit with") - 1 :]
    assert verdict.startswith("a100_80g     does not fit: ")
    assert "  activation_checkpointing=true offload=true" in ways
    assert "  activation_checkpointing=true parallel=fsdp gpus=2" in ways
    assert any("'train.lora={r: 8, alpha: 32, load_in_4bit: false}'" in way for way in ways)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["gpu=abacus"], ["gpu=abacus", "a100_80g"]),
        (["model=hub", "model.path=nobody/nothing"], ["asks no hub", "nobody/nothing", "model.architecture"]),
        (["gpus=0"], ["gpus=0", "1 or more"]),
        (["method=rmu", "method.layer=7"], ["method.layer=7 (rmu)", "layers 0 to 3"]),
        (["plan=yes"], ["plan", "true or false"]),
    ],
)
def test_mistakes_are_named(overrides: list[str], words: list[str]):
    with pytest.raises(UserError) as error:
        outlook(compose(["plan=true", *overrides]))
    assert all(w in str(error.value) for w in words), str(error.value)
