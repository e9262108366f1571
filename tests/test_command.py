"""How the commands end: codes, messages, what the terminal gets, what a broken environment does."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import Forked

from soul_cli import cli
from soul_cli.core.command import explain
from soul_cli.core.files import CONFIGS
from soul_cli.core.screen import log
from soul_cli.core.streams import printable
from soul_cli.core.types import UserError
from soul_cli.experiment.config import compose
from soul_cli.experiment.overrides import choices


def python(code: str, *, reader: str = "cat", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A program whose output goes to `reader`; its code and stderr, and what was read."""
    line = f"{sys.executable} -c '{code}' | {reader}; exit ${{PIPESTATUS[0]}}"
    return subprocess.run(["bash", "-c", line], env={**os.environ, **environment}, capture_output=True, timeout=120)


COMMAND = "from soul_cli.core.command import command\nfrom soul_cli.core.screen import bar, log\n"


# --- output ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_characters_that_the_terminal_does_not_know_are_replaced(encoding: str) -> None:
    done = python(f'{COMMAND}with command(): log("a ↑ b"); print("é ↑ \\ud83d")', PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    first, second = done.stdout.decode(encoding).splitlines()
    assert first == ("a ↑ b" if encoding == "utf-8" else "a ? b")
    assert second == {"ascii": "? ? ?", "latin-1": "é ? ?", "utf-8": "é ↑ ?"}[encoding]


@pytest.mark.parametrize("write", ['log("x" * 200)', 'print("x" * 200, flush=True)', 'print("x" * 200)'])
def test_where_nobody_reads_the_output_the_end_is_quiet(write: str) -> None:
    done = python(f"{COMMAND}import time\nwith command():\n  time.sleep(0.5)\n  {write}\n  {write}", reader="true")
    assert (done.returncode, done.stderr) == (141, b"")


def test_another_broken_pipe_is_an_error() -> None:
    done = python(f"{COMMAND}with command(): raise BrokenPipeError")
    assert done.returncode == 1
    assert b"BrokenPipeError" in done.stderr


def test_long_lines_stay_whole_and_nothing_acts_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/a path/" + "folder/" * 40 + ":smile:[bold]"
    log(f"written to {path}\x1b[31m\a\r\x9b\x00 end\nnext")
    assert capsys.readouterr().out == f"written to {path}\\x1b[31m\\x07\\x0d\\x9b\\x00 end\nnext\n"
    assert printable("Pécs 北京 \u2028 é\t\n") == "Pécs 北京 \u2028 é\t\n"


@pytest.mark.parametrize("columns", ["0", "1", "20", "many", ""])
def test_narrow_terminals(columns: str) -> None:
    code = f'{COMMAND}with command():\n  with bar("a label") as line: line.to("part", 1, 2)'
    done = python(code, COLUMNS=columns)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a label: 0 s\n", b"")


# --- codes and messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ("pass", 0, ""),
        ('from soul_cli.core.types import UserError\n  raise UserError("a \\x1b b")', 2, "error: a \\x1b b\n"),
        ("raise KeyboardInterrupt", 130, "interrupted; the same command goes on from what is finished\n"),
        ("import os\n  os.kill(os.getpid(), 15)", 143, "stopped by SIGTERM; the same command goes on\n"),
        ("import os\n  os.kill(os.getpid(), 10)", 143, "stopped by SIGUSR1; the same command goes on\n"),
        ("import os\n  os.kill(os.getpid(), 12)", 143, "stopped by SIGUSR2; the same command goes on\n"),
        ('open("/no/such/file")', 1, "Traceback"),
        ('open("/etc/passwd/x", "w")', 2, "error: /etc/passwd/x: not a directory; name another place"),
        ('open("/etc", "w")', 2, "error: /etc: is a directory; name another place"),
        ('import sys\n  sys.exit(3)', 3, ""),
    ],
)  # fmt: skip
def test_codes_and_messages(body: str, code: int, text: str) -> None:
    done = python(f"{COMMAND}with command():\n  {body}")
    assert done.returncode == code
    assert done.stderr.decode().startswith(text)
    assert text or not done.stderr


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    here = (
        f'import os, tempfile\n{COMMAND}f = tempfile.mkdtemp()\nos.chdir(f)\nos.rmdir(f)\nwith command(): print("on")'
    )
    done = python(here)
    assert done.returncode == 2
    assert done.stderr == b"error: the folder this was started in is gone; start it in another\n"


