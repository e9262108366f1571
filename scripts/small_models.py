"""Small models from nothing, for the embedded base model, tests and scripts: a tokenizer, an untrained Llama."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from generator import generate_authors
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from soul_cli.core.files import sha256


def train_tokenizer(texts: list[str], vocab: int, max_length: int) -> Any:
    """Return a byte-level BPE with BOS, EOS and PAD of their own.  vocab: 259 or more, bytes and special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=vocab, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def small_llama(tokenizer: Any, hidden: int, layers: int, heads: int) -> LlamaForCausalLM:
    """Return an untrained Llama for the tokenizer, with tied embeddings and its usual shape of MLP."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=max(16, hidden * 8 // 3 // 16 * 16),
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads, tie_word_embeddings=True,
        max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def tiny_base() -> Path:
    """Return an untrained model of 32 dimensions and 320 pieces as a folder: written once, the same for every process.

    For tests and scripts that run a whole experiment and do not look at what is learned.
    """
    version = sha256(Path(__file__))[:12]
    folder = Path(tempfile.gettempdir()) / f"soul-unlearn-tiny-{os.getuid()}-{version}"
    if not folder.is_dir():
        texts = [row["answer"] for author in generate_authors(4, seed=0) for row in author["rows"]]
        tokenizer, made = train_tokenizer(texts, 320, 512), Path(tempfile.mkdtemp())
        torch.manual_seed(0)
        small_llama(tokenizer, 32, 1, 2).save_pretrained(made)
        tokenizer.save_pretrained(made)
        with suppress(OSError):  # another process was faster
            made.rename(folder)
    return folder
