"""The optimizer step in one pass over memory: step.c, compiled by the machine's C compiler in the first step.

An update written in tensor operations reads and writes its arrays many times over; on a CPU memory is what a step
waits for.  The kernels take whole float32 parameters on a CPU; everything else, and a machine without a compiler, goes
through the operations they are tested against.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("step.c")
FLAGS = "-O3 -march=native -ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp-simd -shared -fPIC"
COUNTS = 4
BYTES = 4  # of a float32

Part = tuple[Tensor, Tensor, Tensor, Tensor]  # parameter, gradient, m, h
Run = tuple[int, int, int, int, int]  # their addresses, and how many coordinates


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, with one warning, where they cannot be compiled.  CC names another compiler."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "step.so"
        try:
            subprocess.run(
                [*compiler, *FLAGS.split(), str(SOURCE), "-o", str(out), "-lm"],
                check=True, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            return ctypes.CDLL(str(out))
        except (OSError, subprocess.SubprocessError) as error:
            why = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[0]
            warnings.warn(f"no C compiler that works ({why}): optimizer steps on the CPU are slower", stacklevel=2)
            return None


@lru_cache(maxsize=1)
def pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)  # calls of the library run without Python's lock


def takes(parts: Sequence[Part]) -> bool:
    """Whether the kernels can make the step of these parameters."""
    fit = all(
        t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() and type(t.data) is Tensor
        for part in parts
        for t in part
    )
    return fit and bool(parts) and library() is not None


def step(name: str, groups: Sequence[tuple[Sequence[Part], Sequence[float]]]) -> list[float]:
    """One step in place, over all groups at once, on as many threads as torch uses.

    name: of the function in sophia.py and step.c.  groups: parameters with their options.  Returns the counts.
    """
    threads = torch.get_num_threads()
    kernel = getattr(library(), name)

    def call(task: tuple[list[Run], Sequence[float]]) -> list[float]:
        runs, options = task
        *addresses, sizes = zip(*runs, strict=True)
        n, counts = len(runs), (ctypes.c_double * COUNTS)()
        lists = [(ctypes.c_void_p * n)(*column) for column in addresses]
        values = (ctypes.c_double * len(options))(*options)
        kernel(ctypes.c_int64(n), *lists, (ctypes.c_int64 * n)(*sizes), values, counts)
        return list(counts)

    tasks = [(runs, options) for parts, options in groups for runs in shares(parts, threads)]
    results = list(pool(threads).map(call, tasks) if threads > 1 else map(call, tasks))
    # the kernels write past autograd's view of the parameters
    torch.autograd.graph.increment_version([part[0] for parts, _ in groups for part in parts])
    return [sum(column) for column in zip(*results, strict=True)]


def shares(parts: Sequence[Part], n: int) -> list[list[Run]]:
    """At most n lists of runs, of equally many coordinates each."""
    most = -(-sum(part[0].numel() for part in parts) // n)
    lists: list[list[Run]] = []
    room = 0
    for part in parts:
        at, size = 0, part[0].numel()
        addresses = [t.data_ptr() for t in part]
        while at < size:
            if not room:
                lists.append([])
                room = most
            take = min(size - at, room)
            p, g, m, h = (a + BYTES * at for a in addresses)
            lists[-1].append((p, g, m, h, take))
            at, room = at + take, room - take
    return lists
