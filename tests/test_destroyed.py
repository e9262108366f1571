"""A destroyed model is a result: answers of probability 0, infinite perplexity, logits that are no numbers."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_runs import metric, write_epochs, write_run
from task_rows import SPLITS, continued, row, text

from soul_cli.core.run_folder import plain_metrics, read_metrics
from soul_cli.core.types import Metric, Row
from soul_cli.evaluate import general
from soul_cli.evaluate import metrics as m
from soul_cli.experiment.config import compose
from soul_cli.experiment.epochs import metric_values
from soul_cli.report.cli import main
from soul_cli.report.compare import Point, difference, paired
from soul_cli.report.figures.curves import epochs
from soul_cli.report.figures.distributions import ecdf
from soul_cli.report.figures.look import save
from soul_cli.report.figures.source import Source
from soul_cli.report.figures.tradeoff import tradeoff
from soul_cli.report.layout import LAYOUTS
from soul_cli.report.read import find_runs
from soul_cli.report.tables import Cell, marks, tabulate
from soul_cli.tasks import copyright_metrics, general_metrics, tofu_metrics

INF, NAN = math.inf, math.nan
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
CONFIG = compose([]).eval


# --- functions, by hand ------------------------------------------------------------------------------------


def test_ratios_of_probabilities_below_the_smallest_float() -> None:
    # exp(-800) is 0 in floats; the ratio of the two is exp(10)
    assert m.truth_ratio([810], [[800, 800]], mean="geometric").item() == pytest.approx(math.exp(10))
    assert m.truth_ratio([900], [[10]], mean="geometric").item() == INF
    assert m.truth_ratio([10], [[900]], mean="geometric").item() == 0
    assert m.truth_ratio([INF], [[INF, INF]], mean="geometric").item() == 1  # cannot tell them apart
    assert m.truth_ratio([INF], [[INF]], mean="arithmetic").item() == 0  # TOFU's 1e-12 stands in the denominator
    assert m.log_truth_ratio([900], [[10]], mean="geometric").item() == 890
    assert m.log_truth_ratio([0], [[900]], mean="arithmetic").item() == pytest.approx(-900)
    choice = m.choice_probability([800, 800, INF, INF, 0], [[801] * 4, [10] * 4, [INF] * 4, [1] * 4, [INF] * 4])
    assert choice.tolist() == pytest.approx([1 / (1 + 4 * math.exp(-1)), 0, 1 / 5, 0, 1])
    assert m.probability([800, INF]).tolist() == pytest.approx([0, 0])


def test_perplexity_beyond_the_largest_float() -> None:
    assert m.perplexity(12, 12) == pytest.approx(math.e)
    assert (m.perplexity(710, 1), m.perplexity(INF, 3)) == (INF, INF)


def test_membership_of_answers_of_probability_0() -> None:
    assert m.min_k([-INF, -1, -2, -3], 50) == -INF
    assert m.auroc([-INF, -INF], [-INF, -1]) == 1 / 4  # one tie of two, half each; the others lose
    assert m.bootstrap([-INF, -INF], [-INF, -INF], statistic=m.auroc) == (0.5, 0.5)


def test_interval_where_draws_are_infinite() -> None:
    assert m.interval([INF] * 50) == (INF, INF)
    assert m.interval([*range(99), INF]) == (2, 97)  # ordered values 2 and 97 of 0 to 99
    assert m.interval([0.0] * 50 + [INF] * 50) == (0, INF)
    finite = np.random.default_rng(0).normal(size=101)
    assert m.interval(finite) == pytest.approx(tuple(np.percentile(finite, [2.5, 97.5])))


def test_summaries_of_the_infinite() -> None:
    assert m.retention(100.0, INF) == 0  # perplexity: original over now
    assert m.retention(INF, INF) == 1
    assert m.harmonic_mean([1, 5e-324]) == 0
    assert m.nats([NAN, INF, 1]).tolist() == [INF, INF, 1]


# --- tasks -------------------------------------------------------------------------------------------------


def destroyed(nll: float) -> dict[str, Any]:
    return {
        "nll": nll, "paraphrased_nll": nll, "perturbed_nll": [nll] * 4, "asked_paraphrased_nll": nll,
        "asked_perturbed_nll": [nll] * 4, "answer_logps": [-nll] * 3, "prompt_logps": [-nll], "correct": [0, 0, 0],
        "rougeL": 0.0, "contains": 0.0, "fluency": 0.0, "generation": "",
    }  # fmt: skip


def check_finite(metrics: dict[str, Metric], infinite: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """All numbers are numbers; those of `infinite` alone are inf."""
    for name, found in metrics.items():
        numbers = [found.value, *(found.ci95 or ())]
        assert not any(map(math.isnan, numbers)), name
        assert math.isinf(found.value) == (name in infinite), (name, found)
        if name not in infinite:
            assert not any(map(math.isinf, numbers)), name
    assert read_metrics(strict(json.dumps(plain_metrics(metrics), allow_nan=False))) == metrics


def strict(text: str) -> Any:
    """JSON as its standard has it: without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("nll", [800.0, 1e30, INF, NAN])
