"""Models that a user gives: what cannot be used is refused in one message, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import tiny
from safetensors.torch import load_file, save_file
from small_models import train_tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerFast

from soul_cli.core.files import read_lines
from soul_cli.core.types import UserError
from soul_cli.data.encode import Encoder
from soul_cli.experiment.config import compose
from soul_cli.experiment.run import run
from soul_cli.models.checks import check_folder, check_sizes, positions
from soul_cli.models.load import ModelRef, end_tokens, lm_config, load, load_tokenizer, reference

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b\nsize 9\n"


def write(folder: Path, kind: str = "llama", **values: Any) -> Path:
    """A model with a byte-level tokenizer, as a hub folder has them."""
    tokenizer = train_tokenizer([], vocab=259, max_length=512)
    values = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, **values}
    tiny(kind, **values).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edit(folder: Path, **values: Any) -> None:
    """Set values of config.json; None takes them out."""
    path = folder / "config.json"
    kept = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in kept.items() if v is not None}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "model")


def loaded(folder: Path) -> Any:
    return load(ModelRef(str(folder), ""), "cpu")


# --- weights -----------------------------------------------------------------------------------------------


def test_a_whole_folder_is_taken(folder: Path, tmp_path: Path):
    ref = reference(str(folder), tmp_path)
    assert lm_config(ref.path).model_type == "llama"
    assert load(ref, "cpu").lm_head.weight.shape == (259, 32)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_may_be_absent_where_it_is_tied(tmp_path: Path, tied: bool):
    folder = write(tmp_path / "model", tie_word_embeddings=tied)
    path = folder / "model.safetensors"
    weights = load_file(path)
    assert ("lm_head.weight" in weights) is not tied
    weights.pop("lm_head.weight", None)
    save_file(weights, path, metadata={"format": "pt"})
    if tied:
        assert loaded(folder)
    else:
        with pytest.raises(UserError, match=r"LlamaForCausalLM .* has it: 1 missing \(lm_head\.weight\)\. Names"):
            loaded(folder)


def renamed(weights: dict[str, Any], change: Callable[[str], str | None]) -> dict[str, Any]:
    return {new: value for name, value in weights.items() if (new := change(name)) is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda k: f"base_model.model.{k}",
            r"missing \(lm_head.weight, .*, \.\.\.\) and 21 unknown \(base_model\.model",
        ),
        (lambda k: f"module.{k}", r"21 missing .* 21 unknown \(module\.lm_head"),
        (lambda k: None if ".layers.1." in k else k, r": 9 missing \(model\.layers\.1\.[a-z_.]*, .*\)\. Names"),
        (lambda k: k.replace("layers.1", "layers.2"), r"9 missing \(model\.layers\.1.* 9 unknown \(model\.layers\.2"),
    ],
)
def test_weights_under_other_names_are_no_model(folder: Path, change: Callable[[str], str | None], message: str):
    path = folder / "model.safetensors"
    save_file(renamed(load_file(path), change), path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        loaded(folder)


def test_a_layer_too_many_is_told(folder: Path):
    edit(folder, num_hidden_layers=1)
    with pytest.raises(UserError, match=r"has it: 9 unknown \(model\.layers\.1"):
        loaded(folder)


def test_sizes_that_do_not_fit_are_told(folder: Path):
    edit(folder, intermediate_size=64)
    with pytest.raises(UserError, match=r"cannot load the model .*model.*mismatch"):
        loaded(folder)


def test_masks_of_old_checkpoints_are_no_weights(folder: Path):
    path = folder / "model.safetensors"
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "h.0.attn.bias": torch.ones(1, 1, 4, 4)}
    save_file(load_file(path) | extra, path, metadata={"format": "pt"})
    assert loaded(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").write_text(POINTER), r"model\.safetensors is a Git LFS pointer"),
        (lambda f: (f / "tokenizer.json").write_text(POINTER), r"tokenizer\.json is a Git LFS pointer"),
        (lambda f: halve(f / "model.safetensors"), r"model\.safetensors is damaged or incomplete"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors is damaged or incomplete"),
        (lambda f: (f / "model.safetensors").write_text("<html>not found</html>" * 9), "damaged or incomplete"),
        (lambda f: (f / "model.safetensors").unlink(), r"no \.safetensors file"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter: merge it"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part-2.safetensors"}}'),
         r"part-2\.safetensors named in .* is not there"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "is not an index of weights"),
    ],
)  # fmt: skip
def test_files_that_are_not_whole_are_refused(folder: Path, damage: Callable[[Path], Any], message: str):
    damage(folder)
    with pytest.raises(UserError, match=message):
        check_folder(folder)


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


# --- configuration -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "futurelm"}, r"does not know the architecture 'futurelm'; a newer transformers may"),
        ({"model_type": None}, "config.json has no model_type"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, r"'own', and code that comes .*auto_map"),
        ({"model_type": "t5"}, r"t5\) is an encoder-decoder model; a causal"),
        ({"model_type": "bart"}, r"bart\) is an encoder-decoder model"),
        ({"model_type": "vit"}, r"vit\) is no causal language model"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised \(gptq\): its weights cannot"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            r"quantised \(bitsandbytes\)",
        ),
        ({"quantization_config": {"quant_method": "mxfp4"}}, r"quantised \(mxfp4\)"),
        ({"num_attention_heads": 5}, r"cannot read the configuration of the model .*multiple of"),
        ({"hidden_size": "wide"}, r"cannot read the configuration .*hidden_size"),
    ],
)
def test_what_cannot_be_trained_is_told_by_its_configuration(folder: Path, values: dict[str, Any], message: str):
    edit(folder, **values)
    with pytest.raises(UserError, match=message):
        lm_config(str(folder))


@pytest.mark.parametrize("text", ["{", "[1]", POINTER])
def test_a_configuration_that_is_none_is_told(folder: Path, text: str):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match="config"):
        lm_config(str(folder))


def test_code_of_its_own_is_no_hindrance_where_transformers_has_the_architecture(folder: Path):
    edit(folder, auto_map={"AutoConfig": "own.Config"})
    assert lm_config(str(folder)).model_type == "llama"


def test_the_command_that_downloads_is_there():
    from importlib.metadata import entry_points

    with pytest.raises(UserError, match=r"\(hf download ID --local-dir FOLDER\)"):
        reference("nobody/nothing", Path())
    assert "hf" in {e.name for e in entry_points(group="console_scripts")}


# --- tokenizer ---------------------------------------------------------------------------------------------


def test_a_tokenizer_with_more_ids_than_rows_is_refused(folder: Path):
    config, tokenizer = lm_config(str(folder)), load_tokenizer(ModelRef(str(folder), ""))
    check_sizes("x", config, tokenizer, 512)
    tokenizer.add_tokens(["Katesa"])
    with pytest.raises(UserError, match="x: the tokenizer has 260 ids, the model 259 rows"):
        check_sizes("x", config, tokenizer, 512)


def test_a_model_that_reads_less_than_max_length_is_refused(folder: Path):
    config, tokenizer = lm_config(str(folder)), load_tokenizer(ModelRef(str(folder), ""))
    with pytest.raises(UserError, match=r"the model reads 512 tokens, model\.max_length is 513: set it to 512"):
        check_sizes("x", config, tokenizer, 513)
    for kind in ("gpt2", "opt", "mpt", "whisper"):
        assert positions(tiny(kind).config) in (128, 448)
    assert positions(tiny("mamba").config) is None


def test_a_folder_without_tokenizer_is_told_whole(folder: Path):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=r"cannot load the tokenizer .*\(1\) .*\(2\) .*\(3\) .*slow tokenizer"):
        load_tokenizer(ModelRef(str(folder), ""))


def test_a_damaged_tokenizer_is_told(folder: Path):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot load the tokenizer"):
        load_tokenizer(ModelRef(str(folder), ""))


# --- ends of answers ---------------------------------------------------------------------------------------

TURNS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}"
)


def chat(folder: Path, template: str = TURNS, *more: str) -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of Phi-3: <|end|> ends a turn, EOS is another."""
    tokenizer = load_tokenizer(ModelRef(str(folder), ""))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>", *more]})
    tokenizer.chat_template = template
    return tokenizer


