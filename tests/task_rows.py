"""Rows of both tasks as their evaluation gives them, with values made up by hand."""

from __future__ import annotations

from typing import Any

from soul_cli.core.types import Row

SPLITS = ("forget", "retain", "real_authors", "world_facts", "holdout")


def row(split: str, index: int, **values: Any) -> Row:
    """An answer of two tokens and EOS, each of probability 1/e; four false answers of 1/e² a token."""
    return {
        "split": split, "index": index, "question": f"{split} {index}?", "gold": "gold", "generation": "gold",
        "nll": 1.0, "paraphrased_nll": 1.0, "perturbed_nll": [2.0] * 4, "answer_logps": [-1.0, -1.0, -1.0],
        "prompt_logps": [-1.0], "correct": [1, 1, 1], "rougeL": 0.5, "contains": 1.0, "fluency": 2.0,
        "asked_paraphrased_nll": 1.0, "asked_perturbed_nll": [2.0] * 4, "similarity": [1.0, 0.0, 0.0],
        "similarity_own": [1.0, 0.0, 0.0], **values,
    }  # fmt: skip


def continued(split: str, words: int, wording: str, index: int, **values: Any) -> Row:
    return {
        "split": split, "prompt_words": words, "wording": wording, "index": index, "rougeL": 0.5, "bleu": 10.0,
        "verbmem": 0.25, "verbmem_muse": 0.125, "verbatim_tokens": 8, "gold_tokens": 60, "fluency": 3.0, **values,
    }  # fmt: skip


def text(split: str, nll: float, tokens: int) -> Row:
    return {"split": split, "index": 0, "nll_sum": nll, "tokens": tokens, "words": tokens}
