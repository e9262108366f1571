"""lm-eval's rows reduced to metrics, the same for every task.  Pure functions of rows."""

from __future__ import annotations

import math
from typing import Any

from soul_cli.core.types import Metric, Row
from soul_cli.evaluate.general import SPLIT, ZERO_SHOT

COLUMNS = ["wikitext_word_ppl", "zero_shot_acc", "truthfulqa_mc1", "truthfulqa_mc2"]
# (lm-eval's task, its metric) -> name here and what it is; any other is called <task>_<metric>
NAMED = {
    ("wikitext", "word_perplexity"): ("wikitext_word_ppl", "perplexity a word of WikiText-2 (test)"),
    ("truthfulqa_mc1", "acc"): ("truthfulqa_mc1", "share of questions whose true answer is the likeliest (MC1)"),
    ("truthfulqa_mc2", "acc"): ("truthfulqa_mc2", "probability of the true answers among all listed (MC2)"),
}


def own_rows(rows: list[Row]) -> list[Row]:
    """Return the rows of the task's own splits."""
    return [row for row in rows if row["split"] != SPLIT]


def summarise(rows: list[Row]) -> tuple[dict[str, Metric], dict[str, str]]:
    """Return the metrics of lm-eval's rows among `rows`, and why some are absent.  Intervals: 1.96 standard errors.

    lm-eval divides probabilities: of a destroyed model a score may be no number.
    """
    general = [row for row in rows if row["split"] == SPLIT]
    out: dict[str, Metric] = {}
    absent: dict[str, str] = {}
    for row in general:
        for metric, score in row["metrics"].items():
            name, what = NAMED.get((row["task"], metric), (f"{row['task']}_{metric}", f"{metric} of {row['task']}"))
            if math.isnan(score["value"]):
                absent[name] = "lm-eval's score is not a number, as where all answers have probability 0"
                continue
            goal = "down" if score["higher_is_better"] is False else "up"
            text = f"{what}; lm-eval {row['lm_eval']}, {_conditions(row)}"
            out[name] = Metric(score["value"], row["n"], goal, text, _interval(score["value"], score["stderr"]))
    return out | _zero_shot([row for row in general if row["task"] in ZERO_SHOT and "acc" in row["metrics"]]), absent


def _zero_shot(rows: list[Row]) -> dict[str, Metric]:
    """Return mean accuracy over those of the eight tasks that ran, each task counting the same (SOUL)."""
    if not rows:
        return {}
    scores = [row["metrics"]["acc"] for row in rows]
    value = sum(s["value"] for s in scores) / len(scores)
    errors = [s["stderr"] for s in scores]
    # the tasks' documents are drawn independently: the variance of the mean is the sum of theirs over k²
    stderr = math.hypot(*errors) / len(errors) if None not in errors else None
    ran = "; ".join(f"{row['task']}: {_conditions(row)}" for row in rows)
    text = f"mean zero-shot accuracy over {len(rows)} of 8 tasks; lm-eval {rows[0]['lm_eval']} ({ran})"
    return {"zero_shot_acc": Metric(value, sum(row["n"] for row in rows), "up", text, _interval(value, stderr))}


def _conditions(row: Row) -> str:
    limit = f", limit {row['limit']}" if row["limit"] is not None else ""
    cut = f", {row['cut']} requests cut" if row["cut"] else ""
    return f"task version {row['version']}, n {row['n']}{limit}, window {row['window']} tokens{cut}"


def _interval(value: float, stderr: Any) -> tuple[float, float] | None:
    if stderr is None or not math.isfinite(value) or not math.isfinite(stderr):
        return None
    return value - 1.96 * stderr, value + 1.96 * stderr
