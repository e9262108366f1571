"""`soul-unlearn doctor`: what this machine is and can, a line a fact: what a bug report needs."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence

import psutil
import torch

from soul_cli.core.machine import instructions, processor
from soul_cli.core.places import default_cache, expand_home
from soul_cli.core.run_folder import environment
from soul_cli.core.screen import log
from soul_cli.core.types import UserError
from soul_cli.experiment.header import matmul_rate
from soul_cli.tools.cache import size

PATIENCE = 5.0  # seconds for the hub
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")  # of /proc/cpuinfo
# what changes how a run goes, where it is set
VARIABLES = (
    "SOUL_CACHE", "XDG_CACHE_HOME", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS", "WORLD_SIZE", "RANK", "LOCAL_RANK", "SLURM_JOB_ID",
)  # fmt: skip


def main(given: Sequence[str]) -> None:
    """Print all facts.  No secret is among them: of a token only whether there is one."""
    parser = argparse.ArgumentParser(prog="soul-unlearn doctor", description="What this machine is and can.")
    parser.add_argument("--output-dir", default="outputs", help="where results would go (default: %(default)s)")
    parser.add_argument("--cache-dir", default=default_cache(), help="the cache (default: %(default)s)")
    args = parser.parse_args(given)
    facts = [*versions(), *machine(), *devices(), *places(args.output_dir, args.cache_dir), *network()]
    width = max(len(name) for name, _ in facts)
    for name, fact in facts:
        log(f"{name:{width}}  {fact}")


def versions() -> Iterator[tuple[str, str]]:
    """Yield versions of Python and the packages, and the checkout's commit."""
    found = environment()
    yield "python", found["python"]
    yield from found["packages"].items()
    if found["git"]:
        yield "commit", found["git"]


def machine() -> Iterator[tuple[str, str]]:
    """Yield system, processor with its abilities and speed, memory, compiler."""
    yield "system", platform.platform()
    name, known = processor(), instructions()
    cores, usable = (
        psutil.cpu_count(logical=False),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    )
    yield "processor", f"{name}, {cores} cores, {usable} threads may be used, torch takes {torch.get_num_threads()}"
    yield "instructions", f"{torch.backends.cpu.get_cpu_capability()}; " + " ".join(f for f in FLAGS if f in known)
    yield "products", products(torch.device("cpu"))
    memory = psutil.virtual_memory()
    yield "memory", f"{size(memory.available)} of {size(memory.total)} free"
    yield "compiler", compiler()


def products(device: torch.device) -> str:
    """Return how fast matrix products are, in float32 and bfloat16: hardware without bfloat16 shows by its rate."""
    rates = {}
    for name in ("float32", "bfloat16"):
        try:
            rates[name] = f"{matmul_rate(device, dtype=getattr(torch, name)) / 1e9:,.0f} GFLOP/s"
        except RuntimeError as error:
            rates[name] = f"none ({str(error).splitlines()[0][:80]})"
    return ", ".join(f"{name} {rate}" for name, rate in rates.items())


def compiler() -> str:
    """Return the C compiler that Triton and torch.compile would take."""
    name = os.environ.get("CC") or next((c for c in ("gcc", "clang", "cc") if shutil.which(c)), None)
    if name is None:
        return "none found (gcc, clang); Triton needs one on a GPU"
    try:
        done = subprocess.run([name, "--version"], capture_output=True, text=True, timeout=PATIENCE)
        return done.stdout.splitlines()[0]
    except (OSError, subprocess.TimeoutExpired, IndexError) as error:
        return f"{name} does not answer ({type(error).__name__})"


def devices() -> Iterator[tuple[str, str]]:
    """Yield each GPU with memory, compute capability and speed; and that there is none."""
    yield "accelerator", str(torch.accelerator.current_accelerator(check_available=True) or "none")
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
        yield f"gpu {i}", f"{about.name}, {size(about.total_memory)}, capability {about.major}.{about.minor}, {bf16}"
        yield "", f"CUDA {torch.version.cuda}, {products(torch.device('cuda', i))}"


def places(out: str, cache: str) -> Iterator[tuple[str, str]]:
    """Yield room on the disks of results and cache, and the variables that are set."""
    for key, given in (("output_dir", out), ("cache_dir", cache)):
        try:
            folder = expand_home(given, key).absolute()
        except UserError as error:
            yield key, str(error)
            continue
        there = next(p for p in (folder, *folder.parents) if p.exists())
        disk = shutil.disk_usage(there)
        writes = "" if os.access(there, os.W_OK) else "; you may not write there"
        yield key, f"{folder}: {size(disk.free)} of {size(disk.total)} free{writes}"
    found = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    yield "variables", " ".join(found) or "none that matter"


def network() -> Iterator[tuple[str, str]]:
    """Yield whether the hub answers, in a few seconds at most, and whether there is a token."""
    import huggingface_hub as hub

    yield "hub", "off (HF_HUB_OFFLINE)" if hub.is_offline_mode() else answer(hub.constants.ENDPOINT)
    yield "hub token", "there is one" if hub.get_token() else "none"


def answer(address: str) -> str:
    """Return whether a server answers.  In a thread of its own: looking up its name may hang for minutes."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    found = [f"{address} does not answer in {PATIENCE:.0f} s"]

    def ask() -> None:
        try:
            with urlopen(Request(address, method="HEAD"), timeout=PATIENCE):
                found.append(f"{address} answers")
        except HTTPError as error:
            found.append(f"{address} answers ({error.code})")
        except (OSError, ValueError) as error:
            found.append(f"{address} is out of reach ({error})")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return found[-1]
