"""Several processes: who does what, and the collectives.  On one process all of it does nothing.

Tensors travel over the default process group, which gives up after half an hour.  Python objects, rank 0's decisions
and the waits for it travel over a gloo group of their own that waits as long as it takes: rank 0 may have to wait
hours for a lock.  A rank that dies closes its connections and the launcher ends the others, so no timeout has to
notice that.

Everything that only one process may do goes through `once`, everything that fills a cache entry through `together`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import timedelta
from enum import Enum
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn
from torch import distributed as dist

from soul_cli.core.types import UserError

T = TypeVar("T")
P = ParamSpec("P")
Build = Callable[[Path, Path], None]

TIMEOUT = timedelta(minutes=30)  # of a collective on tensors
PATIENCE = timedelta(days=7)  # with rank 0
BUCKET = 1 << 23  # elements that are summed in one collective; larger tensors go alone, without a copy


class Parallel(Enum):
    """How several processes train one model: each has it whole and gradients are summed, or it is sharded (FSDP2)."""

    ddp = "ddp"
    fsdp = "fsdp"


def start() -> Accelerator:
    """Return Accelerate's view of the machine; under a launcher it also starts the process group."""
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # else Accelerate ignores torchrun where there is no GPU
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UserError(
            f"Accelerate is configured for {accelerator.distributed_type.value}, which is not used here: take a "
            "configuration of configs/accelerate, and parallel=fsdp to shard the model"
        )
    return accelerator


def finish() -> None:
    """End the process group, where there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return which of them this one is, from 0."""
    return dist.get_rank() if world() > 1 else 0


def main() -> bool:
    """Return whether this is rank 0: the one that writes and speaks."""
    return rank() == 0


# --- Python objects ----------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def control() -> dist.ProcessGroup | None:
    """Return the group for objects and waits; None (the default group) on one process."""
    return dist.new_group(backend="gloo", timeout=PATIENCE) if world() > 1 else None


def barrier() -> None:
    """Wait until all ranks have come so far."""
    if world() > 1:
        dist.barrier(group=control())


def broadcast(value: Any) -> Any:
    """Return rank 0's value, on every rank."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=control())
    return box[0]


def everyone(value: T) -> list[T]:
    """Return the value of each rank, in order of the ranks."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value, group=control())
    return values


def share(items: Sequence[T]) -> Sequence[T]:
    """Return this rank's part of a list that all ranks have: every world-th item."""
    return items[rank() :: world()]


def gather(mine: list[T]) -> list[T]:
    """Return the parts of all ranks as one list again, in its old order: the inverse of `share`."""
    parts = everyone(mine)
    return [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]


def once(act: Callable[[], T]) -> T:
    """Let rank 0 alone act when all have come so far; every rank gets the result, or an error of the same text."""
    if world() == 1:
        return act()
    barrier()
    if not main():
        value, error = broadcast(None)
        if error is not None:
            raise error
        return value
    try:
        value = act()
    except Exception as failure:
        known = UserError(str(failure)) if isinstance(failure, UserError) else RuntimeError(f"rank 0: {failure!r}")
        broadcast((None, known))
        raise
    return broadcast((value, None))[0]


def in_turn(act: Callable[[], T], device: torch.device) -> T:
    """Let one rank after the other act, which must reach no collective, for what is too large to stand there often.

    It may shard a model for the device.  An error of one is everyone's.
    """
    mesh(device.type)
    for turn in range(world()):
        error = None
        if turn == rank():
            try:
                value = act()
            except Exception as failure:
                error = failure if isinstance(failure, UserError) else RuntimeError(f"rank {turn}: {failure!r}")
        for found in everyone(error):
            if found is not None:
                raise found
    return value


