"""The target or the retain-trained model of a run, and its rows: gpu_prepare.py target|retain KEY=VALUE...

Both at the same time, where a run makes one after the other.
"""

from __future__ import annotations

import sys

from soul_cli.experiment.pipeline import Pipeline

from soul_cli.cli import quiet
from soul_cli.core.cache import Cache
from soul_cli.core.distributed import start
from soul_cli.core.screen import say
from soul_cli.experiment.config import compose


def main(which: str, overrides: list[str]) -> None:
    quiet()
    config = compose(["method=none", *overrides])
    pipe = Pipeline(config, config.task.load(config.cache), Cache(config.cache, say), start([]))
    if which == "target":
        pipe.rows("evaluate_original", pipe.target(), "the original model")
    else:
        ref = pipe.retain_trained()
        assert ref is not None
        pipe.rows("evaluate_retain_trained", ref, "the retain-trained model")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
