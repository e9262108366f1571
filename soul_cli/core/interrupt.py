"""Signals that ask a run to end: batch systems send them before they take a machine away.

A signal ends the block of `listening` at once, by `Stopped`: what is finished is on disk, and the same command goes on
from there.  Where the work under way is worth keeping, `deferred` holds the signal back until that work asks for it
(`requested`) or ends.  SIGINT is left to Python.

A sweep passes the signal on to the processes that it has started (`passed_on`), and they end when it is gone.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

SIGNALS = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")  # where a system has them
STARTER = "SOUL_UNLEARN_SWEEP"  # environment variable: id of the process whose sweep has started this one
PACE = 0.5  # seconds between two looks at it


class Stopped(BaseException):
    """A signal has ended the run.  Not an Exception: nothing that handles errors may hold it up."""

    def __init__(self, number: int, when: str = ""):
        """when: how far the run has come, in words."""
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}{when and ' '}{when}; the same command goes on")
        self.number = number


@dataclass
class _State:
    received: int = 0  # number of the first signal
    deferred: bool = True
    passes_on: bool = False
    listeners: int = 0  # open blocks of `listening`
    follows: bool = False
    previous: dict[int, Any] = field(default_factory=dict)  # what handled each signal before


_state = _State()


@contextmanager
def listening() -> Iterator[None]:
    """Let a signal end the block by Stopped.  In a process of a sweep one that comes later waits for the next block."""
    _install()
    _state.listeners += 1
    try:
        with deferred(False):
            yield
    finally:
        _state.listeners -= 1
        if not (_state.listeners or started_by_sweep()):
            _uninstall()


@contextmanager
def deferred(on: bool = True) -> Iterator[None]:
    """Hold signals back until the block asks by `requested` or ends; on=False: no longer, within such a block."""
    before, _state.deferred = _state.deferred, on
    try:
        if not on:
            _check()
        yield
    finally:
        _state.deferred = before
    if not before:
        _check()


def requested() -> int:
    """Return the number of a signal that any process of the run has received, 0 where none has.

    All processes call it, and all get the same.
    """
    from soul_cli.core.distributed import control, world

    if world() == 1 or not _state.previous:
        return _state.received
    import torch
    from torch import distributed as dist

    number = torch.tensor(_state.received)
    dist.all_reduce(number, op=dist.ReduceOp.MAX, group=control())
    return int(number)


@contextmanager
def passed_on() -> Iterator[None]:
    """Pass the first signal on to the processes that the block has started, and wait until they end their work."""
    os.environ[STARTER] = str(os.getpid())
    _state.passes_on = True
    try:
        yield
        _check()
    except Exception:
        _check()  # a launcher may report that its processes have ended
        raise
    finally:
        _state.passes_on = False
        del os.environ[STARTER]


def started_by_sweep() -> bool:
    """Return whether a launcher has started this process for a member of a sweep."""
    return "SUBMITIT_EXECUTOR" in os.environ or os.environ.get(STARTER, str(os.getpid())) != str(os.getpid())


def follow_sweep() -> None:
    """Let this process end, as by SIGTERM, when the sweep that has started it is gone; once.  Not on a cluster."""
    if _sweep_is_here() and not _state.follows:
        _state.follows = True
        threading.Thread(target=_follow, args=(int(os.environ[STARTER]),), daemon=True).start()


def end_sweep() -> None:
    """Ask the sweep that has started this process to end, as this process does."""
    if _sweep_is_here():
        with suppress(OSError):
            os.kill(int(os.environ[STARTER]), signal.SIGTERM)


def hand_on(number: int) -> None:
    """Call what handled the signal before `listening`: submitit's handler requeues the job, and does not return."""
    previous = _state.previous.get(number)
    if callable(previous):
        previous(number, None)


def _install() -> None:
    for number in _wanted():
        if number not in _state.previous and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            _state.previous[number] = signal.signal(number, _handle)


def _uninstall() -> None:
    while _state.previous:
        number, handler = _state.previous.popitem()
        signal.signal(number, handler or signal.SIG_DFL)


def _wanted() -> list[int]:
    """Return the signals to listen to.  On a cluster submitit has one of its own, and lets SIGTERM pass."""
    if not _on_this_machine():
        from submitit import JobEnvironment

        return [JobEnvironment._usr_sig()]
    return [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]


def _on_this_machine() -> bool:
    return os.environ.get("SUBMITIT_EXECUTOR", "local") == "local"


def _sweep_is_here() -> bool:
    return started_by_sweep() and STARTER in os.environ and _on_this_machine()


def _handle(number: int, frame: Any) -> None:
    first = not _state.received
    _state.received = _state.received or number
    if _state.passes_on and (not first or _pass_on()):
        return
    if not _state.deferred:
        raise Stopped(number)


def _check() -> None:
    if _state.received:
        raise Stopped(_state.received)


def _pass_on() -> bool:
    """Send SIGTERM, which all of them know, to the processes started; return whether there are any."""
    children = psutil.Process().children()
    for child in children:
        with suppress(psutil.Error):
            child.terminate()
    return bool(children)


def _follow(pid: int) -> None:
    with suppress(psutil.Error):
        starter = psutil.Process(pid)
        while starter.is_running() and starter.status() != psutil.STATUS_ZOMBIE:
            time.sleep(PACE)
    if _state.listeners:
        os.kill(os.getpid(), signal.SIGTERM)
    while _state.listeners:
        time.sleep(PACE)
    os._exit(128 + signal.SIGTERM)  # nobody waits for a result
