"""The comparison of optimizers: numbers by hand, and the words they become."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_runs import write_run

from soul_cli.report.compare import (
    Comparison,
    Point,
    alike,
    bootstrap,
    hypervolume,
    markdown,
    paired,
    read_comparison,
    sentences,
    verdict,
)
from soul_cli.report.figures.tradeoff import pareto


def point(optim: str, seed: int, far: float, kept: float, moved: float = 1.0, lr: str = "1") -> Point:
    return Point("npo", optim, (("optim.lr", lr),), seed, far, kept, moved, 0.5, 900.0, (("model_utility", kept),))


def test_bootstrap_counts_every_resample() -> None:
    """Of (0, 1): means 0, 1/2, 1/2, 1, so that the 2.5th percentile lies 0.075 of the way from 0 to 1/2."""
    assert bootstrap([0, 1]) == pytest.approx((0.0375, 0.9625))
    assert bootstrap([3, 3, 3]) == (3, 3)
    low, high = bootstrap([0, 1] * 5)  # too many to count: drawn
    assert low == pytest.approx(0.2, abs=0.05)
    assert high == pytest.approx(0.8, abs=0.05)


def test_hypervolume_by_hand() -> None:
    assert hypervolume([]) == 0
    assert hypervolume([(0, 1)]) == 1
    assert hypervolume([(0.5, 0.5)]) == 0.25
    assert hypervolume([(0.5, 0.8), (0.2, 0.5)]) == pytest.approx(0.8 * 0.5 + 0.5 * 0.3)
    assert hypervolume([(0.5, 0.8), (0.2, 0.5), (0.6, 0.7)]) == pytest.approx(0.55)  # the third adds nothing
    assert hypervolume([(1.5, 0.9)]) == 0


@pytest.mark.parametrize(
    ("far", "kept", "words"),
    [
        ((-0.2, -0.1), (-0.1, 0.1), "forgets better and keeps no less"),
        ((-0.2, -0.1), (0.1, 0.2), "forgets better and keeps more"),
        ((-0.2, -0.1), (-0.2, -0.1), "forgets better and keeps less"),
        ((0.1, 0.2), (-0.1, 0.1), "forgets worse and keeps no more"),
        ((0.1, 0.2), (0.1, 0.2), "forgets worse and keeps more"),
        ((0.1, 0.2), (-0.2, -0.1), "forgets worse and keeps less"),
        ((-0.1, 0.1), (-0.2, -0.1), "forgets alike and keeps less"),
        ((-0.1, 0.1), (0.1, 0.2), "forgets alike and keeps more"),
        ((-0.1, 0.1), (-0.1, 0.1), "cannot be told apart"),
    ],
)
def test_verdict(far: tuple[float, float], kept: tuple[float, float], words: str) -> None:
    assert verdict(far, kept) == words


def test_differences_are_paired_by_seed() -> None:
    a = [point("adamw", 0, 0.5, 0.9), point("adamw", 1, 0.1, 0.8), point("adamw", 7, 9, 9)]
    b = [point("soul", 1, 0.2, 0.7), point("soul", 0, 0.4, 0.9)]
    assert paired(a, b, "distance") == pytest.approx([-0.1, 0.1])
    assert paired(a, b, "model_utility") == pytest.approx([0, -0.1])


def test_pairs_that_keep_or_move_alike() -> None:
    tried = [
        point("adamw", 0, 0.5, 0.900, moved=1.0), point("adamw", 0, 0.6, 0.800, moved=2.0, lr="2"),
        point("soul", 0, 0.4, 0.905, moved=2.1), point("soul", 1, 0.4, 0.900, moved=1.0),
    ]  # fmt: skip
    (pair,) = alike(tried, "npo", "soul", by="retained")[0]
    assert [p.distance for p in pair] == [0.5, 0.4]
    (pair,) = alike(tried, "npo", "soul", by="displacement")[0]
    assert [p.distance for p in pair] == [0.6, 0.4]


@pytest.fixture
def comparison() -> Comparison:
    tried = [point(o, s, f, k, lr=lr) for o, f, k in (("adamw", 0.4, 0.8), ("soul", 0.3, 0.9)) for s in (7, 8)
             for lr in ("1", "2", "4")]  # fmt: skip
    chosen = [point("adamw", s, 0.4, 0.8) for s in range(3)] + [point("soul", s, 0.3, 0.9) for s in range(3)]
    return Comparison(tried, chosen, ("forget_rougeL", "retain_rougeL"))


def test_sentences(comparison: Comparison) -> None:
    (text,) = sentences(comparison)
    for words in (
        "**npo, soul** against adamw: forgets better and keeps more.",
        "n = 3: forgotten -0.100 (-0.100 … -0.100), kept +0.100 (+0.100 … +0.100)",
        "keep alike (±0.01): none.",
        "move alike (±10%): 18 pairs on 2 seeds, forgotten -0.100, kept +0.100.",
        "0.630 to 0.480, 0.630 to 0.480",  # 0.9 * 0.7 and 0.8 * 0.6
    ):
        assert words in text, text


def test_settings_are_what_the_tried_runs_differ_in(tmp_path: Path) -> None:
    """Whatever was searched, words too; a number at the end of three is at the edge; seconds are of a step (of two)."""
    rates, chosen = ("1e-3", "2e-3", "4e-3"), ("optim=adamw", "method=flat", "method.divergence=kl", "optim.lr=4e-3")
    for number, lr in enumerate(rates):
        for divergence in ("tv", "kl"):
            write_run(
                tmp_path / "validation" / divergence, 7, number / 10, "optim=adamw", "method=flat",
                f"method.divergence={divergence}", f"optim.lr={lr}", displacement=1.0,
                    change={"key": f"{lr}-{divergence}"},
            )  # fmt: skip
    for seed in range(2):
        write_run(tmp_path / "reported", seed, 0.3, *chosen, displacement=1.0)
    comparison = read_comparison(tmp_path)
    assert {p.setting for p in comparison.chosen} == {(("method.divergence", "kl"), ("optim.lr", "0.004"))}
    assert "| flat | adamw | divergence kl, lr 0.004 (edge) | 2 | 0.100 ± 0.000 |" in markdown(comparison)
    assert [p.seconds for p in comparison.chosen] == [5.0, 5.5]


def test_figure_has_a_panel_a_method_and_both_optimizers(comparison: Comparison) -> None:
    figure = pareto(comparison)
    (axes,) = figure.axes
    assert axes.get_title() == "npo"
    assert [t.get_text() for t in figure.legends[0].get_texts()][:2] == ["adamw", "soul"]
    many = [Point(f"npo+{i}", *list(vars(p).values())[1:]) for p in comparison.chosen for i in range(7)]
    titles = [axes.get_title() for axes in pareto(Comparison(comparison.tried, many, comparison.metrics)).axes]
    assert titles == [f"npo+{i}" for i in range(7)]  # six across, and no empty panel
