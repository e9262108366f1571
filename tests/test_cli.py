"""The command as a user runs it: whole runs on a tiny model, in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from runs import costs, finish, kill_when, numbers, only_run, start, wait_for

from soul_cli.core.run_folder import WORK


def test_promised_files_and_table(finished: tuple[Path, Path, str]) -> None:
    _, out, text = finished
    folder = only_run(out)
    for name in ("config.yaml", "environment.json", "train.jsonl", "rows.jsonl", "metrics.json", "report.html"):
        assert (folder / name).stat().st_size, name
    assert {p.name for p in (folder / "model").iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not (folder / "work").exists()
    steps = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps] == list(range(1, 21))  # 20 forget rows, batch 4, 4 epochs
    assert {"loss_forget", "loss_retain", "grad_norm", "clip_factor", "unclipped_share", "m_norm", "h_l1",
            "tokens_per_s"} <= set(steps[0])  # fmt: skip
    assert [s["step"] for s in steps if "displacement" in s] == [5, 10, 15, 20]  # an epoch's last
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 5 * 6
    assert {"prompt", "gold", "generation", "nll", "rougeL"} <= set(rows[0])
    for words in ("forget 20 of 200 pairs", "retain-trained model", "forget_quality ", "forget_rougeL ", "gold"):
        assert words in text, words
    assert f"written to {folder}\npage: {folder}/report.html\n" in text
    saved = json.loads((folder / "metrics.json").read_text())
    assert set(saved["models"]) == {"original", "retain_trained", "this_run"}
    phases = ("base_model", "target_model", "retain_model", "evaluate_original", "evaluate_retain_trained",
              "reference", "unlearn", "evaluate")  # fmt: skip
    assert set(saved["cost"]) == set(phases)
    for phase, spent in saved["cost"].items():
        assert not spent["cached"]
        assert all(spent[k] > 0 for k in ("seconds", "peak_memory_bytes", "forward_passes")), phase
        assert (spent["backward_passes"] > 0) is (phase in ("base_model", "target_model", "retain_model", "unlearn"))
    unlearn = saved["cost"]["unlearn"]
    assert unlearn["training_tokens"] == sum(s["tokens"] for s in steps)
    assert (unlearn["forward_passes"], unlearn["backward_passes"]) == (22, 22)  # curvature in steps 1 and 11
    assert unlearn["optimizer_state_bytes"] == 2 * unlearn["parameter_bytes"]
    assert all(m["definition"] and m["n"] for some in saved["models"].values() for m in some.values())


def test_again_answers_from_the_finished_run(data: Path, finished: tuple[Path, Path, str]) -> None:
    cache, out, _ = finished
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    folder = only_run(out)
    (folder / "work").mkdir()  # as a process leaves it that is killed after its last result
    (folder / ".config.yaml.17").write_text("half")
    text = finish(start(data, cache, out, "save_model=true"))
    assert "finished before" in text
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before


def test_killed_anywhere_gives_the_same_numbers(data: Path, finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    _, whole, _ = finished
    cache = tmp_path / "cache"
    moments = {  # no rglob: it would look into folders that are being renamed
        "fine-tuning": lambda out: any(cache.glob("models/*.work/checkpoint/state.json")),
        "unlearning": lambda out: any(out.glob(f"*/*/{WORK}/checkpoint/state.json")),
        "evaluation": lambda out: any(out.glob(f"*/*/{WORK}/rows_forget.json")),
    }
    for name, seen in moments.items():
        out = tmp_path / name
        number = signal.SIGTERM if name == "evaluation" else signal.SIGKILL
        process = start(data, cache, out)
        kill_when(process, lambda out=out, seen=seen: seen(out), number)
        assert not list(out.rglob("metrics.json"))
        if number == signal.SIGTERM:
            assert process.returncode == 143
            assert "stopped by SIGTERM; the same command goes on" in process.communicate()[1]
            assert list(out.rglob("rows_forget.json"))
        finish(start(data, cache, out))
        assert numbers(out) == numbers(whole), name
        assert costs(out) == costs(whole), name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_run_after_its_step_and_the_same_command_goes_on(
    data: Path, finished: tuple[Path, Path, str], tmp_path: Path, number: int
) -> None:
    """Also where no checkpoint is due for long, and finished rows are not made again."""
    cache, whole, _ = finished
    rarely = "train.checkpoint_minutes=1000"
    process = start(data, cache, tmp_path, rarely)
    wait_for(process, lambda: any(tmp_path.glob(f"*/*/{WORK}/start")))
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 143
    assert "Traceback" not in out + err
    (state,) = tmp_path.glob(f"*/*/{WORK}/checkpoint/state.json")
    steps = len(json.loads(state.read_text())["records"])
    assert 0 < steps < 20
    name = signal.Signals(number).name
    assert err == f"stopped by {name} after step {steps} of 20; the same command goes on\n"
    finish(start(data, cache, tmp_path, rarely))
    assert numbers(tmp_path) == numbers(whole)
    assert costs(tmp_path)["unlearn"] == costs(whole)["unlearn"]


def test_damaged_cache_entry_is_rebuilt(data: Path, finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    cache, whole, _ = finished
    model = next(cache.glob("models/*/model.safetensors"))
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    text = finish(start(data, cache, tmp_path / "out"))
    assert "damaged" in text
    assert numbers(tmp_path / "out") == numbers(whole)


def test_two_at_once_train_once(data: Path, finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    _, whole, _ = finished
    pair = [start(data, tmp_path / "cache", tmp_path / "out") for _ in range(2)]
    texts = [finish(p) for p in pair]
    assert numbers(tmp_path / "out") == numbers(whole)
    assert sum("unlearning, npo with soul" in t for t in texts) == 1


def test_multirun_shares_models(data: Path, finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    cache, _, _ = finished
    text = finish(
        start(data, cache, tmp_path, "-m", "method=ga,po,none,input_based,iu", "optim=adamw", "train.epochs=1")
    )
    assert len(list(tmp_path.rglob("metrics.json"))) == 5
    (step,) = (json.loads(line) for f in tmp_path.glob("tofu/iu-seed0-*/train.jsonl") for line in f.open())
    assert step["loss_retain"] <= step["loss_retain_after"] <= step["loss_retain"] + 0.3
    assert "target model, fine-tuned" not in text
    for file in tmp_path.rglob("metrics.json"):
        phases = json.loads(file.read_text())["cost"]
        own = {phase for phase, spent in phases.items() if not spent["cached"]}
        assert own <= {"unlearn", "evaluate"}
        assert phases["target_model"]["training_tokens"] > 0  # as it was when it was made
    assert "You must not reveal" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method=nposs"], ["method/nposs", "graddiff"]),
        (["optim.lrr=1"], ["lrr"]),
        (["task.source=/no/such"], ["/no/such", "no such folder"]),
        (["task.target_model=/no/such"], ["/no/such", "no such model folder"]),
        (["task.target_model=nobody/nothing"], ["nobody/nothing", "HF_TOKEN"]),
        (["optim.rho=1"], ["optim.rho", "exactly one"]),
    ],
)
def test_mistakes_end_with_one_message(data: Path, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    text = finish(start(data, tmp_path / "cache", tmp_path / "out", *arguments), code=2)
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert all(w in text for w in words), text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None or subprocess.call(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder]):
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.check_call(["umount", folder])


@pytest.mark.parametrize(("full", "room"), [("cache", 0), ("out", 0), ("cache", 1 << 16)])
def test_full_disk_ends_with_one_message_and_spares_what_is_there(
    data: Path, finished: tuple[Path, Path, str], small_disk: Path, tmp_path: Path, full: str, room: int
) -> None:
    """room: enough for files of text, not for tensors."""
    places = {name: (small_disk if name == full else tmp_path) / name for name in ("cache", "out")}
    for place, made in zip(places.values(), finished, strict=False):
        shutil.copytree(made, place)
    before = {p: p.read_bytes() for p in places[full].rglob("*") if p.is_file()}
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    os.truncate(filler, filler.stat().st_size - room)
    text = finish(start(data, places["cache"], places["out"], "target_seed=1"), code=2)
    assert "Traceback" not in text
    assert "no space left on the disk" in text
    assert {p: p.read_bytes() for p in before} == before
    filler.unlink()
    finish(start(data, places["cache"], places["out"], "target_seed=1"))
