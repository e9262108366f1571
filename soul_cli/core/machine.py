"""What Linux says of the processor, in /proc/cpuinfo; elsewhere little or nothing is known."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def cpuinfo() -> dict[str, str]:
    """Return the first value of each line of /proc/cpuinfo; nothing where there is none."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    return {name.strip(): value.strip() for name, value in reversed(pairs)}


def processor() -> str:
    """Return the processor's name."""
    return cpuinfo().get("model name") or platform.processor() or platform.machine()


def instructions() -> set[str]:
    """Return the processor's abilities, by Linux's names; none where they are not known."""
    facts = cpuinfo()
    return set((facts.get("flags") or facts.get("Features") or "").split())
