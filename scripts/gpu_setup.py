"""What the stages of gpu.py share: arguments, notes, clocks of the device, its two rates."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from measured import LINES, Measured


@dataclass
class Job:
    """One stage: where it runs, writes, and until when."""

    stage: str
    out: Path
    end: float  # of time.monotonic()
    rehearse: bool
    model: Path | None
    tofu: Path | None
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        if not self.rehearse and not torch.cuda.is_available():
            raise SystemExit("no CUDA device; --rehearse runs on the CPU")
        self.device = torch.device("cpu" if self.rehearse else "cuda")
        self._write(machine=machine(self.device))

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def note(self, text: str) -> None:
        print(text, flush=True)
        self._write(note=text)

    def measured(self, what: str, size: str, value: float, goal: tuple[str, float] | None, detail: str) -> None:
        line = Measured(what, size, value, goal, detail)
        print(f"{what} [{size}]: {value:.4g} ({line.verdict()}); {detail}", flush=True)
        self._write(measured=asdict(line))

    def test(self, name: str, outcome: str, text: str) -> None:
        self._write(test=name, outcome=outcome, text=text)

    def _write(self, **line: Any) -> None:
        with (self.out / LINES).open("a") as file:
            file.write(json.dumps({"stage": self.stage, **line}) + "\n")


def job(stage: str) -> Job:
    """From the command line of gpu.py."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tofu", type=Path)
    args = parser.parse_args()
    return Job(stage, args.out, time.monotonic() + args.seconds, args.rehearse, args.model, args.tofu)


def machine(device: torch.device) -> str:
    software = f"torch {torch.__version__}, transformers {transformers.__version__}"
    if device.type == "cpu":
        return f"a CPU, {os.cpu_count()} cores; {software}"
    card = torch.cuda.get_device_properties(device)
    return f"{card.name}, {card.total_memory / 2**30:.1f} GiB; CUDA {torch.version.cuda}; {software}"


# --- clocks ------------------------------------------------------------------------------------------------


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Of one call, from an idle device to an idle device."""
    wait(device)
    began = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - began


def back_to_back(
    contenders: dict[str, Callable[[], Any]], device: torch.device, repeats: int, calls: int
) -> dict[str, float]:
    """Median seconds a call; contenders take turns with `calls` calls in a row, after one turn that does not count."""
    took: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, run in contenders.items():
            value = seconds(lambda run=run: [run() for _ in range(calls)], device) / calls
            if repeat:
                took[name].append(value)
    return {name: statistics.median(values) for name, values in took.items()}


def rates(device: torch.device, *, tiny: bool) -> tuple[float, float]:
    """Bytes a second, read or written, of a large copy; bfloat16 operations a second of a large matrix product."""
    n, side = (1 << 16, 64) if tiny else (1 << 30, 8192)
    source = torch.randn(n, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    took = back_to_back({"copy": lambda: target.copy_(source), "product": lambda: a @ b}, device, 5, 10)
    return 2 * source.nbytes / took["copy"], 2 * side**3 / took["product"]
