#!/usr/bin/env python3
"""Show that a change of the code changes no number.

    git worktree add ../before COMMIT
    python scripts/compare_versions.py ../before . --work FOLDER [--only RUN] [--out FILE]

A fixed set of runs is made in each of the two checkouts, by the package that lies there, with caches and run folders of
its own under --work.  Rows, weights, metrics and what was recorded of each step are then compared value by value.  Ends
with 1 where a value differs that both have, or a file, model or tensor is missing; keys that one side alone has are
listed.  The runs of a checkout are kept by the content of its package and made once.  One checkout alone: its runs are
made and kept.  The same one twice: it runs a second time, which shows whether runs can be compared on this machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from small_models import tiny_base
from torch import Tensor

ONE = [sys.executable, "-m", "soul_cli.cli"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "soul_cli.cli"]
KINDS = {"ddp": TWO, "fsdp": [*TWO, "parallel=fsdp"]}  # runs whose name begins so; all others have one process
# a key of old checkouts -> its name where configs/ has the group that the new name begins with
RENAMED = {"method.retain_weight": "retain.weight", "optim.mode": "combine"}
NEW: dict[str, str] = {}  # run -> what it takes beside RUNS under the new names, so that its numbers stay
PARTS = ("rows", "weights", "metrics", "steps")
IGNORED = {"seconds", "tokens_per_s", "cost", "definition", "goal"}  # times, and words about a number
CODE = ("soul_cli", "configs", "hydra_plugins")
DONE = "overrides.json"  # in the folder of a finished run

TINY = (
    "train.epochs=2 train.batch_size=8 eval.max_total=120 save_model=true eval.limit=6 model.finetune.train.epochs=2 "
    f"model=hub model.dtype=float32 model.path={tiny_base()}"
)
ADAMW, RELEASED = "optim=adamw optim.lr=1e-3", "optim=soul_released optim.lr=1e-3"
SOUL = "optim=soul optim.lr=1e-3 optim.hessian_every=2"
# weight decay, which acted on both steps of alternating mode in old checkouts, is off
ALTERNATING = f"{SOUL} optim.mode=alternating optim.weight_decay=0"
LORA = "train.lora={r:4,alpha:8,load_in_4bit:false}"

RUNS = {
    "none": f"{TINY} method=none",
    "input_based": f"{TINY} method=input_based",
    "ga-adamw": f"{TINY} method=ga {ADAMW} activation_checkpointing=true offload=true",
    "graddiff-adamw": f"{TINY} method=graddiff {ADAMW} method.retain_weight=0.5 train.accumulation=2",
    "graddiff-soul-bf16": f"{TINY} method=graddiff {SOUL} train.precision=bf16",
    "graddiff-released": f"{TINY} method=graddiff {RELEASED} method.retain_weight=2",
    "po-adamw-best-epoch": f"{TINY} method=po {ADAMW} epoch_eval.every=1 epoch_eval.select=best",
    "po-soul-alternating": f"{TINY} method=po {ALTERNATING} method.retain_weight=3 train.accumulation=2",
    "npo-adamw-no-retain": f"{TINY} method=npo {ADAMW} method.retain_weight=0",
    "npo-soul": f"{TINY} method=npo {SOUL} method.retain_weight=3",
    "npo-soul-rho": f"{TINY} method=npo {SOUL} optim.rho=0.05 optim.unclipped_share=null optim.hessian_data=forget",
    "npo-soul-alternating": f"{TINY} method=npo {ALTERNATING} method.retain_weight=0.5",
    "npo-soul-bfloat16": f"{TINY} method=npo {SOUL} model.dtype=bfloat16",
    "npo-soul-lora": f"{TINY} method=npo {SOUL} {LORA}",
    "npo-released-mean": f"{TINY} method=npo {RELEASED} method.normalize=mean",
    "iu-diagonal": f"{TINY} method=iu method.solver=diagonal",
    "iu-cg": f"{TINY} method=iu method.solver=cg",
    "books-input_based": f"{TINY} task=copyright method=input_based",
    "books-graddiff-soul-alternating": f"{TINY} task=copyright method=graddiff {ALTERNATING}",
    "books-po-adamw": f"{TINY} task=copyright method=po {ADAMW}",
    "books-npo-released": f"{TINY} task=copyright method=npo {RELEASED}",
    "ddp-npo-soul": f"{TINY} method=npo {SOUL}",
    "ddp-po-soul-alternating": f"{TINY} method=po {ALTERNATING}",
    "ddp-graddiff-adamw-lora": f"{TINY} method=graddiff {ADAMW} {LORA}",
    "ddp-iu-cg": f"{TINY} method=iu method.solver=cg",
    "fsdp-npo-soul": f"{TINY} method=npo {SOUL}",
    "fsdp-npo-soul-alternating": f"{TINY} method=npo {ALTERNATING}",
    "fsdp-graddiff-adamw": f"{TINY} method=graddiff {ADAMW} train.accumulation=2",
    "fsdp-npo-released": f"{TINY} method=npo {RELEASED}",
}


def overrides(name: str, checkout: Path) -> list[str]:
    """Return a run's command-line overrides under the names that the checkout knows."""
    known = {key: (checkout / "configs" / new.split(".")[0]).is_dir() for key, new in RENAMED.items()}
    pairs = (override.split("=", 1) for override in RUNS[name].split())
    given = [f"{RENAMED[key] if known.get(key) else key}={value}" for key, value in pairs]
    return given + (NEW.get(name, "").split() if all(known.values()) else [])


