"""What stands around a run: given rows, and where they are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from soul_cli.core.types import UserError
from soul_cli.experiment.run import rows_of


def test_rows_of_a_file_or_a_run_folder(tmp_path: Path):
    evaluated, unlearned = tmp_path / "none", tmp_path / "npo"
    for folder, names in ((evaluated, ["rows_original"]), (unlearned, ["rows_original", "rows"])):
        folder.mkdir()
        for name in names:
            (folder / f"{name}.jsonl").write_text("{}\n")
    assert rows_of(str(evaluated)) == evaluated / "rows_original.jsonl"
    assert rows_of(str(unlearned)) == unlearned / "rows.jsonl"
    assert rows_of(str(unlearned / "rows_original.jsonl")) == unlearned / "rows_original.jsonl"
    with pytest.raises(UserError, match=r"task\.retain_rows=.*no such file"):
        rows_of(str(tmp_path))
