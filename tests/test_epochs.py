"""Evaluation between epochs: it disturbs nothing, is never done twice, and the best epoch's weights are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from generator import generate_authors
from runs import TINY
from test_train import NPO_SUM, interrupt_at, soul, train, weights, without_speed

from soul_cli.core.files import read_lines, write_text
from soul_cli.core.types import Metric, UserError
from soul_cli.data.embedded import write_layout
from soul_cli.evaluate.metrics import nearness, retention
from soul_cli.experiment import evaluation
from soul_cli.experiment.config import compose
from soul_cli.experiment.epochs import best_line
from soul_cli.experiment.run import run
from soul_cli.tasks import copyright_metrics, tofu_metrics
from soul_cli.tasks.tofu import TOFU

MakeLM = Callable[..., Any]


# --- the loop ----------------------------------------------------------------------------------------------


def dropping(lm: Any) -> Any:
    for layer in lm.model.layers:
        layer.self_attn.attention_dropout = 0.5
    return lm


def test_what_happens_between_epochs_does_not_disturb_training(tiny_lm: MakeLM, tmp_path: Path) -> None:
    plain, watched, seen = dropping(tiny_lm()), dropping(tiny_lm()), []

    def look(epoch: int) -> None:
        assert not watched.training
        torch.manual_seed(epoch)
        torch.rand(3)
        with torch.inference_mode():
            watched(torch.tensor([[4, 5, 6]]))
        seen.append(epoch)

    expected = train(plain, tmp_path / "a", NPO_SUM, soul())
    records = train(watched, tmp_path / "b", NPO_SUM, soul(), after_epoch=look)
    assert seen == [0, 1, 2]
    assert torch.equal(weights(plain), weights(watched))
    assert without_speed(records) == without_speed(expected)


def test_resumed_training_sees_the_same_weights_between_epochs(tiny_lm: MakeLM, tmp_path: Path) -> None:
    """3 steps an epoch, a checkpoint after each but the last; stopped in step 3, within epoch 2, and at the end."""
    seen: dict[str, dict[int, Any]] = {"whole": {}, "parts": {}}
    calls: list[int] = []

    def run(name: str, **options: Any) -> None:
        lm = tiny_lm()

        def look(epoch: int) -> None:
            now = weights(lm).clone()
            assert torch.equal(seen[name].setdefault(epoch, now), now)  # called again: the same weights
            calls.append(epoch)

        train(lm, tmp_path / name, NPO_SUM, soul(), after_epoch=look, **options)

    run("whole")
    calls.clear()
    for step in (3, 5, 6):
        with pytest.raises(KeyboardInterrupt):
            run("parts", progress=interrupt_at(step))
    assert calls == [0, 1]  # the third part went on from step 4, behind epoch 1
    run("parts")
    run("parts")
    assert calls == [0, 1, 2, 2]
    assert seen["whole"].keys() == seen["parts"].keys()
    assert all(torch.equal(seen["whole"][e], seen["parts"][e]) for e in seen["whole"])


# --- the rule ----------------------------------------------------------------------------------------------


def test_retention_and_nearness_by_hand() -> None:
    assert (retention(0.4, 0.8), retention(0.9, 0.8), retention(0.0, 0.0)) == (0.5, 1.0, 1.0)
    # floor 0.2, original 1: half-way down, there, half-way below, nothing, no change
    assert [nearness(x, 0.2, 1.0) for x in (0.6, 0.2, 0.1, 0.0, 1.0)] == pytest.approx([0.5, 1, 0.5, 0, 0])
    assert (nearness(0.0, 0.0, 0.0), nearness(0.1, 0.0, 0.0)) == (1.0, 0.0)


def models(**columns: tuple[float, float, float]) -> dict[str, dict[str, Metric]]:
    """metric=(original, retain-trained, this run)."""
    out: dict[str, dict[str, Metric]] = {"original": {}, "retain_trained": {}, "this_run": {}}
    for name, values in columns.items():
        for some, x in zip(out.values(), values, strict=True):
            some[name] = Metric(x, 1, "", "")
    return out


def test_tofu_score_by_hand() -> None:
    some = models(
        retain_rougeL=(1, 1, 0.5), real_authors_acc=(0.5, 0.5, 0.5), world_facts_acc=(0.5, 0.5, 0.25),
        forget_quality_D=(0.9, 0, 0.4), forget_rougeL=(1, 0.2, 0.6),
    )  # fmt: skip
    assert tofu_metrics.selection_score(some) == pytest.approx(4 / (1 / 0.5 + 1 / 0.75 + 1 / 0.6 + 1 / 0.5))
    with pytest.raises(KeyError, match="retain_trained"):
        tofu_metrics.selection_score({k: v for k, v in some.items() if k != "retain_trained"})


def test_copyright_score_by_hand() -> None:
    some = models(
        retain_rougeL_20=(1, 1, 0.5), retain_rougeL_60=(1, 1, 0), heldout_ppl=(10, 10, 20),
        forget_rougeL_20=(1, 0.2, 0.6), forget_rougeL_60=(1, 0.2, 0.2), forget_rougeL_60_unseen=(1, 1, 0),
    )  # fmt: skip
    assert copyright_metrics.selection_score(some) == pytest.approx(4 / (2 + 2 + 2 + 1))


def test_the_best_is_the_earliest_of_equals_and_never_epoch_0() -> None:
    lines = [{"epoch": e, "score": s} for e, s in ((0, 0.9), (1, 0.3), (2, 0.5), (3, 0.5))]
    assert best_line(lines) is lines[2]
    assert best_line([{"epoch": 0, "score": 0.4}, {"epoch": 1, "score": 0.0}])["epoch"] == 1


@pytest.mark.parametrize("overrides", [["every=0"], ["limit=0", "every=1"], ["select=best"], ["select=first"]])
def test_mistakes_are_named(overrides: list[str]) -> None:
    with pytest.raises(UserError, match=rf"epoch_eval\.{overrides[0].split('=')[0]}"):
        compose([f"epoch_eval.{o}" for o in overrides])


def test_identity_knows_it_only_where_it_has_an_effect() -> None:
    def identity(*overrides: str) -> dict[str, Any]:
        return compose([*overrides]).identity()

    assert identity("epoch_eval.limit=3") == identity()
    assert identity("epoch_eval.every=1", "method=none") == identity("method=none")
    some = [identity(), identity("epoch_eval.every=1"), identity("epoch_eval.every=1", "epoch_eval.limit=3")]
    assert some[0] != some[1] != some[2]


# --- whole runs --------------------------------------------------------------------------------------------

EPOCHS = ["epoch_eval.every=2", "epoch_eval.limit=2", "eval.limit=2", "train.epochs=3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven generated authors in TOFU's layout, and room for a cache and runs."""
    root = tmp_path_factory.mktemp("place")
    write_layout(root / "data", generate_authors(11, seed=7))
    return root


