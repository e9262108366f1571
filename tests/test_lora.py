"""Low-rank adapters: only they are trained, and merging changes nothing but the form."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from term_rows import rows_for

from soul_cli.core.cache import Cache
from soul_cli.core.screen import bar
from soul_cli.core.types import QA, Prompted, UserError
from soul_cli.data.rows import NO_ROWS, Rows
from soul_cli.experiment.config import compose
from soul_cli.experiment.context import Context
from soul_cli.experiment.models import train
from soul_cli.experiment.unlearning import unlearning_data
from soul_cli.models import load as models
from soul_cli.models.adapters import LoRA
from soul_cli.models.load import ModelRef
from soul_cli.objective.methods import finetuning
from soul_cli.objective.term import Kinds
from soul_cli.optim.sophia import Soul
from soul_cli.tasks.base import TaskData
from soul_cli.train.checkpoint import stored
from soul_cli.train.loop import TrainData, Trainer

ROWS = [Prompted((5, 6, 7), ((8, 9, 2),)), Prompted((10, 11), ((12, 13, 14, 2),))]


def test_only_adapters_train_and_merging_keeps_the_function(tiny_lm: Callable[..., Any], tmp_path: Path):
    plain, lm = tiny_lm(torch.float64), tiny_lm(torch.float64)
    adapters = LoRA(r=2, alpha=6, load_in_4bit=False).attach(lm, seed=0)
    trained = {n for n, p in lm.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in n for n in trained)
    assert not any("lm_head" in n or "embed" in n for n in trained)
    config = compose(["optim=adamw", "optim.lr=0.01", "train.epochs=3", "train.warmup=0"])
    data = TrainData(forget=None, retain=Rows({"answer": ROWS}))
    Trainer(lm, data, finetuning(), config.optim, config.train, 0, Accelerator()).train(tmp_path, lambda *a: None)

    weight = plain.model.layers[0].self_attn.q_proj.weight
    layer = lm.model.layers[0].self_attn.q_proj
    assert torch.equal(layer.base_layer.weight, weight)
    product = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double() * 6 / 2
    assert product.abs().max() > 1e-4
    ids = torch.tensor([[5, 6, 7, 8]])
    before = lm(input_ids=ids).logits
    merged = adapters.merge_and_unload()
    torch.testing.assert_close(merged.model.layers[0].self_attn.q_proj.weight, weight + product, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(merged(input_ids=ids).logits, before, rtol=1e-5, atol=1e-6)
    assert {n for n, _ in merged.named_parameters()} == {n for n, _ in plain.named_parameters()}


@pytest.mark.parametrize(
    "overrides", [["method=rmu", "method.layer=0"], ["method=dpo"], ["method=undial"]], ids="".join
)
def test_adapters_train_whatever_a_term_needs(tiny_lm: Callable[..., Any], tmp_path: Path, overrides: list[str]):
    """Behind the block where a forward ends, none does."""
    config = compose([*overrides, "optim=soul", "optim.hessian_every=1", "train.epochs=1", "train.batch_size=2"])
    lm, solved = tiny_lm(torch.float64), config.problem
    assert solved is not None
    LoRA(r=2, alpha=6, load_in_4bit=False).attach(lm, seed=0)
    before = {n: p.detach().clone() for n, p in lm.named_parameters()}
    rows = {kind: rows_for(term, ROWS, 32) for kind, term in solved.terms.items()}
    data = TrainData(lambda epoch: rows[Kinds.forget], rows.get(Kinds.retain, NO_ROWS))
    Trainer(lm, data, solved, config.optim, config.train, 0, Accelerator()).train(tmp_path, lambda *a: None)
    moved = {n for n, p in lm.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all("lora_" in n for n in moved)
    assert any("layers.1" in n for n in moved) is not (overrides[0] == "method=rmu")


def test_rank_is_checked():
    with pytest.raises(UserError, match=r"lora\.r=0"):
        compose(["train.lora={r: 0, alpha: 1, load_in_4bit: false}"])


def test_adapters_beside_4_bit_weights_are_merged_into_whole_ones(tiny_lm: Callable[..., Any], tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    tiny_lm(spread=0.2).save_pretrained(tmp_path / "lm")
    ref = ModelRef(str(tmp_path / "lm"), "")
    lm, lora = models.load(ref, "cpu", load_in_4bit=True), LoRA(r=2, alpha=6, load_in_4bit=True)
    assert type(lm.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    assert sum(map(stored, lm.parameters())) == sum(4 * p.numel() for p in models.load(ref, "cpu").parameters())
    adapters = lora.attach(lm, seed=0)
    config = compose(["optim=soul", "optim.lr=0.01", "train.epochs=3", "train.warmup=0"])
    data = TrainData(forget=None, retain=Rows({"answer": ROWS}))
    trainer = Trainer(lm, data, finetuning(), config.optim, config.train, 0, Accelerator())
    losses = [r["loss_retain"] for r in trainer.train(tmp_path, lambda *a: None)]
    assert losses[-1] < losses[0]
    weight = models.load(ref, "cpu").model.layers[0].self_attn.q_proj.weight
    layer = lm.model.layers[0].self_attn.q_proj
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 6 / 2
    merged = lora.merge(adapters, lambda: models.load(ref, "cpu"))
    torch.testing.assert_close(merged.model.layers[0].self_attn.q_proj.weight, weight + product)


def test_the_reference_beside_4_bit_weights_is_the_model_that_is_trained(
    tiny_lm: Callable[..., Any], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of weights rounded to eighths, in the place of NF4: NPO begins where model and reference agree.

    The reference is asked, and gone, before the model to train is loaded.
    """
    tiny_lm(spread=0.2, vocab=len(tokenizer)).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    whole, there, alive = models.load, [], []

    def rounded(ref: ModelRef, device: Any, dtype: str = "float32", *, load_in_4bit: bool = False) -> Any:
        lm = whole(ref, device, dtype)
        if load_in_4bit:
            alive.append(sum(one() is not None for one in there))
            there.append(weakref.ref(lm))
            for layer in lm.model.layers:
                for p in layer.parameters():
                    p.data = (8 * p.data).round() / 8
        return lm

    monkeypatch.setattr(models, "load", rounded)
    monkeypatch.setattr(LoRA, "check", lambda self: None)
    lora = "train.lora={r: 2, alpha: 6, load_in_4bit: true}"
    shape = ["model=hub", f"model.path={tmp_path / 'lm'}", "model.dtype=float32", "task.template=plain"]
    config = compose([
        *shape, lora, f"cache_dir={tmp_path / 'cache'}", "optim=adamw", "method=npo", "method.beta=0.5",
        "method.normalize=mean", "train.epochs=1", "train.precision=no",
    ])  # fmt: skip
    items = [QA("Who wrote The Lamp?", "Ann."), QA("Where?", "In Pécs.")]
    data = TaskData(items, items, items, [], "", {}, [], "")
    context = Context(config, data, Cache(config.cache, print), Accelerator(cpu=True))
    ref = context.given(str(tmp_path / "lm"))
    learns = unlearning_data(context, ref)
    assert config.problem is not None
    with bar("unlearning") as progress:
        _, (first,) = train(
            context, ref, learns, config.problem, config.optim, config.train, 0, tmp_path / "work", progress
        )
    assert first["loss_forget"] == pytest.approx(4 * math.log(2), rel=1e-5)
    assert alive == [0, 0]


