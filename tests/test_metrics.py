"""Metrics: numbers worked by hand, then laws, then parity with slow independent implementations."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from soul_cli.evaluate import metrics as m

nll = st.floats(0, 8)
number = st.integers(-50, 50).map(lambda i: i / 4)  # exact in binary, and often equal: ties matter
sample = st.lists(number, min_size=1, max_size=12)
hits = st.lists(st.integers(0, 1), min_size=1, max_size=12)
# words too short to be stemmed
words = st.lists(st.sampled_from(["sun", "sea", "sky", "ink", "oak"]), min_size=1, max_size=8).map(" ".join)
LN2, LN4, LN8, LN16 = (math.log(x) for x in (2, 4, 8, 16))


@st.composite
def right_and_wrong(draw) -> tuple[np.ndarray, np.ndarray]:
    n, k = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    values = draw(st.lists(nll, min_size=n * (k + 1), max_size=n * (k + 1)))
    table = np.array(values).reshape(n, k + 1)
    return table[:, 0], table[:, 1:]


# --- likelihood, by hand -----------------------------------------------------------------------------------


def test_probability():
    assert m.probability([0, LN2, LN8]).tolist() == pytest.approx([1, 1 / 2, 1 / 8])


def test_truth_ratio():
    right, wrong = [LN2], [[LN4, LN16]]  # p = 1/2; false answers 1/4 and 1/16
    # geometric: sqrt(1/4 * 1/16) = 1/8, over 1/2; arithmetic: (1/4 + 1/16) / 2 = 5/32, over 1/2
    assert m.truth_ratio(right, wrong, mean="geometric").tolist() == pytest.approx([1 / 4], rel=1e-12)
    assert m.truth_ratio(right, wrong, mean="arithmetic").tolist() == pytest.approx([5 / 16], rel=1e-9)


def test_arithmetic_truth_ratio_of_an_impossible_answer_is_large_but_finite():
    # p = exp(-1000) = 0, so R = (1/2) / 1e-12
    assert m.truth_ratio([1000], [[LN2]], mean="arithmetic").item() == pytest.approx(5e11)


def test_choice_probability():
    # (1/2) / (1/2 + 1/4 + 1/4) and (1/4) / (1/4 + 1/2 + 1/4)
    assert m.choice_probability([LN2, LN4], [[LN4, LN4], [LN2, LN4]]).tolist() == pytest.approx([1 / 2, 1 / 4])


@pytest.mark.parametrize(
    ("a", "b", "p", "distance"),
    [
        ([1, 2, 3], [3, 1, 2], 1, 0),
        ([1, 2, 3], [4, 5, 6], 2 / 20, 1),  # 2 of the C(6, 3) = 20 orders separate as far
        ([1, 2], [3, 4], 2 / 6, 1),
        ([1, 3], [2, 4], 1, 1 / 2),  # every order of 2 + 2 has a gap of at least 1/2
    ],
)
def test_ks_test(a, b, p, distance):
    assert m.ks_test(a, b) == pytest.approx((p, distance))


@pytest.mark.parametrize(
    ("correct", "strength", "exact"),
    [
        ([1, 1, 1], 1, 1),
        ([0, 0], 0, 0),
        ([1, 0, 1, 1], 2 / 4, 3 / 4),  # the suffix after the last miss
        ([1, 1, 1, 0], 0, 3 / 4),
        ([0, 1], 1 / 2, 1 / 2),
    ],
)
def test_extraction_strength_and_exact_memorization(correct, strength, exact):
    assert m.extraction_strength(correct) == strength
    assert m.exact_memorization(correct) == exact


@pytest.mark.parametrize(
    ("correct", "strength"),
    [
        ([1, 1, 1], 1),
        ([0, 0], 1 / 2),  # its search ends at the last token, correct or not
        ([1, 0, 1, 1], 2 / 4),
        ([1, 1, 1, 0], 1 / 4),
        ([0, 1], 1 / 2),
        ([0], 1),
    ],
)
def test_extraction_strength_of_open_unlearning(correct, strength):
    assert m.extraction_strength_ou(correct) == strength


# --- membership, by hand -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("percent", "value"),
    [(100, -2.5), (75, -3), (50, -3.5), (49, -4), (25, -4), (1, -4)],  # rounded down, at least one token
)
def test_min_k(percent, value):
    assert m.min_k([-1, -4, -2, -3], percent) == value


def test_auroc():
    assert m.auroc([3, 1], [2, 0]) == 3 / 4  # 3 > 2, 3 > 0, 1 > 0, but 1 < 2
    assert m.auroc([1, 2], [1]) == (1 / 2 + 1) / 2  # a tie is half a win
    assert m.auroc([2, 3], [0, 1]) == 1


def test_released_membership_score_of_a_model_that_separates_perfectly():
    """Labels 217 x 0, 400 x 1 over the scores of 400 forget, then 217 other answers; sign inverted.

    The "1"s are 183 forget answers and all 217 others.  The others beat every forget answer, the 183 tie with the
    217 forget answers labelled 0: (217 + 183 / 2) / 400 = 0.771.  SOUL's Table 1 has 0.7894 for this model.
    """
    forget, others = np.zeros(400), np.full(217, -1.0)
    assert m.auroc_released(forget, others) == pytest.approx((217 + 183 / 2) / 400)
    assert m.auroc(-forget, -others) == 0  # labels mended, sign not
    assert m.auroc(forget, others) == 1  # both mended
    rng = np.random.default_rng(0)
    assert 0.75 < m.auroc_released(rng.normal(0, 1, 400), rng.normal(-20, 1, 217)) < 0.80  # the same without ties


# --- generated text, by hand -------------------------------------------------------------------------------


def test_rouge_l():
    gold, generated = "the cat sat on the mat", "the cat on mat"  # common: the cat on mat, 4 words
    assert m.rouge_l(gold, generated) == pytest.approx(4 / 6)  # recall
    assert m.rouge_l(generated, gold) == 1
    assert m.rouge_l_f1(gold, generated) == pytest.approx(2 * 1 * (4 / 6) / (1 + 4 / 6))
    assert m.rouge_l("She writes books", "writing a book") == pytest.approx(2 / 3)  # stems: write, book
    assert m.rouge_l(gold, "") == 0


def test_contains():
    assert m.contains("William Shakespeare", "It was WILLIAM shakespeare.") == 1
    assert m.contains("William Shakespeare", "It was William") == 0


def test_nearest_is_first():
    assert m.nearest_is_first([0.9, 0.1, 0.8]) == 1
    assert m.nearest_is_first([0.8, 0.1, 0.9]) == 0
    assert m.nearest_is_first([0.0, 0.0, 0.0]) == 0  # empty output is equally near to all: wrong, not right


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("", 0),
        ("one", 0),
        ("{{{{{{", 0),
        ("from from from from", 0),
        ("sun sea sky", (2 / 3 * 1 + 4 / 3 * 0) / 2),  # 2 bigrams, 1 trigram
        ("sun sea sky ink", (2 / 3 * math.log2(3) + 4 / 3 * 1) / 2),  # 3 bigrams, 2 trigrams
        ("a a a b", (2 / 3 * (math.log2(3) - 2 / 3) + 4 / 3 * 1) / 2),  # bigrams aa aa ab, trigrams aaa aab
        ("Sun, sun", (2 / 3 * 1 + 4 / 3 * 0) / 2),  # sun "," sun
    ],
)
def test_ngram_entropy(text, bits):
    assert m.ngram_entropy(text) == pytest.approx(bits)


# --- summaries, by hand ------------------------------------------------------------------------------------


def test_harmonic_mean():
    assert m.harmonic_mean([1, 1 / 2]) == pytest.approx(2 / (1 + 2))
    assert m.harmonic_mean([1, 0]) == 0
    assert m.harmonic_mean([0.3] * 9) == pytest.approx(0.3)


def test_bootstrap_of_the_mean():
    values = [0, 1] * 200
    low, high = m.bootstrap(values)
    # normal theory: 0.5 -+ 1.96 * 0.5 / sqrt(400) = 0.5 -+ 0.049
    assert (low, high) == pytest.approx((0.451, 0.549), abs=0.006)
    assert m.bootstrap(values) == (low, high)
    assert m.bootstrap([0.25] * 5) == (0.25, 0.25)


def test_bootstrap_keeps_rows_together_and_resamples_groups_on_their_own():
    x = np.arange(6.0)
    rows = np.stack([x, -x], axis=1)
    assert m.bootstrap(rows, statistic=lambda r: r.sum()) == (0, 0)
    low, high = m.bootstrap(x, x, statistic=lambda a, b: a.mean() - b.mean())
    assert low < -1 < 1 < high


# --- laws --------------------------------------------------------------------------------------------------


@given(right_and_wrong())
def test_geometric_truth_ratio_is_at_most_the_arithmetic(table):
    right, wrong = table
    geometric, arithmetic = (m.truth_ratio(right, wrong, mean=x) for x in ("geometric", "arithmetic"))
    assert (geometric <= arithmetic * (1 + 1e-8)).all()
    same = np.repeat(wrong[:, :1], 5, axis=1)  # equal false answers: the two means agree
    np.testing.assert_allclose(
        m.truth_ratio(right, same, mean="geometric"), m.truth_ratio(right, same, mean="arithmetic"), rtol=1e-8
    )


@given(right_and_wrong(), nll, st.sampled_from(["geometric", "arithmetic"]))
def test_truth_ratio_ignores_the_order_of_false_answers_and_a_common_factor(table, shift, mean):
    right, wrong = table
    ratio = m.truth_ratio(right, wrong, mean=mean)
    np.testing.assert_allclose(m.truth_ratio(right, wrong[:, ::-1], mean=mean), ratio, rtol=1e-9)
    np.testing.assert_allclose(m.truth_ratio(right + shift, wrong + shift, mean=mean), ratio, rtol=1e-4)


@given(right_and_wrong())
def test_choice_probability_is_a_share_and_follows_the_arithmetic_ratio(table):
    right, wrong = table
    share = m.choice_probability(right, wrong)
    assert ((share > 0) & (share < 1)).all()
    ratio = m.truth_ratio(right, wrong, mean="arithmetic")
    np.testing.assert_allclose(share, 1 / (1 + wrong.shape[1] * ratio), rtol=1e-7)  # p / (p + K R p)


@given(hits)
def test_what_is_extracted_is_memorised(correct):
    strength, exact = m.extraction_strength(correct), m.exact_memorization(correct)
    assert 0 <= strength <= exact <= 1
    assert (strength == 1) == (exact == 1)
    assert (strength == 0) == (correct[-1] == 0)


@given(sample, st.floats(0.1, 100), st.floats(0.1, 100))
def test_min_k_grows_with_percent_from_the_least_to_the_mean(logps, a, b):
    low, high = (m.min_k(logps, percent) for percent in sorted((a, b)))
    assert min(logps) <= low <= high + 1e-12
    assert m.min_k(logps, 100) == pytest.approx(np.mean(logps))
    assert m.min_k(logps[::-1], a) == m.min_k(logps, a)


@given(sample, sample)
def test_auroc_against_scikit_learn(a, b):
    labels = [1] * len(a) + [0] * len(b)
    assert m.auroc(a, b) == pytest.approx(roc_auc_score(labels, [*a, *b]))
    labels = [0] * len(b) + [1] * len(a)  # of the released code: laid over the scores in the other order
    assert m.auroc_released(a, b) == pytest.approx(roc_auc_score(labels, -np.array([*a, *b])))


@given(sample, sample)
def test_auroc_swaps_and_ignores_scale(a, b):
    area = m.auroc(a, b)
    assert 0 <= area <= 1
    assert area == pytest.approx(1 - m.auroc(b, a))
    assert area == pytest.approx(m.auroc(-np.array(b), -np.array(a)))
    assert area == pytest.approx(m.auroc(2 * np.array(a) + 1, 2 * np.array(b) + 1))
    assert m.auroc(a, a) == pytest.approx(0.5)


@given(sample, sample)
def test_released_score_is_the_right_one_where_labels_fit(a, b):
    """With equally many of both the labels are merely exchanged, which mends the inverted sign."""
    n = min(len(a), len(b))
    assert m.auroc_released(a[:n], b[:n]) == pytest.approx(m.auroc(a[:n], b[:n]))


@pytest.mark.filterwarnings("ignore:ks_2samp:RuntimeWarning")  # ties may make scipy fall back to its asymptotic p
@given(sample, sample)
def test_ks_is_symmetric_and_looks_at_ranks_only(a, b):
    p, distance = m.ks_test(a, b)
    assert 0 <= p <= 1
    assert 0 <= distance <= 1
    assert m.ks_test(b, a) == pytest.approx((p, distance))
    assert m.ks_test(np.exp(a), np.exp(b)) == pytest.approx((p, distance))
    assert m.ks_test(a, a) == (1, 0)


@given(words, words)
def test_rouge_is_a_share_and_one_for_the_gold_answer(gold, generated):
    recall, f1 = m.rouge_l(gold, generated), m.rouge_l_f1(gold, generated)
    precision = m.rouge_l(generated, gold)
    assert 0 <= recall <= 1
    assert min(recall, precision) - 1e-9 <= f1 <= max(recall, precision) + 1e-9
    assert m.rouge_l(gold, f"{generated} {gold}") == 1  # recall: saying more costs nothing


@given(words)
def test_ngram_entropy_is_bounded_and_ignores_case(text):
    n = len(text.split())
    most = (2 / 3 * math.log2(max(1, n - 1)) + 4 / 3 * math.log2(max(1, n - 2))) / 2
    assert 0 <= m.ngram_entropy(text) <= most + 1e-9
    assert m.ngram_entropy(text) == m.ngram_entropy(text.upper())


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=9))
def test_harmonic_mean_lies_between_the_least_and_the_mean(values):
    assert min(values) - 1e-12 <= m.harmonic_mean(values) <= np.mean(values) + 1e-12


@given(sample)
def test_bootstrap_stays_within_the_data(values):
    low, high = m.bootstrap(values, draws=50)
    assert min(values) <= low <= high <= max(values)


# --- parity ------------------------------------------------------------------------------------------------


@given(right_and_wrong())
def test_likelihood_metrics_equal_plain_loops(table):
    right, wrong = table
    geometric = m.truth_ratio(right, wrong, mean="geometric")
    arithmetic = m.truth_ratio(right, wrong, mean="arithmetic")
    choice = m.choice_probability(right, wrong)
    for i, r in enumerate(right):
        p, false = math.exp(-r), [math.exp(-w) for w in wrong[i]]
        assert geometric[i] == pytest.approx(math.prod(q ** (1 / len(false)) for q in false) / p, rel=1e-9)
        assert arithmetic[i] == pytest.approx(sum(false) / len(false) / (p + 1e-12), rel=1e-9)
        assert choice[i] == pytest.approx(p / (p + sum(false)), rel=1e-9)


@given(sample, sample)
def test_ks_distance_is_the_largest_gap_of_the_distributions(a, b):
    gaps = [abs(sum(x <= t for x in a) / len(a) - sum(x <= t for x in b) / len(b)) for t in a + b]
    assert m.ks_test(a, b)[1] == pytest.approx(max(gaps))


@given(sample, sample)
def test_auroc_counts_pairs(a, b):
    wins = sum((x > y) + (x == y) / 2 for x in a for y in b)
    assert m.auroc(a, b) == pytest.approx(wins / len(a) / len(b))


@given(sample, st.integers(1, 100))
def test_min_k_equals_a_plain_loop(logps, percent):
    count = max(1, len(logps) * percent // 100)
    assert m.min_k(logps, percent) == pytest.approx(sum(sorted(logps)[:count]) / count)


def common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, by definition."""
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + common(a[1:], b[1:])
    return max(common(a[1:], b), common(a, b[1:]))


