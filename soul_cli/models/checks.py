"""What can be said of a model before its weights are read: are its files whole, and can it be trained here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, __version__
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from soul_cli.core.types import UserError

POINTER = b"version https://git-lfs"
# what old checkpoints hold beside weights: masks and tables that models make themselves
NO_WEIGHTS = re.compile(r"(^|\.)((attn|attention)\.(masked_)?bias|rotary_emb\.inv_freq|position_ids)$")


def check_folder(folder: Path) -> None:
    """Refuse a folder without weights in safetensors, or with files that are not whole."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds an adapter: merge it into its model (merge_and_unload) and give that folder")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{folder}: no .safetensors file; a model folder as written by save_pretrained is needed")
    for path in [*weights, *folder.glob("*.json"), *folder.glob("*.model")]:
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise UserError(f"{path} is a Git LFS pointer, not the file itself: download it ('git lfs pull')")
    for path in weights:
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise UserError(f"{path} is damaged or incomplete ({error}): download it again") from error
    for path in folder.glob("*.safetensors.index.json"):
        try:
            parts = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not an index of weights ({error!r}): download it again") from error
        if absent := sorted(parts - {p.name for p in weights}):
            raise UserError(f"{folder}: {', '.join(absent)} named in {path.name} is not there: download it")


def check_values(path: str, values: dict[str, Any]) -> None:
    """Refuse a config.json, given as its values, of an architecture that transformers has not or that is quantised."""
    kind = values.get("model_type")
    if kind not in CONFIG_MAPPING:
        known = f"transformers {__version__} does not know the architecture {kind!r}"
        if "auto_map" in values:
            raise UserError(f"{path}: {known}, and code that comes with a model (auto_map) is not run here")
        if kind is None:
            raise UserError(f"{path}: config.json has no model_type, so that its architecture is unknown")
        raise UserError(f"{path}: {known}; a newer transformers may")
    if quantised := values.get("quantization_config"):
        method = quantised.get("quant_method", "unknown method") if isinstance(quantised, dict) else "unknown method"
        raise UserError(
            f"{path} is quantised ({method}): its weights cannot be trained. Take the model it was made from; "
            "train.lora={r: 8, alpha: 32, load_in_4bit: true} trains with few bits"
        )


def check_causal(path: str, config: Any) -> None:
    """Refuse a configuration of which transformers makes no causal language model."""
    if config.is_encoder_decoder:
        raise UserError(f"{path} ({config.model_type}) is an encoder-decoder model; a causal language model is needed")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{path} ({config.model_type}) is no causal language model, which is needed")


def check_keys(path: str, lm: Any, info: dict[str, Any]) -> None:
    """Refuse weights that are not those of the architecture.  info: as from_pretrained returns it.

    A tied head is not missing.
    """
    unknown = sorted(key for key in info["unexpected_keys"] if not NO_WEIGHTS.search(key))
    missing = sorted(info["missing_keys"])
    if not missing and not unknown:
        return
    parts = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unknown", unknown))
        if keys
    ]
    raise UserError(
        f"{path}: its weights are not those of {type(lm).__name__} as its config.json has it: {' and '.join(parts)}. "
        "Names must be those that save_pretrained of the model itself writes, without a wrapper's prefix"
    )


def positions(config: PreTrainedConfig) -> int | None:
    """Return how many tokens the model reads at most; None: its configuration names no limit."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions", "n_ctx"):
        if isinstance(limit := getattr(text, name, None), int) and limit > 0:
            return limit
    return None


def check_sizes(path: str, config: Any, tokenizer: Any, max_length: int) -> None:
    """Refuse a tokenizer with more ids than the model has rows, and a model that reads less than max_length tokens."""
    rows, ids = config.get_text_config().vocab_size, max(tokenizer.get_vocab().values()) + 1
    if ids > rows:
        raise UserError(
            f"{path}: the tokenizer has {ids} ids, the model {rows} rows: they do not belong together, or the model "
            "was not resized (resize_token_embeddings) when tokens were added"
        )
    limit = positions(config)
    if limit is not None and limit < max_length:
        raise UserError(f"{path}: the model reads {limit} tokens, model.max_length is {max_length}: set it to {limit}")
