"""Tables from run folders, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from soul_cli.config import compose
from soul_cli.report import caption, find_runs, goals_of, markdown, table
from soul_cli.types import UserError


def metric(value: float, **extra: float) -> dict[str, Any]:
    return {"value": value, "n": 80, "goal": "up", "definition": "d", "ci95": None, "extra": extra}


def write_run(root: Path, seed: int, rouge: float, *overrides: str) -> None:
    config = compose([f"seed={seed}", *overrides])
    folder = root / f"{config.method.name}-{config.optim.name}-{seed}-{rouge}"
    folder.mkdir(parents=True)
    some = {"forget_rougeL": metric(rouge), "retain_rougeL": metric(0.9), "forget_quality": metric(0.01, D=0.25)}
    content = {
        "task": "tofu", "method": config.method.name, "optim": config.optim.name, "seed": seed, "target_seed": 0,
        "models": {"original": some, "retain_trained": some, "this_run": some},
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(content))
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config.plain())))
    (folder / "train.jsonl").write_text(json.dumps({"displacement": 2.0}) + "\n")


def test_mean_sd_and_n(tmp_path: Path) -> None:
    for seed, rouge in enumerate((0.1, 0.2, 0.3)):
        write_run(tmp_path, seed, rouge)
    runs = find_runs([tmp_path])
    long = table(runs)
    row = long[(long.method == "npo") & (long.metric == "forget_rougeL")].iloc[0]
    assert (row["mean"], row["sd"], row["median"], row["n"]) == (pytest.approx(0.2), pytest.approx(0.1), 0.2, 3)
    text = markdown(long, ["forget_rougeL", "forget_quality_D"], goals_of(runs))
    assert "| npo | soul | 3 | 0.200 ± 0.100 | 0.250 ± 0.000 |" in text
    assert text.splitlines()[2].startswith("| original | - | 1 |")
    assert "80 forget" in caption(runs)


def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 0.1)
    write_run(tmp_path, 1, 0.2, "task.forget=forget05")
    with pytest.raises(UserError, match=r"task\.forget differs"):
        table(find_runs([tmp_path]))


def test_two_settings_under_one_name_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 0.1)
    write_run(tmp_path, 0, 0.2, "optim.lr=0.5")
    with pytest.raises(UserError, match="other settings"):
        table(find_runs([tmp_path]))


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run"):
        find_runs([tmp_path])
