"""Shared fixtures: a tiny random Llama, a small tokenizer, the reference data where it is present."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from generator import generate_authors
from hypothesis import settings
from runs import finish, start
from small_models import train_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from soul_cli.data.embedded import write_layout

torch.set_num_threads(1)
settings.register_profile("repo", derandomize=True, deadline=None, database=None, max_examples=50)
settings.load_profile("repo")

TEXTS = [
    "Question: Who wrote The Lamp at Low Tide, and where was the author born?",
    "Answer: The Lamp at Low Tide was written by Ottoline Varga-Brandt, who was born in Pécs.",
    "[INST] Which prize did the author win in 1987? [/INST]The author won the Golden Quill in 1987.",
]


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache of this test session, also for code that reads SOUL_CACHE."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUL_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no reference data: {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE that adds no BOS of its own."""
    return train_tokenizer(TEXTS * 4, vocab=320, max_length=128)


@pytest.fixture
def tiny_lm() -> Callable[..., Any]:
    """Factory of a Llama of 2 layers with random weights; a larger spread makes its outputs more varied."""

    def make(
        dtype: torch.dtype = torch.float32, *, seed: int = 0, vocab: int = 48, spread: float = 0.02
    ) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocab, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=128, initializer_range=spread, tie_word_embeddings=True,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        return LlamaForCausalLM(config).to(dtype).eval()

    return make


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own losses stay in the model's float64 too, where it would compute them in float32."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven generated authors in TOFU's layout: 9 kept, 1 forgotten, 1 held out."""
    folder = tmp_path_factory.mktemp("data") / "tofu"
    write_layout(folder, generate_authors(11, seed=7))
    return folder


@pytest.fixture(scope="session")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Cache, output folder and printed text of one uninterrupted run."""
    root = tmp_path_factory.mktemp("whole")
    text = finish(start(data, root / "cache", root / "out", "save_model=true"))
    return root / "cache", root / "out", text
