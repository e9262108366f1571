"""soul_cli.core.cost: what is counted, and that parts add up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_train import ADAMW, APART, ASCENT, FORGET, GRADDIFF, RETAIN, config, interrupt_at, soul, train

from soul_cli.core import cost
from soul_cli.core.cost import Cost, Ledger
from soul_cli.evaluate.generate import greedy
from soul_cli.evaluate.likelihood import score
from soul_cli.models.answer_model import AnswerModel

MakeLM = Callable[..., Any]
COUNTS = ("training_tokens", "scored_tokens", "generated_tokens", "forward_passes", "backward_passes")
STEPS, FORGET_TOKENS = 6, sum(map(len, FORGET))  # two epochs of 6 rows in batches of 2


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set by hand."""
    now = [0.0]
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def counts(spent: dict[str, Any]) -> dict[str, int]:
    return {k: spent[k] for k in COUNTS}


def test_inner_measurement_pauses_the_outer(clock: list[float]) -> None:
    with cost.measure():
        clock[0] = 1
        cost.count(forward_passes=1)
        with cost.measure():
            clock[0] = 11
            cost.count(forward_passes=5, parameter_bytes=7)
            inner = cost.spent()
        clock[0] = 13
        cost.count(forward_passes=2)
        cost.resume({"seconds": 100.0, "forward_passes": 40, "parameter_bytes": 3})
        outer = cost.spent()
        assert cost.spent() == outer  # asking changes nothing
    cost.count(forward_passes=1)  # nobody asked
    assert (inner["seconds"], inner["forward_passes"], inner["parameter_bytes"]) == (10, 5, 7)
    assert (outer["seconds"], outer["forward_passes"], outer["parameter_bytes"]) == (103, 43, 3)
    assert counts(cost.spent()) == dict.fromkeys(COUNTS, 0)


def test_peak_memory_is_that_of_the_measurement() -> None:
    def peak(size: int) -> int:
        with cost.measure():
            torch.ones(size << 18)  # float32: size MiB
            return cost.spent()["peak_memory_bytes"]

    if not peak(1):
        pytest.skip("this system's peak cannot be reset")
    before, high, after = peak(1), peak(200), peak(1)
    assert high - before == pytest.approx(200 << 20, rel=0.1)
    assert after < high - (150 << 20)


def test_largest_process_counts_for_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Cost(seconds=1e9, training_tokens=3, peak_memory_bytes=1 << 60)
    monkeypatch.setattr(cost, "everyone", lambda own: [own, other])
    with cost.measure():
        cost.count(training_tokens=4)
        both = cost.spent()
    assert (both["seconds"], both["training_tokens"], both["peak_memory_bytes"]) == (1e9, 7, 1 << 60)


# --- training ----------------------------------------------------------------------------------------------


def trained(lm: Any, work: Path, *args: Any, **options: Any) -> dict[str, Any]:
    with cost.measure():
        train(lm, work, *args, **options)
        return cost.spent()


def test_passes_of_first_and_second_order_steps(tiny_lm: MakeLM, tmp_path: Path) -> None:
    """GradDiff on 2 + 2 rows a step; the curvature is renewed in steps 1 and 5."""
    first = trained(tiny_lm(), tmp_path / "a", GRADDIFF, ADAMW)
    second = trained(tiny_lm(), tmp_path / "b", GRADDIFF, soul(every=4))
    apart = trained(tiny_lm(), tmp_path / "c", APART, soul(every=4))
    assert (first["forward_passes"], first["backward_passes"]) == (STEPS, STEPS)
    assert (second["forward_passes"], second["backward_passes"]) == (STEPS + 2, STEPS + 2)
    assert (apart["forward_passes"], apart["backward_passes"]) == (2 * STEPS + 4, 2 * STEPS + 4)
    tokens = sum(r["tokens"] for r in train(tiny_lm(), tmp_path / "a", GRADDIFF, ADAMW))
    assert first["training_tokens"] == second["training_tokens"] == apart["training_tokens"] == tokens
    accumulated = trained(tiny_lm(), tmp_path / "d", GRADDIFF, ADAMW, config(accumulation=3))
    assert accumulated["forward_passes"] == STEPS  # of half as many rows each


