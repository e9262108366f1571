"""Sweeps: members, the choice, what is reported at the end; whole ones on a tiny model in processes of their own."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from runs import finish, start, wait_for

from soul_cli.core.run_folder import WORK
from soul_cli.core.types import UserError
from soul_cli.experiment import sweep
from soul_cli.experiment.overrides import quoted
from soul_cli.experiment.sweep import Member, Members, Outcome, best, expand, fail

# --- members -----------------------------------------------------------------------------------------------


def test_members_are_the_products_of_the_grids_under_each_line_given() -> None:
    grids = [{"method": ["none"]}, {"method": ["po", "npo"], "optim.lr": [1e-4, 2e-4], "optim.rho": None}]
    assert expand(grids, [{"seed": "1"}]) == [
        {"method": "none", "seed": "1"},
        *(
            {"method": m, "optim.lr": lr, "optim.rho": "null", "seed": "1"}
            for m in ("po", "npo")
            for lr in ("0.0001", "0.0002")
        ),
    ]


def test_what_is_given_chooses_among_the_grids_or_takes_their_place() -> None:
    grids = [{"method": ["none", "ga"]}, {"method": "npo", "optim.lr": [1e-3, 2], "seed": [0, 1]}]
    npo = {"optim.lr": "0.001", "method": "npo"}
    assert expand(grids, [{"method": "npo", "optim.lr": "1e-3"}]) == [
        {"seed": s, "method": "npo", "optim.lr": "1e-3"} for s in "01"
    ]
    assert expand(grids, [{"method": "po", "seed": "7", "optim.lr": "2"}]) == [
        {"method": "po", "seed": "7", "optim.lr": "2"}
    ]  # no grid lists po
    assert expand(grids, [{"seed": "1"}])[2:] == [{**npo, "seed": "1"}, {"method": "npo", "optim.lr": "2", "seed": "1"}]
    assert expand([], [{"seed": "0"}, {"seed": "1"}, {"seed": "0"}]) == [{"seed": "0"}, {"seed": "1"}]


def run_folder(folder: Path, forget: float) -> Path:
    """metrics.json of a TOFU run whose score is the better the nearer `forget` is to 0.2."""
    folder.mkdir(parents=True)

    def model(forget: float) -> dict[str, dict[str, object]]:
        values = {"forget_rougeL": forget, "retain_rougeL": 1.0, "real_authors_acc": 1.0, "world_facts_acc": 1.0}
        common = {"n": 1, "goal": "up", "definition": "", "ci95": None}
        quality = {"value": 1.0, **common, "extra": {"D": 0.5}}
        return {"forget_quality": quality, **{k: {"value": v, **common, "extra": {}} for k, v in values.items()}}

    models = {"original": model(1.0), "retain_trained": model(0.2), "this_run": model(forget)}
    (folder / "metrics.json").write_text(json.dumps({"models": models}))
    return folder


def test_the_best_setting_of_each_cell_by_its_mean_over_seeds(tmp_path: Path) -> None:
    scores = {  # (optim, lr) -> forget ROUGE-L by seed; 0.2 is best
        ("adamw", "1"): (0.2, 0.9), ("adamw", "2"): (0.4, 0.4), ("soul", "1"): (0.3, 0.3), ("soul", "2"): (0.2, None),
    }  # fmt: skip
    outcomes = []
    scores |= {(f"soul, {combine}", "1"): (0.5, 0.5) for combine in ("gru", "munba")}  # groups of their own
    for (groups, lr), values in scores.items():
        optim, *combine = groups.split(", ")
        for seed, value in enumerate(values):
            member = {"method": "npo", "optim": optim, "optim.lr": lr, "seed": str(seed)}
            member |= dict(zip(["combine"], combine, strict=False))
            folder = None if value is None else run_folder(tmp_path / f"{groups}{lr}{seed}" / "tofu" / "run", value)
            outcomes.append(Outcome(member, folder, "" if folder else "the loss is not finite"))
    assert best(outcomes) == [  # adamw 1 is best on one seed alone; soul 2 failed on one
        {"method": "npo", "optim": "adamw", "optim.lr": "2"},
        {"method": "npo", "optim": "soul", "optim.lr": "1"},
        {"method": "npo", "optim": "soul", "optim.lr": "1", "combine": "gru"},
        {"method": "npo", "optim": "soul", "optim.lr": "1", "combine": "munba"},
    ]


def test_what_failed_is_named_at_the_end() -> None:
    outcomes = [Outcome({"seed": "0"}, Path("run")), Outcome({"seed": "1"}, None, "no such folder")]
    with pytest.raises(UserError, match=r"1 of 2 members failed, the others are finished:\n  seed=1: no such folder"):
        fail(outcomes)
    fail(outcomes[:1])


@pytest.mark.parametrize(
    "value",
    [
        "npo", "a b", "runs x=1", "a,b", "f(x)", "[a]", "{a:1}", "~/x", "café", "a\\", "\\(", "it's", 'a"b', "", " a",
        "a#b", "1", "1e-3", ".5", "inf", "null", "true", "no", "2026_11", "2026-11-27", "8/3", "a:b", "$HOME",
        "a%b@c+d?*|e",
        1, 1e-4, True, None, [1, "a b", None], {"a": 1, "b": "x y"},
    ],
)  # fmt: skip
def test_hydra_reads_what_was_quoted(value: object) -> None:
    assert OverridesParser.create().parse_override(f"key={quoted(value)}").value() == value


def test_grids_of_texts_that_need_quotes() -> None:
    grids = [{"task.source": ["a b", "~/c"], "train.precision": "no"}]
    assert [m["task.source"] for m in expand(grids, [{}])] == ['"a b"', '"~/c"']
    assert [m["task.source"] for m in expand(grids, [{"task.source": "'a b'"}])] == ["'a b'"]  # chosen, not added


@pytest.mark.parametrize("out", ["runs x=1", "a,b (c)", "it's", "20261127", "~/x", "plain/folder"])
def test_folders_of_a_sweep_that_chooses(monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    given: list[str] = []
    seeds: list[str] = []

    def run(self: Members, members: list[Member], more: Member) -> list[Outcome]:
        given.append(more["output_dir"])
        seeds.extend(m["seed"] for m in members)
        return []

    monkeypatch.setattr(Members, "_run", run)
    monkeypatch.setattr(sweep, "best", lambda tried: [{"method": "npo"}])
    sweeper = Members([], {"validation_seeds": [7], "validation_overrides": {}, "seeds": [0]})
    sweeper.config = OmegaConf.create({"output_dir": out})
    sweeper._choose([{"seed": "3"}, {"seed": "4"}])
    read = [OverridesParser.create().parse_override(f"output_dir={text}").value() for text in given]
    assert read == [f"{out}/validation", f"{out}/reported"]
    assert seeds == ["7", "3", "4"]


@pytest.mark.parametrize(
    "choose", [3, {"seeds": [1]}, {"validation_seeds": 7, "validation_overrides": {}, "seeds": [0]}]
)
def test_a_choice_has_seeds_to_choose_by_and_seeds_to_report(choose: object) -> None:
    with pytest.raises(UserError, match=r"hydra\.sweeper\.choose: must be null or have validation_seeds"):
        Members([], choose).sweep([])


# --- whole sweeps ------------------------------------------------------------------------------------------


def models(out: Path) -> dict[str, object]:
    """Run folder -> its numbers."""
    return {str(p.parent.relative_to(out)): json.loads(p.read_text())["models"] for p in out.rglob("metrics.json")}


def test_a_failed_member_stops_no_other(data: Path, finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    cache, whole, _ = finished
    more = f"task.source=/no/such,{data}"
    text = finish(start(data, cache, tmp_path, "-m", more, "train.clip=1"), code=2)
    assert models(tmp_path) == models(whole)
    assert "1 of 2 members failed" in text.split("written to")[-1]
    assert "/no/such: no such folder" in text


FAILING = """
import sys, weakref
from soul_cli import cli
from soul_cli.train import loop

