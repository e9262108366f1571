"""What stands around a run: given rows, and where they are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from soul_cli.core.types import UserError
from soul_cli.experiment.evaluation import retain_rows_file


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
