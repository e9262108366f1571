"""How many tokens go in one batch where nothing is said: by what is free on a GPU."""

from __future__ import annotations

from typing import Any

import torch

USUAL = 8192  # on a processor: more fills its caches and its memory, and is no faster
LEAST, MOST = 1024, 65536  # on a GPU; more than MOST was not measured (results/gpu.md)
SHARE = 0.8  # of what is free; logits, masks and what a kernel takes for itself need the rest


def tokens_a_batch(lm: Any) -> int:
    """Return how many padded tokens a batch of the model's may have where it lies: a power of two on a GPU."""
    if lm.device.type != "cuda":
        return USUAL
    free = torch.cuda.mem_get_info(lm.device)[0]
    free += torch.cuda.memory_reserved(lm.device) - torch.cuda.memory_allocated(lm.device)
    fitting = int(SHARE * free / bytes_a_token(lm))
    return min(MOST, max(LEAST, 1 << fitting.bit_length() >> 1))


def bytes_a_token(lm: Any) -> float:
    """Return what a padded token takes in decoding, the larger need, counted for attention that keeps all it has read.

    Keys and values of all layers twice, as while rows leave or the prompts' are put into slots; and what the widest
    layer holds of the prompts at a time: a dozen tensors as wide as the model, or three as wide as inside its block.
    """
    config = lm.config.get_text_config()
    width, heads = config.hidden_size, config.num_attention_heads
    pairs = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or width // heads
    inside = getattr(config, "intermediate_size", None) or 4 * width
    return lm.dtype.itemsize * (2 * 2 * config.num_hidden_layers * pairs * size + 12 * width + 3 * inside)