def by_rank_0(act: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that all ranks call and rank 0 alone carries out (see `once`)."""

    @wraps(act)
    def collective(*args: P.args, **kwargs: P.kwargs) -> T:
        return once(lambda: act(*args, **kwargs))

    return collective


def together(get: Callable[[Build], Path], build: Build) -> Path:
    """Return a cache entry for all ranks.  get: Cache.get but for its `build`.

    Rank 0 locks, checks and publishes; where it has to build, all ranks do.  `build` may use collectives; files are
    rank 0's to write.
    """
    if world() == 1:
        return get(build)
    if main():

        def everywhere(work: Path, out: Path) -> None:
            broadcast((work, out))
            build(work, out)
            barrier()

        return broadcast(get(everywhere))
    answer = broadcast(None)
    if isinstance(answer, tuple):
        build(*answer)
        barrier()
        answer = broadcast(None)
    return answer


# --- tensors -----------------------------------------------------------------------------------------------


def total(values: Tensor) -> Tensor:
    """Sum over the ranks, in place."""
    if world() > 1:  # the default group may know GPUs only
        dist.all_reduce(values, group=control() if values.device.type == "cpu" else None)
    return values


def total_numbers(values: list[float], device: torch.device) -> list[float]:
    """Return sums over the ranks.  device: where the process group takes tensors."""
    if world() == 1:
        return values
    return total(torch.tensor(values, dtype=torch.float64, device=device)).tolist()


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield runs of tensors of one dtype with at most BUCKET elements together; a larger one stands alone."""
    run: list[Tensor] = []
    for t in tensors:
        if run and (t.dtype != run[0].dtype or sum(x.numel() for x in run) + t.numel() > BUCKET):
            yield run
            run = []
        run.append(t)
    if run:
        yield run


def total_each(tensors: Sequence[Tensor]) -> None:
    """Sum each tensor over the ranks, in place.  All ranks give the same shapes in the same order."""
    if world() == 1:
        return
    for bucket in buckets(tensors):
        if len(bucket) == 1 and bucket[0].is_contiguous():
            dist.all_reduce(bucket[0])
            continue
        flat = torch.cat([t.flatten() for t in bucket])
        dist.all_reduce(flat)
        for t, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            t.copy_(part.view_as(t))


def total_gradients(params: Sequence[Tensor]) -> None:
    """Sum .grad over the ranks.  A rank that had no rows counts as zeros; what no rank used stays None."""
    if world() == 1:
        return
    used = total(torch.tensor([p.grad is not None for p in params], dtype=torch.int32, device=params[0].device))
    with_gradient = [p for p, n in zip(params, used.tolist(), strict=True) if n]
    for p in with_gradient:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    total_each([p.grad for p in with_gradient if p.grad is not None])


# --- sharded tensors (FSDP2) -------------------------------------------------------------------------------


@lru_cache
def mesh(device: str) -> Any:
    """Return all ranks in a row, for tensors that are sharded over their devices.  A collective at the first call."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device, (world(),))


def shard(model: nn.Module, blocks: Collection[str], device: torch.device, *, offload: bool = False) -> None:
    """Shard the parameters in place over all ranks along their first dimension, moving them to the device.

    blocks: class names of the modules that are gathered one at a time, the rest is gathered with the root.  Losses
    are normalised over all ranks, so gradients are summed, where FSDP2 by itself would average.
    offload: parameters and gradients stay in main memory but for what is being computed with.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard

    over = mesh(device.type)
    policy = CPUOffloadPolicy(pin_memory=device.type != "cpu") if offload else OffloadPolicy()
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=over, offload_policy=policy)
    fully_shard(model, mesh=over, offload_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def sharded(t: Tensor) -> bool:
    """Return whether it is a DTensor.  The class is not imported for that: it takes half a second."""
    return hasattr(t, "to_local")


def local(t: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor (shared memory), the tensor itself otherwise."""
    return t.to_local() if sharded(t) else t  # type: ignore[attr-defined]


def sharded_as(like: Any, whole: Tensor) -> Tensor:
    """Return a tensor that every rank has whole, sharded as `like`."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def over_shards(value: Tensor, like: Tensor) -> Tensor:
    """Return a sum over coordinates, completed by the other ranks' where tensors such as `like` are sharded."""
    return total(value) if sharded(like) else value


def norm(tensors: Iterable[Tensor], like: Tensor) -> float:
    """Return the L2 norm of all tensors together, in float32 or wider.

    It is over all ranks where tensors such as `like` are sharded.
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    of_rank = torch.stack([torch.linalg.vector_norm(local(t), dtype=wide) for t in tensors]).norm()
    return math.sqrt(float(total(of_rank.double() ** 2))) if sharded(like) else float(of_rank)


def dot(pairs: Iterable[tuple[Tensor, Tensor]], like: Tensor) -> float:
    """Return the inner product of the left and the right tensors, in float32 or wider.

    It is over all ranks where tensors such as `like` are sharded.
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    chunks = (c for a, b in pairs for c in zip(*(local(t).flatten().split(BUCKET) for t in (a, b)), strict=True))
    of_rank = torch.stack([torch.dot(a.to(wide), b.to(wide)) for a, b in chunks]).double().sum()
    return float(over_shards(of_rank, like))


def every(t: Tensor, stride: int) -> Tensor:
    """Return every stride-th coordinate of the flattened tensor, counted over all ranks: those this rank holds."""
    if not sharded(t):
        return t.flatten()[::stride]
    rows = math.ceil(len(t) / world())  # FSDP2 deals out rows as torch.chunk does
    first = min(rank() * rows, len(t)) * (t.numel() // len(t))
    return local(t).flatten()[-first % stride :: stride]


def all_values(values: Tensor, like: Tensor) -> Tensor:
    """Return the values of all ranks where tensors such as `like` are sharded, (N,) in no particular order."""
    return torch.cat(everyone(values.cpu())) if sharded(like) else values


def whole_state(model: nn.Module) -> dict[str, Any] | None:
    """Return the state dict of a sharded model, whole, on rank 0's CPU (empty elsewhere); None if it is not sharded."""
    if not sharded(next(model.parameters())):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
