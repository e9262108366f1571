"""Stage real: Table 1 on SmolLM2-135M and the whole TOFU data, forget10 -> OUT/table1_tofu_smollm2_gpu*, OUT/runs.

bfloat16 weights, float32 masters.  Target and retain-trained model are made at the same time, then the six rows, each
with its seeds one after the other: a model of this size leaves most of a GPU idle.  Nothing is searched: the peak rates
are those of table1_smollm2.sh.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from generator import generate_authors
from gpu_setup import Job, job
from small_models import tiny_base

from soul_cli.data.embedded import write_layout

NAME = "table1_tofu_smollm2_gpu"
ROWS = {  # method, optimizer: peak rate
    ("graddiff", "adamw"): 2e-5, ("graddiff", "soul"): 5e-6, ("po", "adamw"): 1e-4, ("po", "soul"): 2.5e-5,
    ("npo", "adamw"): 1e-4, ("npo", "soul"): 2.5e-5,
}  # fmt: skip
COMMON = [
    "task=tofu", "task.forget=forget10", "model=smollm2_135m", "model.dtype=bfloat16",
    "model.finetune.train.batch_size=32", "model.finetune.train.accumulation=1",  # the same 32 rows a step
    "model.finetune.train.checkpoint_minutes=1000", "train.checkpoint_minutes=1000",
    "train.epochs=5", "train.batch_size=8", "train.precision=bf16", "eval.batch_tokens=262144",
]  # fmt: skip
TINY = [
    "task.forget=forget10", "task.retain_authors=2", "model=hub", "model.dtype=float32", "train.epochs=1",
    "model.finetune.train.epochs=1", "train.batch_size=4", "eval.limit=2", "eval.max_total=120",
]  # fmt: skip
SEEDS = "0,1,2"
REPORTING = 30  # seconds kept for the table
PREPARE = Path(__file__).with_name("gpu_prepare.py")


def tiny(folder: Path) -> tuple[Path, Path]:
    """A model and data for the rehearsal."""
    data = folder / "tofu"
    authors = generate_authors(11, seed=7)
    write_layout(data, authors)
    return tiny_base(), data


class Processes:
    """Commands that run side by side; each writes to a log of its own."""

    def __init__(self, work: Path):
        self.work = work
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        threads = str(max(1, (os.cpu_count() or 1) // 8))
        self.env = {**os.environ, "SOUL_CACHE": str(work / "cache"), "OMP_NUM_THREADS": threads, "COLUMNS": "120"}

    def start(self, name: str, command: list[str]) -> None:
        with (self.work / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, *command], env=self.env, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )

    def wait(self, end: float) -> dict[str, str]:
        """How each ended, by `end` (of time.monotonic())."""
        out = {}
        for name, process in self.running.items():
            try:
                code = process.wait(max(0.1, end - time.monotonic()))
                out[name] = "finished" if code == 0 else f"failed: {self.said(name)}"
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                out[name] = f"ended by its time: {self.said(name)}"
        return out

    def said(self, name: str) -> str:
        lines = (self.work / f"{name}.log").read_text(errors="replace").replace("\r", "\n").splitlines()
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "nothing")


def run(one: Job, work: Path) -> None:
    runs = work / "runs"
    if one.rehearse:
        model, tofu = tiny(work)
        rows, seeds, common = {("npo", "soul"): 1e-3}, "0", TINY
    else:
        assert one.model is not None
        assert one.tofu is not None
        model, tofu, rows, seeds, common = one.model.resolve(), one.tofu.resolve(), ROWS, SEEDS, COMMON
    common = [*common, f"task.source={tofu}", f"model.path={model}", f"output_dir={runs}"]
    processes = Processes(work)
    for which in ("retain",) if one.rehearse else ("target", "retain"):
        processes.start(which, [str(PREPARE), which, *common])
    for (method, optim), rate in rows.items():
        options = [f"method={method}", f"optim={optim}", f"optim.lr={rate}", f"seed={seeds}"]
        processes.start(f"{method}-{optim}", ["-m", "soul_cli.cli", "-m", *common, *options])
    ended = processes.wait(one.end - REPORTING)
    for name, how in ended.items():
        if how != "finished":
            one.note(f"{name} {how}")
    for name in processes.running:
        shutil.copy(work / f"{name}.log", one.out / f"real_{name}.log")
    if not list(runs.rglob("metrics.json")):
        raise SystemExit("no run was finished")
    costs(one, runs)
    report = [sys.executable, "-m", "soul_cli.report", str(runs), "--out", str(one.out / NAME), "--paper"]
    subprocess.run(report, env=processes.env, check=True, stdout=subprocess.DEVNULL)
    for folder in runs.rglob("metrics.json"):
        shutil.copytree(folder.parent, one.out / "runs" / folder.parent.relative_to(runs), dirs_exist_ok=True)


def costs(one: Job, runs: Path) -> None:
    """A line for each finished run."""
    for path in sorted(runs.rglob("metrics.json")):
        phases = json.loads(path.read_text())["cost"]
        parts = [f"{k} {v['seconds']:.1f} s, {v['peak_memory_bytes'] / 1e9:.1f} GB" for k, v in phases.items()]
        one.note(f"{path.parent.name}: " + "; ".join(parts))


def main() -> None:
    one = job("real")
    if not one.rehearse and not (one.model and one.tofu):
        return one.note("not run: --model and --tofu were not given")
    with tempfile.TemporaryDirectory() as folder:
        run(one, Path(folder))


if __name__ == "__main__":
    main()