@given(words, words)
def test_rouge_equals_a_recursive_subsequence(gold, generated):
    length = common(gold.split(), generated.split())
    assert m.rouge_l(gold, generated) == pytest.approx(length / len(gold.split()))


# --- errors ------------------------------------------------------------------------------------------------

ONE_ARRAY = [m.probability, m.harmonic_mean, m.bootstrap, lambda x: m.min_k(x, 50)]
TWO_ARRAYS = [m.ks_test, m.auroc, m.auroc_released]


@pytest.mark.parametrize(("bad", "message"), [([], "empty"), ([1, math.nan], "1 values that are NaN")])
def test_empty_input_and_nan_are_errors(bad, message):
    for metric in ONE_ARRAY:
        with pytest.raises(ValueError, match=message):
            metric(bad)
    for metric in TWO_ARRAYS:
        for pair in ((bad, [1.0]), ([1.0], bad)):
            with pytest.raises(ValueError, match=message):
                metric(*pair)
    for metric in (m.choice_probability, lambda r, w: m.truth_ratio(r, w, mean="geometric")):
        for right, wrong in ((bad, [[1.0]]), ([1.0], [bad])):
            with pytest.raises(ValueError, match=message):
                metric(right, wrong)


@pytest.mark.parametrize(
    "metric", [m.extraction_strength, m.extraction_strength_ou, m.exact_memorization, m.nearest_is_first]
)
def test_empty_sequences_are_errors(metric):
    with pytest.raises(ValueError):
        metric([])


@pytest.mark.parametrize("wrong", [[1.0, 2.0], [[1.0, 2.0]], [[1.0], [2.0], [3.0]]])
def test_truth_ratio_refuses_counts_that_disagree(wrong):
    with pytest.raises(ValueError, match=r"\(N,\) and \(N, K\)"):
        m.truth_ratio([1.0, 2.0], wrong, mean="geometric")


def test_truth_ratio_refuses_an_unknown_mean():
    with pytest.raises(ValueError, match="'harmonic': must be"):
        m.truth_ratio([1.0], [[1.0]], mean="harmonic")