def test_only_rows_with_a_gradient_count(tiny_lm: MakeLM, tmp_path: Path) -> None:
    assert trained(tiny_lm(), tmp_path, ASCENT, retain=RETAIN)["training_tokens"] == 2 * FORGET_TOKENS


def test_bytes_of_weights_and_states(tiny_lm: MakeLM, tmp_path: Path) -> None:
    """Two states a parameter, like Adam; eq. 11 has them twice.  AdamW also counts its steps, 4 bytes a tensor."""
    lm = tiny_lm()
    size, tensors = 4 * sum(p.numel() for p in lm.parameters()), len(list(lm.parameters()))
    found = {}
    for name, solved, optim in (("adamw", GRADDIFF, ADAMW), ("soul", GRADDIFF, soul()), ("alternating", APART, soul())):
        spent = trained(tiny_lm(), tmp_path / name, solved, optim)
        assert spent["parameter_bytes"] == size
        found[name] = spent["optimizer_state_bytes"]
    assert found == {"adamw": 2 * size + 4 * tensors, "soul": 2 * size, "alternating": 4 * size}


def test_interrupted_training_adds_up(tiny_lm: MakeLM, tmp_path: Path, clock: list[float]) -> None:
    """Work that was lost is not counted, so that counts are those of a whole run."""

    def tick(*args: Any) -> None:
        clock[0] += 1

    def stop(step: int) -> Callable[..., None]:
        interrupt = interrupt_at(step)
        return lambda *args: (tick(), interrupt(*args))

    whole = trained(tiny_lm(), tmp_path / "whole", GRADDIFF, soul(every=4), progress=tick)
    for step in (1, 3, 5):
        with pytest.raises(KeyboardInterrupt):
            trained(tiny_lm(), tmp_path / "parts", GRADDIFF, soul(every=4), progress=stop(step))
    parts = trained(tiny_lm(), tmp_path / "parts", GRADDIFF, soul(every=4), progress=tick)
    same = (*COUNTS, "seconds", "parameter_bytes", "optimizer_state_bytes")
    assert {k: parts[k] for k in same} == {k: whole[k] for k in same}
    assert whole["seconds"] == STEPS
    again = trained(tiny_lm(), tmp_path / "parts", GRADDIFF, soul(every=4), progress=tick)
    assert {k: again[k] for k in same} == {k: whole[k] for k in same}


# --- evaluation --------------------------------------------------------------------------------------------


def test_scored_and_generated_tokens(tiny_lm: MakeLM) -> None:
    lm = tiny_lm()
    with cost.measure():
        score(AnswerModel(lm), FORGET, budget=1)
        scored = cost.spent()
    assert (scored["scored_tokens"], scored["forward_passes"], scored["backward_passes"]) == (FORGET_TOKENS, 6, 0)
    with cost.measure():
        made = greedy(lm, [(5, 6, 7), (8,)], ends=(), most_new=[6, 8], budget=1000)
        generated = cost.spent()
    assert generated["generated_tokens"] == sum(map(len, made)) == 6 + 8
    assert (generated["forward_passes"], generated["scored_tokens"]) == (8, 0)  # a token of both rows at a time


def test_ledger_keeps_what_an_earlier_part_paid(tmp_path: Path) -> None:
    file = tmp_path / "work" / "cost.json"
    Ledger(file).note("target_model", {"seconds": 60.0}, cached=False)
    second = Ledger(file)
    second.note("target_model", {"seconds": 60.0}, cached=True)  # the resumed run finds its own model
    second.note("unlearn", {"seconds": 5.0}, cached=False)
    expected = {"target_model": {"cached": False, "seconds": 60.0}, "unlearn": {"cached": False, "seconds": 5.0}}
    assert second.phases == json.loads(file.read_text()) == expected
