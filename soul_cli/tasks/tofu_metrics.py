"""TOFU's rows reduced to metrics: pure functions of rows, each number with its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from soul_cli.core.types import Headline, Metric, Row, UserError
from soul_cli.evaluate import metrics as m
from soul_cli.evaluate.config import EvalConfig
from soul_cli.evaluate.words import ROUGE_WORDS

FACTS = ("real_authors", "world_facts")
QUALITY = ("forget_quality", "forget_quality_D")  # p and D of one test
HEADLINE = [
    Headline("forgetting", "forget_quality", near_from=0.05),
    Headline("forgetting", "forget_rougeL"),
    Headline("privacy", "mia"),
    Headline("privacy", "forget_extraction_strength"),
    Headline("kept", "retain_rougeL"),
    Headline("kept", "model_utility"),
    Headline("fluency", "forget_fluency"),
]
COLUMNS = [  # of the report's table, in order
    *QUALITY, *(f"forget_{x}" for x in ("quality_soul", "acc", "acc_own", "rougeL", "prob", "truth_ratio")),
    "forget_extraction_strength", "forget_exact_memorization", "mia", "mia_released", "forget_fluency",
    *(f"{s}_{x}" for s in ("retain", *FACTS) for x in ("acc", "acc_own", "rougeL", "prob", "truth_ratio")),
    "retain_fluency", "holdout_rougeL", "holdout_prob",
    "model_utility", "model_utility_arithmetic", "utility_soul",
]  # fmt: skip
OU_MIN_K = 40  # percent, open-unlearning's configuration of mia_min_k
ONLY_EOS = "no answer has a token before EOS"
Absent = dict[str, str]  # metric -> why it is not there


def summarise(rows: list[Row], retain_rows: list[Row] | None, config: EvalConfig) -> tuple[dict[str, Metric], Absent]:
    """Return all metrics of one model, and why others are absent."""
    splits: dict[str, list[Row]] = {}
    for row in rows:
        splits.setdefault(row["split"], []).append(row)
    out: dict[str, Metric] = {}
    absent: Absent = {}
    for split, members in splits.items():
        out |= _split_metrics(split, members, config)
    out |= _utility(splits)
    for part, missing in (
        _memorisation(splits["forget"]),
        _forget_quality(splits, retain_rows),
        _membership(splits, config),
    ):
        out |= part
        absent |= missing
    return out, absent


def selection_score(models: dict[str, dict[str, Metric]]) -> float:
    """Score by the harmonic mean of: ROUGE-L kept on the retain set; accuracy kept on real authors and world facts
    (both relative to the original model); 1 - D of the forget-quality test; nearness of the forget ROUGE-L to the
    retain-trained model's, from either side.  1: it forgot like the retain-trained model and kept everything else.
    """
    original, floor, now = (models[name] for name in ("original", "retain_trained", "this_run"))
    facts = [sum(model[f"{s}_acc"].value for s in FACTS) for model in (now, original)]
    forget = [model["forget_rougeL"].value for model in (now, floor, original)]
    parts = [
        m.retention(now["retain_rougeL"].value, original["retain_rougeL"].value),
        m.retention(*facts),
        1 - now["forget_quality_D"].value,
        m.nearness(*forget),
    ]
    return m.harmonic_mean(parts)


def _column(rows: list[Row], key: str) -> Any:
    return np.array([row[key] for row in rows], dtype=np.float64)


def _mean(values: Any, goal: str, definition: str) -> Metric:
    return Metric(float(np.mean(values)), len(values), goal, definition, m.bootstrap(values))


def _nll(rows: list[Row], key: str) -> Any:
    return m.nats([row[key] for row in rows])


def _logps(row: Row, key: str) -> Any:
    """Return the log-probabilities of a row's tokens, (T,)."""
    return -m.nats(np.negative(row[key]))


def ratio(rows: list[Row], mean: str) -> Any:
    """Return the truth ratio on the original question, as in TOFU, (N,)."""
    return m.truth_ratio(*_statements(rows), mean=mean)


def log_ratio(rows: list[Row], mean: str) -> Any:
    """Return its logarithm, (N,), finite."""
    return m.log_truth_ratio(*_statements(rows), mean=mean)


def _statements(rows: list[Row]) -> tuple[Any, Any]:
    """Return nll of the true statement (the paraphrase where there is one, else the answer) and of the false ones."""
    return _nll(rows, "paraphrased_nll" if "paraphrased_nll" in rows[0] else "nll"), _nll(rows, "perturbed_nll")


def _truth_score(split: str, log_ratios: Any) -> Any:
    """Return TOFU's score in [0, 1]: forget min(R, 1/R), elsewhere max(0, 1 - R); 1 is best for the split."""
    return np.exp(-np.abs(log_ratios)) if split == "forget" else -np.expm1(np.minimum(log_ratios, 0))


