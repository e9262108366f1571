"""The published TOFU numbers from TOFU's own evaluation logs, through the code that makes our tables.

facts.md, section 6: first 300 items of forget10, LLaMA2-7B, full against retain90, to a relative 1e-6.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from soul_cli.core.types import UserError
from soul_cli.evaluate import metrics as m
from soul_cli.experiment.config import compose
from soul_cli.tasks.tofu_metrics import FACTS, ratio

LOGS = Path(__file__).resolve().parents[2] / "shared" / "data" / "tofu_eval_logs"
pytestmark = pytest.mark.skipif(not LOGS.is_dir(), reason=f"TOFU's evaluation logs are not at {LOGS}")

FILES = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
CONFIG = compose([]).eval


def rows_of(model: str) -> list[dict]:
    """TOFU's log as the rows our task writes.  What the logs lack and the numbers here do not need is 0.

    For real authors and world facts the "paraphrase" is the answer itself, scored a second time: the two differ by
    bf16 rounding (up to 2 %).  The published numbers rest on the second; rows of ours have one score and no such key.
    """
    path = LOGS / f"ft_epoch5_lr1e-05_llama2-7b_{model}_wd0.01" / "eval_log_aggregated.json"
    logs = json.loads(path.read_text())
    rows = []
    for split, file in FILES.items():
        log = logs[file]
        for i, nll in log["avg_gt_loss"].items():
            row = {
                "split": split,
                "question": log["generated_text"][i][0],
                "nll": nll,
                "paraphrased_nll": log["avg_paraphrased_loss"][i],
                "perturbed_nll": log["average_perturb_loss"][i],
                "rougeL": log["rougeL_recall"][i],
                "fluency": 0.0,
                "contains": 0.0,
                "correct": [0],
                "answer_logps": [-nll],
            }
            rows.append(row)
    return rows


@pytest.fixture(scope="module")
def full() -> list[dict]:
    return rows_of("full")


@pytest.fixture(scope="module")
def retain90() -> list[dict]:
    return rows_of("retain90")


def summary(rows: list[dict], retain_rows: list[dict] | None) -> dict:
    task = compose(["task=tofu"]).task
    return task.summarise(rows, retain_rows, CONFIG)[0]


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-6)


def test_forget_quality(full, retain90):
    metrics = summary(full, retain90)
    quality, distance = metrics["forget_quality"], metrics["forget_quality_D"]
    assert quality.value == near(1.834066410994743e-21)
    assert distance.value == near(119 / 300)  # 0.3966667
    assert (quality.n, distance.n) == (300, 300)
    assert "retain-trained one (300 questions)" in quality.definition


def test_forget_quality_would_differ_with_the_arithmetic_mean(full, retain90):
    forgets = [[r for r in rows if r["split"] == "forget"] for rows in (full, retain90)]
    p, _ = m.ks_test(*(ratio(rows, "arithmetic") for rows in forgets))
    assert p == pytest.approx(6.0319e-23, rel=1e-5)  # the digits facts.md gives


def test_retain_trained_model_against_itself_is_indistinguishable(retain90):
    metrics = summary(retain90, retain90)
    assert (metrics["forget_quality"].value, metrics["forget_quality_D"].value) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("model", "geometric", "arithmetic", "truth"),
    [
        ("full", 0.6226773637, 0.5858860351, 0.5159854213),
        ("retain90", 0.6137449952, 0.5752399175, 0.6740192658),
    ],
)
def test_model_utility_and_forget_truth_ratio(model, geometric, arithmetic, truth):
    metrics = summary(rows_of(model), None)
    assert metrics["model_utility"].value == near(geometric)
    assert metrics["model_utility_arithmetic"].value == near(arithmetic)
    assert metrics["forget_truth_ratio"].value == near(truth)
    low, high = metrics["model_utility"].ci95
    assert low < geometric < high
    assert 0.02 < (high - low) / 2 < 0.04  # facts.md: about 0.03


def test_retain_trained_model_is_the_floor_of_forgetting():
    metrics = summary(rows_of("retain90"), None)  # facts.md, section 5
    assert metrics["forget_rougeL"].value == pytest.approx(0.408, abs=5e-4)
    assert metrics["forget_prob"].value == pytest.approx(0.148, abs=5e-4)


def test_scoring_the_answer_to_a_fact_once_changes_utility_by_rounding_only(full):
    ours = [{k: v for k, v in r.items() if k != "paraphrased_nll" or r["split"] not in FACTS} for r in full]
    assert summary(ours, None)["model_utility"].value == pytest.approx(0.6226773637, rel=1e-4)


def test_retain_rows_of_other_questions_are_refused(full, retain90):
    other = [r | {"question": "another"} for r in retain90]
    with pytest.raises(UserError, match="other forget questions"):
        summary(full, other)


def test_our_geometric_ratio_is_the_one_in_tofus_log(full):
    path = LOGS / "ft_epoch5_lr1e-05_llama2-7b_full_wd0.01" / "eval_log_aggregated.json"
    logged = json.loads(path.read_text())[FILES["forget"]]["truth_ratio"]
    forget = [r for r in full if r["split"] == "forget"]
    np.testing.assert_allclose(ratio(forget, "geometric"), list(logged.values()), rtol=1e-5)
