"""Signals: what is under way is finished and kept, the same command goes on, and nothing outlives a sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from test_train import config, train, weights, without_speed

from soul_cli.core import interrupt
from soul_cli.core.interrupt import SIGNALS, STARTER, Stopped, deferred, listening, passed_on, requested
from soul_cli.train import checkpoint

MakeLM = Callable[..., Any]


@pytest.fixture(autouse=True)
def state() -> Iterator[None]:
    """A process that has received nothing yet; afterwards this one handles signals as before."""
    numbers = [getattr(signal, name) for name in SIGNALS]
    before = {number: signal.getsignal(number) for number in numbers}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interrupt, "_state", interrupt._State())
        yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def ended(block: Callable[[], Any]) -> Stopped:
    """How a signal ends a block."""
    with pytest.raises(Stopped) as stop, listening():
        block()
    return stop.value


# --- when a signal ends what is going on -------------------------------------------------------------------


@pytest.mark.parametrize("name", SIGNALS)
def test_ends_the_block_at_once(name: str) -> None:
    number, done = getattr(signal, name), []

    def block() -> None:
        send(number)
        done.append("more")

    stop = ended(block)
    assert (stop.number, str(stop)) == (number, f"stopped by {name}; the same command goes on")
    assert not done


def test_is_no_error_that_code_handles() -> None:
    assert not issubclass(Stopped, Exception)


def test_deferred_it_waits_until_the_block_ends() -> None:
    seen = []

    @deferred()
    def block() -> None:
        seen.append(requested())
        send()
        seen.append(requested())
        send(signal.SIGUSR1)  # the first counts
        seen.append(requested())

    assert ended(block).number == signal.SIGTERM
    assert seen == [0, signal.SIGTERM, signal.SIGTERM]


def test_within_a_deferred_block_part_of_it_may_end_at_once() -> None:
    done = []

    @deferred()
    def block() -> None:
        send()
        done.append("before")
        with deferred(False):
            done.append("within")

    ended(block)
    assert done == ["before"]


def test_a_worker_between_two_members_waits_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STARTER, "1")
    with listening():
        pass
    send()
    done: list[str] = []
    ended(lambda: done.append("begun"))
    assert not done


def test_afterwards_signals_are_handled_as_before() -> None:
    before = [signal.getsignal(getattr(signal, name)) for name in SIGNALS]
    with listening(), listening():
        pass
    assert [signal.getsignal(getattr(signal, name)) for name in SIGNALS] == before


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    with listening():
        send(signal.SIGHUP)
        assert not requested()


# --- training ----------------------------------------------------------------------------------------------


def signal_at(step: int) -> Callable[[int, int, dict[str, float]], None]:
    def progress(done: int, total: int, record: dict[str, float]) -> None:
        if done == step:
            send()

    return progress


def test_training_ends_after_the_step_and_goes_on_from_it(tiny_lm: MakeLM, tmp_path: Path) -> None:
    rarely = config(checkpoint_minutes=10)
    whole, resumed, seen = tiny_lm(), tiny_lm(), []
    expected = train(whole, tmp_path / "whole", settings=rarely)
    stop = ended(lambda: train(tiny_lm(), tmp_path / "parts", settings=rarely, progress=signal_at(2)))
    assert str(stop) == "stopped by SIGTERM after step 2 of 6; the same command goes on"
    interrupt._state.received = 0
    records = train(
        resumed, tmp_path / "parts", settings=rarely, progress=lambda done, total, record: seen.append(done)
    )
    assert seen == [3, 4, 5, 6]
    assert torch.equal(weights(resumed), weights(whole))
    assert without_speed(records) == without_speed(expected)


@pytest.mark.parametrize(("moment", "kept"), [(0, 0), (1, 3)])
def test_between_epochs_it_ends_at_once_and_the_steps_are_kept(
    tiny_lm: MakeLM, tmp_path: Path, moment: int, kept: int
) -> None:
    went_on: list[int] = []

    def evaluate(epoch: int) -> None:
        if epoch == moment:
            send()
            went_on.append(epoch)

    ended(lambda: train(tiny_lm(), tmp_path, settings=config(checkpoint_minutes=10), after_epoch=evaluate))
    assert not went_on
    assert (tmp_path / "checkpoint").is_dir() is (kept > 0)
    interrupt._state.received = 0
    seen: list[int] = []
    train(tiny_lm(), tmp_path, settings=config(), progress=lambda done, total, record: seen.append(done))
    assert seen == list(range(kept + 1, 7))


def test_a_signal_while_a_checkpoint_is_written_ends_after_it(
    tiny_lm: MakeLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.save

    def interrupted(*args: Any) -> None:
        send()
        write(*args)

    monkeypatch.setattr(checkpoint, "save", interrupted)
    assert "after step 2 of 6" in str(ended(lambda: train(tiny_lm(), tmp_path)))  # from step 1's
    assert (tmp_path / "checkpoint" / "state.json").is_file()


# --- the processes of a sweep ------------------------------------------------------------------------------


def sleeper(code: str = "") -> subprocess.Popen[str]:
    """A process that sleeps; `code` runs before."""
    lines = f"import time\n{code}\nprint('ready', flush=True)\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", lines], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def test_it_is_passed_on_to_what_a_block_has_started_and_the_block_waits_for_it() -> None:
    codes = []

    @passed_on()
    def sweep() -> None:
        assert os.environ[STARTER] == str(os.getpid())
        child = sleeper()
        send()
        codes.append(child.wait(timeout=30))
        send()  # as from a member that asks for the end of the sweep
        codes.append("waited")

    ended(sweep)
    assert codes == [-signal.SIGTERM, "waited"]
    assert STARTER not in os.environ


def test_an_error_of_a_launcher_whose_processes_were_ended_is_not_told() -> None:
    @passed_on()
    def sweep() -> None:
        child = sleeper()
        send()
        child.wait(timeout=30)
        raise RuntimeError("a worker was ended")

    ended(sweep)


def test_with_nothing_started_it_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "children", lambda self: [])
    done = []

    @passed_on()
    def sweep() -> None:
        send()
        done.append("more")

    ended(sweep)
    assert not done


@pytest.mark.parametrize("busy", [True, False])
def test_a_process_ends_when_its_sweep_is_killed(monkeypatch: pytest.MonkeyPatch, busy: bool) -> None:
    starter = sleeper()
    monkeypatch.setenv(STARTER, str(starter.pid))
    block = "\nblock = interrupt.listening()\nblock.__enter__()" if busy else ""
    worker = sleeper(f"from soul_cli.core import interrupt\ninterrupt.follow_sweep(){block}")
    time.sleep(2 * interrupt.PACE)
    assert worker.poll() is None
    starter.kill()  # and nobody waits for it: it stays as a zombie
    ended = worker.wait(timeout=30)
    assert ended == (1 if busy else 128 + signal.SIGTERM)  # Stopped ends a program of its own
    starter.wait()
