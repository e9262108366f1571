"""The optimizer step in one pass over a GPU's memory, all tensors of a group in one launch: step.c for CUDA and ROCm.

The reference are the functions of these names in sophia.py, whose options the kernels take in the same order;
expressions follow it operation by operation.  A program steps one block of one tensor; it finds the tensor in a table
of addresses, which is sent anew only when one of them has changed.  Nothing here waits for the device.

Imported where a GPU is to be stepped, not before: triton comes with torch where torch knows GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # coordinates of a program: eight a thread
WARPS = 8
COUNTS = 4


@triton.jit
def _block(table, owner, first, sizes, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Where this program's p, g, m, h lie, and how many coordinates."""
    k = tl.program_id(0)
    tensor = tl.load(owner + k)
    start = (k - tl.load(first + tensor)).to(tl.int64) * BLOCK
    row = table + 4 * tensor
    p, g = tl.load(row) + 4 * start, tl.load(row + 1) + 4 * start
    m, h = tl.load(row + 2) + 4 * start, tl.load(row + 3) + 4 * start
    return p, g, m, h, tl.load(sizes + tensor) - start


@triton.jit
def _whole(p, g, m, h, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Whether the block can be read and written 16 bytes at a time, without looking at each coordinate."""
    return (n >= BLOCK) & ((p | g | m | h) % 16 == 0)


@triton.jit
def _pointers(address, WHOLE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    start = address.to(tl.pointer_type(tl.float32))
    if WHOLE:
        start = tl.multiple_of(start, 16)
    return start + tl.arange(0, BLOCK)


@triton.jit
def _read(at, inside, WHOLE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    if WHOLE:
        return tl.load(at)
    else:
        return tl.load(at, mask=inside, other=0.0)


@triton.jit
def _write(at, values, inside, WHOLE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    if WHOLE:
        tl.store(at, values)
    else:
        tl.store(at, values, mask=inside)


@triton.jit
def _count(counts, unclipped, momentum, curvature):  # type: ignore[no-untyped-def]
    at = counts + 4 * tl.program_id(0)
    tl.store(at, tl.sum(unclipped.to(tl.float32), 0))
    tl.store(at + 1, tl.sum((momentum != 0).to(tl.float32), 0))
    tl.store(at + 2, tl.sum(momentum * momentum, 0))
    tl.store(at + 3, tl.sum(tl.abs(curvature), 0))


@triton.jit
def _soul(  # type: ignore[no-untyped-def]
    p, g, m, h, n, counts, rate, decay, gain, rho, eps, WHOLE: tl.constexpr, BLOCK: tl.constexpr  # noqa: N803
):  # fmt: skip
    inside = tl.arange(0, BLOCK) < n
    p, g = _pointers(p, WHOLE, BLOCK), _pointers(g, WHOLE, BLOCK)
    m, h = _pointers(m, WHOLE, BLOCK), _pointers(h, WHOLE, BLOCK)
    old, curvature = _read(m, inside, WHOLE), _read(h, inside, WHOLE)
    momentum = tl.fma(gain, _read(g, inside, WHOLE) - old, old)
    width = rho * curvature
    width = tl.where(width < eps, eps, width)  # what is not a number stays so, here and below
    ratio = tl.math.div_rn(momentum, width)
    _count(counts, (tl.abs(ratio) < 1) & (momentum != 0), momentum, curvature)
    ratio = tl.where(ratio > 1, 1.0, ratio)
    ratio = tl.where(ratio < -1, -1.0, ratio)
    _write(m, momentum, inside, WHOLE)
    _write(p, tl.fma(-rate, ratio, _read(p, inside, WHOLE) * decay), inside, WHOLE)


@triton.jit
def soul_step_(  # type: ignore[no-untyped-def]
    table, owner, first, sizes, counts, rate, decay, gain, rho, eps, BLOCK: tl.constexpr  # noqa: N803
):  # fmt: skip
    p, g, m, h, n = _block(table, owner, first, sizes, BLOCK)
    if _whole(p, g, m, h, n, BLOCK):
        _soul(p, g, m, h, n, counts, rate, decay, gain, rho, eps, True, BLOCK)
    else:
        _soul(p, g, m, h, n, counts, rate, decay, gain, rho, eps, False, BLOCK)


@triton.jit
def _released(  # type: ignore[no-untyped-def]
    p, g, m, h, n, counts, rate, decay, beta1, beta2, width, gain1, gain2, WHOLE: tl.constexpr, BLOCK: tl.constexpr  # noqa: N803
):  # fmt: skip
    inside = tl.arange(0, BLOCK) < n
    p, g = _pointers(p, WHOLE, BLOCK), _pointers(g, WHOLE, BLOCK)
    m, h = _pointers(m, WHOLE, BLOCK), _pointers(h, WHOLE, BLOCK)
    gradient = _read(g, inside, WHOLE)
    curvature = tl.fma(gain2 * gradient, gradient, _read(h, inside, WHOLE) * beta2)
    once = tl.fma(gain1, gradient, _read(m, inside, WHOLE) * beta1)
    momentum = tl.fma(gain1, gradient, once * beta1)
    ratio = tl.math.div_rn(tl.abs(momentum), width * curvature + 1e-15)
    _count(counts, (ratio < 1) & (momentum != 0), momentum, curvature)
    ratio = tl.where(ratio > 1, 1.0, ratio)
    signed = tl.where(momentum < 0, -ratio, ratio)
    _write(m, momentum, inside, WHOLE)
    _write(h, curvature, inside, WHOLE)
    _write(p, _read(p, inside, WHOLE) * decay - rate * signed, inside, WHOLE)


@triton.jit
def soul_released_step_(  # type: ignore[no-untyped-def]
    table, owner, first, sizes, counts, rate, decay, beta1, beta2, width, gain1, gain2, BLOCK: tl.constexpr  # noqa: N803
):  # fmt: skip
    p, g, m, h, n = _block(table, owner, first, sizes, BLOCK)
    if _whole(p, g, m, h, n, BLOCK):
        _released(p, g, m, h, n, counts, rate, decay, beta1, beta2, width, gain1, gain2, True, BLOCK)
    else:
        _released(p, g, m, h, n, counts, rate, decay, beta1, beta2, width, gain1, gain2, False, BLOCK)


def _with_gains(rate: float, decay: float, beta1: float, beta2: float, width: float) -> tuple[float, ...]:
    """Rounded to float32 only now: the kernel has 1 - beta from here."""
    return rate, decay, beta1, beta2, width, 1 - beta1, 1 - beta2


KERNELS: dict[str, tuple[Any, Callable[..., tuple[float, ...]]]] = {
    "soul_step_": (soul_step_, lambda *options: options),
    "soul_released_step_": (soul_released_step_, _with_gains),
}


def step(name: str, groups: Sequence[tuple[Sequence[tuple[Tensor, ...]], Sequence[float]]]) -> Tensor:
    """One step in place, over all groups.  Returns `sophia.counts`, (4,) in float64 on the device."""
    kernel, arguments = KERNELS[name]
    sums = []
    for parts, options in groups:
        filled = [part for part in parts if part[0].numel()]
        if not filled:
            continue
        device = filled[0][0].device
        owner, first, sizes = blocks(device, tuple(part[0].numel() for part in filled))
        table = addresses(device, tuple(t.data_ptr() for part in filled for t in part))
        counts = torch.empty(len(owner), COUNTS, device=device)
        kernel[(len(owner),)](
            table, owner, first, sizes, counts, *arguments(*options), BLOCK=BLOCK, num_warps=WARPS
        )  # fmt: skip
        sums.append(counts.sum(0, dtype=torch.float64))
        # the kernels write past autograd's view of the parameters
        torch.autograd.graph.increment_version([part[0] for part in filled])
    return torch.stack(sums).sum(0)


@lru_cache(maxsize=16)
def blocks(device: torch.device, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The tensor each program works on (programs,), and of each tensor its first program and its size."""
    whole = torch.tensor(sizes)
    programs = -(-whole // BLOCK)
    owner = torch.repeat_interleave(torch.arange(len(sizes)), programs)
    first = programs.cumsum(0) - programs
    return _send(owner.int(), device), _send(first.int(), device), _send(whole, device)


@lru_cache(maxsize=16)
def addresses(device: torch.device, values: tuple[int, ...]) -> Tensor:
    """They are mostly those of the step before: gradients are freed and allocated in the same order."""
    return _send(torch.tensor(values), device)


def _send(values: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for it, which only pinned memory allows."""
    return values.to(device) if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)