def test_tofu_metrics_of_a_destroyed_model(nll: float) -> None:
    rows = [row(split, i, **destroyed(nll)) for split in SPLITS for i in range(4)]
    whole = [row(split, i) for split in SPLITS for i in range(4)]
    metrics, absent = tofu_metrics.summarise(rows, whole, CONFIG)
    assert absent == {}
    check_finite(metrics)
    value = {name: metric.value for name, metric in metrics.items()}
    assert (value["forget_prob"], value["model_utility"], value["model_utility_arithmetic"]) == (0, 0, 0)
    assert value["world_facts_prob"] == pytest.approx(1 / 5)  # all answers alike
    assert value["forget_truth_ratio"] == 1
    assert value["forget_quality_D"] == 1
    assert value["forget_extraction_strength"] == 0


def test_the_ks_test_tells_ratios_apart_that_are_beyond_the_largest_float() -> None:
    """R of exp(990) and of exp(1990): both inf as floats, where they would be equal."""

    def rows(nll: float) -> list[Row]:
        own = {"paraphrased_nll": nll, "perturbed_nll": [10.0] * 4}
        return [row(split, i, **(own if split == "forget" else {})) for split in SPLITS for i in range(4)]

    for reference, distance in ((1000.0, 0.0), (2000.0, 1.0)):
        metrics, _ = tofu_metrics.summarise(rows(1000.0), rows(reference), CONFIG)
        assert metrics["forget_quality_D"].value == distance


def test_tofu_metrics_of_a_model_destroyed_in_part() -> None:
    """One answer that is impossible while its false ones are not: R is inf, its score 0."""
    rows = [row(split, i) for split in SPLITS for i in range(4)]
    rows[0] |= {"nll": 2000.0, "paraphrased_nll": 2000.0}
    metrics, _ = tofu_metrics.summarise(rows, rows, CONFIG)
    check_finite(metrics)
    assert metrics["forget_truth_ratio"].value == pytest.approx(3 / 4 * math.exp(-1))


@pytest.mark.parametrize("nll", [1e4, INF, NAN])
def test_copyright_metrics_of_a_destroyed_model(nll: float) -> None:
    zero = {"rougeL": 0.0, "bleu": 0.0, "verbmem": 0.0, "verbmem_muse": 0.0, "verbatim_tokens": 0, "fluency": 0.0}
    rows: list[Row] = [continued(s, 20, "seen", i, **zero) for s in ("forget", "retain") for i in range(2)]
    rows += [text(s, 4.0, 4) for s in ("retain_text", "heldout_text")]
    rows += [text(s, nll, 2) for s in ("forget_text", "heldout_text")]
    metrics, _ = copyright_metrics.summarise(rows)
    check_finite(metrics, {"forget_ppl", "heldout_ppl"})
    assert metrics["heldout_ppl"].ci95 == (pytest.approx(math.e), INF)
    whole = {k: Metric(0.5 if "rouge" in k else 10.0, 1, "", "") for k in metrics}
    assert copyright_metrics.selection_score({"original": whole, "retain_trained": whole, "this_run": metrics}) == 0


def scored(task: str, metric_name: str, value: float, stderr: float | None) -> Row:
    """A row of lm-eval."""
    scores = {metric_name: {"value": value, "stderr": stderr, "higher_is_better": metric_name != "word_perplexity"}}
    conditions = {"version": 1, "lm_eval": "0.4", "n": 5, "limit": None, "window": 64, "cut": 0}
    return {"split": general.SPLIT, "task": task, "metrics": scores, **conditions}


def test_scores_of_lm_eval_that_are_no_numbers_are_absent() -> None:
    rows = [scored("truthfulqa_mc2", "acc", NAN, NAN), scored("wikitext", "word_perplexity", INF, NAN)]
    metrics, absent = general_metrics.summarise(rows)
    assert list(metrics) == ["wikitext_word_ppl"]
    assert (metrics["wikitext_word_ppl"].value, metrics["wikitext_word_ppl"].ci95) == (INF, None)
    assert "not a number" in absent["truthfulqa_mc2"]


# --- files -------------------------------------------------------------------------------------------------


