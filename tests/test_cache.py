"""soul_cli.core.cache: whole files, and entries that survive damage, interruption and company."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from soul_cli.core import files as module
from soul_cli.core.cache import MANIFEST, Cache
from soul_cli.core.files import digest, file_digest, locked, publish, read_json, write_text
from soul_cli.data import embedded

KEY = {"model": "tiny", "seed": 1}


class Builder:
    """Builds an entry of one file and counts how often."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, work: Path, out: Path) -> None:
        self.runs += 1
        (out / "deep").mkdir()
        (out / "deep" / "data.txt").write_text("content")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, said: list[str]) -> Cache:
    return Cache(tmp_path, said.append)


# --- files -------------------------------------------------------------------------------------------------


def test_write_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "new" / "file.json"
    write_text(path, "old é")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half a pair \ud800")
    assert path.read_text(encoding="utf-8") == "old é"

    def crash(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old é"
    monkeypatch.undo()
    write_text(path, "new")
    assert [p.read_text() for p in path.parent.iterdir()] == ["new"]  # no remnant of the failed attempts


def test_publish_replaces_the_whole_folder(tmp_path: Path):
    target = tmp_path / "place" / "entry"
    for name in ("a", "b"):
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / name).write_text(name)
        publish(tmp_path / "made", target)
        assert [p.name for p in target.iterdir()] == [name]
    assert [p.name for p in target.parent.iterdir()] == ["entry"]
    assert not (tmp_path / "made").exists()


def test_read_json(tmp_path: Path):
    path = tmp_path / "x.json"
    assert read_json(path, "default") == "default"
    path.write_text('{"half": ')
    assert read_json(path, "default") == "default"
    path.write_text("[1]")
    assert read_json(path, "default") == [1]


# --- digests -----------------------------------------------------------------------------------------------


def test_digest_sees_content_but_not_key_order():
    a = {"lr": 1e-4, "deep": {"x": 1, "y": [1, 2]}}
    assert digest(a) == digest({"deep": {"y": [1, 2], "x": 1}, "lr": 1e-4})
    others = [{**a, "lr": 1.1e-4}, {**a, "deep": {"x": 1, "y": [2, 1]}}, {"lr": 1e-4}, {**a, "more": None}]
    assert len({digest(v) for v in [a, *others]}) == 5


def test_file_digest_in_a_cache_that_can_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(1 << 26)
    expected = file_digest([large], tmp_path / "cache")

    def refused(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module, "write_text", refused)
    assert file_digest([large], tmp_path / "other") == expected


