"""The stages for a GPU, rehearsed on a CPU: whether they run; what they measure there means nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_stage_runs(tmp_path: Path) -> None:
    command = [str(ROOT / "scripts" / "gpu.sh"), "--rehearse", "--out", str(tmp_path)]
    env = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    logs = "".join(path.read_text()[-2000:] for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    text = (tmp_path / "gpu.md").read_text()
    for what in (
        "| training in float64 is that of the cpu | 2 | 0 | 0 |",
        "soul against AdamW fused",
        "share of the copy bandwidth",
        "adapters, soul: tokens a second",
        "all weights, offload, soul: seconds a step",
        "what training needs",
        "decoding, seconds over its floor",
        "npo-soul-seed0",
    ):
        assert what in text
    assert (tmp_path / "table1_tofu_smollm2_gpu.md").is_file()
    assert list(tmp_path.glob("runs/tofu/npo-soul-seed0-*/rows.jsonl"))


def test_a_stage_that_fails_or_hangs_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import gpu

    line = '{"stage": "%s", "measured": {"what": "a", "size": "b", "value": 2.0, "goal": [">=", 1], "detail": "c"}}'
    scripts = {
        "hangs": f"print('{line % 'hangs'}', file=open('{tmp_path}/lines.jsonl', 'a')); import time; time.sleep(99)",
        "fails": "raise SystemExit('the reason')",
        "works": "",
    }
    for name, text in scripts.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(gpu, "SCRIPTS", tmp_path)
    monkeypatch.setattr(gpu, "GRACE", 0.1)
    monkeypatch.setattr(gpu, "STAGES", {name: gpu.Stage(f"{name}.py", 1, name) for name in scripts})
    args = Namespace(out=tmp_path, model=None, tofu=None, rehearse=False)
    outcomes = [gpu.run(name, 3 if name == "hangs" else 60, args) for name in scripts]
    assert [o.how for o in outcomes] == ["ended by its time", "failed: the reason", "finished"]
    text = gpu.report(tmp_path, outcomes, rehearsal=False)
    assert "| a | b | 2 | >= 1 | met | c |" in text
    assert "`fails`: failed: the reason" in text