@dataclass
class Comparison:
    """What two results have in common, and where they differ."""

    values: int = 0  # that both have
    unequal: int = 0
    largest: float = 0.0  # difference of two numbers
    first: str = ""  # place at which they differ
    alone: set[str] = field(default_factory=set)  # keys that one side lacks

    def named(self, old: dict[str, Any], new: dict[str, Any]) -> Comparison:
        """Compare by name; what is missing on one side counts as unequal."""
        for name in sorted(old.keys() ^ new.keys()):
            self._note(1, 1, 0.0, f"{name} ({'old' if name in old else 'new'} alone)")
        for name in sorted(old.keys() & new.keys()):
            self.add(old[name], new[name], name)
        return self

    def add(self, old: Any, new: Any, where: str) -> None:
        """Compare two values, all the way down.  A key that one side lacks is noted, and is no difference."""
        if isinstance(old, dict) and isinstance(new, dict):
            for side, keys in (("old", old.keys() - new.keys()), ("new", new.keys() - old.keys())):
                self.alone |= {re.sub(r"\[\d+\]", "", f"{where}.{key} ({side})") for key in keys - IGNORED}
            for key in sorted((old.keys() & new.keys()) - IGNORED):
                self.add(old[key], new[key], f"{where}.{key}")
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            for i, (one, other) in enumerate(zip(old, new, strict=True)):
                self.add(one, other, f"{where}[{i}]")
        elif isinstance(old, Tensor) and isinstance(new, Tensor):
            same = old.dtype == new.dtype and old.shape == new.shape
            unequal = int(bits(old).ne(bits(new)).any(1).sum()) if same else old.numel()
            gap = float((old.double() - new.double()).abs().max()) if same and unequal else 0.0
            self._note(old.numel(), unequal, gap, where)
        else:
            numbers = isinstance(old, int | float) and isinstance(new, int | float)
            same = old == new or (old != old and new != new)  # NaN
            self._note(1, int(not same), abs(old - new) if numbers else 0.0, where)

    def _note(self, values: int, unequal: int, gap: float, where: str) -> None:
        self.values += values
        self.unequal += unequal
        self.largest = max(self.largest, gap)
        self.first = self.first or (where if unequal else "")

    def __str__(self) -> str:
        if self.unequal:
            return f"**{self.unequal:,} of {self.values:,} differ**, by up to {self.largest:.1e}, first {self.first}"
        return f"equal ({self.values:,})" if self.values else "-"


