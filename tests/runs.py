"""Whole runs on a tiny model, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from small_models import tiny_base

from soul_cli.experiment.overrides import quoted

TINY = [
    f"model.path={tiny_base()}", "model.finetune.train.checkpoint_minutes=0",
    "model.finetune.train.epochs=2", "train.epochs=4", "train.checkpoint_minutes=0", "train.batch_size=4",
    "eval.limit=12", "eval.max_total=120", "method=npo", "optim=soul",
]  # fmt: skip


def start(
    data: Path, cache: Path, out: Path, *more: str, program: Sequence[str] = ("-m", "soul_cli.cli")
) -> subprocess.Popen[str]:
    folder = f"output_dir={quoted(str(out))}"
    command = [sys.executable, *program, f"task.source={data}", *TINY, folder, *more]
    env = {**os.environ, "SOUL_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    return out + err


def only_run(out: Path) -> Path:
    (metrics,) = out.rglob("metrics.json")
    return metrics.parent


def numbers(out: Path) -> dict[str, object]:
    return json.loads((only_run(out) / "metrics.json").read_text())["models"]


def costs(out: Path) -> dict[str, dict[str, int]]:
    """What each phase did, without time and memory, which no two runs have alike."""
    phases = json.loads((only_run(out) / "metrics.json").read_text())["cost"]
    return {p: {k: v for k, v in c.items() if k.endswith(("_tokens", "_passes"))} for p, c in phases.items()}


def kill_when(process: subprocess.Popen[str], seen: Callable[[], bool], number: int = signal.SIGKILL) -> None:
    wait_for(process, seen)
    process.send_signal(number)
    process.wait()


def wait_for(process: subprocess.Popen[str], seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not seen():
        assert process.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