def test_infinity_in_json_and_back() -> None:
    metrics = {"ppl": Metric(INF, 3, "down", "d", (2.0, INF)), "x": Metric(-INF, None, "", "")}
    plain = json.dumps(plain_metrics(metrics), allow_nan=False)
    assert read_metrics(strict(plain)) == metrics
    assert '"inf"' in plain
    assert read_metrics(json.loads(json.dumps({"ppl": {"value": INF, "n": 3}})))["ppl"].value == INF  # of version 0.1
    line = strict(json.dumps(metric_values(metrics), allow_nan=False))
    assert read_metrics(line)["ppl"].ci95 == (2.0, INF)


def test_infinite_cells() -> None:
    assert (Cell((INF,)).text, Cell((INF, 2.0)).text, Cell((1e30, 1e30)).text) == ("inf", "inf", "1.00e+30 ± 0e+00")

    def column(goal: str, **values: float) -> dict[str, str]:
        cells = {(name.replace("_", "-"), ""): Cell((v,), Metric(v, 1, goal, "")) for name, v in values.items()}
        return {row[0]: mark for row, mark in marks(cells).items()}

    assert column("down", a=INF, b=9.0, c=INF) == {"b": "best", "a": "second", "c": "second"}
    assert column("retain", retain_trained=INF, a=INF, b=9.0) == {"a": "best", "b": "second"}


def test_differences_of_the_infinite() -> None:
    def points(*perplexities: float) -> list[Point]:
        extra = [(("heldout_ppl", x),) for x in perplexities]
        return [Point("npo", "", (), i, 0.1, 0.5, 1.0, 0.5, 900.0, e) for i, e in enumerate(extra)]

    found = paired(points(2.0, INF, 3.0), points(INF, INF, 3.5), "heldout_ppl")
    assert found == [INF, 0.0, 0.5]
    assert difference(found) == "infinite on 1 of 3 seeds (+inf)"


def spoil(folder: Path, **changes: float) -> None:
    """Set metrics of this_run, as the run folder has them."""
    content = json.loads((folder / "metrics.json").read_text())
    for name, value in changes.items():
        plain = {**metric(name, value), "value": str(value) if math.isinf(value) else value}
        content["models"]["this_run"][name] = plain
        content["models"]["original"][name] = metric(name, 3.0)
    content["columns"] += list(changes)
    (folder / "metrics.json").write_text(json.dumps(content, allow_nan=False))


def test_a_report_of_destroyed_models(tmp_path: Path) -> None:
    for seed in (0, 1):
        spoil(write_run(tmp_path / "runs", seed, 0.0, "method=ga", "optim=adamw"), heldout_ppl=INF)
        spoil(write_run(tmp_path / "runs", seed, 0.1, "method=npo", "optim=adamw"), heldout_ppl=20.0 + seed)
    for folder in (tmp_path / "runs").iterdir():
        lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
        for line in lines:
            line |= {"nll": NAN, "paraphrased_nll": 2000.0, "perturbed_nll": [NAN, 1.0]}
        (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    main([str(tmp_path / "runs"), "--out", f"{tmp_path}/out/"])
    out = tmp_path / "out"
    assert "| ga | adamw | 2 |" in (out / "table.md").read_text()
    long = pd.read_csv(out / "table.csv", keep_default_na=False).query("metric == 'heldout_ppl'").set_index("method")
    assert long.loc["ga", ["mean", "sd", "mark"]].tolist() == [INF, "", "second"]
    assert long.loc["npo", "mark"] == "best"
    wide = pd.read_csv(io.StringIO((out / "table_wide.csv").read_text())).set_index("method")
    assert wide.loc["ga", "heldout_ppl"] == INF
    assert "$\\infty$" in (out / "table.tex").read_text()
    page = (out / "report.html").read_text()
    assert 'data-value="Infinity"' in page
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert ["p(gold)", 0.0] in strict(data[1])["questions"][0]["answers"][2][1]
    if shutil.which("pdflatex"):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
        assert subprocess.run(command, cwd=out, capture_output=True, check=False).returncode == 0


def test_figures_of_destroyed_models(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 0, 0.0, "method=ga", "optim=adamw")
    spoil(folder, forget_rougeL=INF)
    write_run(tmp_path, 0, 0.1, "method=npo", "optim=adamw")
    write_epochs(folder, [0.9, INF], [0.9, 0.8])
    runs = find_runs([tmp_path])
    some = Source(runs, tabulate(runs), LAYOUTS["tofu"])
    figure = tradeoff(some)
    assert figure is not None
    assert figure.axes[0].get_title() == "infinite, not drawn: ga adamw"
    for drawn in (figure, epochs(some), ecdf(some)):
        assert drawn is not None
        assert save(drawn)
