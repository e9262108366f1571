"""Tensors of many rows on disk: written by all processes, each its share, and read a row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from soul_cli.core.distributed import rank, world


def keep(mine: Sequence[Tensor], folder: Path) -> None:
    """Write this process's share (`distributed.share`) of the rows, tensors of shapes (T, ...) with T of each its own.

    All processes call it.
    """
    ends = torch.tensor([len(t) for t in mine], dtype=torch.int64).cumsum(0)
    flat = torch.cat(list(mine)) if mine else torch.zeros(0)
    save_file({"flat": flat.contiguous(), "ends": ends}, folder / f"{rank():05}-of-{world():05}.safetensors")


class Kept(Sequence[Tensor]):
    """The rows of a folder that `keep` has filled, each read when it is asked for."""

    def __init__(self, folder: Path):
        self._parts = [safe_open(path, framework="pt") for path in sorted(folder.glob("*-of-*.safetensors"))]
        self._ends = [[0, *part.get_tensor("ends").tolist()] for part in self._parts]

    def __len__(self) -> int:
        return sum(len(ends) - 1 for ends in self._ends)

    @overload
    def __getitem__(self, i: int) -> Tensor: ...
    @overload
    def __getitem__(self, i: slice) -> list[Tensor]: ...
    def __getitem__(self, i: int | slice) -> Tensor | list[Tensor]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not 0 <= i < len(self):
            raise IndexError(i)
        at, part = divmod(i, len(self._parts))
        ends = self._ends[part]
        return self._parts[part].get_slice("flat")[ends[at] : ends[at + 1]]
