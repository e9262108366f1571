"""Models: references by content, and loading."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from soul_cli.core.files import file_digest
from soul_cli.core.types import UserError


@dataclass(frozen=True)
class ModelRef:
    """Where a model lies (a folder or a hub id) and what it is (a digest of its content)."""

    path: str
    digest: str


READ = (".json", ".safetensors", ".model", ".jinja", ".txt", ".tiktoken")  # of a model folder: weights, tokenizers
HUB_HELP = (
    "Download it once where there is a network (huggingface-cli download ID --local-dir FOLDER) and give the folder "
    "instead of the id; for a gated model accept its licence and set HF_TOKEN."
)


def reference(path: str, cache_dir: Path, revision: str | None = None) -> ModelRef:
    """A model by folder (digest of its files) or hub id (its commit)."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        files = sorted(p for p in folder.iterdir() if p.suffix in READ)
        if not any(p.suffix == ".safetensors" for p in files):
            raise UserError(f"{folder}: no .safetensors file; a model folder as written by save_pretrained is needed")
        return ModelRef(str(folder.resolve()), file_digest(files, cache_dir))
    if path.startswith((".", "/", "~")):
        raise UserError(f"{path}: no such model folder")
    return ModelRef(path, hub_commit(path, revision))


def hub_commit(path: str, revision: str | None = None) -> str:
    """Return the commit of a model on the hub."""
    from huggingface_hub import hf_hub_download

    try:
        config = hf_hub_download(path, "config.json", revision=revision)
    except Exception as error:
        raise UserError(f"cannot get the model {path!r} from the hub ({type(error).__name__}). {HUB_HELP}") from error
    return Path(config).parent.name  # .../snapshots/<commit>/config.json


def load(ref: ModelRef, device: Any, dtype: str = "float32", *, load_in_4bit: bool = False) -> nn.Module:
    """The causal language model of a reference, in eval mode.  Safetensors only, no remote code.

    load_in_4bit: linear layers but the head in NF4 with double quantisation (bitsandbytes), the rest in dtype.
    """
    kind = getattr(torch, dtype)
    options: dict[str, Any] = {} if os.path.isdir(ref.path) else {"revision": ref.digest}
    if load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=kind
        )
        options["device_map"] = {"": device}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            ref.path, dtype=kind, use_safetensors=True, trust_remote_code=False, **options
        )
    except OSError as error:
        raise UserError(f"cannot load the model {ref.path!r}: {str(error).splitlines()[0]} {HUB_HELP}") from error
    return model.to(device).eval()


@dataclass
class Architecture:
    """What a model is built of, in transformers' terms, so that it can be counted where its files are not at hand."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool
    tokens_per_word: float  # of its tokenizer, for plans

    def lm_config(self) -> Any:
        values = {k: v for k, v in vars(self).items() if k not in ("model_type", "tokens_per_word")}
        return AutoConfig.for_model(self.model_type, **values)


def untrained(config: Any, dtype: str) -> Any:
    """A model of a transformers configuration, with random weights."""
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)


def lm_config(path: str) -> Any:
    """The configuration of a model by folder or hub id."""
    return AutoConfig.from_pretrained(path, trust_remote_code=False)


def count_parameters(config: Any) -> int:
    """Parameters of a model, from its configuration alone."""
    with torch.device("meta"):
        model = untrained(config, "float32")
    return sum(p.numel() for p in model.parameters())


def load_tokenizer(ref: ModelRef) -> Any:
    revision = {} if os.path.isdir(ref.path) else {"revision": ref.digest}
    try:
        return AutoTokenizer.from_pretrained(ref.path, trust_remote_code=False, **revision)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the tokenizer of {ref.path!r}: {str(error).splitlines()[0]}") from error


def checkpoint_activations(lm: Any) -> None:
    """Let training keep the input of each transformer block alone and compute what is inside anew in the backward."""
    if not lm.supports_gradient_checkpointing:
        raise UserError(f"activation_checkpointing=true: {type(lm).__name__} does not support it; set it to false")
    # the reentrant kind allows neither a second backward through one forward nor torch.autograd.grad
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # transformers 6 renames it
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast where precision is "bf16", nothing where it is "no"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
