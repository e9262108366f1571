"""The target or the retain-trained model of a run, and its rows: gpu_prepare.py target|retain KEY=VALUE...

Both at the same time, where a run makes one after the other.
"""

from __future__ import annotations

import sys

from soul_cli.cli import settle_libraries
from soul_cli.core.cache import Cache
from soul_cli.core.distributed import start
from soul_cli.core.screen import log
from soul_cli.experiment import evaluation, models
from soul_cli.experiment.config import compose
from soul_cli.experiment.context import Context


def main(which: str, overrides: list[str]) -> None:
    settle_libraries()
    config = compose(["method=none", *overrides])
    context = Context(config, config.task.load(config.cache), Cache(config.cache, log), start())
    if which == "target":
        evaluation.rows(context, "evaluate_original", models.target(context), "the original model")
    else:
        ref = models.retain_trained(context)
        assert ref is not None
        evaluation.rows(context, "evaluate_retain_trained", ref, "the retain-trained model")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
