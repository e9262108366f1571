#!/usr/bin/env python3
"""Kill runs at random moments and compare what the resumed ones give: python scripts/soak.py [--kills 20] [--out FILE]

Each trial starts one tiny experiment (fine-tuning, unlearning, evaluation, the model saved) from nothing, kills it
with SIGKILL at a moment drawn from its own stretch of an uninterrupted run's time, and lets the same command finish.
Half of the trials have two processes (gloo), half of those sharded; there every second time one process alone is
killed, and the other must end within a minute.  Then every file of the run folder must have the content of the
uninterrupted run, but for times; no step of the last checkpoint may have been taken again, no half-written file and no
working folder may be left, and the command must find its run finished.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from small_models import tiny_base

from soul_cli.core.files import read_json, read_lines
from soul_cli.core.run_folder import WORK

TINY = [
    f"model.path={tiny_base()}", "model.finetune.train.epochs=1", "model.finetune.train.checkpoint_minutes=0.01",
    "train.epochs=3", "train.checkpoint_minutes=0", "train.batch_size=4", "eval.limit=4", "eval.max_total=120",
    "method=npo", "optim=soul", "save_model=true",
]  # fmt: skip
ONE = [sys.executable, "-m", "soul_cli.cli"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "soul_cli.cli"]
KINDS = {"one": ONE, "two": TWO, "two-fsdp": [*TWO, "parallel=fsdp"]}
ALONE_ENDS = 60  # seconds that the others may go on for when one process has died
HEAD = [
    "# Killed and resumed",
    "",
    "| processes | killed | at second | while | the resumed run |",
    "|---|---|---|---|---|",
]
Outcome = dict[str, Any]
TIMES = ("seconds", "tokens_per_s", "peak_memory_bytes")


@dataclass
class Trial:
    """One command with a cache and an output folder of its own."""

    home: Path
    kind: str  # of KINDS

    def start(self) -> subprocess.Popen[str]:
        env = {**os.environ, "SOUL_CACHE": str(self.home / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*KINDS[self.kind], *TINY, f"output_dir={self.home / 'out'}"],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def begin(self) -> subprocess.Popen[str]:
        """A process that has come as far as its cache."""
        process = self.start()
        while process.poll() is None and not (self.home / "cache").is_dir():
            time.sleep(0.01)
        return process

    def finish(self) -> str:
        process = self.start()
        text, _ = process.communicate(timeout=600)
        if process.returncode:
            raise RuntimeError(f"the resumed run ended with {process.returncode}:\n{text}")
        return text

    def kill_after(self, wait: float, victim: int | None) -> bool:
        """Kill all processes, or the one with that rank alone; False where the run was finished by then.

        Raises TimeoutExpired where the others go on for more than a minute.
        """
        process = self.begin()
        time.sleep(wait)
        started = psutil.Process(process.pid)
        ranks, everyone = started.children(), [*started.children(recursive=True), started]
        victims = everyone if victim is None else ranks[victim : victim + 1]
        for one in victims:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        try:
            process.communicate(timeout=ALONE_ENDS)
        finally:
            process.kill()
        return process.returncode != 0

    def steps(self) -> list[Any]:
        """Unlearning steps that are kept so far, with their speeds, which no two runs have alike."""
        for path in self.home.glob("out/*/*/train.jsonl"):
            return read_lines(path)
        saved = self.home.glob(f"out/*/*/{WORK}/checkpoint/state.json")
        return [record for path in saved for record in read_json(path, {})["records"]]

    def at_work(self) -> str:
        """What is being made, as the folders tell."""
        unlearning = next(self.home.glob(f"out/*/*/{WORK}"), None)
        if list(self.home.glob("out/*/*/metrics.json")):
            return "ending"
        if unlearning and (unlearning / "model").is_dir():
            return "evaluating, saving"
        if unlearning and (unlearning / "start").is_dir():
            return "unlearning"
        building = [p.parent.name for p in self.home.glob("cache/*/*.work")]
        return {"models": "fine-tuning", "rows": "evaluating"}.get(building[0], building[0]) if building else "between"

    def left(self) -> list[str]:
        """Half-written files and working folders."""
        return [
            str(p.relative_to(self.home))
            for p in self.home.rglob("*")
            if p.name == WORK
            or p.suffix in (".work", ".out", ".tmp")
            or (p.name.startswith(".") and p.suffix != ".lock")
        ]

    def outcome(self) -> Outcome:
        """Name -> content of each file of the run, without times and places."""
        (folder,) = (p.parent for p in self.home.glob("out/*/*/metrics.json"))
        return {str(p.relative_to(folder)): self._content(p) for p in sorted(folder.rglob("*")) if p.is_file()}

    def _content(self, path: Path) -> Any:
        content = path.read_bytes().replace(str(self.home).encode(), b"")
        if path.suffix not in (".json", ".jsonl") or path.parent.name == "model":
            return content
        lines = content.split(b"\n") if path.suffix == ".jsonl" else [content]
        return [untimed(json.loads(line)) for line in lines if line]


def untimed(value: Any) -> Any:
    """Without what no two runs have alike."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if k not in TIMES}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def trial(home: Path, kind: str, wait: float, victim: int | None, whole: Outcome) -> tuple[str, str]:
    """-> what it was at when killed, and what is wrong with the resumed run; ("", "") where it was not killed."""
    one = Trial(home, kind)
    if not one.kill_after(wait, victim):
        return "", ""
    at, before = one.at_work(), one.steps()
    one.finish()
    found = one.outcome()
    wrong = [f"{n} differs" for n in sorted(whole.keys() | found.keys()) if whole.get(n) != found.get(n)]
    wrong += [f"{n} left" for n in one.left()]
    wrong += [] if one.steps()[: len(before)] == before else ["steps were taken again"]
    wrong += [] if "finished before" in one.finish() else ["not found finished"]
    return at, "; ".join(wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="at least 4; half on one process (default 20)")
    parser.add_argument("--only", choices=KINDS, action="append", help="one kind of run; may be given several times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines: list[str] = []
    draw, failed = random.Random(given.seed), 0
    with tempfile.TemporaryDirectory() as temporary:
        for kind in given.only or KINDS:
            kills = given.kills // (2 if kind == "one" else 4)
            reference = Trial(Path(temporary) / f"whole-{kind}", kind)
            process, began = reference.begin(), time.monotonic()
            text, _ = process.communicate()
            if process.returncode:
                sys.exit(f"the uninterrupted run ended with {process.returncode}:\n{text}")
            length, whole, k = time.monotonic() - began, reference.outcome(), 0
            while k < kills:
                wait = (k + draw.random()) / kills * length
                victim = draw.randrange(2) if kind != "one" and k % 2 else None
                try:
                    at, wrong = trial(Path(temporary) / f"{kind}-{len(lines)}-{wait}", kind, wait, victim, whole)
                except (subprocess.TimeoutExpired, RuntimeError) as error:
                    at, wrong = "", str(error)
                if not at and not wrong:
                    length *= 0.8  # it had ended before it could be killed: the machine is faster now
                    continue
                k += 1
                failed += bool(wrong)
                killed = "all" if victim is None else f"rank {victim}"
                lines.append(f"| {kind} | {killed} | {wait:.1f} of {length:.1f} | {at} | {wrong or 'equal'} |")
                print(lines[-1], flush=True)
                if given.out:
                    given.out.write_text("\n".join([*HEAD, *lines, ""]))
    sys.exit(f"{failed} of {len(lines)} differ" if failed else 0)


if __name__ == "__main__":
    main()
