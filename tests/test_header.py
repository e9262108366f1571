"""The header of a run: a rough time."""

from __future__ import annotations

from pathlib import Path

import pytest

from soul_cli.core import distributed
from soul_cli.core.cache import Cache
from soul_cli.experiment import header
from soul_cli.experiment.config import compose
from soul_cli.experiment.context import Context


def test_time_of_a_first_run_is_about_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured on a machine of 100 GFLOP/s: 421 s, 152 and 138 of them the fine-tunings."""
    monkeypatch.setattr(header, "matmul_rate", lambda device: 100e9)
    config = compose(["method=npo", "optim=soul"])
    context = Context(config, config.task.load(tmp_path), Cache(tmp_path, print), distributed.start())
    assert 0.7 < header.estimate(context) / 421 < 1.3
    monkeypatch.setattr(header, "missing", lambda context: set())
    assert header.estimate(context) < 0.3 * 421
