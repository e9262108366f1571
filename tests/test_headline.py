"""What a run shows first: which metrics, and the verdict beside the retain-trained model."""

from __future__ import annotations

import math

import pytest

from soul_cli.core.types import Headline, Metric
from soul_cli.report.headline import NEAR, PAST, SHORT, absences, cost_words, headline_of, lines, verdict
from soul_cli.tasks import copyright_metrics, tofu_metrics


def metric(value: float, goal: str, ci95: tuple[float, float] | None = None) -> Metric:
    return Metric(value, 10, goal, "d", ci95)


@pytest.mark.parametrize(
    ("goal", "original", "floor", "value", "ci95", "expected"),
    [
        # with an interval: is the retain-trained value in it?
        ("retain", 0.9, 0.3, 0.5, (0.3, 0.7), NEAR),
        ("retain", 0.9, 0.3, 0.5, (0.31, 0.7), SHORT),
        ("retain", 0.9, 0.3, 0.1, (0.0, 0.29), PAST),
        ("retain", 0.2, 0.6, 0.4, (0.3, 0.5), SHORT),  # likewise where forgetting raises the number
        ("retain", 0.2, 0.6, 0.8, (0.7, 0.9), PAST),
        ("up", 0.95, 0.9, 0.5, (0.4, 0.6), SHORT),  # worse, although the original is better
        ("up", 0.95, 0.9, 0.97, (0.96, 0.98), PAST),
        ("down", 10.0, 11.0, 20.0, (19.0, 21.0), SHORT),
        ("down", 10.0, 11.0, 9.0, (8.0, 10.0), PAST),
        # without one: a tenth of the way from the original model
        ("retain", 1.0, 0.0, 0.1, None, NEAR),
        ("retain", 1.0, 0.0, 0.11, None, SHORT),
        ("retain", 1.0, 0.0, -0.11, None, PAST),
        ("down", 1.0, 0.0, 0.1, None, NEAR),
        ("down", 1.0, 0.0, 0.2, None, SHORT),
        ("retain", 0.4, 0.4, 0.4, None, NEAR),  # the original is there already
        ("retain", 0.4, 0.4, 0.3, None, PAST),
        # of destroyed models
        ("down", 10.0, 11.0, math.inf, None, SHORT),
        ("down", math.inf, math.inf, math.inf, None, NEAR),
    ],
)
def test_verdict_by_hand(
    goal: str, original: float, floor: float, value: float, ci95: tuple[float, float] | None, expected: str
) -> None:
    assert verdict(metric(value, goal, ci95), original, floor) == expected


@pytest.mark.parametrize(("p", "expected"), [(0.5, NEAR), (0.05, NEAR), (0.049, SHORT), (0.0, SHORT)])
def test_a_p_is_near_where_the_test_does_not_reject(p: float, expected: str) -> None:
    assert verdict(metric(p, "up"), 0.0, 1.0, near_from=0.05) == expected


def test_lines_of_what_is_there() -> None:
    headline = [Headline("forgetting", "a"), Headline("privacy", "absent"), Headline("kept", "b")]
    one = {"a": metric(0.9, "retain"), "b": metric(0.5, "up")}
    models = {"original": one, "retain_trained": {"a": metric(0.1, "retain")}, "this_run": one}
    assert [(line.name, line.goal, line.verdict) for line in lines(headline, models)] == [
        ("a", "retain", SHORT), ("b", "up", ""),
    ]  # fmt: skip
    del models["this_run"]
    assert [line.verdict for line in lines(headline, models)] == ["", ""]


def test_seven_metrics_at_most_of_the_four_aspects() -> None:
    for task, columns in (
        (tofu_metrics.HEADLINE, tofu_metrics.COLUMNS),
        (copyright_metrics.headline(20), copyright_metrics.columns([20, 60])),
    ):
        assert len(task) <= 7
        assert list(dict.fromkeys(line.aspect for line in task)) == ["forgetting", "privacy", "kept", "fluency"]
        assert {line.metric for line in task} <= set(columns)


def test_what_version_0_1_calls_its_headline_are_columns() -> None:
    assert headline_of({"headline": ["forget_rougeL"]}) == []
    line = {"aspect": "kept", "metric": "a", "near_from": None}
    assert headline_of({"headline": [line]}) == [Headline("kept", "a")]


def test_sentences() -> None:
    assert absences({"a": "x", "b": "y", "c": "x"}) == ["absent: a, c (x)", "absent: b (y)"]
    cost = {
        "target_model": {"cached": True, "seconds": 60.0, "peak_memory_bytes": 9e9},
        "unlearn": {"cached": False, "seconds": 10.0, "peak_memory_bytes": 2e9},
        "evaluate": {"cached": False, "seconds": 5.0, "peak_memory_bytes": 1e9},
    }
    assert cost_words(cost) == ("cost: 15.0 s, peak memory 2,000 MB; cached: target model (60.0 s when made)")
