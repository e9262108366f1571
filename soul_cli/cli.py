"""`soul-unlearn`: Hydra composes the configuration, `run` does the rest."""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import traceback
from typing import TYPE_CHECKING

from soul_cli.core import interrupt
from soul_cli.core.command import MENDED, command, end, explain, prepare_output, print_error

if TYPE_CHECKING:
    from omegaconf import DictConfig

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# batches come in hundreds of shapes; by default torch's CPU kernels keep a primitive for each, a gigabyte in all
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
RENAMED = {"method.retain_weight": "retain.weight", "optim.mode": "combine (combine=alternating, combine=sum)"}
# what torchrun sets for each process, and what Accelerate reads of other launchers
OF_TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
OF_LAUNCHERS = (
    *OF_TORCHRUN, "LOCAL_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "OMP_NUM_THREADS",
)  # fmt: skip


def main() -> None:
    """Run the command.  torch and transformers are imported once the configuration has been composed, not before."""
    with command():
        check_environment()
        import hydra
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from soul_cli.core.files import CONFIGS

        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing a traceback
        sys.argv[1:] = sorted(sys.argv[1:], key=lambda a: a not in ("-m", "--multirun"))  # may stand anywhere: first
        failures: list[Exception] = []

        def task(raw: DictConfig) -> str | Exception:
            try:
                return run_member(raw)
            except Exception as error:
                failures.append(error)
                return error  # Hydra would print a line of its own about one that is raised

        try:
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(task)()
        except (HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra's own raise ValueError too
            if type(error) is ValueError and not str(error).startswith("Config group override"):
                raise
            end(MENDED, f"error: {explain_composition(error)}")
        if failures:  # that of a run alone: a sweep has raised its own
            raise failures[0]
        if processes() > 1:
            from soul_cli.core.distributed import finish

            finish()


def run_member(raw: DictConfig) -> str:
    """Do one run, alone or of a sweep, and return its folder.  An error of a sweep's member is printed, then raised."""
    join_submitit()
    interrupt.follow_sweep()
    prepare_output()
    if raw.plan is True:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before anything that reads it is imported
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from soul_cli.core.screen import log
    from soul_cli.core.types import UserError
    from soul_cli.experiment.sweep import forget_frames

    settle_libraries()
    hydra = HydraConfig.get()
    sweeps = hydra.mode == RunMode.MULTIRUN
    if sweeps:
        log(f"\nmember {hydra.job.num + 1}")
    try:
        with interrupt.listening():
            return perform(raw, list(hydra.overrides.task), table=not sweeps)
    except interrupt.Stopped as stop:
        if not interrupt.started_by_sweep():
            raise
        print_error(str(stop))
        interrupt.hand_on(stop.number)
        interrupt.end_sweep()
        raise UserError(str(stop)) from None  # the launcher's own processes take errors alone
    except Exception as error:
        known = explain(error)
        if sweeps:
            print_error(f"error: {known or traceback.format_exc()}")
            forget_frames(error)
            if processes() > 1:
                sys.exit(MENDED)  # others may be waiting for this process: the launcher ends them
        if known is None:
            raise
        raise UserError(known) from error


def perform(raw: DictConfig, overrides: list[str], *, table: bool) -> str:
    """Print the plan, or do the run and print its table or where it lies; return its folder."""
    from soul_cli.core.screen import log
    from soul_cli.experiment.config import load

    config = load(raw, overrides)
    if config.plan:
        from soul_cli.planning.plan import outlook

        log(outlook(config))
        return ""
    from soul_cli.experiment.run import run
    from soul_cli.report.terminal import print_run

    folder = run(config)
    if table:
        print_run(folder)
    else:
        log(f"written to {folder}")
    return str(folder)


def processes() -> int:
    """Return how many processes a launcher has started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_environment() -> None:
    """Raise UserError where a launcher's variables do not fit together, as those left over from another program.

    Empty variables count as not set.
    """
    for name in (*OF_LAUNCHERS, "HOME"):
        if os.environ.get(name) == "":
            del os.environ[name]
    found = {name: os.environ[name] for name in OF_TORCHRUN if name in os.environ}
    wrong = [f"{k}={v}: not a whole number" for k, v in found.items() if k != "MASTER_ADDR" and not v.isdecimal()]
    if not wrong and int(found.get("RANK", 0)) >= int(found.get("WORLD_SIZE", sys.maxsize)):
        wrong = [f"RANK={found['RANK']} of WORLD_SIZE={found['WORLD_SIZE']}"]
    needed = {"RANK", "LOCAL_RANK"} & found.keys() or found.get("WORLD_SIZE", "1") != "1"
    missing = [name for name in OF_TORCHRUN if needed and name not in found]
    if not (wrong or missing):
        return
    from soul_cli.core.types import UserError

    leftover = " ".join(name for name in found if name != "MASTER_ADDR")
    have = ", ".join(f"{k}={v}" for k, v in found.items())
    problem = ", ".join(wrong) if wrong else f"{have}, but no {', '.join(missing)}"
    raise UserError(
        f"the environment has {problem}. For several processes start soul-unlearn by torchrun or accelerate launch, "
        f"which set all of these; for one, unset {leftover}"
    )


def join_submitit() -> None:
    """Let a task of a submitit job take its place among the job's processes, as torchrun would give it."""
    if "SUBMITIT_EXECUTOR" not in os.environ or "RANK" in os.environ:
        return
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if JobEnvironment().num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def explain_composition(error: Exception) -> str:
    """Return what is wrong with the command line, and what would be right."""
    from hydra.errors import OverrideParseException
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

    from soul_cli.experiment.overrides import explain_override

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OverrideParseException):
            return explain_override(cause.override, sweeps="-m" in sys.argv or "--multirun" in sys.argv)
        key = getattr(cause, "full_key", None)
        if key in RENAMED:
            return f"{key} is called {RENAMED[key]} now"
        if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.parent_node is not None and key:
            place, _, name = key.rpartition(".")
            return (
                f"{place or 'the configuration'} has no key {name!r}; it has {', '.join(map(str, cause.parent_node))}"
            )
        if isinstance(cause, OmegaConfBaseException) and key:
            return f"{key}: {str(cause).splitlines()[0]}"
        cause = cause.__cause__
    text = str(error).split("Config search path")[0]  # of no use to the reader
    text = " ".join(text.removeprefix("In 'config': ").split())
    if isinstance(error, ValueError):
        text += "; a group is chosen by name, as in method=npo"
    found = re.match(r"Could not find '(\w+)/[^']*'", text)  # Hydra's own list leaves out what lies in folders
    return f"{found[0]}; there are {', '.join(choices(found[1]))}" if found else text


def choices(group: str) -> list[str]:
    """Return the names of a group's configurations, those in folders of it included."""
    from soul_cli.core.files import CONFIGS

    folder = CONFIGS / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def settle_libraries() -> None:
    """Turn the libraries' chatter off, real warnings aside, and give nltk a place where there is no home."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.ERROR)
    if os.path.expanduser("~") == "~":
        os.environ.setdefault("NLTK_DATA", tempfile.gettempdir())  # where it would download to; it does not


if __name__ == "__main__":
    main()
