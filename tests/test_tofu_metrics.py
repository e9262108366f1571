"""TOFU's metrics from rows made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from task_rows import SPLITS, row

from soul_cli.core.types import Metric, Row
from soul_cli.evaluate.config import EvalConfig
from soul_cli.experiment.config import compose
from soul_cli.tasks import tofu_metrics

CONFIG: EvalConfig = compose(["eval.min_k=50"]).eval


def rows(**changes: Any) -> list[Row]:
    """Three rows a split; changes apply to the forget rows."""
    return [row(split, i, **(changes if split == "forget" else {})) for split in SPLITS for i in range(3)]


def summarise(some: list[Row], retain_rows: list[Row] | None = None) -> tuple[dict[str, Metric], dict[str, str]]:
    return tofu_metrics.summarise(some, retain_rows, CONFIG)


def test_memorisation_with_and_without_eos() -> None:
    """EOS alone is correct: ours counts it; open-unlearning's, without it, is 1/2 by its floor, and nothing exact."""
    metrics, _ = summarise(rows(correct=[0, 0, 1]))
    value = {k: v.value for k, v in metrics.items()}
    assert value["forget_extraction_strength"] == pytest.approx(1 / 3)
    assert value["forget_extraction_strength_ou"] == pytest.approx(1 / 2)
    assert value["forget_exact_memorization"] == pytest.approx(1 / 3)
    assert value["forget_exact_memorization_ou"] == 0
    for name, words in (("", "EOS included"), ("_ou", "without EOS")):
        assert words in metrics[f"forget_extraction_strength{name}"].definition
        assert words in metrics[f"forget_exact_memorization{name}"].definition


def test_membership_with_and_without_eos() -> None:
    """Members are told by their EOS alone: Min-50% of three tokens is the lowest one, without EOS a tie."""
    forget = {"answer_logps": [-1.0, -1.0, -0.5]}
    others = {"answer_logps": [-1.0, -1.0, -3.0]}
    some = [row(split, i, **(others if split == "holdout" else forget)) for split in SPLITS for i in range(3)]
    metrics, _ = summarise(some)
    assert (metrics["mia"].value, metrics["mia_min_k_ou"].value) == (1.0, 0.5)
    assert "EOS included" in metrics["mia"].definition
    assert "Min-40%" in metrics["mia_min_k_ou"].definition
    metrics, absent = summarise([r for r in some if r["split"] != "holdout"])
    assert {"mia", "mia_min_k_ou"} <= absent.keys()
    assert metrics["mia_facts"].value == 0.5


def test_answers_of_eos_alone_have_no_metric_without_it() -> None:
    _, absent = summarise(rows(correct=[1], answer_logps=[-1.0]))
    assert set(absent) >= {"forget_extraction_strength_ou", "forget_exact_memorization_ou", "mia_min_k_ou"}
