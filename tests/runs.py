"""Whole runs on a tiny model, each in a process of its own."""

from __future__ import annotations

import atexit
import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest

from soul_cli.experiment.overrides import quoted

TINY = [
    "model.hidden=32", "model.layers=1", "model.heads=2", "model.vocab=320", "model.style_authors=4",
    "model.finetune.train.checkpoint_minutes=0",
    "model.finetune.train.epochs=2", "train.epochs=4", "train.checkpoint_minutes=0", "train.batch_size=4",
    "eval.limit=6", "eval.max_total=120", "method=npo", "optim=soul",
]  # fmt: skip


# what a run imports, which takes longer than many a tiny run
IMPORTED = [
    "hydra.main", "soul_cli.cli", "soul_cli.experiment.run", "soul_cli.experiment.sweep", "soul_cli.report.run_page",
    "soul_cli.report.terminal", "torch._dynamo", "transformers.models.llama.modeling_llama", "torch.distributed.tensor",
]  # fmt: skip


@cache
def server() -> ForkServerContext:
    """Processes that a server of this session forks once it has imported the program."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


def command(arguments: Sequence[str], environment: dict[str, str], out: str, err: str) -> None:
    """The command in a process of the server's."""
    os.setsid()
    for number, name in ((1, out), (2, err)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["soul-unlearn", *arguments]
    gc.freeze()  # the imported program is no garbage
    from soul_cli.cli import main

    try:
        main()
    finally:
        threading._shutdown()  # as an interpreter ends: a launcher lets its workers go there
        atexit._run_exitfuncs()


class Forked:
    """`soul-unlearn` without the seconds that its imports take, with the methods of subprocess.Popen."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]):
        self.out, self.err = NamedTemporaryFile("r"), NamedTemporaryFile("r")  # noqa: SIM115
        self.process = server().Process(
            target=command, args=(arguments, environment, self.out.name, self.err.name), daemon=False
        )
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    poll = returncode.fget

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        assert self.returncode is not None, f"still running after {timeout} s"
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.out.read(), self.err.read()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


Process = Forked | subprocess.Popen[str]


def start(data: Path, cache: Path, out: Path, *more: str, program: Sequence[str] = ()) -> Process:
    """Start a tiny run.  program: what a Python of its own runs in place of the command."""
    arguments = [f"task.source={data}", *TINY, f"output_dir={quoted(str(out))}", *more]
    env = {**os.environ, "SOUL_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    if not program:
        return Forked(arguments, env)
    return subprocess.Popen(
        [sys.executable, *program, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def finish(process: Process, code: int = 0) -> str:
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


def kill_when(process: Process, seen: Callable[[], bool], number: int = signal.SIGKILL) -> None:
    wait_for(process, seen)
    process.send_signal(number)
    process.wait()


def wait_for(process: Process, seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not seen():
        assert process.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