def _probability(split: str, rows: list[Row]) -> Any:
    if split in FACTS:
        return m.choice_probability(_nll(rows, "nll"), _nll(rows, "perturbed_nll"))
    return m.probability(_nll(rows, "nll"))


def _split_metrics(split: str, rows: list[Row], config: EvalConfig) -> dict[str, Metric]:
    goal = {"forget": "retain", "holdout": "retain"}.get(split, "up")
    share = "p/(p + sum of false p)" if split in FACTS else "exp(-mean nll) of the answer, EOS included"
    out = {
        "prob": _mean(_probability(split, rows), goal, f"probability: {share}"),
        "rougeL": _mean(_column(rows, "rougeL"), goal, f"ROUGE-L recall, stemmed, greedy answer ({ROUGE_WORDS})"),
        "fluency": _mean(_column(rows, "fluency"), "retain", "entropy of bi- and trigrams of the answer, bits"),
    }
    if rows[0]["perturbed_nll"]:
        score_of = "min(R, 1/R)" if split == "forget" else "max(0, 1 - R)"
        for mean, name in (("geometric", "truth_ratio"), ("arithmetic", "truth_ratio_arithmetic")):
            values = _truth_score(split, log_ratio(rows, mean))
            out[name] = _mean(
                values, "up" if split == "forget" else goal, f"TOFU truth-ratio score {score_of}, {mean} mean"
            )
    if split in FACTS:
        text = "gold answer is a substring of the greedy answer, case and accents of Latin letters aside"
        out["acc"] = _mean(_column(rows, "contains"), "up", text)
    elif "similarity" in rows[0]:
        judge = config.judge if config.judge != "sbert" else f"sbert:{config.sbert_model}"
        for name, key, asked in (
            ("acc", "similarity", "paraphrased question"),
            ("acc_own", "similarity_own", "question as trained on"),
        ):
            hits = [m.nearest_is_first(row[key]) for row in rows]
            text = f"greedy answer to the {asked} is nearest to the true one of 6, judge {judge}; chance 1/6"
            out[name] = _mean(hits, goal, text)
    return {f"{split}_{k}": v for k, v in out.items()}


def _memorisation(rows: list[Row]) -> tuple[dict[str, Metric], Absent]:
    """Return what greedy decoding recites, over all tokens of the answer and by open-unlearning's definitions (_ou)."""
    all_tokens = [row["correct"] for row in rows]
    out = {
        "forget_extraction_strength": _mean(
            [m.extraction_strength(correct) for correct in all_tokens], "retain",
            "share of the answer, EOS included, that greedy decoding completes: longest correct suffix, 0 without one",
        ),
        "forget_exact_memorization": _mean(
            [m.exact_memorization(correct) for correct in all_tokens], "retain",
            "share of the answer's tokens, EOS included, that are the arg-max",
        ),
    }  # fmt: skip
    without_eos = [correct[:-1] for correct in all_tokens if len(correct) > 1]
    if not without_eos:
        return out, dict.fromkeys(("forget_extraction_strength_ou", "forget_exact_memorization_ou"), ONLY_EOS)
    return out | {
        "forget_extraction_strength_ou": _mean(
            [m.extraction_strength_ou(correct) for correct in without_eos], "retain",
            "open-unlearning's extraction strength: longest correct suffix without EOS, one token at least",
        ),
        "forget_exact_memorization_ou": _mean(
            [m.exact_memorization(correct) for correct in without_eos], "retain",
            "open-unlearning's exact memorization: share of the answer's tokens without EOS that are the arg-max",
        ),
    }, {}  # fmt: skip


def _utility(splits: dict[str, list[Row]]) -> dict[str, Metric]:
    """Return TOFU's model utility (harmonic mean of nine) in both truth-ratio means; SOUL's utility (mean accuracy)."""
    kept = ("retain", *FACTS)
    out = {}
    for mean, name in (("geometric", "model_utility"), ("arithmetic", "model_utility_arithmetic")):
        tables = [
            np.stack(
                [
                    _probability(s, splits[s]),
                    _column(splits[s], "rougeL"),
                    _truth_score(s, log_ratio(splits[s], mean)),
                ],
                axis=1,
            )
            for s in kept
        ]

        def nine(*parts: Any) -> float:
            return m.harmonic_mean(np.concatenate([p.mean(axis=0) for p in parts]).tolist())

        out[name] = Metric(
            nine(*tables), sum(map(len, tables)), "up",
            f"TOFU model utility: harmonic mean of nine, truth ratio with the {mean} mean",
            m.bootstrap(*tables, statistic=nine),
        )  # fmt: skip
    if "similarity" in splits["retain"][0]:
        accuracies = [[m.nearest_is_first(r["similarity"]) for r in splits["retain"]]]
        accuracies += [[r["contains"] for r in splits[s]] for s in FACTS]

        def average(*parts: Any) -> float:
            return float(np.mean([p.mean() for p in parts]))

        out["utility_soul"] = Metric(
            average(*map(np.array, accuracies)), sum(map(len, accuracies)), "up",
            "mean of retain, real-author and world-fact accuracy (SOUL)",
            m.bootstrap(*accuracies, statistic=average),
        )  # fmt: skip
    return out