def ran(place: Path, name: str, *more: str) -> Path:
    """A run in this process, on a model that has learned next to nothing."""
    where = [f"task.source={place / 'data'}", f"cache_dir={place / 'cache'}", f"output_dir={place / name}"]
    short = ["model.finetune.train.epochs=1"]
    rarely = ["model.finetune.train.checkpoint_minutes=10", "train.checkpoint_minutes=10"]
    return run(compose([*TINY, *where, *short, *rarely, *EPOCHS, "eval.max_total=100", *more]))


def lines(folder: Path) -> list[dict[str, Any]]:
    """Without what no two runs have alike."""
    return [{k: v for k, v in line.items() if k != "cost"} for line in read_lines(folder / "epochs.jsonl")]


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def counts(folder: Path) -> dict[str, dict[str, int]]:
    phases = metrics(folder)["cost"]
    return {p: {k: v for k, v in c.items() if k.endswith(("_tokens", "_passes"))} for p, c in phases.items()}


def values(some: Any) -> dict[str, float]:
    return {k: m["value"] for k, m in some.items()}


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    return ran(place, "whole")


def test_lines_of_a_run(whole: Path) -> None:
    first, _, last = found = lines(whole)
    assert [line["epoch"] for line in found] == [0, 2, 3]
    saved = metrics(whole)
    # the same questions here and there: the first line is the original model, the last the unlearned one
    assert values(first["metrics"]) == values(saved["models"]["original"])
    assert values(last["metrics"]) == values(saved["models"]["this_run"])
    assert values(saved["epoch_eval"]["levels"]["retain_trained"]) == values(saved["models"]["retain_trained"])
    assert (saved["epoch_eval"]["epoch"], saved["epoch_eval"]["of"]) == (3, [0, 2, 3])
    between, unlearn = saved["cost"]["evaluate_epochs"], saved["cost"]["unlearn"]
    assert between["scored_tokens"] == 3 * saved["cost"]["evaluate"]["scored_tokens"]
    assert unlearn["scored_tokens"] == unlearn["generated_tokens"] == 0


def test_interrupted_between_epochs(place: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of the evaluation after epoch 2: a part of it and the one before it are there."""
    written: list[str] = []

    def stop(path: Path, text: str) -> None:
        if path.parent.name == "epoch2" and path.name == "rows_retain.json":
            raise KeyboardInterrupt
        written.append(f"{path.parent.name}/{path.name}")
        write_text(path, text)

    monkeypatch.setattr(evaluation, "write_text", stop)
    with pytest.raises(KeyboardInterrupt):
        ran(place, "parts")
    assert "epoch2/rows_forget.json" in written
    (before,) = (place / "parts").glob("*/*/epochs.jsonl")
    done = before.read_text()
    assert done.count("\n") == 1
    monkeypatch.setattr(
        evaluation, "write_text", lambda path, text: (written.append(str(path)), write_text(path, text))
    )
    written.clear()
    folder = ran(place, "parts")
    assert before.read_text().startswith(done)  # time and all: it was not done again
    assert not any("epoch0" in name or "epoch2/rows_forget" in name for name in written)
    assert lines(folder) == lines(whole)
    assert metrics(folder)["models"] == metrics(whole)["models"]
    assert counts(folder) == counts(whole)


def test_best_epoch_is_evaluated_in_full(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a score that is highest after epoch 2."""
    scores = iter((0.9, 0.8, 0.3))
    monkeypatch.setattr(TOFU, "selection_score", staticmethod(lambda models: next(scores)))
    folder = ran(place, "best", "epoch_eval.select=best")
    saved = metrics(folder)
    assert (saved["epoch_eval"]["epoch"], saved["epoch_eval"]["score"]) == (2, 0.8)
    assert values(lines(folder)[1]["metrics"]) == values(saved["models"]["this_run"])
    assert values(lines(folder)[2]["metrics"]) != values(saved["models"]["this_run"])
    assert not (folder / "work").exists()