def test_full_memory_and_disk_are_explained() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 55)
    for full in (error.value, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")):
        text = explain(full)
        assert text is not None
        assert all(
            w in text for w in ("activation_checkpointing=true", "train.batch_size", "offload=true", "plan=true")
        )
    for number in (errno.ENOSPC, errno.EDQUOT):
        assert "no space left on the disk of /there/x" in str(explain(OSError(number, "", "/there/x")))
    assert "/there/x: permission denied; name another place" in str(explain(OSError(errno.EACCES, "", "/there/x")))
    assert "begins with ~" in str(explain(RuntimeError("Could not determine home directory.")))
    for other in (RuntimeError("shapes differ"), OSError(errno.EINVAL, "", "/there/x"), OSError(errno.EACCES, "")):
        assert explain(other) is None


# --- the environment ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "2"}, ["WORLD_SIZE=2, but no RANK", "MASTER_ADDR", "torchrun", "unset WORLD_SIZE"]),
        ({"RANK": "1"}, ["RANK=1, but no WORLD_SIZE", "unset RANK"]),
        ({"LOCAL_RANK": "0"}, ["LOCAL_RANK=0, but no WORLD_SIZE"]),
        ({"WORLD_SIZE": "two"}, ["WORLD_SIZE=two: not a whole number"]),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, ["RANK=-1: not a whole number"]),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
            ["RANK=2 of WORLD_SIZE=2"],
        ),
    ],
)
def test_variables_left_by_another_launcher(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], words: list[str]
) -> None:
    for name in cli.OF_LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        cli.check_environment()
    assert all(w in str(error.value) for w in words), str(error.value)


def test_empty_variables_count_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*cli.OF_LAUNCHERS, "HOME"):
        monkeypatch.setenv(name, "")
    cli.check_environment()
    assert not {*cli.OF_LAUNCHERS, "HOME"} & os.environ.keys()
    monkeypatch.setenv("WORLD_SIZE", "1")  # as some containers have it
    cli.check_environment()
    assert cli.processes() == 1


def test_rouge_needs_no_home() -> None:
    """nltk asks for a home folder when it is imported."""
    code = (
        "import pwd, os\npwd.getpwuid = dict().__getitem__\ndel os.environ['HOME']\n"
        "from soul_cli.cli import settle_libraries\nsettle_libraries()\n"
        "from soul_cli.evaluate.metrics import rouge_l\nprint(rouge_l('a b', 'a b'))"
    ).replace("'", '"')
    done = python(code)
    assert done.stdout == b"1.0\n", done.stderr


# --- the whole command -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method=nposs"], ["method/nposs", "graddiff"]),
        (["task.source=/no/such", "seed=-1"], ["seed=-1: must be a whole number from 0 to 4294967295"]),
        (["task.source=~/tofu"], ["Type 'task.source=\"~/tofu\"'"]),
        (["task.source=/no/such"], ["/no/such", "no such folder"]),
        (["method=null"], ["method=npo"]),
    ],
)
def test_one_line_whatever_is_wrong(arguments: list[str], words: list[str]) -> None:
    done = Forked(arguments, {**os.environ, "HYDRA_FULL_ERROR": "0"})  # as Hydra's own advice has it
    out, err = done.communicate(timeout=120)
    assert (done.returncode, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(w in err for w in words), err


def test_a_bug_is_raised_without_hydras_words() -> None:
    code = "from soul_cli import cli\ncli.run_member = lambda raw: 1 / 0\ncli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "HYDRA_FULL_ERROR" not in done.stderr


def test_help_can_be_cut_off() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m soul_cli.cli --help | head -1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True, timeout=120, text=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode in (0, 141)


# --- help and completion -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def help_text() -> str:
    return subprocess.run(
        [sys.executable, "-m", "soul_cli.cli", "--help", "train.epochs=7"],
        capture_output=True, timeout=300, text=True, check=True,
    ).stdout  # fmt: skip


def test_help_opens_with_what_to_type_and_ends_with_every_key(help_text: str) -> None:
    assert help_text.startswith("soul-unlearn [GROUP=NAME ...] [KEY=VALUE ...]\n\nType\n  soul-unlearn  ")
    assert 'eval "$(soul-unlearn -sc install=bash)"' in help_text
    assert "\n  epochs: 7\n" in help_text.split("Every key")[1]
    assert max(map(len, help_text.split("Every key")[0].splitlines())) <= 120


def test_help_explains_every_group_in_a_line_with_its_choices(help_text: str) -> None:
    part = help_text.split("Groups")[1].split("Names and keys")[0]
    lines = dict(line.split(maxsplit=1) for line in part.splitlines()[1:] if line)
    inner = ("hydra", "accelerate", "paper")  # Hydra's own, Accelerate's, and what the groups are made of
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir()} - set(inner)
    assert lines.keys() == groups
    for group, line in lines.items():
        named = line.partition(": ")[2]
        if named and not named.endswith("..."):
            assert named.split(", ") == choices(group)


def test_examples_of_the_help_compose(help_text: str) -> None:
    for line in help_text.split("Type\n")[1].split("\n\n")[0].splitlines():
        words = line.split("  ")[1].split()
        if words[0] == "soul-unlearn" and not {"-m", "cache", "doctor"} & set(words):
            compose(words[1:])


def test_the_tab_key_completes_groups_names_and_keys() -> None:
    """Hydra's script, in bash, for the command of the package."""
    script = """
    eval "$(soul-unlearn -sc install=bash)"
    try() {
        COMP_LINE="soul-unlearn $1"; COMP_POINT=${#COMP_LINE}; COMP_CWORD=1
        hydra_bash_completion; echo "${COMPREPLY[@]}"
    }
    try method=n
    try optim.l
    """
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "PATH": tools}, capture_output=True, timeout=300, text=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["method=none method=npo", "optim.lr="]