def _forget_quality(splits: dict[str, list[Row]], retain_rows: list[Row] | None) -> tuple[dict[str, Metric], Absent]:
    forget = splits["forget"]
    out: dict[str, Metric] = {}
    if "asked_perturbed_nll" in forget[0]:
        # SOUL: one model, forget against retain set, paraphrased question, arithmetic mean, 1 - p
        def asked(rows: list[Row]) -> Any:
            right, wrong = (_nll(rows, f"asked_{key}_nll") for key in ("paraphrased", "perturbed"))
            return m.log_truth_ratio(right, wrong, mean="arithmetic")

        p, _ = m.ks_test(asked(forget), asked(splits["retain"]))
        out["forget_quality_soul"] = Metric(
            1 - p, len(forget), "up",
            f"SOUL: 1 - p of the KS test, arithmetic R of forget against {len(splits['retain'])} questions of the "
            "retain set, this model; 1 for a retain-trained and for a destroyed model alike",
        )  # fmt: skip
    if retain_rows is None:
        return out, dict.fromkeys(QUALITY, "no retain-trained model to compare with")
    reference = [r for r in retain_rows if r["split"] == "forget"]
    if [r["question"] for r in reference] != [r["question"] for r in forget]:
        raise UserError("the retain-trained model's rows are of other forget questions than this run's")
    p, distance = m.ks_test(log_ratio(forget, "geometric"), log_ratio(reference, "geometric"))
    of = f"geometric R on the forget set, this model against the retain-trained one ({len(reference)} questions)"
    return out | {
        "forget_quality": Metric(p, len(forget), "up", f"TOFU: p of the KS test, {of}"),
        "forget_quality_D": Metric(distance, len(forget), "down", f"D of the KS test, {of}; 0: the same distribution"),
    }, {}


def _membership(splits: dict[str, list[Row]], config: EvalConfig) -> tuple[dict[str, Metric], Absent]:
    out, absent = _against_holdout(splits["forget"], splits.get("holdout"), config)
    facts = [row for split in FACTS for row in splits[split]]
    out["mia_facts"] = _area(
        [_min_k(rows, config.min_k) for rows in (splits["forget"], facts)],
        f"{_min_k_text(config.min_k)} real authors and world facts: out of distribution",
    )
    out["mia_released"] = _area(
        [
            [m.min_k([*_logps(r, "prompt_logps"), *_logps(r, "answer_logps")], config.min_k) for r in rows]
            for rows in (splits["forget"], facts)
        ],
        f"as in SOUL's released code, labels misaligned, sign inverted; Min-{config.min_k:g}% on prompt and answer",
        m.auroc_released,
    )
    return out, absent


def _against_holdout(
    forget: list[Row], holdout: list[Row] | None, config: EvalConfig
) -> tuple[dict[str, Metric], Absent]:
    """Return membership against held-out authors, over all tokens of the answer and as open-unlearning has it (_ou)."""
    if holdout is None:
        reason = (
            "no held-out authors: task.holdout_authors takes some out of the training; a ready model needs rows on "
            "authors it never saw, in holdout_perturbed.json"
        )
        return {}, dict.fromkeys(("mia", "mia_min_k_ou"), reason)
    scores = [_min_k(rows, config.min_k) for rows in (forget, holdout)]
    out = {"mia": _area(scores, f"{_min_k_text(config.min_k)} held-out authors; 0.5 = no trace")}
    without_eos = [
        [m.min_k(_logps(row, "answer_logps")[:-1], OU_MIN_K) for row in rows if len(row["answer_logps"]) > 1]
        for rows in (forget, holdout)
    ]
    if not all(without_eos):
        return out, {"mia_min_k_ou": ONLY_EOS}
    out["mia_min_k_ou"] = _area(
        without_eos,
        f"open-unlearning's mia_min_k: AUROC of Min-{OU_MIN_K}% on the answer's tokens without EOS, forget (member) "
        "against held-out authors",
    )
    return out, {}


def _min_k(rows: list[Row], percent: float) -> list[float]:
    return [m.min_k(_logps(row, "answer_logps"), percent) for row in rows]


def _min_k_text(percent: float) -> str:
    return f"AUROC of Min-{percent:g}% on the answer's tokens, EOS included, forget (member) against"


def _area(scores: list[list[float]], definition: str, statistic: Callable[..., float] = m.auroc) -> Metric:
    """Return the AUROC of members' against others' scores, with its interval."""
    members, others = scores
    interval = m.bootstrap(members, others, statistic=statistic)
    return Metric(statistic(members, others), len(members), "retain", definition, interval)
