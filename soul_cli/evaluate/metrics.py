"""Metrics as pure functions of arrays and texts.  No model, no files.

Conventions: nll is the mean negative log-likelihood in nats per answer token, EOS included.  Counts must agree;
empty input and NaN are errors, never 0.  inf is a number here: an answer of probability 0, as destroyed models give it,
has nll inf.  Ratios of probabilities are taken as differences of logarithms, so that they neither overflow nor become
0/0.  Every function that the published tables rest on is held against golden values in the tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from soul_cli.evaluate import words

Array = NDArray[np.float64]
NEVER = 1e300  # stands for inf nats in differences: of two answers of probability 0 none is likelier


def _rows(values: object, name: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"{name} is empty")
    if np.isnan(array).any():
        raise ValueError(f"{name} has {int(np.isnan(array).sum())} values that are NaN")
    return array


def nats(values: object) -> Array:
    """Return nll as rows have it with inf for NaN: logits that are no numbers give the answer no probability."""
    return np.nan_to_num(np.asarray(values, dtype=np.float64), nan=np.inf, posinf=np.inf)


# --- likelihood --------------------------------------------------------------------------------------------


def probability(nll: object) -> Array:
    """Return the length-normalised answer probability exp(-nll), (N,) -> (N,).  TOFU, section 2.2.1."""
    return np.exp(-_rows(nll, "nll"))


def truth_ratio(right: object, wrong: object, *, mean: str) -> Array:
    """Return R = P(wrong)/P(right); 1 = cannot tell them apart, above 1 = prefers the false answers.

    right (N,), wrong (N, K): nats per token.  mean="geometric": exp(-mean_j nll_j), as in TOFU's aggregation
    and every published TOFU table; mean="arithmetic": mean_j exp(-nll_j), as in TOFU's evaluation code and SOUL
    (which adds 1e-12 to the denominator; so do we).  Returns (N,), inf above the largest float.
    """
    with np.errstate(over="ignore"):
        return np.exp(log_truth_ratio(right, wrong, mean=mean))


def log_truth_ratio(right: object, wrong: object, *, mean: str) -> Array:
    """Return ln R of `truth_ratio`, (N,), finite for every input: what is compared and tested."""
    r, w = _paired(right, wrong)
    if mean == "geometric":
        return r - w.mean(axis=1)
    if mean == "arithmetic":
        false = special.logsumexp(-w, axis=1) - np.log(w.shape[1])
        return false - np.logaddexp(-r, np.log(1e-12))
    raise ValueError(f"mean={mean!r}: must be 'geometric' or 'arithmetic'")


def choice_probability(right: object, wrong: object) -> Array:
    """Return p / (p + sum_j p_j) for real authors and world facts, (N,), (N, K) -> (N,).  TOFU, section 2.2.1."""
    r, w = _paired(right, wrong)
    return np.exp(-special.logsumexp(np.column_stack([np.zeros(len(r)), r[:, None] - w]), axis=1))


def perplexity(nats: float, tokens: float) -> float:
    """Return exp(nats / tokens); inf above the largest float."""
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(nats) / tokens))


def _paired(right: object, wrong: object) -> tuple[Array, Array]:
    r, w = _rows(right, "right"), _rows(wrong, "wrong")
    if w.ndim != 2 or r.shape != w.shape[:1]:
        raise ValueError(f"right {r.shape} and wrong {w.shape} must be (N,) and (N, K)")
    return np.minimum(r, NEVER), np.minimum(w, NEVER)


def ks_test(a: object, b: object) -> tuple[float, float]:
    """Run the two-sample Kolmogorov-Smirnov test -> (p-value, D).  The p-value is a step function of D."""
    result = stats.ks_2samp(_rows(a, "a"), _rows(b, "b"))
    return float(result.pvalue), float(result.statistic)


def extraction_strength(correct: Sequence[int]) -> float:
    """Return the share of the answer that greedy decoding completes by itself from the earliest possible prefix.

    correct: 1 where the arg-max under teacher forcing is the true token, EOS included.  The longest all-correct suffix
    is what greedy decoding would recite.  Carlini et al. 2021.
    """
    return _correct_suffix(correct) / len(correct)


def extraction_strength_ou(correct: Sequence[int]) -> float:
    """Return extraction strength as open-unlearning's code computes it.

    correct: as above, without EOS.  Its search for the suffix ends at the last token whether that is correct or not:
    never below 1 / len(correct).
    """
    return max(_correct_suffix(correct), 1) / len(correct)


def _correct_suffix(correct: Sequence[int]) -> int:
    """Return the length of the longest suffix of ones."""
    if not correct:
        raise ValueError("correct is empty")
    return next((n for n, hit in enumerate(reversed(correct)) if not hit), len(correct))


def exact_memorization(correct: Sequence[int]) -> float:
    """Return the share of tokens that are the arg-max under teacher forcing.  Tirumala et al. 2022."""
    if not correct:
        raise ValueError("correct is empty")
    return sum(correct) / len(correct)


# --- membership --------------------------------------------------------------------------------------------


def min_k(logps: Sequence[float], percent: float) -> float:
    """Return Min-K%: mean of the lowest `percent` of the token log-probabilities (at least one).  Shi et al. 2024."""
    values = np.sort(_rows(logps, "logps"))
    return float(values[: max(1, int(len(values) * percent / 100))].mean())


def auroc(members: object, non_members: object) -> float:
    """Return P(a member's score is above a non-member's), ties count half.  0.5 = cannot tell them apart."""
    return _area(_rows(members, "members"), _rows(non_members, "non_members"))


def auroc_released(forget: object, others: object) -> float:
    """Return the membership score as SOUL's released code computes it, for comparison with its tables only.

    Two defects are kept: the labels (len(others) zeros, then len(forget) ones) are laid over the scores in the
    order forget, others; and the score's sign is inverted.
    """
    f, o = _rows(forget, "forget"), _rows(others, "others")
    scores = -np.concatenate([f, o])
    return _area(scores[len(o) :], scores[: len(o)])


def _area(above: Array, below: Array) -> float:
    """Share of the pairs whose first is higher, ties half: by counting, for a bootstrap asks thousands of times."""
    ordered = np.sort(below)
    wins = np.searchsorted(ordered, above, "left").sum() + np.searchsorted(ordered, above, "right").sum()
    return float(wins / 2 / (len(above) * len(below)))


# --- generated text ----------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _scorer(stemmed: bool) -> Any:
    from rouge_score import rouge_scorer  # seconds that a mistyped option need not wait

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=words.RougeTokenizer(stemmed))


def rouge_l(gold: str, generated: str) -> float:
    """Return ROUGE-L recall, stemmed: the share of the gold answer's words found, in order, in the generated one.

    Words as in `words.tokens`: rouge-score's own for ASCII text, those of all scripts beyond it.
    """
    return float(_scorer(True).score(gold, generated)["rougeL"].recall)


def rouge_l_f1(gold: str, generated: str, *, stemmed: bool = True) -> float:
    """Return ROUGE-L F1, words as in `rouge_l`."""
    return float(_scorer(stemmed).score(gold, generated)["rougeL"].fmeasure)


def bleu(gold: str, generated: str) -> float:
    """Return BLEU of one generated text against the true one, 0-100: sacrebleu's corpus BLEU of the pair (SOUL).

    Its 13a tokens; a character of a script without spaces between words is a token.
    """
    import sacrebleu

    if not gold:
        raise ValueError("gold is empty")
    return float(sacrebleu.corpus_bleu([words.space_out(generated)], [[words.space_out(gold)]]).score)


def longest_common_run(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the longest run of tokens that stands in both sequences without a gap."""
    best = 0
    other = np.asarray(b, dtype=np.int64)
    runs = np.zeros(len(other) + 1, dtype=np.int64)  # runs[j + 1]: length of the run that ends at this token and b[j]
    for token in a:
        runs[1:] = np.where(other == token, runs[:-1] + 1, 0)
        best = max(best, int(runs.max()))
    return best


