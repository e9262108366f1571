"""The benchmark runs and measures every line; how fast is not tested."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_short_mode_measures_every_line(tmp_path: Path) -> None:
    out = tmp_path / "bench.md"
    command = [sys.executable, str(SCRIPTS / "bench.py"), "--short", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    text = out.read_text()
    for what in (
        "against AdamW foreach",
        "against AdamW fused",
        "a plain loop over tensors",
        "copy bandwidth",
        "optimizer state",
        "whole training step",
        "padding to 512",
        "longest of a random batch",
        "retain weight 1",
        "retain weight 0",
        "peak memory",
        "method=graddiff retain=kl against graddiff",
        "peak memory, method=undial retain=ce against graddiff",
        "matrix-product rate",
        "against batch 1",
        "batches of 32",
        "scoring, seconds over its floor",
        "generating, seconds over its floor",
        "times the rows",
        "length of the rows",
        "a sweep of 2 runs",
    ):
        assert what in text
    assert "largest difference inf" not in text


@pytest.mark.parametrize(
    ("sign", "value", "verdict"),
    [
        (">=", 2.0, "met"),
        (">=", 1.5, "**missed by 25%**: because"),
        ("<=", 2.0, "met"),
        ("<=", 3.0, "**missed by 50%**: because"),
    ],
)
def test_a_line_says_by_how_much_it_is_missed(monkeypatch, sign: str, value: float, verdict: str) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from measured import Measured

    assert Measured("a", "b", value, (sign, 2.0), "", "because").verdict() == verdict
