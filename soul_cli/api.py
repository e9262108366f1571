"""`soul_cli.run`: an experiment from Python, with the command's overrides and its folder."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

    from soul_cli.experiment.config import RunConfig

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# batches come in hundreds of shapes; by default torch's CPU kernels keep a primitive for each, a gigabyte in all
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")


@dataclass(frozen=True)
class Result:
    """A finished run, read from its folder as it is asked for."""

    folder: Path

    @property
    def report(self) -> Path:
        """Return where the run's page lies."""
        from soul_cli.core.run_folder import PAGE

        return self.folder / PAGE

    @cached_property
    def metrics(self) -> DataFrame:
        """Return a line a metric, by name, as metrics.json has them.

        Columns: a model each (original, retain_trained, this_run; the last only where weights or prompt are changed),
        NaN where a model lacks the metric; low and high, the last model's 95 % interval; n, goal ("up", "down",
        "retain": as near as possible to retain_trained, "": no side is better) and definition.
        """
        from pandas import DataFrame

        from soul_cli.core.run_folder import RunFolder

        models = RunFolder(self.folder).models()
        nan = float("nan")
        lines: dict[str, dict[str, Any]] = {}
        for model, metrics in models.items():
            for name, m in metrics.items():
                low, high = m.ci95 or (nan, nan)
                about = {"low": low, "high": high, "n": m.n, "goal": m.goal, "definition": m.definition}
                lines[name] = lines.get(name, dict.fromkeys(models, nan)) | {model: m.value} | about
        return DataFrame.from_dict(lines, orient="index").rename_axis("metric")

    @cached_property
    def rows(self) -> DataFrame:
        """Return a line for each evaluated question and model (column `model`), with what its split has of columns."""
        from pandas import DataFrame, concat

        from soul_cli.core.files import read_lines
        from soul_cli.core.run_folder import METRICS, rows_file

        models = json.loads((self.folder / METRICS).read_text())["models"]
        files = {model: self.folder / rows_file(model) for model in models}
        return concat([DataFrame(read_lines(f)).assign(model=m) for m, f in files.items()], ignore_index=True)


def run(overrides: Sequence[str] = ()) -> Result:
    """Do what `soul-unlearn OVERRIDE...` does, one run, and return its result; a finished one is found again.

    overrides: as on the command line, ["task=tofu", "method=npo"], without the shell's quotes.  Under torchrun or
    accelerate launch all processes call it.  Signals are left to the program.
    UserError: what the user can mend, where the command ends with a message.
    """
    from soul_cli.core.command import explain
    from soul_cli.core.types import UserError
    from soul_cli.experiment.config import compose

    settle_libraries()
    if any(word in ("-m", "--multirun") or word.startswith("sweep=") for word in overrides):
        raise UserError(
            f"{' '.join(overrides)}: run() does one run; call it in a loop, or use soul-unlearn for a sweep"
        )
    config = compose(list(overrides))
    if config.plan:
        raise UserError("plan=true: a plan is printed, and leaves no result; use soul-unlearn for it")
    try:
        return Result(run_and_report(config))
    except Exception as error:
        text = explain(error)
        if text is None or isinstance(error, UserError):
            raise
        raise UserError(text) from error


def run_and_report(config: RunConfig) -> Path:
    """Do the run, or find it finished, and write its page; return its folder.  On several processes all call it."""
    from soul_cli.experiment.run import run
    from soul_cli.report.run_page import write_page

    folder = run(config)
    write_page(folder)
    return folder


def settle_libraries() -> None:
    """Turn the libraries' chatter off, real warnings aside, and give nltk a place where there is no home."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.ERROR)
    if os.path.expanduser("~") == "~":
        os.environ.setdefault("NLTK_DATA", tempfile.gettempdir())  # where it would download to; it does not