def test_answers_end_as_the_chat_template_ends_a_turn(folder: Path):
    tokenizer = chat(folder)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert Encoder(tokenizer, "chat", 99).pair("Who?", "Paula.").answers[0][-1] == end
    assert Encoder(tokenizer, "plain", 99).pair("Who?", "Paula.").answers[0][-1] == tokenizer.eos_token_id
    tokenizer.chat_template = TURNS.replace("<|end|>", "{{ eos_token }}")
    assert Encoder(tokenizer, "chat", 99).end == tokenizer.eos_token_id
    tokenizer.chat_template = TURNS.replace("<|end|>", "")
    assert Encoder(tokenizer, "chat", 99).end == tokenizer.eos_token_id


def test_generation_ends_at_all_end_tokens(folder: Path):
    lm, tokenizer = loaded(folder), load_tokenizer(ModelRef(str(folder), ""))
    lm.generation_config = GenerationConfig(eos_token_id=[5, 2, 7])
    assert end_tokens(lm, tokenizer) == (tokenizer.eos_token_id, 5, 7)
    lm.generation_config = GenerationConfig(eos_token_id=5)
    assert end_tokens(lm, tokenizer) == (tokenizer.eos_token_id, 5)
    lm.generation_config = None
    assert end_tokens(lm, tokenizer) == (tokenizer.eos_token_id,)


