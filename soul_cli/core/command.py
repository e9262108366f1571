"""What the commands have in common: how they end.  What the user can mend is one message and exit code 2."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from soul_cli.core import interrupt
from soul_cli.core.streams import UNREAD, close_output, discard_output, is_unread, prepare_output, print_error

# exit codes.  STOPPED is one for all signals that ask for an end, 128 + SIGTERM: a job script or a batch system that
# runs the command again (SLURM's RequeueExit, say) need not know which of them came, and the message names it
MENDED, INTERRUPTED, STOPPED = 2, 128 + signal.SIGINT, 128 + signal.SIGTERM
# what may be wrong with a folder or file; the system's own words say what
PLACES = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)
FULL = (errno.ENOSPC, errno.EDQUOT)
MEMORY = "out of memory", "not enough memory", "alloc_cpu"  # the last two: torch's CPU allocator


@contextmanager
def command() -> Iterator[None]:
    """Run a command's main function and end the process where it fails.

    Exit codes: 2 after one message about what the user can mend, 130 after Ctrl-C, 143 after a signal that asks for an
    end (interrupt.SIGNALS), without a word 141 where nobody reads the output any more.  Any other error is raised.
    """
    prepare_output()
    try:
        os.getcwd()
    except FileNotFoundError:
        end(MENDED, "error: the folder this was started in is gone; start it in another")
    try:
        with interrupt.listening():
            yield
        if not close_output():
            sys.exit(UNREAD)
    except SystemExit:
        close_output()
        raise
    except interrupt.Stopped as stop:
        end(STOPPED, str(stop))
    except KeyboardInterrupt:
        end(INTERRUPTED, "interrupted; the same command goes on from what is finished")
    except BrokenPipeError:
        if not is_unread():
            raise  # it is another pipe
        discard_output()
        sys.exit(UNREAD)
    except Exception as error:
        text = explain(error)
        if text is None:
            raise
        end(MENDED, f"error: {text}")


def end(code: int, text: str) -> NoReturn:
    """End the process with a message."""
    close_output()
    print_error(text)
    sys.exit(code)


def explain(error: BaseException) -> str | None:
    """Return what is wrong and what would be right, of an error that the user can mend; None of any other."""
    from soul_cli.core.types import UserError  # imports torch: not before it is needed

    if isinstance(error, UserError):
        return str(error)
    # safetensors has the system's words, but is no OSError
    number = getattr(error, "errno", None)
    where = getattr(error, "filename", None) or "output_dir or cache_dir"
    if number in FULL or os.strerror(errno.ENOSPC) in str(error):
        return (
            f"no space left on the disk of {where}; what was finished is intact, and the same command goes on "
            "from there once there is room (or with another output_dir and cache_dir)"
        )
    if isinstance(error, OSError) and number in PLACES and error.filename:
        words = os.strerror(number).lower()
        return f"{error.filename}: {words}; name another place (output_dir, cache_dir, ...), or get the right to this"
    if isinstance(error, RuntimeError) and str(error) == "Could not determine home directory.":
        return "a path begins with ~, but there is no such home folder; write the path in full"
    if isinstance(error, RuntimeError) and any(words in str(error) for words in MEMORY):
        return (
            f"out of memory ({str(error).splitlines()[0][:160]}). What helps most: activation_checkpointing=true; "
            "a smaller train.batch_size with as much more train.accumulation, eval.batch_tokens in evaluation; "
            "offload=true, or parallel=fsdp on several GPUs. plan=true says what fits"
        )
    return None
