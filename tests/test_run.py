"""What stands around a run: given rows, and where they are looked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from soul_cli.core.types import UserError
from soul_cli.experiment import run as runs
from soul_cli.experiment.config import compose
from soul_cli.experiment.evaluation import retain_rows_file


@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic_algorithms_are_taken_where_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool
):
    seen: list[bool] = []

    def begin() -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        raise KeyboardInterrupt

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(runs, "start", begin)
    with pytest.raises(KeyboardInterrupt):
        runs.run(compose([f"deterministic={str(deterministic).lower()}"]))
    assert seen == [deterministic]
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None) == (":4096:8" if deterministic else None)
    assert compose(["deterministic=true"]).identity() == compose([]).identity()  # it is looked for under one name


def test_rows_of_a_file_or_a_run_folder(tmp_path: Path):
    evaluated, unlearned = tmp_path / "none", tmp_path / "npo"
    for folder, names in ((evaluated, ["rows_original"]), (unlearned, ["rows_original", "rows"])):
        folder.mkdir()
        for name in names:
            (folder / f"{name}.jsonl").write_text("{}\n")
    assert retain_rows_file(str(evaluated)) == evaluated / "rows_original.jsonl"
    assert retain_rows_file(str(unlearned)) == unlearned / "rows.jsonl"
    assert retain_rows_file(str(unlearned / "rows_original.jsonl")) == unlearned / "rows_original.jsonl"
    with pytest.raises(UserError, match=r"task\.retain_rows=.*no such file"):
        retain_rows_file(str(tmp_path))
