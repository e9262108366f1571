"""Copyright removal's rows reduced to metrics: pure functions of rows, each number with its definition."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import numpy as np

from soul_cli.core.types import Headline, Metric, Row
from soul_cli.evaluate import metrics as m
from soul_cli.evaluate.words import BLEU_WORDS, ROUGE_WORDS

VERBMEM_TOKENS = 128  # MUSE
VERBATIM_TOKENS = 50  # a verbatim match
TEXTS = {"forget_text": "retain", "retain_text": "down", "heldout_text": "down"}  # split -> goal of its perplexity
Absent = dict[str, str]  # metric -> why it is not there


def headline(shortest: int) -> list[Headline]:
    """Return what a run shows first.  shortest: words of the shortest prompt, which leaves the most to recite."""
    return [
        Headline("forgetting", f"forget_rougeL_{shortest}"),
        Headline("forgetting", f"forget_rougeL_{shortest}_unseen"),
        Headline("privacy", "forget_verbatim_longest"),
        Headline("privacy", "forget_verbmem"),
        Headline("kept", f"retain_rougeL_{shortest}"),
        Headline("kept", "heldout_ppl"),
        Headline("fluency", "forget_fluency"),
    ]


def columns(prompt_words: list[int]) -> list[str]:
    """Return the metrics of the report's table, in order."""
    out = [f"forget_{metric}_{words}" for words in prompt_words for metric in ("bleu", "rougeL")]
    out += [f"forget_{metric}_{words}_unseen" for words in prompt_words for metric in ("bleu", "rougeL")]
    out += ["forget_verbatim_longest", "forget_verbatim_50", "forget_verbmem", "forget_fluency"]
    out += [f"retain_{metric}_{words}" for words in prompt_words for metric in ("bleu", "rougeL")]
    return [*out, "retain_fluency", "forget_ppl", "retain_ppl", "heldout_ppl"]


def summarise(rows: list[Row]) -> tuple[dict[str, Metric], Absent]:
    """Return all metrics of one model, and why others are absent."""
    splits: dict[str, list[Row]] = {}
    for row in rows:
        splits.setdefault(row["split"], []).append(row)
    out: dict[str, Metric] = {}
    absent: Absent = {}
    for split, goal in (("forget", "retain"), ("retain", "up")):
        out |= _continuations(split, splits[split], goal)
    shortest = min(r["prompt_words"] for r in splits["forget"])
    seen = [r for r in splits["forget"] if r["prompt_words"] == shortest and r["wording"] == "seen"]
    verbatim, absent = _verbatim(seen)
    out |= verbatim
    for split, goal in TEXTS.items():
        name = split.replace("_text", "_ppl")
        if split in splits:
            out[name] = perplexity(splits[split], goal)
        else:
            absent[name] = "no such text"
    return out, absent


def selection_score(models: dict[str, dict[str, Metric]]) -> float:
    """Score by the harmonic mean of: ROUGE-L kept on the retain books after the shortest prompt; held-out perplexity
    kept (both relative to the original model); nearness of the forget ROUGE-L to the retain-trained model's, from
    either side, at each prompt length.  1: it forgot like the retain-trained model and kept everything else.
    """
    original, floor, now = (models[name] for name in ("original", "retain_trained", "this_run"))
    lengths = sorted(int(k.split("_")[-1]) for k in now if re.fullmatch(r"forget_rougeL_\d+", k))
    shortest = f"retain_rougeL_{lengths[0]}"
    parts = [
        m.retention(now[shortest].value, original[shortest].value),
        m.retention(original["heldout_ppl"].value, now["heldout_ppl"].value),
    ]
    for words in lengths:
        parts.append(m.nearness(*(model[f"forget_rougeL_{words}"].value for model in (now, floor, original))))
    return m.harmonic_mean(parts)


def _mean(values: Any, goal: str, definition: str) -> Metric:
    return Metric(float(np.mean(values)), len(values), goal, definition, m.bootstrap(values))


def _continuations(split: str, rows: list[Row], goal: str) -> dict[str, Metric]:
    """Return BLEU and ROUGE-L by prompt length and by wordings seen or not seen in training."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["prompt_words"], row["wording"]), []).append(row)
    scores = {
        "bleu": f"BLEU, 0-100, a chunk at a time ({BLEU_WORDS})",
        "rougeL": f"ROUGE-L recall, stemmed ({ROUGE_WORDS})",
    }
    out = {}
    for ((words, wording), members), (score, what) in product(groups.items(), scores.items()):
        name = f"{split}_{score}_{words}" + ("" if wording == "seen" else "_unseen")
        asked = f"greedy continuation after {words} words, instruction {wording} in training"
        out[name] = _mean([r[score] for r in members], goal, f"{what}, {asked}")
    fluency = [r["fluency"] for r in rows]
    out[f"{split}_fluency"] = _mean(fluency, "retain", "entropy of bi- and trigrams of the continuation, bits")
    return out


def _verbatim(rows: list[Row]) -> tuple[dict[str, Metric], Absent]:
    """Return what a rights holder asks for, at the shortest prompt (which leaves the most to recite)."""
    runs = [r["verbatim_tokens"] for r in rows]
    out = {
        "forget_verbatim_longest": Metric(
            float(max(runs)), len(runs), "retain", "longest run of tokens recited of any chunk"
        ),
        "forget_verbmem": _mean(
            [r["verbmem"] for r in rows], "retain",
            f"MUSE's VerbMem but stemmed: ROUGE-L F1 of the first {VERBMEM_TOKENS} tokens without BOS ({ROUGE_WORDS})",
        ),
    }  # fmt: skip
    absent: Absent = {}
    if all("verbmem_muse" in r for r in rows):
        out["forget_verbmem_muse"] = _mean(
            [r["verbmem_muse"] for r in rows], "retain",
            f"MUSE's VerbMem on this task's prompts: ROUGE-L F1, not stemmed, of the first {VERBMEM_TOKENS} tokens, of "
            f"which the true text's BOS is one ({ROUGE_WORDS})",
        )  # fmt: skip
    else:
        absent["forget_verbmem_muse"] = "rows of a version that did not compute it"
    long = [r for r in rows if r["gold_tokens"] >= VERBATIM_TOKENS]
    if not long:
        return out, absent | {"forget_verbatim_50": f"no continuation has {VERBATIM_TOKENS} tokens"}
    hits = [float(r["verbatim_tokens"] >= VERBATIM_TOKENS) for r in long]
    text = f"share of chunks recited for {VERBATIM_TOKENS} tokens or more without a gap, of those that have as many"
    return out | {"forget_verbatim_50": _mean(hits, "retain", text)}, absent


def perplexity(rows: list[Row], goal: str) -> Metric:
    """Return exp of the mean nats a token over all chunks; comparable between models of one tokenizer only.

    Where the model's logits are no numbers, it is inf.
    """
    table = m.nats([[r["nll_sum"], r["tokens"]] for r in rows])

    def of(chunks: Any) -> float:
        return m.perplexity(*chunks.sum(axis=0))

    return Metric(
        of(table), len(rows), goal, "perplexity a token of whole chunks, no instruction, first token not scored",
        m.bootstrap(table, statistic=of),
    )  # fmt: skip
