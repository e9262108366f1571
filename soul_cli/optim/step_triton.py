"""The optimizer step in one pass over a GPU's memory, all tensors in one launch: step.c for CUDA and ROCm.

The reference are the functions of these names in sophia.py, whose options the kernels take in the same order;
expressions follow it operation by operation.  A program steps one block of one tensor; it finds the tensor in a table
of addresses and the options of its group in another, which are sent anew only when they have changed.  Nothing here
waits for the device; what the host does must be shorter than the pass itself, 1 ms at 135M parameters.

Imported where a GPU is to be stepped, not before: triton comes with torch where torch knows GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # coordinates of a program: eight a thread
WARPS = 8
COUNTS = 4
OPTIONS = tl.constexpr(8)  # places for those of a group


@triton.jit
def _block(table, owner, layout, options, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Where this program's p, g, m, h lie, how many coordinates, and where the options are."""
    k = tl.program_id(0)
    tensor = tl.load(owner + k)
    about = layout + 3 * tensor
    start = (k - tl.load(about)) * BLOCK
    row = table + 4 * tensor
    p, g = tl.load(row) + 4 * start, tl.load(row + 1) + 4 * start
    m, h = tl.load(row + 2) + 4 * start, tl.load(row + 3) + 4 * start
    return p, g, m, h, tl.load(about + 1) - start, options + OPTIONS * tl.load(about + 2)


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
    p, g, m, h, n, at, counts, WHOLE: tl.constexpr, BLOCK: tl.constexpr  # noqa: N803
):  # fmt: skip
    rate, decay, gain = tl.load(at), tl.load(at + 1), tl.load(at + 2)
    rho, eps = tl.load(at + 3), tl.load(at + 4)
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


# the arguments of a kernel must not be called `options`: triton's launcher has one of that name
@triton.jit
def soul_step_(table, owner, layout, chosen, counts, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    p, g, m, h, n, at = _block(table, owner, layout, chosen, BLOCK)
    if _whole(p, g, m, h, n, BLOCK):
        _soul(p, g, m, h, n, at, counts, True, BLOCK)
    else:
        _soul(p, g, m, h, n, at, counts, False, BLOCK)


@triton.jit
def _released(  # type: ignore[no-untyped-def]
    p, g, m, h, n, at, counts, WHOLE: tl.constexpr, BLOCK: tl.constexpr  # noqa: N803
):  # fmt: skip
    rate, decay, beta1, beta2 = tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
    width, gain1, gain2 = tl.load(at + 4), tl.load(at + 5), tl.load(at + 6)
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
def soul_released_step_(table, owner, layout, chosen, counts, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    p, g, m, h, n, at = _block(table, owner, layout, chosen, BLOCK)
    if _whole(p, g, m, h, n, BLOCK):
        _released(p, g, m, h, n, at, counts, True, BLOCK)
    else:
        _released(p, g, m, h, n, at, counts, False, BLOCK)


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
    sizes = tuple(tuple(part[0].numel() for part in parts) for parts, _ in groups)
    tensors = list(chain.from_iterable(chain.from_iterable(parts for parts, _ in groups)))
    device = tensors[0].device
    owner, layout = blocks(device, sizes)
    counts = torch.empty(len(owner), COUNTS, device=device)
    if len(owner):
        table = addresses(device, tuple(map(Tensor.data_ptr, tensors)))
        chosen = options(device, tuple(arguments(*values) for _, values in groups))
        kernel[(len(owner),)](table, owner, layout, chosen, counts, BLOCK=BLOCK, num_warps=WARPS)
        # the kernels write past autograd's view of the parameters
        torch.autograd.graph.increment_version(tensors[::4])
    return counts.sum(0, dtype=torch.float64)


@lru_cache(maxsize=16)
def blocks(device: torch.device, sizes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, Tensor]:
    """The tensor each program works on (programs,); of each tensor its first program, size and group (tensors, 3)."""
    whole = torch.tensor([size for group in sizes for size in group])
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor([len(group) for group in sizes]))
    programs = -(-whole // BLOCK)
    owner = torch.repeat_interleave(torch.arange(len(whole)), programs)
    layout = torch.stack([programs.cumsum(0) - programs, whole, group], 1)
    return _send(owner.int(), device), _send(layout, device)


@lru_cache(maxsize=16)
def addresses(device: torch.device, values: tuple[int, ...]) -> Tensor:
    """They are mostly those of the step before: gradients are freed and allocated in the same order."""
    return _send(torch.tensor(values), device)


@lru_cache(maxsize=16)
def options(device: torch.device, groups: tuple[tuple[float, ...], ...]) -> Tensor:
    """Those of each group in a row, in float32 (groups, OPTIONS)."""
    table = torch.zeros(len(groups), OPTIONS.value)
    table[:, : len(groups[0])] = torch.tensor(groups)
    return _send(table, device)


def _send(values: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for it, which only pinned memory allows."""
    return values.to(device) if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)