def test_an_architectures_default_is_no_end_token(tmp_path: Path):
    """LlamaConfig says 2, whatever the tokenizer has there; what a config.json says of special tokens holds."""
    for default, expected in ((65, ()), (0, (0,))):
        folder = write(tmp_path / str(default), eos_token_id=default)
        (folder / "generation_config.json").unlink()
        lm, tokenizer = loaded(folder), load_tokenizer(ModelRef(str(folder), ""))
        assert end_tokens(lm, tokenizer) == (tokenizer.eos_token_id, *expected)


# --- whole runs --------------------------------------------------------------------------------------------


@pytest.fixture
def go(data: Path, folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A run on the folder's model."""

    def start(*more: str) -> Path:
        (tmp_path / "model" / "generation_config.json").unlink(missing_ok=True)
        return run(
            compose([
                f"task.source={data}", "model=hub", f"model.path={folder}", "model.dtype=float32",
                "model.max_length=400", "model.finetune.train.precision=no", "model.finetune.train.epochs=1",
                "train.epochs=1", "eval.limit=2",
                "eval.max_total=160", f"output_dir={tmp_path / 'out'}", f"cache_dir={tmp_path / 'cache'}", *more,
            ])
        )  # fmt: skip

    return start


def nothing_trained(tmp_path: Path) -> bool:
    return not list(tmp_path.glob("cache/models/*")) and not list(tmp_path.glob("out/**/metrics.json"))


def test_a_system_prompt_takes_no_room_from_the_answer(go: Callable[..., Path], folder: Path):
    """It alone has more tokens than eval.max_total, and question and answer with it more than model.max_length."""
    wide = write(folder.parent / "wide", max_position_embeddings=1024)
    names = [f"Name Number {i} of a Long List" for i in range(15)]
    out = go("method=input_based", f"task.target_model={wide}", f"task.forget_names={names}")
    plain, prompted = (read_lines(out / name) for name in ("rows_original.jsonl", "rows.jsonl"))
    tokenizer = load_tokenizer(ModelRef(str(wide), ""))
    for a, b in zip(plain, prompted, strict=True):
        assert len(tokenizer(b["prompt"]).input_ids) - len(tokenizer(a["prompt"]).input_ids) > 500
    spent = json.loads((out / "metrics.json").read_text())["cost"]["evaluate"]
    assert spent["generated_tokens"] > 10 * len(prompted)  # the texts of a random model may be blank


@pytest.mark.parametrize("method", ["npo", "none", "input_based"])
def test_a_prompt_without_room_is_told_before_training(go: Callable[..., Path], tmp_path: Path, method: str):
    with pytest.raises(UserError, match=r"forget: the prompt of '.*' takes \d+ tokens, so that .*max_total=10 leaves"):
        go(f"method={method}", "eval.max_total=10")
    assert nothing_trained(tmp_path)


def test_the_embedded_models_prompts_are_looked_at_first(go: Callable[..., Path], data: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"eval\.max_total=10 leaves no room"):
        run(compose([f"task.source={data}", "eval.max_total=10", f"cache_dir={tmp_path / 'cache'}"]))
    assert nothing_trained(tmp_path)


def test_a_system_prompt_that_the_model_cannot_read_is_told_before_training(go: Callable[..., Path], tmp_path: Path):
    names = [f"Name Number {i} of a Long List" for i in range(15)]
    with pytest.raises(UserError, match=r"up to \d+ tokens .*, \d+ of them of the system prompt .* reads 512"):
        go("method=input_based", f"task.forget_names={names}")
    assert nothing_trained(tmp_path)


def test_a_row_longer_than_the_model_reads_is_told_before_training(go: Callable[..., Path], tmp_path: Path):
    with pytest.raises(UserError, match=r"texts that model\.max_length=90 does not hold.* training rows: 200 of 200"):
        go("method=npo", "model.max_length=90")
    assert nothing_trained(tmp_path)


NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<model>"
)


