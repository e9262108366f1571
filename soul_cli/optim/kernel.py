"""The optimizer step in one pass over memory: step.c on a CPU, step_triton.py on a GPU, compiled in the first step.

An update written in tensor operations reads and writes its arrays many times over, and memory is what a step waits
for.  The kernels take whole float32 parameters; everything else, and a machine without a compiler, goes through the
operations they are tested against.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

SOURCE = Path(__file__).with_name("step.c")
FLAGS = "-O3 -march=native -ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp-simd -shared -fPIC"
COUNTS = 4
BYTES = 4  # of a float32

Part = tuple[Tensor, Tensor, Tensor, Tensor]  # parameter, gradient, m, h
Groups = Sequence[tuple[Sequence[Part], Sequence[float]]]
Run = tuple[int, int, int, int, int]  # their addresses, and how many coordinates
PLAIN = {Tensor, Parameter}  # a subclass may have no memory of its own
DTYPE, IS_CPU = attrgetter("dtype"), attrgetter("is_cpu")


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


@lru_cache(maxsize=1)
def on_gpu() -> Callable[[str, Groups], Tensor] | None:
    """`step` of the GPUs' kernels; None, with one warning, where they cannot be compiled or launched."""
    try:
        from soul_cli.optim.step_triton import step as steps

        some = tuple(torch.ones(1, device="cuda") for _ in range(4))
        steps("soul_step_", [([some], (0.0,) * 5)])
        return steps
    except Exception as error:  # triton has many: no module, no C compiler for its launcher, a GPU it does not know
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(f"no triton that works ({why}): optimizer steps on the GPU are slower", stacklevel=2)
        return None


def takes(parts: Sequence[Part]) -> bool:
    """Whether the kernels can make the step of these parameters."""
    tensors = list(chain.from_iterable(parts))
    # one attribute of all of them at a time: a loop that reads four of each takes as long as the step of a small model
    if not tensors or not set(map(type, tensors)) <= PLAIN or set(map(DTYPE, tensors)) != {torch.float32}:
        return False
    device = tensors[0].device
    one = all(map(IS_CPU, tensors)) if device.type == "cpu" else set(map(Tensor.get_device, tensors)) == {device.index}
    if not one or not all(map(Tensor.is_contiguous, tensors)):
        return False
    made = {"cpu": library, "cuda": on_gpu}.get(device.type)
    return made is not None and made() is not None


def step(name: str, groups: Groups) -> Tensor:
    """One step in place, over all groups at once, of parameters that `takes` accepts.

    name: of the function in sophia.py.  groups: parameters with their options.  Returns the counts, (4,) in float64.
    """
    if any(part[0].device.type == "cuda" for parts, _ in groups for part in parts[:1]):
        steps = on_gpu()
        assert steps is not None
        return steps(name, groups)
    return torch.tensor(on_cpu(name, groups), dtype=torch.float64)


def on_cpu(name: str, groups: Groups) -> list[float]:
    """The same, on as many threads as torch uses."""
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