def contains(gold: str, generated: str) -> float:
    """Return 1.0 where the gold answer is a substring of the generated one, else 0.0.

    Case aside and, beyond ASCII, accents on Latin letters and compatibility forms too.
    """
    if not gold:
        raise ValueError("gold is empty")
    return float(words.fold(gold) in words.fold(generated))


def nearest_is_first(similarities: Sequence[float]) -> float:
    """Return 1.0 where the first candidate is strictly nearest.  A tie is an error: empty output must not score."""
    first, *others = similarities
    return float(first > max(others))


def ngram_entropy(text: str) -> float:
    """Return the weighted entropy of bi- and trigrams, in bits (Zhang et al. 2018; weights of ROME, 2/3, 4/3).

    Tokens are words and single punctuation marks, so a repeated character or word gives 0; a character of a script
    without spaces between words is a word.  It grows with length: read it beside the retain-trained model's, not alone.
    """
    tokens = words.words_and_marks(text)
    entropy = []
    for size in (2, 3):
        counts = np.array(list(Counter(zip(*(tokens[i:] for i in range(size)), strict=False)).values()), float)
        share = counts / counts.sum() if counts.size else np.ones(1)
        entropy.append(float(-(share * np.log2(share)).sum()))
    return abs((2 / 3 * entropy[0] + 4 / 3 * entropy[1]) / 2)