def test_soul_finds_the_curvature_of_both_factors(
    tiny_lm: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """B is 0 at first, and with it A's first estimate.  A starts at its second one, whole."""
    lm = tiny_lm(torch.float64, spread=0.2)
    LoRA(r=4, alpha=8, load_in_4bit=False).attach(lm, seed=0)
    firsts = [p for n, p in lm.named_parameters() if "lora_A" in n]
    given: list[dict[Any, torch.Tensor]] = []
    update = Soul.update_hessian

    def watched(self: Soul, estimates: Iterable[tuple[Any, torch.Tensor]]) -> None:
        given.append(dict(estimates))
        update(self, given[-1].items())

    monkeypatch.setattr(Soul, "update_hessian", watched)
    config = compose(["optim=soul", "optim.lr=1e-3", "optim.hessian_every=1", "train.epochs=2", "train.warmup=0"])
    data = TrainData(forget=None, retain=Rows({"answer": ROWS}))
    trainer = Trainer(lm, data, finetuning(), config.optim, config.train, 0, Accelerator(cpu=True))
    trainer.train(tmp_path, lambda *a: None)
    first, second = given
    for p in firsts:
        assert not first[p].any()
        assert second[p].any()
        assert torch.equal(trainer.phases[0].optimizer.state[p]["h"], second[p].to(p.dtype))
