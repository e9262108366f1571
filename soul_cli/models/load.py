"""Models: references by content, loading, and the wrapper that scores answers only."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from soul_cli.core.cache import file_digest
from soul_cli.core.types import Inputs, UserError
from soul_cli.objective.losses import token_logps, wide
from soul_cli.optim.curvature import drawn_logps

STANDING = 1 << 25  # logits that stand at a time: 128 MiB in float32, and a few times that beside them


@dataclass(frozen=True)
class ModelRef:
    """Where a model lies (a folder or a hub id) and what it is (a digest of its content)."""

    path: str
    digest: str


HUB_HELP = (
    "Download it once where there is a network (huggingface-cli download ID --local-dir FOLDER) and give the folder "
    "instead of the id; for a gated model accept its licence and set HF_TOKEN."
)


def reference(path: str, cache_dir: Path, revision: str | None = None) -> ModelRef:
    """A model by folder (digest of its files) or hub id (its commit)."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".model", ".jinja"))
        if not any(p.suffix == ".safetensors" for p in files):
            raise UserError(f"{folder}: no .safetensors file; a model folder as written by save_pretrained is needed")
        return ModelRef(str(folder.resolve()), file_digest(files, cache_dir))
    if path.startswith((".", "/", "~")):
        raise UserError(f"{path}: no such model folder")
    from huggingface_hub import hf_hub_download

    try:
        config = hf_hub_download(path, "config.json", revision=revision)
    except Exception as error:
        raise UserError(f"cannot get the model {path!r} from the hub ({type(error).__name__}). {HUB_HELP}") from error
    return ModelRef(path, Path(config).parent.name)  # .../snapshots/<commit>/config.json


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


class Predicted(NamedTuple):
    """What an AnswerModel says of the T targets of a batch."""

    logps: Tensor  # (T,) log-probability of each target, nats, float32 or wider
    best: Tensor | None = None  # (T,) the arg-max, where it was asked for
    drawn: Tensor | None = None  # (K,) log-probabilities of labels drawn for K of the tokens


class AnswerModel(nn.Module):
    """A causal LM that looks at its predictions at the answer positions only.

    Logits (T, V) do not leave it.  Where they are more than STANDING numbers, they are computed for some tokens at a
    time, and once more in the backward.
    """

    def __init__(self, lm: Any):
        super().__init__()
        for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(lm.config, key, None):
                raise UserError(f"{type(lm).__name__} rescales its logits ({key}), which is not supported")
        self.lm = lm

    def hidden(self, batch: Inputs) -> Tensor:
        """Last hidden states at the answer positions, (T, D)."""
        states = self.lm.base_model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.mask,
            use_cache=False,
        ).last_hidden_state
        return states.flatten(0, 1)[batch.where]

    def forward(
        self, batch: Inputs, labels: tuple[Tensor, Tensor] | None = None, *, with_best: bool = False
    ) -> Predicted:
        """labels: which tokens labels are drawn for (T,) and at which numbers (T,), see curvature.drawn_logps."""
        hidden = self.hidden(batch)
        head = self.lm.get_output_embeddings()

        def score(logits: Tensor, targets: Tensor) -> list[Tensor]:
            return [token_logps(logits, targets), *([logits.argmax(-1)] if with_best else [])]

        if len(hidden) * head.out_features <= STANDING:
            logits = wide(head(hidden))
            scores, drawn = score(logits, batch.targets), drawn_logps(logits, *labels) if labels else None
        else:
            scores = piecewise(head, score, hidden, batch.targets)
            # apart from the scores: what one backward recomputes and does not use would stay for the other
            drawn = piecewise(head, lambda *args: [drawn_logps(*args)], hidden, *labels)[0] if labels else None
        return Predicted(scores[0], scores[1] if with_best else None, drawn)


def piecewise(head: Any, function: Callable[..., list[Tensor]], hidden: Tensor, *inputs: Tensor) -> list[Tensor]:
    """function(logits, *inputs), each of its results whole, with the logits of a few tokens at a time.

    hidden (T, D), inputs (T,).  Each backward computes the logits once more.
    """

    def compute(hidden: Tensor, *inputs: Tensor) -> list[Tensor]:
        return function(wide(head(hidden)), *inputs)

    n = max(1, STANDING // head.out_features)
    chunks = zip(hidden.split(n), *(t.split(n) for t in inputs), strict=True)
    parts = [checkpoint(compute, *some, use_reentrant=False, preserve_rng_state=False) for some in chunks]
    return [torch.cat(some) for some in zip(*parts, strict=True)]
