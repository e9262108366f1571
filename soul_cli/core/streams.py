"""Standard output and error: what may be written to them, and what happens where nobody reads it."""

from __future__ import annotations

import io
import os
import select
import sys
import time
from contextlib import suppress

UNREAD = 128 + 13  # exit code where nobody reads the output any more, as of a program that SIGPIPE ends
GRACE = 5.0  # seconds
CONTROL = {i: f"\\x{i:02x}" for i in (*range(0x20), *range(0x7F, 0xA0)) if chr(i) not in "\n\t"}
# what turns the direction of the text behind it, and halves of characters, which cannot be written
TURNS, HALVES = (*range(0x202A, 0x202F), *range(0x2066, 0x206A)), range(0xD800, 0xE000)
CONTROL |= {i: f"\\u{i:04x}" for i in (*TURNS, *HALVES)}


def prepare_output() -> None:
    """Let characters that the terminal does not know be replaced instead of ending the run."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def is_unread() -> bool:
    """Return whether standard output is a pipe whose reader has gone."""
    if sys.stdout is None:
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def close_output() -> bool:
    """Write out what was printed.  False: nobody reads it any more; then nothing more is said about that."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        return False
    return True


def discard_output() -> None:
    """Let what is still printed go nowhere, so that Python does not complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_error(text: str) -> None:
    """Print to stderr.  Most errors befall all processes; the launcher ends the others before they say it again."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(GRACE)
    with suppress(BrokenPipeError):
        print(printable(text), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Return the text with control characters as escapes, line ends and tabs aside: a terminal would act on them.

    For all that comes from data or models, on a screen or in a file to be read.
    """
    return text.translate(CONTROL)
