"""Tiny models of every causal LM architecture in transformers: two layers, some ten thousand random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 48
MOST = 3_000_000  # parameters: what is larger has parts that these sizes do not reach
# A configuration gets those of these values whose names it has.
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.2, "init_std": 0.2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "is_decoder": True, "sliding_window": 8,
    # other names
    "d_model": 32, "n_embd": 32, "n_layer": 2, "n_layers": 2, "num_layers": 2, "n_head": 4, "n_heads": 4,
    "num_heads": 4, "n_positions": 128, "max_seq_len": 128, "n_inner": 48, "d_ff": 48, "dff": 48, "ffn_dim": 48,
    "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "encoder_layers": 1,
    "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "attention_heads": 4, "embedding_size": 32,
    "input_embedding_size": 32, "output_embedding_size": 32, "word_embed_proj_dim": 32, "rotary_dim": 8,
    "dim_model": 32, "dim_ff": 48, "dim_head": 8, "attention_window_size": 8, "window_size": 8, "local_attention": 8,
    # experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "num_experts_per_token": 2, "moe_topk": 2, "top_k": 2, "moe_k": 2, "n_group": 1, "topk_group": 1,
    "n_shared_experts": 1, "num_shared_experts": 1, "moe_intermediate_size": 16, "shared_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16, "first_k_dense_replace": 1,
    # attention through fewer dimensions, or to few tokens
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "index_n_heads": 2, "index_head_dim": 8,
    # recurrences and convolutions
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4,
    "mamba_dt_rank": 4, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_mamba_heads": 2, "state_size": 8,
    "ssm_state_size": 8, "chunk_size": 4, "time_step_rank": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "lru_width": 32,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB,
}  # fmt: skip
LATENT = {"num_key_value_heads": 4, "head_dim": None}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
CONVOLUTION = {"layer_types": ["conv", "full_attention"]}
# What these sizes do not fit; None: the configuration's own value.
OTHERWISE: dict[str, dict[str, Any]] = {
    "axk1": LATENT, "axk2": LATENT, "deepseek_v2": LATENT, "deepseek_v3": LATENT, "deepseek_v32": LATENT,
    "glm4_moe_lite": LATENT, "glm_moe_dsa": LATENT, "minicpm3": LATENT, "youtu": LATENT,
    "bailing_hybrid": LINEAR | {"num_key_value_heads": 4},
    "kimi_linear": LINEAR | {"num_key_value_heads": 4, "linear_head_dim": 8, "linear_num_heads": 4},
    "minimax": LINEAR, "olmo_hybrid": LINEAR, "qwen3_5_moe_text": LINEAR, "qwen3_5_text": LINEAR, "qwen3_next": LINEAR,
    "lfm2": CONVOLUTION, "lfm2_moe": CONVOLUTION, "lfm3": CONVOLUTION,
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "full_attention", "mlp"], "num_hidden_layers": None, "n_groups": 1,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"], "head_dim": None, "num_key_value_heads": 4,
        "n_mamba_heads": 4,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "block_types": ["recurrent", "recurrent", "attention"]},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"], "ngram_vocab_size_base": 50, "split_ngram_parts": 2,
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 32, "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "mamba2": {"num_heads": 4, "head_dim": 16, "expand": 2, "n_groups": 1},
    "falcon": {"head_dim": None},
    "falcon_h1": {"mamba_d_ssm": 64, "lm_head_multiplier": 0.3},
    "xlstm": {
        "v_head_dim": None, "hidden_size": 64, "chunk_size": 64, "qk_dim_factor": 1.0, "ffn_round_up_to_multiple_of": 8,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gemma3n_text": {
        "num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"],
        "intermediate_size": [48, 48], "activation_sparsity_pattern": [0.0, 0.0], "laurel_rank": 4,
    },
    "longcat_flash": {
        "num_key_value_heads": 4, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "zero_expert_num": 2,
    },
    "zaya": {"num_experts_per_tok": 1},
    "big_bird": {"attention_type": "original_full"},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "roc_bert": {"pronunciation_vocab_size": 10, "shape_vocab_size": 10},
    "prophetnet": {"num_hidden_layers": None, "num_decoder_layers": 2, "num_encoder_layers": 2},
    "reformer": {
        "axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local", "local"],
        "attention_head_size": 8, "feed_forward_size": 48,
    },
}  # fmt: skip
KINDS = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny(kind: str, **values: Any) -> Any:
    """A tiny model in eval mode.  ValueError: these sizes make none of the kind, and why."""
    try:
        schema = CONFIG_MAPPING[kind]
        default = schema()
        known = {name: value for name, value in SIZES.items() if _has(default, name)}
        known |= OTHERWISE.get(kind, {}) | values
        config = schema(**{name: value for name, value in known.items() if value is not None})
        with torch.device("meta"):
            count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    except Exception as error:  # each configuration has its own
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())[:100]}") from error
    if count > MOST:
        raise ValueError(f"{count / 1e6:,.0f}M parameters at least: of several modalities, or with sizes of its own")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def _has(config: Any, name: str) -> bool:
    """Whether the configuration has the value; without sliding windows it stays so."""
    try:
        return hasattr(config, name) and not (name == "sliding_window" and config.sliding_window is None)
    except Exception:  # an attribute that varies from layer to layer
        return False