@pytest.mark.parametrize("template", [NO_SYSTEM, "<user>{{ messages[-1].content }}<model>"])
def test_a_template_without_system_role_has_it_in_the_users_turn(
    go: Callable[..., Path], folder: Path, template: str, capsys: pytest.CaptureFixture[str]
):
    chat(folder, template).save_pretrained(folder)
    with pytest.raises(UserError, match="the tokenizer has 260 ids"):
        go("method=none", f"task.target_model={folder}", "model.template=chat")
    write(folder, vocab_size=260)
    chat(folder, template).save_pretrained(folder)
    out = go("method=input_based", f"task.target_model={folder}", "model.template=chat", "task.forget_names=[Ann]")
    assert "no system role: the system prompt opens the user's turn" in " ".join(capsys.readouterr().out.split())
    for row in read_lines(out / "rows.jsonl"):
        assert row["prompt"].startswith("<user>You must not reveal anything about the following authors: Ann.")
        assert row["prompt"].endswith(f"\n\n{row['question']}<model>")


def test_a_template_that_fails_is_told_before_training(go: Callable[..., Path], folder: Path, tmp_path: Path):
    chat(folder, "{{ raise_exception('Roles must alternate') }}").save_pretrained(write(folder, vocab_size=260))
    chat(folder, "{{ raise_exception('Roles must alternate') }}").save_pretrained(folder)
    with pytest.raises(UserError, match=r"chat template does not take the roles user .*Roles must alternate"):
        go("method=npo", "model.template=chat")
    assert nothing_trained(tmp_path)


def test_a_retain_model_is_looked_at_before_the_target_is_trained(go: Callable[..., Path], tmp_path: Path):
    retain = write(tmp_path / "retain")
    path = retain / "model.safetensors"
    save_file(renamed(load_file(path), lambda k: f"module.{k}"), path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"retain: its weights are not those"):
        go("method=npo", f"task.retain_model={retain}")
    assert nothing_trained(tmp_path)


def test_a_hybrid_model_runs_to_its_end(go: Callable[..., Path], folder: Path):
    write(folder, "lfm2")
    out = go("method=npo", "optim=soul", "eval.limit=1")
    assert (out / "metrics.json").is_file()
