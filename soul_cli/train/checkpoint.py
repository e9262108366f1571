"""Checkpoints of a training run: a folder of tensors and JSON, put in place by a rename.

The tensors of whole parameters are one safetensors file, those of sharded ones a folder of torch.distributed.checkpoint
to which every process writes its part.  Either is read into either, on any number of processes.  The weights before the
first step are kept beside the checkpoint in the same form.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from soul_cli.core import cost
from soul_cli.core.distributed import by_rank_0, control, main, once, sharded, sharded_as
from soul_cli.core.files import publish, write_text
from soul_cli.core.types import UserError

TENSORS, STATE = "tensors.safetensors", "state.json"
MEMORY = "memory"  # prefix of what a combination of gradients keeps


def save(
    work: Path,
    params: Sequence[Tensor],
    optimizers: Sequence[Optimizer],
    records: list[dict[str, Any]],
    memory: dict[str, Any],
) -> None:
    """Write work/checkpoint, with what was spent so far.  All processes call it.

    memory: what a combination of gradients keeps by name: numbers, and lists of a tensor (or None) a parameter.
    """
    spent = cost.spent()
    folder = work / ".checkpoint"
    tensors, scalars, groups = _flatten(params, optimizers)
    for name, value in memory.items():
        if isinstance(value, list):
            kept = {f"{MEMORY}.{name}.{i}": t.contiguous() for i, t in enumerate(value) if t is not None}
            tensors |= kept
        else:
            scalars[f"{MEMORY}.{name}"] = value
    _write(folder, tensors, params[0])
    content = {"groups": groups, "scalars": scalars, "records": records, "cost": spent}

    def finish() -> None:
        write_text(folder / STATE, json.dumps(content))
        publish(folder, work / "checkpoint")

    once(finish)


def load(
    work: Path, params: Sequence[Tensor], optimizers: Sequence[Optimizer]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Put the state of work/checkpoint in place, what was spent included, and return its records and memory.

    Without a checkpoint there are none.  All processes call it.
    """
    folder = _saved(work)
    if folder is None:
        return [], {}
    saved = json.loads((folder / STATE).read_text())
    cost.resume(saved["cost"])
    tensors = _read(folder, params[0])
    with torch.no_grad():
        for i, p in enumerate(params):
            p.copy_(tensors.pop(f"param.{i}"))
    memory = _memory(tensors, saved["scalars"], params)
    for k, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Any]] = {}
        for key, value in [*tensors.items(), *saved["scalars"].items()]:
            _, owner, i, name = key.split(".", 3)
            if int(owner) == k:
                state.setdefault(int(i), {})[name] = value
        fresh = optimizer.state_dict()["param_groups"]
        groups = [_retype(old, new) for old, new in zip(saved["groups"][k], fresh, strict=True)]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    return saved["records"], memory


def _memory(tensors: dict[str, Tensor], scalars: dict[str, Any], params: Sequence[Tensor]) -> dict[str, Any]:
    """Take what `save` wrote of a combination's memory out of the tensors and scalars."""
    memory: dict[str, Any] = {}
    for key in [k for k in scalars if k.startswith(f"{MEMORY}.")]:
        memory[key.split(".")[1]] = scalars.pop(key)
    for key in [k for k in tensors if k.startswith(f"{MEMORY}.")]:
        _, name, i = key.split(".")
        memory.setdefault(name, [None] * len(params))[int(i)] = tensors.pop(key).to(params[0].device)
    return memory


def stored(p: Tensor) -> int:
    """Return the bytes that a parameter takes on disk: a sharded one whole, one in 4 bit as it was before."""
    packed = getattr(p, "quant_state", None)  # bitsandbytes'
    return p.numel() * p.element_size() if packed is None else math.prod(packed.shape) * packed.dtype.itemsize


def disk(start: float, one: float, model: float) -> float:
    """Return the bytes that a training takes on disk at most.

    start: of the weights before the first step.  one: of a checkpoint, beside which the next one is written, or the
    finished model of `model` bytes.
    """
    return start + one + max(one, model)


