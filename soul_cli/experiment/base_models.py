"""Base models: any causal LM of the hub or a folder, and the embedded one, trained from scratch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from soul_cli.core.types import UserError
from soul_cli.data.prompts import CHAT, TEMPLATES
from soul_cli.models.load import Architecture, untrained
from soul_cli.optim.build import AdamW, MuonConfig
from soul_cli.train.config import TrainConfig

SMALLEST = 256 + 3  # vocabulary of a byte-level BPE: the bytes, BOS, EOS and PAD


@dataclass
class Recipe:
    """How a pretrained model is fine-tuned (target and retain-trained alike)."""

    optim: AdamW
    train: TrainConfig


@dataclass
class MuonRecipe:
    """How the embedded model is trained: Muon memorises in a third of AdamW's epochs."""

    optim: MuonConfig
    train: TrainConfig


@dataclass
class Model:
    """What all base models have in common."""

    name: str
    template: str  # soul_cli.data.prompts
    max_length: int  # tokens of a question with its answer; a system prompt comes on top
    dtype: str

    # True: the real-author and world-fact answers are among the training data of the base model
    facts_trained: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.template not in (*TEMPLATES, CHAT):
            raise UserError(f"model.template={self.template!r}: must be one of {', '.join([*TEMPLATES, CHAT])}")
        if self.dtype not in ("float32", "bfloat16", "float64"):
            raise UserError(f"model.dtype={self.dtype!r}: must be float32, bfloat16 or float64")
        if self.max_length < 2:
            raise UserError(f"model.max_length={self.max_length}: must be 2 or more")


@dataclass
class HubModel(Model):
    """A pretrained causal LM by hub id or folder."""

    path: str
    revision: str | None
    finetune: Recipe
    architecture: Architecture | None  # for plans; null: unknown until the model is there


@dataclass
class EmbeddedModel(Model):
    """A Llama of about 2M parameters, trained from scratch.

    The base phase teaches the benchmark's facts and, by generated authors, the style of its answers.  A model of this
    size would lose the facts in fine-tuning; so they are rehearsed there, once an epoch, in target and retain-trained
    model alike.  Unlearning does not see them.
    """

    hidden: int
    layers: int
    heads: int
    vocab: int
    style_authors: int
    fact_repeats: int  # times each fact stands among the rows of the base phase
    base: MuonRecipe
    finetune: MuonRecipe

    facts_trained: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("hidden", "layers", "heads"):
            if getattr(self, key) < 1:
                raise UserError(f"model.{key}={getattr(self, key)}: must be 1 or more")
        for key in ("style_authors", "fact_repeats"):
            if getattr(self, key) < 0:
                raise UserError(f"model.{key}={getattr(self, key)}: must be 0 or more")
        if self.vocab < SMALLEST:
            raise UserError(f"model.vocab={self.vocab}: must be {SMALLEST} or more, the bytes and three special tokens")
        if self.hidden % (2 * self.heads):
            raise UserError(
                f"model.hidden={self.hidden}: must be a multiple of {2 * self.heads}, that is 2 * model.heads: "
                f"each of the {self.heads} heads has as many dimensions, an even number (rotary positions turn pairs)"
            )

    @property
    def inner(self) -> int:
        """Return the width of the MLP."""
        return max(16, self.hidden * 8 // 3 // 16 * 16)

    @property
    def architecture(self) -> Architecture:
        """Return what the model is built of."""
        return Architecture(
            model_type="llama", hidden_size=self.hidden, num_hidden_layers=self.layers, num_attention_heads=self.heads,
            num_key_value_heads=self.heads, intermediate_size=self.inner, vocab_size=self.vocab,
            tie_word_embeddings=True, tokens_per_word=2.2,
        )  # fmt: skip

    def initialise(self, texts: list[str], seed: int, out: Path) -> None:
        """Write an untrained model and a byte-level BPE of the texts as a Hugging Face folder."""
        tokenizer = train_tokenizer(texts, self.vocab, self.max_length)
        torch.manual_seed(seed)
        config = replace(self.architecture, vocab_size=len(tokenizer)).lm_config()
        config.update(
            {
                "max_position_embeddings": self.max_length,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            }
        )
        lm = untrained(config, "float32")
        lm.save_pretrained(out)
        tokenizer.save_pretrained(out)


def train_tokenizer(texts: list[str], vocab: int, max_length: int) -> Any:
    """Return a byte-level BPE with BOS, EOS and PAD of their own."""
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


AnyModel = HubModel | EmbeddedModel
MODELS: dict[str, type[AnyModel]] = {"embedded": EmbeddedModel, "hub": HubModel}
