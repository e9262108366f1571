"""soul_cli.core.machine: what Linux says of processors, and what is known where it says nothing."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from soul_cli.core import machine

X86 = "processor\t: 0\nmodel name\t: Fast: 1\nflags\t\t: fma avx2\n\nprocessor\t: 1\nmodel name\t: Slow\nflags\t: fma\n"
ARM = "processor\t: 0\nFeatures\t: asimd bf16\n"


@pytest.mark.parametrize(
    ("text", "name", "able"),
    [(X86, "Fast: 1", {"fma", "avx2"}), (ARM, "", {"asimd", "bf16"}), (None, "", set())],
    ids=["x86", "ARM", "no Linux"],
)
def test_the_first_core_speaks_for_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, name: str, able: set[str]
):
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    if text is not None:
        machine.CPUINFO.write_text(text)
    assert machine.processor() == (name or platform.processor() or platform.machine())
    assert machine.instructions() == able