@by_rank_0
def check_room(work: Path, need: float) -> None:
    """Refuse to begin where the disk of `work` has no room for `need` bytes, what a stopped training left included."""
    work.mkdir(parents=True, exist_ok=True)
    places = [work / name for name in ("checkpoint", ".checkpoint", "start", ".start")]
    there = sum(file.stat().st_size for place in places for file in place.rglob("*") if file.is_file())
    free = shutil.disk_usage(work).free
    if need > free + there:
        raise UserError(
            f"training takes up to {need / 1e9:.2f} GB in {work} (the first weights, and two checkpoints while one "
            f"takes the place of the other), and the disk has {free / 1e9:.2f} GB left: make room, or set cache_dir "
            "(fine-tuning) and output_dir (unlearning) to folders on a larger disk"
        )


def keep_start(work: Path, params: Sequence[Tensor]) -> None:
    """Write the weights before the first step to work/start, unless a checkpoint goes on from them.

    All processes call it.
    """
    folder = work / ".start"
    if _saved(work) is not None and once((work / "start").is_dir):
        return
    _write(folder, _named(params), params[0])
    once(lambda: publish(folder, work / "start"))


def start(work: Path, params: Sequence[Tensor]) -> list[Tensor]:
    """Return the weights of work/start, sharded as `params` are.  All processes call it."""
    tensors = _read(work / "start", params[0])
    return [tensors[name] for name in _named(params)]


@by_rank_0
def clear(work: Path) -> None:
    """Remove what a finished training no longer needs."""
    for name in ("checkpoint", "start"):
        shutil.rmtree(work / name, ignore_errors=True)


@by_rank_0
def _saved(work: Path) -> Path | None:
    """Return the checkpoint to go on from; None where there is none.

    A kill between the renames of `publish` leaves the new one where it was written, and where the next would be
    written.  It is put in place first: the next kill would else find none.
    """
    place, written = work / "checkpoint", work / ".checkpoint"
    if not (place / STATE).is_file() and (written / STATE).is_file():
        publish(written, place)
    for old in work.glob(".checkpoint.old.*"):  # what a kill left of the one before
        shutil.rmtree(old)
    return place if (place / STATE).is_file() else None


def _named(params: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"param.{i}": p.detach().contiguous() for i, p in enumerate(params)}


def _flatten(
    params: Sequence[Tensor], optimizers: Sequence[Optimizer]
) -> tuple[dict[str, Tensor], dict[str, Any], list[Any]]:
    """Return tensors by name, other state by name, and the optimizers' groups."""
    tensors = _named(params)
    groups, scalars = [], {}
    for k, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        groups.append(state["param_groups"])
        for i, values in state["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"state.{k}.{i}.{name}"] = value.contiguous()
                else:
                    scalars[f"state.{k}.{i}.{name}"] = value
    return tensors, scalars, groups


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write(folder: Path, tensors: dict[str, Tensor], like: Tensor) -> None:
    """Write tensors, sharded where parameters such as `like` are, into a new folder."""
    once(lambda: _empty(folder))
    if sharded(like):
        import torch.distributed.checkpoint as dcp

        dcp.save(tensors, checkpoint_id=folder, process_group=control())
    elif main():
        save_file(tensors, folder / TENSORS)


def _read(folder: Path, like: Tensor) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint, sharded where parameters such as `like` are."""
    if (folder / TENSORS).is_file():
        whole = load_file(folder / TENSORS)
        return {name: sharded_as(like, t) if sharded(like) and t.ndim else t for name, t in whole.items()}
    import torch.distributed.checkpoint as dcp

    reader = dcp.FileSystemReader(folder)
    stored: dict[str, Any] = reader.read_metadata().state_dict_metadata
    tensors = {name: _space(like, entry.size, entry.properties.dtype) for name, entry in stored.items()}
    dcp.load(tensors, storage_reader=reader, process_group=control())
    return tensors


def _space(like: Any, size: torch.Size, dtype: torch.dtype) -> Tensor:
    if not (sharded(like) and size):
        return torch.empty(size, dtype=dtype)
    from torch.distributed import tensor

    space = tensor.empty(*size, dtype=dtype, device_mesh=like.device_mesh, placements=like.placements)
    return space.to(like.device)  # in main memory where parameters are kept there


def _retype(saved: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """Return a parameter group read from JSON.  What did not change keeps the type it had (JSON knows no tuples)."""
    same = {k for k in saved if json.loads(json.dumps(fresh.get(k))) == saved[k]}
    return {k: fresh[k] if k in same and k in fresh else v for k, v in saved.items()}
