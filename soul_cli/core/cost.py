"""What was spent: wall time, tokens, passes through the model, memory.

The code that does the work counts it (`count`) and does not know who asks.  A measurement is open while its block runs;
one inside another pauses the outer, so that phases never overlap and add up.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soul_cli.core.distributed import everyone, local, main, once
from soul_cli.core.files import read_json, write_text


@dataclass
class Cost:
    """Counts are sums over the processes; seconds and sizes (*_bytes) are those of the process that has most."""

    seconds: float = 0.0  # wall time
    training_tokens: int = 0  # prompts and answers of the rows a gradient was taken on, without padding
    scored_tokens: int = 0  # prompts and answers of the rows that were scored, without padding
    generated_tokens: int = 0  # without EOS
    forward_passes: int = 0  # calls of the model, each on one micro-batch; decoding: one a token of a batch
    backward_passes: int = 0  # those of the curvature estimate too
    parameter_bytes: int = 0
    optimizer_state_bytes: int = 0  # all state tensors
    # CUDA: the most that was allocated at a time.  CPU: the most that was resident (VmHWM, which Linux lets a process
    # reset), the interpreter and what the process held before included.  0: neither can be known
    peak_memory_bytes: int = 0

    def add(self, other: Cost, largest: tuple[str, ...] = ()) -> None:
        """Add what was spent later: sizes, and fields in `largest`, become the larger of both."""
        for f in fields(self):
            a, b = getattr(self, f.name), getattr(other, f.name)
            setattr(self, f.name, max(a, b) if f.name.endswith("_bytes") or f.name in largest else a + b)


class _Measurement:
    def __init__(self) -> None:
        self.cost = Cost()
        self.go()

    def go(self) -> None:
        self.known = _reset_peak()
        self.began = time.perf_counter()

    def pause(self) -> None:
        peak = _peak() if self.known else 0
        self.cost.add(Cost(seconds=time.perf_counter() - self.began, peak_memory_bytes=peak))


_open: list[_Measurement] = []  # the last one counts


@contextmanager
def measure() -> Iterator[None]:
    """Measure the block, less the measurements inside it.  Ask with `spent` before it ends."""
    if _open:
        _open[-1].pause()
    _open.append(_Measurement())
    try:
        yield
    finally:
        _open.pop()
        if _open:
            _open[-1].go()


def count(**amounts: int) -> None:
    """Add to the innermost measurement; where none is open, nothing.  amounts: fields of Cost."""
    if _open:
        _open[-1].cost.add(Cost(**amounts))


def spent() -> dict[str, Any]:
    """Return the innermost measurement so far, of all processes together (all of them call it), as plain values."""
    own = Cost()
    if _open:
        _open[-1].pause()
        _open[-1].go()
        own.add(_open[-1].cost)
    total = Cost()
    for each in everyone(own):
        total.add(each, largest=("seconds",))
    return asdict(total) | {"seconds": round(total.seconds, 3)}


def resume(earlier: dict[str, Any]) -> None:
    """Take over what an interrupted part of the same work had spent, as it was given by `spent`."""
    if _open and main():
        _open[-1].cost.add(Cost(**earlier))


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of this process's parts of the tensors."""
    return sum(local(t).numel() * t.element_size() for t in tensors)


def _reset_peak() -> bool:
    """Let the peak begin anew; False where that cannot be done."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


class Ledger:
    """The costs of a run by phase.  A phase is in the file from the moment it ends, for a run that is interrupted."""

    def __init__(self, path: Path | None = None):
        self.path = path
        self.phases: dict[str, dict[str, Any]] = once(lambda: read_json(path, {})) if path else {}

    def note(self, phase: str, spent: dict[str, Any], *, cached: bool) -> None:
        """Enter a phase, unless an earlier part of the run did.  cached: it was made, and paid, by another run."""
        if phase not in self.phases:
            self.phases[phase] = {"cached": cached, **spent}
            if self.path and main():
                write_text(self.path, json.dumps(self.phases, indent=1))
