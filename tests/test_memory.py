"""What saves memory in training: master weights, activation checkpointing, offload.  Adapters: test_lora."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import ADAMW, APART, CPU, FORGET, GRADDIFF, RELEASED, RETAIN, answered, config, silent, soul, weights
from torch import Tensor, nn

from soul_cli.core.types import UserError
from soul_cli.experiment.config import compose
from soul_cli.objective.methods import Problem
from soul_cli.optim.build import Optim
from soul_cli.optim.master import Masters
from soul_cli.train.loop import TrainData, Trainer

MakeLM = Callable[..., Any]
OPTIMS: dict[str, tuple[Optim, Problem]] = {
    "adamw": (ADAMW, GRADDIFF),
    "soul": (soul(every=1), GRADDIFF),
    "soul, alternating": (soul(every=2), APART),
    "soul_released": (RELEASED, GRADDIFF),
}


def trainer(
    lm: Any, case: tuple[Optim, Problem], *, master_weights: bool = True, stop: int = 0, **options: bool
) -> Trainer:
    settings = config(master_weights=master_weights, warmup=0.0)
    data = TrainData(lambda epoch: answered(FORGET), answered(RETAIN))
    optim, solved = case
    return Trainer(lm, data, solved, optim, settings, 3, CPU, **options)


def trained(lm: Any, work: Path, case: tuple[Optim, Problem], **options: bool) -> tuple[list[dict[str, Any]], Tensor]:
    records = trainer(lm, case, **options).train(work, silent)
    return [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in records], weights(lm)


# --- options that change where and when, not what ----------------------------------------------------------


@pytest.mark.parametrize("option", ["activation_checkpointing", "offload"])
@pytest.mark.parametrize("name", OPTIMS)
def test_option_changes_no_number(tiny_lm: MakeLM, tmp_path: Path, name: str, option: str):
    plain = trained(tiny_lm(torch.float64), tmp_path / "plain", OPTIMS[name])
    other = trained(tiny_lm(torch.float64), tmp_path / "other", OPTIMS[name], **{option: True})
    assert other[0] == [pytest.approx(r, rel=1e-8, abs=1e-8) for r in plain[0]]
    torch.testing.assert_close(other[1], plain[1], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["adamw", "soul"])
def test_checkpointed_blocks_are_computed_again(tiny_lm: MakeLM, tmp_path: Path, name: str):
    calls = []
    for checkpointing in (False, True):
        lm, seen = tiny_lm(), []
        lm.model.layers[0].mlp.register_forward_pre_hook(lambda *a, seen=seen: seen.append(1))
        trained(lm, tmp_path / str(checkpointing), OPTIMS[name], activation_checkpointing=checkpointing)
        calls.append(len(seen))
    assert calls[1] == 2 * calls[0]


def test_model_without_checkpointing_is_named(tiny_lm: MakeLM):
    lm = tiny_lm()
    lm.supports_gradient_checkpointing = False
    with pytest.raises(UserError, match="activation_checkpointing=true: LlamaForCausalLM"):
        trainer(lm, OPTIMS["adamw"], activation_checkpointing=True)


# --- master weights ----------------------------------------------------------------------------------------


def test_masters_by_hand():
    """256 steps of 2^-11 from 1: each is half of what bfloat16 resolves there, together they are 1/8."""
    for wide, expected in ((True, 1.125), (False, 1.0)):
        p = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
        masters = Masters([p], wide=wide, offload=False)
        (group,) = masters.groups([{"params": [p], "weight_decay": 0.0}])
        optimizer = torch.optim.SGD([group], lr=2.0**-11)
        for _ in range(256):
            p.grad = torch.full_like(p, -1.0)
            masters.take_gradients()
            optimizer.step()
            optimizer.zero_grad()
            masters.give_weights()
        assert (p.dtype, p.item(), p.grad) == (torch.bfloat16, expected, None)


def test_only_bfloat16_has_masters():
    params = [nn.Parameter(torch.ones(2, dtype=d)) for d in (torch.float32, torch.float64, torch.bfloat16)]
    masters = Masters(params, wide=True, offload=False).weights
    assert [m is p for m, p in zip(masters, params, strict=True)] == [True, True, False]
    assert masters[2].dtype == torch.float32
    assert all(a is b for a, b in zip(Masters(params, wide=False, offload=False).weights, params, strict=True))


@pytest.mark.parametrize("name", ["adamw", "soul", "soul_released"])
def test_small_steps_on_bfloat16_weights_add_up(tiny_lm: MakeLM, tmp_path: Path, name: str):
    """At lr 1e-6 no weight of size 1e-2 moves in bfloat16.  Its master goes as far as a float32 weight does."""
    optim, solved = OPTIMS[name]
    far = {}
    for kind in ("float32", "masters", "bfloat16"):
        lm = tiny_lm(torch.float32 if kind == "float32" else torch.bfloat16)
        run = trainer(lm, (replace(optim, lr=1e-6), solved), master_weights=kind == "masters")
        begun = [p.detach().double() for p in run.params]
        run.train(tmp_path / kind, silent)
        states = run.phases[0].optimizer.state.values()
        kinds = {v.dtype for s in states for v in s.values() if isinstance(v, Tensor) and v.ndim}
        assert kinds == {torch.bfloat16 if kind == "bfloat16" else torch.float32}
        moved = [w.detach().double() - s for w, s in zip(run.masters.weights, begun, strict=True)]
        far[kind] = float(torch.cat([m.flatten() for m in moved]).norm())
    assert far["masters"] == pytest.approx(far["float32"], rel=0.1)
    assert far["bfloat16"] < 0.5 * far["float32"]


@pytest.mark.parametrize("name", ["adamw", "soul, alternating"])
def test_run_with_masters_goes_on_where_it_stopped(tiny_lm: MakeLM, tmp_path: Path, name: str):
    """Bit for bit: the checkpoint holds the masters, not what they were rounded to."""
    whole = tiny_lm(torch.bfloat16)
    records = trainer(whole, OPTIMS[name]).train(tmp_path / "whole", silent)

    def stop(done: int, total: int, record: dict[str, float]) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tiny_lm(torch.bfloat16), OPTIMS[name]).train(tmp_path / "parts", stop)
    again = tiny_lm(torch.bfloat16)
    resumed = trainer(again, OPTIMS[name]).train(tmp_path / "parts", silent)
    assert [r.get("displacement") for r in resumed] == [r.get("displacement") for r in records]
    assert records[-1]["displacement"] > 0
    assert torch.equal(weights(again), weights(whole))


# --- configuration -----------------------------------------------------------------------------------------


def test_what_changes_numbers_is_part_of_the_identity():
    same = compose(["activation_checkpointing=true", "offload=true", "parallel=fsdp"]).identity()
    assert same == compose([]).identity()
    for option in ("train.master_weights=false", "train.lora={r: 2, alpha: 4, load_in_4bit: false}"):
        assert compose([option]).identity() != compose([]).identity()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["parallel=fsdp", "train.lora={r: 2, alpha: 4, load_in_4bit: false}"], ["parallel=ddp", "train.lora"]),
        (
            ["model=llama2_7b", "parallel=fsdp", "model.finetune.train.lora={r: 2, alpha: 4, load_in_4bit: false}"],
            ["parallel=ddp", "model.finetune.train.lora"],
        ),
        (["offload=1"], ["offload", "true or false"]),
        (["train.lora={r: 2}"], ["lora", "alpha"]),
    ],
)
def test_what_does_not_go_together_is_named(overrides: list[str], words: list[str]):
    with pytest.raises(UserError) as error:
        compose(overrides)
    assert all(w in str(error.value) for w in words), str(error.value)