# --- summaries ---------------------------------------------------------------------------------------------


def harmonic_mean(values: Sequence[float]) -> float:
    """Return the harmonic mean; 0 where any value is 0.  Model utility is that of nine (TOFU, section 2.2.1)."""
    array = _rows(values, "values")
    with np.errstate(over="ignore"):  # 1 / the smallest float
        return 0.0 if (array <= 0).any() else float(len(array) / (1 / array).sum())


def retention(now: float, original: float) -> float:
    """Return now / original, at most 1; 1 where the original has nothing to keep."""
    return min(1.0, now / original) if original > 0 and now != original else 1.0


def nearness(now: float, floor: float, original: float) -> float:
    """Return 1 at the retain-trained model's value `floor`, 0 at the original's and at 0.  All are at least 0."""
    scale = max(floor, original - floor if now > floor else floor)
    return 1 - abs(now - floor) / scale if scale > 0 else float(now == floor)


def bootstrap(*groups: object, statistic: object = None, draws: int = 1000) -> tuple[float, float]:
    """Return a percentile 95 % interval over questions; each group (N_i,) or (N_i, K) is resampled by rows on its own.

    statistic maps the resampled groups to a number; default: the mean of the one group.  The generator is
    fixed, so the interval is a function of the data.  Questions on one author are not independent: the interval
    is that of the questions, not of authors, seeds or trainings.
    """
    rng = np.random.default_rng(0)
    arrays = [_rows(g, "group") for g in groups]
    if statistic is None:
        (a,) = arrays
        values = a[rng.integers(len(a), size=(draws, len(a)))].mean(axis=1)
    else:
        assert callable(statistic)
        values = np.array([statistic(*(a[rng.integers(len(a), size=len(a))] for a in arrays)) for _ in range(draws)])
    return interval(values)


def interval(values: object) -> tuple[float, float]:
    """Return the 2.5th and the 97.5th percentile, (N,) -> 2; where values are infinite, the next ones outwards."""
    ordered = np.sort(_rows(values, "values"))
    if np.isfinite(ordered).all():
        low, high = np.percentile(ordered, [2.5, 97.5])
    else:  # between two values of which one is infinite there is nothing to interpolate
        low, high = ordered[[int(0.025 * (len(ordered) - 1)), -1 - int(0.025 * (len(ordered) - 1))]]
    return float(low), float(high)
