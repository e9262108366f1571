"""`soul-unlearn`: Hydra composes the configuration, `run` does the rest.  Errors are one message and exit code 2."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# batches come in hundreds of shapes; by default torch's CPU kernels keep a primitive for each, a gigabyte in all
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
GRACE = 5.0  # seconds
RENAMED = {"method.retain_weight": "retain.weight", "optim.mode": "combine (combine=alternating, combine=sum)"}


def main() -> None:
    """Entry point.  torch and transformers are imported once the configuration has been composed, not before."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from soul_cli.core.files import CONFIGS

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing a traceback
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda a: a not in ("-m", "--multirun"))  # may stand anywhere: first
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(member)()
    except (HydraException, OmegaConfBaseException) as error:
        say_error(explain(error))
        sys.exit(2)
    except KeyboardInterrupt:
        say_error("interrupted; the same command goes on from the last checkpoint")
        sys.exit(130)
    except Exception as error:
        from soul_cli.core.types import UserError  # imports torch: not before it is needed

        if not isinstance(error, UserError):
            raise
        say_error(str(error))
        sys.exit(2)
    if processes() > 1:
        from soul_cli.core.distributed import finish

        finish()


def member(raw: DictConfig) -> str:
    """One run, alone or of a sweep; returns its folder.  An error of a sweep's member is shown here and raised."""
    join_submitit()
    if raw.plan is True:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before anything that reads it is imported
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from soul_cli.core.screen import say
    from soul_cli.core.types import UserError
    from soul_cli.experiment.config import load

    quiet()
    hydra = HydraConfig.get()
    sweeps = hydra.mode == RunMode.MULTIRUN
    if sweeps:
        say(f"\nmember {hydra.job.num + 1}")
    try:
        config = load(raw)
        if config.plan:
            from soul_cli.planning.plan import outlook

            print(outlook(config))
            return ""
        from soul_cli.experiment.run import run
        from soul_cli.report.terminal import show

        folder = run(config)
        if sweeps:
            say(f"written to {folder}")
        else:
            show(folder)
        return str(folder)
    except Exception as error:
        known = str(error) if isinstance(error, UserError) else exhausted(error)
        if sweeps:
            say_error(known or traceback.format_exc())
            if processes() > 1:
                sys.exit(2)  # others may be waiting for this process: the launcher ends them
        if known is None:
            raise
        raise UserError(known) from error


def processes() -> int:
    """How many a launcher has started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_submitit() -> None:
    """A task of a submitit job takes its place among the job's processes from submitit, as torchrun would give it."""
    if "SUBMITIT_EXECUTOR" not in os.environ or "RANK" in os.environ:
        return
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if JobEnvironment().num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def exhausted(error: BaseException) -> str | None:
    """What to do where memory or a disk is full; None if it is something else."""
    # safetensors says it in words alone
    if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
        where = getattr(error, "filename", None) or "output_dir or cache_dir"
        return (
            f"no space left on the disk of {where}; what was finished is intact, and the same command goes on "
            "from there once there is room (or with another output_dir and cache_dir)"
        )
    memory = "out of memory", "not enough memory", "alloc_cpu"  # the last two: torch's CPU allocator
    if isinstance(error, RuntimeError) and any(words in str(error) for words in memory):
        return (
            f"out of memory ({str(error).splitlines()[0][:160]}). What helps most: activation_checkpointing=true; "
            "a smaller train.batch_size with as much more train.accumulation, eval.batch_tokens in evaluation; "
            "offload=true, or parallel=fsdp on several GPUs. plan=true says what fits"
        )
    return None


def explain(error: Exception) -> str:
    """A composition error in one message: what, where, and what would be right."""
    cause: BaseException | None = error
    while cause is not None:
        parent, key = getattr(cause, "parent_node", None), getattr(cause, "full_key", None)
        if parent is not None and key:
            if key in RENAMED:
                return f"{key} is called {RENAMED[key]} now"
            place, _, name = key.rpartition(".")
            return f"{place or 'the configuration'} has no key {name!r}; it has {', '.join(map(str, parent))}"
        cause = cause.__cause__
    text = str(error).split("Config search path")[0]  # of no use to the reader
    return " ".join(text.removeprefix("In 'config': ").split())


def say_error(text: str) -> None:
    """Nearly every error befalls all processes; the launcher then ends the others before they say it again."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(GRACE)
    print(f"error: {text}", file=sys.stderr, flush=True)


def quiet() -> None:
    """Libraries' chatter off; their warnings about real problems stay."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
