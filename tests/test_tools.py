"""`soul-unlearn cache` and `soul-unlearn doctor`."""

from __future__ import annotations

import multiprocessing
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

from soul_cli import __version__, cli
from soul_cli.core.cache import Cache, entries
from soul_cli.core.types import UserError
from soul_cli.tools import cache as tool
from soul_cli.tools import doctor

DAYS = 24 * 60 * 60


def make(cache: Cache, kind: str, name: str, size: int, days: float = 0) -> Path:
    """An entry of a file of so many bytes, made so many days ago."""

    def build(work: Path, out: Path) -> None:
        (out / "data").write_bytes(bytes(size))

    path = cache.get(kind, {"name": name}, build, of=name)
    for file in path.iterdir():
        os.utime(file, (time.time() - days * DAYS,) * 2)
    return path


@pytest.fixture
def filled(tmp_path: Path) -> dict[str, Path]:
    cache = Cache(tmp_path, print)
    return {
        "old": make(cache, "models", "old", 5_000_000, 10),
        "new": make(cache, "models", "new", 3_000_000, 2),
        "rows": make(cache, "rows", "rows of the target", 1000, 10),
    }


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def command(*given: str) -> str:
        tool.main([*given, "--cache-dir", str(tmp_path)])
        return capsys.readouterr().out

    return command


def left(filled: dict[str, Path]) -> set[str]:
    return {name for name, path in filled.items() if path.is_dir()}


# --- cache -------------------------------------------------------------------------------------------------


def test_the_list_says_kind_size_age_and_what_it_is_of(
    call: Callable[..., str], filled: dict[str, Path], tmp_path: Path
):
    unfinished = tmp_path / "models" / "half.work"
    unfinished.mkdir()
    (unfinished / "step").write_bytes(bytes(70))
    lines = [line.split(maxsplit=5) for line in call().splitlines()]
    assert lines[0] == ["kind", "size", "age", "of"]
    assert [line[:1] + line[3:] for line in lines[1:5]] == [
        ["models", "10", "d", "old"], ["models", "2", "d", "new"], ["models", "0", "s", "unfinished"],
        ["rows", "10", "d", "rows of the target"],
    ]  # fmt: skip
    assert lines[1][1:3] == ["5", "MB"]
    assert lines[3][1:3] == ["70", "B"]
    assert lines[5][:4] == ["4", "entries,", "8", "MB"]
    assert left(filled) == {"old", "new", "rows"}


@pytest.mark.parametrize(
    ("given", "stay"),
    [
        ([], set()),
        (["--kind", "models"], {"rows"}),
        (["--older-than", "3"], {"new"}),
        (["--kind", "models", "--older-than", "3"], {"new", "rows"}),
        (["--older-than", "30"], {"old", "new", "rows"}),
    ],
)
def test_clears_by_kind_and_age(call: Callable[..., str], filled: dict[str, Path], given: list[str], stay: set[str]):
    text = call("clear", "--yes", *given)
    assert left(filled) == stay
    assert (f"removed {3 - len(stay)} entries" in text) is (len(stay) < 3)


def test_asks_before_it_clears(call: Callable[..., str], filled: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(UserError, match="nothing was removed: there is no terminal to ask on; add --yes"):
        call("clear")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for answer, stay in (("", 3), ("n", 3), ("y", 0)):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        call("clear")
        assert len(left(filled)) == stay


def use(root: Path, ready: Event, end: Event) -> None:
    cache = Cache(root, print)
    make(cache, "models", "old", 1)  # it is there: it is used

    def build(work: Path, out: Path) -> None:
        (work / "step").touch()
        ready.set()
        end.wait(120)

    cache.get("reference", {"name": "in the making"}, build)


@pytest.fixture
def used(filled: dict[str, Path], tmp_path: Path) -> Iterator[None]:
    """Another process uses the old model and builds an entry."""
    context = multiprocessing.get_context("spawn")
    ready, end = context.Event(), context.Event()
    process = context.Process(target=use, args=(tmp_path, ready, end))
    process.start()
    assert ready.wait(240)
    yield
    end.set()
    process.join(120)
    assert process.exitcode == 0


@pytest.mark.usefixtures("used")
def test_what_a_process_uses_or_builds_stays(call: Callable[..., str], filled: dict[str, Path], tmp_path: Path):
    text = call("clear", "--yes")
    assert left(filled) == {"old"}
    assert f"stays, in use: models, old ({filled['old']})" in text
    assert "stays, in use: reference, unfinished" in text
    assert (filled["old"] / "data").stat().st_size == 5_000_000
    assert list(tmp_path.glob("reference/*.work/step"))


def test_an_entry_is_free_when_its_cache_is_gone_and_made_again_when_cleared(tmp_path: Path):
    cache = Cache(tmp_path, print)
    path = make(cache, "models", "a", 1)
    (entry,) = entries(tmp_path)
    assert not entry.remove()
    assert path.is_dir()
    del cache
    assert entry.remove()
    assert not path.exists()
    assert make(Cache(tmp_path, print), "models", "a", 2) == path
    assert (path / "data").stat().st_size == 2


def test_mistakes_are_told(call: Callable[..., str], filled: dict[str, Path]):
    with pytest.raises(UserError, match=r"--kind model: .* has models, rows"):
        call("--kind", "model")
    with pytest.raises(UserError, match="--older-than -1: must be 0 or more"):
        call("--older-than", "-1")


def test_sizes_and_ages():
    assert [tool.size(x) for x in (0, 999, 1000, 5.25e6, 2e9, 3e15)] == [
        "0 B", "999 B", "1 kB", "5.25 MB", "2 GB", "3e+03 TB"
    ]  # fmt: skip
    assert [tool.age(x) for x in (5, 90, 7200, 3 * DAYS)] == ["5 s", "2 min", "2 h", "3 d"]


# --- doctor ------------------------------------------------------------------------------------------------


def test_doctor_says_what_a_bug_report_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(sys, "argv", ["soul-unlearn", "doctor", "--output-dir", str(tmp_path / "new" / "out")])
    cli.main()
    text = capsys.readouterr().out
    facts = dict(re.split("  +", line, maxsplit=1) for line in text.splitlines())
    assert {"pytorch-optimizer", "sentence-transformers"} <= facts.keys()  # long names run into nothing
    assert facts["soul-unlearn"] == __version__
    assert facts["torch"].startswith("2.")
    assert facts["hub"] == "off (HF_HUB_OFFLINE)"
    assert facts["hub token"] == "there is one"
    assert "hf_secret" not in text
    assert "float32" in facts["products"]
    assert "bfloat16" in facts["products"]
    assert str(tmp_path / "new" / "out") in facts["output_dir"]
    assert "free" in facts["output_dir"]
    assert "HF_HUB_OFFLINE=1" in facts["variables"]
    assert {"system", "processor", "instructions", "memory", "compiler", "accelerator", "cache_dir"} <= facts.keys()


def test_a_hub_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # it takes connections, and says nothing
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert "does not answer" in doctor.answer(address) or "timed out" in doctor.answer(address)
    assert "is out of reach" in doctor.answer(address)


def test_a_kind_of_product_that_torch_lacks_is_told(monkeypatch: pytest.MonkeyPatch):
    def rate(device: torch.device, dtype: torch.dtype) -> float:
        if dtype is torch.bfloat16:
            raise RuntimeError("not implemented for 'BFloat16'\nmore")
        return 2e9

    monkeypatch.setattr(doctor, "matmul_rate", rate)
    assert doctor.products(torch.device("cpu")) == "float32 2 GFLOP/s, bfloat16 none (not implemented for 'BFloat16')"