alive = weakref.WeakSet()
plain = loop.Trainer.__init__

def init(self, *args, **kwargs):
    print("alive", len(alive), file=sys.stderr)
    plain(self, *args, **kwargs)
    alive.add(self)
    alive.add(self.model)

def train(self, *args):
    try:
        raise ValueError("the first error")
    except ValueError as error:
        raise ERRORS.pop() from error

ERRORS = [RuntimeError("out of memory"), KeyError("a mistake"), loop.NotFiniteError("the loss is not finite")]
loop.Trainer.__init__, loop.Trainer.train = init, train
cli.main()
"""


def test_a_failed_member_does_not_stay_in_memory(data: Path, finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    cache, _, _ = finished
    (tmp_path / "failing.py").write_text(FAILING)
    text = finish(start(data, cache, tmp_path / "out", "-m", "seed=1,2,3", program=[str(tmp_path / "failing.py")]), 2)
    assert text.count("alive 0") == 3
    assert "3 of 3 members failed" in text
    assert "stay in their work folders" in text


def test_a_mistake_in_one_member_is_found_before_any_runs(data: Path, tmp_path: Path) -> None:
    text = finish(start(data, tmp_path / "cache", tmp_path / "out", "-m", "optim.lr=1e-4,-1"), code=2)
    assert "optim.lr=-1" in text
    assert "none has been run" in text
    assert not list(tmp_path.rglob("*.json"))


def test_members_do_not_push_to_one_place(data: Path, tmp_path: Path) -> None:
    more = ["-m", "seed=0,1", "save_model=true", "push_to_hub=ann/model"]
    text = finish(start(data, tmp_path / "cache", tmp_path / "out", *more), code=2)
    assert "push_to_hub=ann/model: several members would overwrite each other's model" in text
    assert not list(tmp_path.rglob("*.json"))


def test_submitit_with_two_processes_a_member(data: Path, finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    cache, whole, _ = finished
    finish(start(data, cache, tmp_path, "-m", "hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"))
    (now,), (alone,) = models(tmp_path).values(), models(whole).values()
    assert now.keys() == alone.keys()
    for model, metrics in alone.items():
        for name, metric in metrics.items():
            assert now[model][name]["value"] == pytest.approx(metric["value"], abs=0.02), name


def test_killed_it_goes_on_and_changes_no_number(data: Path, finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    cache, _, _ = finished
    sweep = ["-m", "method=npo,po", "seed=0,1", "train.epochs=2"]
    finish(start(data, cache, tmp_path / "whole", *sweep))
    sweep += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = start(data, cache, tmp_path / "killed", *sweep)
    wait_for(process, lambda: any((tmp_path / "killed").glob("tofu/*/metrics.json")))  # one is done, one under way
    os.killpg(process.pid, signal.SIGKILL)  # its workers too, which would finish their members first
    process.communicate()
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").rglob("metrics.json")}
    finish(start(data, cache, tmp_path / "killed", *sweep))
    assert models(tmp_path / "killed") == models(tmp_path / "whole")
    assert len(models(tmp_path / "whole")) == 4
    assert done
    assert all(p.stat().st_mtime_ns == then for p, then in done.items())


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL])
def test_workers_end_with_their_sweep(
    data: Path, finished: tuple[Path, Path, str], tmp_path: Path, number: int
) -> None:
    cache, _, _ = finished
    long = ["train.epochs=200", "train.checkpoint_minutes=5000"]
    process = start(
        data, cache, tmp_path, "-m", "seed=0,1,2", *long, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"
    )
    wait_for(process, lambda: len(list(tmp_path.glob(f"tofu/*/{WORK}/start"))) == 2)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    text = "".join(process.communicate(timeout=120))
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    steps = [len(json.loads(p.read_text())["records"]) for p in tmp_path.glob(f"tofu/*/{WORK}/checkpoint/state.json")]
    assert len(steps) == 2  # the third was not begun
    assert min(steps) > 0
    if number != signal.SIGKILL:
        assert process.returncode == 143
        assert text.splitlines()[-1] == f"stopped by {signal.Signals(number).name}; the same command goes on"
        assert all(f"stopped by SIGTERM after step {n} of 1000" in text for n in steps)
        assert "Traceback" not in text


def test_submitit_requeues_a_member_that_a_signal_stopped(
    data: Path, finished: tuple[Path, Path, str], tmp_path: Path
) -> None:
    cache, whole, _ = finished
    process = start(data, cache, tmp_path, "-m", "hydra/launcher=submitit_local")
    wait_for(process, lambda: any(tmp_path.glob(f"tofu/*/{WORK}/checkpoint/state.json")))
    started = psutil.Process(process.pid).children(recursive=True)
    (task,) = (p for p in started if "submitit.core._submit" in p.cmdline())
    task.send_signal(signal.SIGUSR2)
    finish(process)
    assert models(tmp_path) == models(whole)
    logs = "".join(p.read_text() for p in tmp_path.glob(".submitit/*/*_log.*"))
    assert logs.count("Starting with JobEnvironment") == 2
    assert "stopped by SIGUSR2" in logs


def test_a_submitit_sweep_that_is_stopped_ends_its_job_and_goes_on(
    data: Path, finished: tuple[Path, Path, str], tmp_path: Path
) -> None:
    cache, whole, _ = finished
    given = ["-m", "hydra/launcher=submitit_local", "train.checkpoint_minutes=1000"]
    process = start(data, cache, tmp_path, *given)
    wait_for(process, lambda: any(tmp_path.glob(f"tofu/*/{WORK}/start")))
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGUSR1)
    text = finish(process, code=143)
    assert psutil.wait_procs(started, timeout=60)[1] == []
    assert text.splitlines()[-1] == "stopped by SIGUSR1; the same command goes on"
    assert "Traceback" not in text
    assert list(tmp_path.glob(f"tofu/*/{WORK}/checkpoint/state.json"))
    finish(start(data, cache, tmp_path, *given))
    # by value: checkpoint_minutes is part of the folder name
    (resumed,), (alone,) = models(tmp_path).values(), models(whole).values()
    assert resumed == alone


def test_a_sweep_that_chooses(data: Path, finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    cache, _, _ = finished
    tmp_path = tmp_path / "runs x=1, (2)"
    text = finish(
        start(
            data, cache, tmp_path, "sweep=compare", "method=npo", "optim=adamw,soul", "optim.lr=1e-4,2e-3",
            "retain.weight=5", "train.epochs=1", "hydra.sweeper.choose.validation_seeds=[7]", "seed=0,1",
            "hydra.sweeper.choose.validation_overrides={eval.limit: 4}",
        )
    )  # fmt: skip
    tried, chosen = (list((tmp_path / part).rglob("metrics.json")) for part in ("validation", "reported"))
    assert (len(tried), len(chosen)) == (4, 4)
    assert {json.loads(p.read_text())["seed"] for p in tried} == {7}
    assert {json.loads(p.read_text())["seed"] for p in chosen} == {0, 1}
    limits = {part: {_limit(p) for p in some} for part, some in (("tried", tried), ("chosen", chosen))}
    assert limits == {"tried": {4}, "chosen": {6}}
    assert "**npo, soul** against adamw" in text


def test_a_sweep_that_chooses_is_planned_setting_by_setting(data: Path, tmp_path: Path) -> None:
    text = finish(start(data, tmp_path / "c", tmp_path, "sweep=compare", "method=npo", "optim=soul", "plan=true"))
    assert text.count("member ") == 6  # rates and retain weights
    assert not list(tmp_path.rglob("metrics.json"))


def _limit(metrics: Path) -> int:
    return OmegaConf.load(metrics.parent / "config.yaml").eval.limit