def bits(t: Tensor) -> Tensor:
    """Return the bytes of each coordinate, (N, bytes)."""
    return t.flatten().view(torch.uint8).view(t.numel(), t.element_size())


def contents(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what a run folder holds to compare: part -> name of a file, tensor or model -> content."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.jsonl")}
    lines = {name: [json.loads(line) for line in text.split("\n") if line] for name, text in texts.items()}
    return {
        "rows": {name: lines.pop(name) for name in texts if name.startswith("rows")},
        "weights": {name: t for path in folder.glob("model/*.safetensors") for name, t in load_file(path).items()},
        "metrics": json.loads((folder / "metrics.json").read_text())["models"],
        "steps": lines,
    }


def compare(old: Path, new: Path) -> dict[str, Comparison]:
    """Compare two run folders, part by part."""
    one, other = contents(old), contents(new)
    return {part: Comparison().named(one[part], other[part]) for part in PARTS}


def made(name: str, checkout: Path, home: Path) -> Path:
    """Make a run of a checkout, or find it made before; return its folder."""
    folder, kind = home / name, name.split("-")[0]
    given, done = overrides(name, checkout), home / name / DONE
    if not done.is_file() or json.loads(done.read_text()) != given:
        shutil.rmtree(folder, ignore_errors=True)
        cache = home / f"cache-{kind if kind in KINDS else 'one'}"  # models are made by as many processes
        env = {"PYTHONPATH": str(checkout), "SOUL_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command, began = [*KINDS.get(kind, ONE), *given, f"output_dir={folder}"], time.monotonic()
        # python -m looks into the working directory first
        process = subprocess.run(command, cwd=checkout, env={**os.environ, **env}, capture_output=True, text=True)
        if process.returncode:
            sys.exit(f"{name} in {checkout} ended with {process.returncode}:\n{process.stdout}{process.stderr}")
        if not home.name.startswith(digest(checkout)):
            sys.exit(f"{checkout} was edited while {name} ran: of which code its numbers are is not known")
        done.write_text(json.dumps(given))
        print(f"{name} in {checkout}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    (metrics,) = folder.glob("*/*/metrics.json")
    return metrics.parent


def digest(checkout: Path) -> str:
    """Return a hash of all that a run takes from a checkout."""
    files = sorted(p for part in CODE for p in (checkout / part).rglob("*") if p.is_file() and p.suffix != ".pyc")
    if not files:
        sys.exit(f"{checkout}: no checkout of this project; it has none of {', '.join(CODE)}")
    content = [(str(p.relative_to(checkout)), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def commit(checkout: Path) -> str:
    """Return what git calls the checkout, or its folder's name where that is no clone."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or checkout.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path, nargs="?")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs, kept")
    parser.add_argument("--only", choices=RUNS, action="append", metavar="RUN", help=f"of {', '.join(RUNS)}")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    checkouts = [path.resolve() for path in (given.old, given.new) if path]
    homes = [given.work.resolve() / digest(checkout) for checkout in checkouts]
    if len(set(homes)) < len(homes):
        homes[1] = homes[1].with_name(f"{homes[1].name}-again")
    lines = [f"# {' against '.join(map(commit, checkouts))}", "", f"| run | {' | '.join(PARTS)} |", "|---" * 5 + "|"]
    alone: set[str] = set()
    failed = 0
    for name in given.only or RUNS:
        old, *new = [made(name, checkout, home) for checkout, home in zip(checkouts, homes, strict=True)]
        if not new:
            continue
        parts = compare(old, new[0])
        failed += any(part.unequal for part in parts.values())
        alone = alone.union(*(part.alone for part in parts.values()))
        lines.append(f"| {name} | {' | '.join(map(str, parts.values()))} |")
        print(lines[-1], flush=True)
        if given.out:
            notes = ["", f"In one alone: {', '.join(sorted(alone))}."] if alone else []
            given.out.write_text("\n".join([*lines, *notes, ""]))
    sys.exit(f"{failed} of {len(given.only or RUNS)} runs differ" if failed else 0)


if __name__ == "__main__":
    main()
