"""Models: references by content, and loading."""

from __future__ import annotations

import gc
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedConfig

from soul_cli.core.files import file_digest
from soul_cli.core.types import UserError
from soul_cli.models.checks import check_causal, check_folder, check_keys, check_values


@dataclass(frozen=True)
class ModelRef:
    """Where a model lies (a folder or a hub id) and what it is (a digest of its content)."""

    path: str
    digest: str

    @property
    def revision(self) -> str:
        """Return the commit of a model of the hub; for a folder what is of no effect."""
        return "main" if os.path.isdir(self.path) else self.digest


READ = (".json", ".safetensors", ".model", ".jinja", ".txt", ".tiktoken")  # of a model folder: weights, tokenizers
HUB_HELP = (
    "Download it once where there is a network (hf download ID --local-dir FOLDER) and give the folder "
    "instead of the id; for a gated model accept its licence and set HF_TOKEN."
)


def reference(path: str, cache_dir: Path, revision: str | None = None) -> ModelRef:
    """Return a model by folder (digest of its files, which must be whole) or hub id (its commit)."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        check_folder(folder)
        files = sorted(p for p in folder.iterdir() if p.suffix in READ)
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
    """Return the causal language model of a reference, in eval mode.  Safetensors only, no remote code.

    load_in_4bit: linear layers but the head in NF4 with double quantisation (bitsandbytes), the rest in dtype.
    UserError: it cannot be read, or its weights are not those of the architecture.
    """
    gc.collect()  # a sharded model is a circle of references: the one before would be in memory beside this one
    kind = getattr(torch, dtype)
    options: dict[str, Any] = {"revision": ref.revision}
    if load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=kind
        )
    if load_in_4bit or torch.device(device).type != "cpu":
        options["device_map"] = {"": device}  # tensor by tensor, with no copy of all in main memory
    load_with_info: Any = AutoModelForCausalLM.from_pretrained  # its type knows no loading information
    try:
        model, info = load_with_info(
            ref.path, dtype=kind, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
    except OSError as error:
        raise UserError(f"cannot load the model {ref.path!r}: {one_line(error)} {HUB_HELP}") from error
    except (ValueError, ImportError, SafetensorError) as error:
        raise UserError(f"cannot load the model {ref.path!r}: {one_line(error)}") from error
    except RuntimeError as error:
        if "mismatch" not in str(error):
            raise
        raise UserError(f"cannot load the model {ref.path!r}: {one_line(error)}") from error
    check_keys(ref.path, model, info)
    return model.eval()


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
        """Return its transformers configuration."""
        values = {k: v for k, v in vars(self).items() if k not in ("model_type", "tokens_per_word")}
        return AutoConfig.for_model(self.model_type, **values)


def tokens_per_word(known: Architecture | None) -> float:
    """Return how many tokens a model's tokenizer makes of a word, roughly."""
    return known.tokens_per_word if known else 1.5


def untrained(config: Any, dtype: str) -> Any:
    """Return a model of a transformers configuration, with random weights."""
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)


def lm_config(path: str, revision: str = "main") -> Any:
    """Return the configuration of a causal language model by folder or hub id.

    UserError: there is none, or transformers cannot make a model of it that can be trained.
    """
    folder = Path(path).expanduser()
    path = str(folder) if folder.is_dir() else path
    try:
        values, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
        check_values(path, values)
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, revision=revision)
    except OSError as error:
        raise UserError(f"cannot read the configuration of the model {path!r}: {one_line(error)} {HUB_HELP}") from error
    except UserError:
        raise
    except Exception as error:  # configurations check themselves, each in its way
        raise UserError(f"cannot read the configuration of the model {path!r}: {one_line(error)}") from error
    check_causal(path, config)
    return config


def count_parameters(config: Any) -> int:
    """Return the parameters of a model, from its configuration alone."""
    with torch.device("meta"):
        model = untrained(config, "float32")
    return sum(p.numel() for p in model.parameters())


def load_tokenizer(ref: ModelRef) -> Any:
    """Return the tokenizer of a model."""
    try:
        return AutoTokenizer.from_pretrained(ref.path, trust_remote_code=False, revision=ref.revision)
    except Exception as error:  # OSError, ValueError, and plain Exception where tokenizer.json is damaged
        raise UserError(f"cannot load the tokenizer of {ref.path!r}: {one_line(error)}") from error


def end_tokens(lm: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens at which a model's answers end: the tokenizer's EOS and those of its generation_config.

    Where that was not given but made of config.json, ids that are no special tokens are left out: an architecture's
    default may be any word of this tokenizer.
    """
    named = lm.generation_config.eos_token_id if lm.generation_config is not None else None
    ids = [] if named is None else [named] if isinstance(named, int) else list(named)
    if getattr(lm.generation_config, "_from_model_config", False):
        ids = [i for i in ids if i in tokenizer.added_tokens_decoder]
    return tuple(dict.fromkeys(i for i in (tokenizer.eos_token_id, *ids) if i is not None))


def one_line(error: BaseException) -> str:
    """Return an error's text in one line."""
    return " ".join(str(error).split())


def checkpoint_activations(lm: Any) -> None:
    """Let training keep the input of each transformer block alone and compute what is inside anew in the backward."""
    if not lm.supports_gradient_checkpointing:
        raise UserError(f"activation_checkpointing=true: {type(lm).__name__} does not support it; set it to false")
    # the reentrant kind allows neither a second backward through one forward nor torch.autograd.grad
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # transformers 6 renames it
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return bf16 autocast where precision is "bf16", nothing where it is "no"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
