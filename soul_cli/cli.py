"""`soul-unlearn`: Hydra composes the configuration, `run` does the rest."""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING

from soul_cli.api import run_and_report, settle_libraries
from soul_cli.core import interrupt
from soul_cli.core.command import MENDED, command, end, explain, prepare_output, print_error

if TYPE_CHECKING:
    from omegaconf import DictConfig

# what torchrun sets for each process, and what Accelerate reads of other launchers
OF_TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
OF_LAUNCHERS = (
    *OF_TORCHRUN, "LOCAL_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "OMP_NUM_THREADS",
)  # fmt: skip
TOOLS = ("cache", "doctor")  # commands of their own, by the module in soul_cli/tools


def main() -> None:
    """Run the command.  torch and transformers are imported once the configuration has been composed, not before."""
    with command():
        if sys.argv[1:2] and sys.argv[1] in TOOLS:
            return import_module(f"soul_cli.tools.{sys.argv[1]}").main(sys.argv[2:])
        check_environment()
        if group := next((arg.removesuffix("=help") for arg in sys.argv[1:] if arg.endswith("=help")), ""):
            return show_choices(group)
        import hydra

        from soul_cli.core.files import CONFIGS
        from soul_cli.experiment.overrides import COMPOSING, explain_composition

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
        except COMPOSING as error:
            text = explain_composition(error, sweeps="-m" in sys.argv or "--multirun" in sys.argv)
            if text is None:
                raise
            end(MENDED, f"error: {text}")
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
    """Print the plan, or do the run, write its page and print its headline or where it lies; return its folder."""
    from soul_cli.core.screen import log
    from soul_cli.experiment.config import load

    config = load(raw, overrides)
    if config.plan:
        from soul_cli.planning.plan import outlook

        log(outlook(config))
        return ""
    from soul_cli.report.terminal import print_place, print_run

    folder = run_and_report(config)
    if table:
        print_run(folder, verbose=config.verbose)
    else:
        print_place(folder)
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


def show_choices(group: str) -> None:
    """Print what GROUP=help asks for: what the group offers, each in a line, with its paper."""
    from soul_cli.core.screen import log
    from soul_cli.core.types import UserError
    from soul_cli.experiment.config import GROUPS, described

    if group not in GROUPS:
        raise UserError(f"{group}=help: there is help on {', '.join(GROUPS)}")
    log(described(group))


if __name__ == "__main__":
    main()
