#!/usr/bin/env python3
"""Kill runs at random moments and compare what the resumed ones give: python scripts/soak.py [--kills 20] [--out FILE]

Each trial starts one tiny experiment (fine-tuning, unlearning, evaluation, the model saved) from nothing, kills it
with SIGKILL at a moment drawn from its own stretch of an uninterrupted run's time, and lets the same command finish.
Half of the trials have two processes (gloo); there every second time one process alone is killed, and the others must
end within a minute.  Then every file of the run folder must have the bytes of the uninterrupted run, but for times; no
half-written file and no working folder may be left, and the command must find its run finished.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

TINY = [
    "model.hidden=32", "model.layers=1", "model.heads=2", "model.vocab=320", "model.style_authors=1",
    "model.fact_repeats=1", "model.base.train.epochs=1", "model.base.train.checkpoint_steps=10",
    "model.finetune.train.epochs=1", "model.finetune.train.checkpoint_steps=10",
    "train.epochs=3", "train.checkpoint_steps=2", "train.batch_size=4", "eval.limit=4", "eval.max_total=80",
    "method=npo", "optim=soul", "save_model=true",
]  # fmt: skip
ONE = [sys.executable, "-m", "soul_cli.cli"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "soul_cli.cli"]
ALONE_ENDS = 60  # seconds that the others may go on for when one process has died
TIMES = ("seconds", "tokens_per_s", "peak_memory_bytes")


@dataclass
class Trial:
    """One command with a cache and an output folder of its own."""

    home: Path
    processes: int

    def start(self) -> subprocess.Popen[str]:
        env = {**os.environ, "SOUL_CACHE": str(self.home / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*(ONE if self.processes == 1 else TWO), *TINY, f"output_dir={self.home / 'out'}"],
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
            raise SystemExit(f"the resumed run ended with {process.returncode}:\n{text}")
        return text

    def kill_after(self, wait: float, *, one: bool) -> str:
        """-> the phase that it was in, "" where it was finished.  one: kill a single process of several."""
        process = self.begin()
        time.sleep(wait)
        at = self.at_work()
        victims = psutil.Process(process.pid).children(recursive=True)
        victims = victims[-1:] if one and victims else [*victims, psutil.Process(process.pid)]
        for victim in victims:
            victim.kill()
        process.communicate(timeout=ALONE_ENDS)
        return at

    def at_work(self) -> str:
        """What is being made, as the folders tell."""
        unlearning = next(self.home.glob("out/*/*/work"), None)
        if list(self.home.glob("out/*/*/metrics.json")):
            return "writing"
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
            if p.name == "work"
            or p.suffix in (".work", ".out", ".tmp")
            or (p.name.startswith(".") and p.suffix != ".lock")
        ]

    def outcome(self) -> dict[str, Any]:
        """Name -> content of each file of the run, without times and places."""
        (folder,) = (p.parent for p in self.home.glob("out/*/*/metrics.json"))
        return {str(p.relative_to(folder)): self._content(p) for p in sorted(folder.rglob("*")) if p.is_file()}

    def _content(self, path: Path) -> Any:
        if path.suffix in (".json", ".jsonl") and path.parent.name != "model":
            text = path.read_text().replace(str(self.home), "")
            return (
                [untimed(json.loads(line)) for line in text.splitlines()]
                if path.suffix == ".jsonl"
                else untimed(json.loads(text))
            )
        return path.read_bytes().replace(str(self.home).encode(), b"")


def untimed(value: Any) -> Any:
    """Without what no two runs have alike."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if k not in TIMES}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="half on one process, half on two (default 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    draw, lines, failed = random.Random(given.seed), [], 0
    with tempfile.TemporaryDirectory() as temporary:
        for processes in (1, 2):
            whole = Trial(Path(temporary) / f"whole{processes}", processes)
            process, began = whole.begin(), time.monotonic()
            process.communicate()
            length, expected, kills = time.monotonic() - began, whole.outcome(), given.kills // 2
            for k in range(kills):
                trial = Trial(Path(temporary) / f"{processes}-{k}", processes)
                wait = (k + draw.random()) / kills * length
                one = processes == 2 and k % 2 == 1
                at = trial.kill_after(wait, one=one)
                trial.finish()
                found, left = trial.outcome(), trial.left()
                differ = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
                again = "" if "finished before" in trial.finish() else "not found finished"
                wrong = "; ".join(
                    filter(None, [*(f"{n} differs" for n in differ), *(f"{n} left" for n in left), again])
                )
                failed += bool(wrong)
                killed, when = "one" if one else "all", f"{wait:.1f} of {length:.1f}"
                lines.append(f"| {processes} | {killed} | {when} | {at} | {wrong or 'equal'} |")
                print(lines[-1], flush=True)
    if given.out:
        head = "| processes | killed | at second | while | the resumed run |\n| --- | --- | --- | --- | --- |\n"
        given.out.write_text("# Killed and resumed\n\n" + head + "\n".join(lines) + "\n")
    sys.exit(f"{failed} of {len(lines)} differ" if failed else 0)


if __name__ == "__main__":
    main()