def test_file_digest_sees_names_and_content(tmp_path: Path):
    def made(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        return file_digest([tmp_path / name], tmp_path)

    first = made("a", "12")
    assert len({first, made("a", "21"), made("b", "12")}) == 3
    assert made("a", "12") == first


def test_large_file_is_hashed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, hashed = tmp_path / "large", []
    with path.open("wb") as f:
        f.truncate(1 << 26)
    monkeypatch.setattr(module, "sha256", lambda p: hashed.append(p) or f"hash {len(hashed)}")
    before = file_digest([path], tmp_path)
    assert file_digest([path], tmp_path) == before
    assert hashed == [path]
    os.utime(path, ns=(1, 1))
    assert file_digest([path], tmp_path) != before


# --- entries -----------------------------------------------------------------------------------------------


def test_entry_is_built_once_for_each_key(cache: Cache):
    build = Builder()
    assert not cache.has("models", KEY)
    path = cache.get("models", KEY, build)
    assert (path / "deep" / "data.txt").read_text() == "content"
    assert cache.has("models", KEY)
    assert cache.get("models", dict(reversed(KEY.items())), build) == path
    assert build.runs == 1
    assert cache.get("models", {**KEY, "seed": 2}, build) != path
    assert cache.get("rows", KEY, build) != path
    assert build.runs == 3
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["key"] == KEY
    assert list(manifest["files"]) == [os.path.join("deep", "data.txt")]


DAMAGE = {
    "changed": lambda path: (path / "deep" / "data.txt").write_text("c0ntent"),
    "lost": lambda path: (path / "deep" / "data.txt").unlink(),
    "no manifest": lambda path: (path / MANIFEST).unlink(),
    "half a manifest": lambda path: (path / MANIFEST).write_text('{"key": {"mod'),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_noticed_and_mended(cache: Cache, said: list[str], kind: str):
    build = Builder()
    path = cache.get("models", KEY, build)
    DAMAGE[kind](path)
    assert cache.get("models", KEY, build) == path
    assert (path / "deep" / "data.txt").read_text() == "content"
    assert build.runs == 2
    assert said == [f"{path} is damaged (checksum); it is made again"]
    cache.get("models", KEY, build)
    assert build.runs == 2


def test_interrupted_build_goes_on(cache: Cache):
    def build(work: Path, out: Path) -> None:
        assert not list(out.iterdir())  # nothing unfinished is taken for a result
        steps = sorted(p.name for p in work.iterdir())
        (work / f"step{len(steps)}").touch()
        (out / "result").write_text(" ".join(steps))
        if len(steps) < 2:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            cache.get("models", KEY, build)
        assert not cache.has("models", KEY)
        assert not cache.path("models", KEY).exists()
    path = cache.get("models", KEY, build)
    assert (path / "result").read_text() == "step0 step1"
    assert sorted(p.suffix for p in path.parent.iterdir()) == ["", ".lock"]  # the work folder is gone


# --- several processes -------------------------------------------------------------------------------------


def get_with_others(root: Path, start: Barrier, other_waits: Event, name: str) -> None:
    """Both processes begin together; the builder goes on only when the other has said that it waits."""

    def build(work: Path, out: Path) -> None:
        assert other_waits.wait(60)
        (out / name).touch()

    def log(text: str) -> None:
        (root / f"{name}.said").write_text(text)
        other_waits.set()

    start.wait(60)
    path = Cache(root, log).get("models", KEY, build)
    (root / f"{name}.got").write_text(" ".join(sorted(p.name for p in path.iterdir())))


def die_while_building(root: Path) -> None:
    def build(work: Path, out: Path) -> None:
        (work / "half").touch()
        os._exit(3)

    Cache(root, print).get("models", KEY, build)


@pytest.fixture
def spawned() -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")
    yield context
    for child in multiprocessing.active_children():
        child.kill()


def test_two_processes_build_once(tmp_path: Path, spawned: Any):
    common = (tmp_path, spawned.Barrier(2), spawned.Event())
    both = [spawned.Process(target=get_with_others, args=(*common, name)) for name in ("one", "two")]
    for process in both:
        process.start()
    for process in both:
        process.join(90)
    assert [p.exitcode for p in both] == [0, 0]
    (waited,) = tmp_path.glob("*.said")
    assert waited.read_text() == "another process is making this models entry; waiting for it"
    builder = "two" if waited.stem == "one" else "one"
    assert {p.read_text() for p in tmp_path.glob("*.got")} == {f"{MANIFEST} {builder}"}


def test_lock_and_work_of_a_dead_process_are_taken_over(tmp_path: Path, cache: Cache, said: list[str], spawned: Any):
    process = spawned.Process(target=die_while_building, args=(tmp_path,))
    process.start()
    process.join(90)
    assert process.exitcode == 3

    def build(work: Path, out: Path) -> None:
        assert [p.name for p in work.iterdir()] == ["half"]

    assert cache.get("models", KEY, build).is_dir()
    assert said == []


def test_work_that_a_process_left_after_publishing_is_removed(cache: Cache, said: list[str]):
    entry = cache.get("models", KEY, lambda work, out: (out / "file").touch())
    work = entry.with_suffix(".work")
    work.mkdir()
    assert cache.get("models", KEY, lambda work, out: pytest.fail("it is there")) == entry
    assert not work.exists()
    assert said == []


def test_embedded_data_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Who comes while another writes them waits: they would be replaced under the hands of who reads them."""
    calls: list[Path] = []
    write, found = embedded.write_layout, []
    other = Thread(target=lambda: found.append(embedded.layout(tmp_path)))

    def slow(folder: Path, authors: Any) -> None:
        calls.append(folder)
        if len(calls) == 1:
            other.start()
            other.join(1)
        write(folder, authors)

    (tmp_path / "data").mkdir()
    monkeypatch.setattr(embedded, "write_layout", slow)
    folder = embedded.layout(tmp_path)
    other.join(60)
    assert (len(calls), found) == (1, [folder])
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]


def test_lock_is_released_after_an_error(tmp_path: Path):
    def fail() -> None:
        with locked(tmp_path / "x.lock"):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with locked(tmp_path / "x.lock", waiting=lambda: pytest.fail("still locked")):
        pass
