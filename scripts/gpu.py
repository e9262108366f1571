"""The stages of gpu.sh, each in a process of its own that ends with its time -> DIR/gpu.md, written anew after each.

A stage writes what it has measured line by line (gpu_setup.Notes): what was measured stays when it fails or is ended.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from measured import LINES, OK, Measured

SCRIPTS = Path(__file__).parent
GRACE = 5.0  # seconds
OUTCOMES = ("passed", "failed", "skipped")  # of a test


@dataclass(frozen=True)
class Stage:
    script: str
    seconds: int  # at most
    title: str


STAGES = {
    "parity": Stage("gpu_parity.py", 90, "Against the CPU"),
    "step": Stage("gpu_step.py", 75, "The optimizers' step"),
    "7b": Stage("gpu_7b.py", 240, "LLaMA2-7B's shape, random weights, rows of TOFU's lengths"),
    "real": Stage("gpu_real.py", 330, "Table 1: SmolLM2-135M, real TOFU"),
}


@dataclass
class Outcome:
    stage: str
    how: str  # it ended
    seconds: float


def run(name: str, seconds: float, args: argparse.Namespace) -> Outcome:
    """Run a stage, and end it and all that it started when its time is up."""
    command = [sys.executable, str(SCRIPTS / STAGES[name].script), "--out", str(args.out)]
    command += ["--seconds", f"{seconds:.0f}"]
    for option in ("model", "tofu"):
        if getattr(args, option):
            command += [f"--{option}", str(getattr(args, option))]
    command += ["--rehearse"] if args.rehearse else []
    began, log = time.monotonic(), args.out / f"{name}.log"
    print(f"--- {name}, at most {seconds:.0f} s", flush=True)
    with log.open("w") as text:
        process = subprocess.Popen(command, stdout=text, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(seconds + GRACE)  # most watch their time themselves
            how = OK if process.returncode == 0 else f"failed: {last_line(log)}"
        except subprocess.TimeoutExpired:
            how = "ended by its time"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    took = time.monotonic() - began
    print(f"--- {name}: {how}, {took:.0f} s", flush=True)
    return Outcome(name, how, took)


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "without a word"


# --- the report --------------------------------------------------------------------------------------------


def report(out: Path, outcomes: list[Outcome], *, rehearsal: bool) -> str:
    path = out / LINES
    lines: list[dict[str, Any]] = [json.loads(x) for x in path.read_text().splitlines()] if path.is_file() else []
    text = ["# On a GPU", ""]
    if rehearsal:
        text += ["**A rehearsal on a CPU with tiny sizes: it shows that it runs. The numbers mean nothing.**", ""]
    machines = dict.fromkeys(line["machine"] for line in lines if "machine" in line)
    text += [*machines, "", f"{date.today().isoformat()}; written by scripts/gpu.sh.", ""]
    for outcome in outcomes:
        own = [line for line in lines if line["stage"] == outcome.stage]
        ended = f"`{outcome.stage}`: {outcome.how}, {outcome.seconds:.0f} s"
        text += [f"## {STAGES[outcome.stage].title}", "", ended, ""]
        text += [*tests([line for line in own if "test" in line])]
        text += [*table([Measured(**line["measured"]) for line in own if "measured" in line])]
        text += [f"- {line['note']}" for line in own if "note" in line] + [""]
    return "\n".join(text)


def tests(lines: list[dict[str, Any]]) -> list[str]:
    """How many of each kind of check agreed, and every one that did not."""
    if not lines:
        return []
    count = Counter((line["test"].split("[")[0], line["outcome"]) for line in lines)
    out = ["| check | passed | failed | skipped |", "|---|---|---|---|"]
    for kind in dict.fromkeys(kind for kind, _ in count):
        words = kind.removeprefix("test_").replace("_", " ")
        out.append(f"| {words} | " + " | ".join(str(count[kind, outcome]) for outcome in OUTCOMES) + " |")
    odd = [f"- {x['outcome']} {x['test'] if x['outcome'] == 'failed' else ''}: {x['text']}" for x in lines if x["text"]]
    return [*out, "", *dict.fromkeys(odd), ""]


def table(lines: list[Measured]) -> list[str]:
    if not lines:
        return []
    head = ["what", "size", "measured", "goal", "", "in numbers"]
    rows = [
        [m.what, m.size, f"{m.value:.4g}", " ".join(map(str, m.goal)) if m.goal else "", m.verdict(), m.detail]
        for m in lines
    ]
    return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]] + [""]


def main() -> None:
    parser = argparse.ArgumentParser(description="See gpu.sh.")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--stages", type=lambda text: text.split(","), default=list(STAGES))
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tofu", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    unknown = [name for name in args.stages if name not in STAGES]
    if unknown:
        parser.error(f"no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / LINES).unlink(missing_ok=True)
    end = time.monotonic() + 60 * args.minutes
    outcomes: list[Outcome] = []
    for name in args.stages:
        left = end - time.monotonic()
        if left < 20:
            outcomes.append(Outcome(name, "not begun: the time was up", 0.0))
        else:
            outcomes.append(run(name, min(STAGES[name].seconds, left), args))
        (args.out / "gpu.md").write_text(report(args.out, outcomes, rehearsal=args.rehearse))
    print((args.out / "gpu.md").read_text())
    sys.exit(0 if all(o.how == OK for o in outcomes) else 1)


if __name__ == "__main__":
    main()
