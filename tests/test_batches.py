"""soul_cli.data.batches: rows that do not see each other, and plans that leave nothing out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soul_cli.core.types import Prompted
from soul_cli.data.batches import Step, by_length, collate, cycle, deal, epoch_batches, plan_epoch
from soul_cli.evaluate.likelihood import score
from soul_cli.evaluate.trees import Tree, plant
from soul_cli.models.answer_model import AnswerModel

tokens = st.lists(st.integers(3, 47), min_size=1, max_size=6).map(tuple)
few_tokens = st.lists(st.integers(3, 5), min_size=1, max_size=5).map(tuple)  # that often begin alike
answers = st.lists(tokens | few_tokens, min_size=1, max_size=5)
groups = st.builds(Prompted, tokens, answers.map(tuple))


# --- collate -----------------------------------------------------------------------------------------------


def test_collate_by_hand():
    batch = collate([Prompted((5, 6), ((7, 8, 2),)), Prompted((9,), ((4, 2),))])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 2], [9, 4, 2, 0, 0]]
    assert batch.where.tolist() == [1, 2, 3, 5, 6]  # 6 predicts 7, 7 predicts 8, 8 predicts EOS; 9 predicts 4, ...
    assert batch.targets.tolist() == [7, 8, 2, 4, 2]
    assert batch.owner.tolist() == [0, 0, 0, 1, 1]
    assert (batch.answers, batch.mask, batch.position_ids) == (2, None, None)


@given(st.lists(st.builds(Prompted, tokens, st.tuples(tokens)), min_size=1, max_size=4))
def test_targets_are_the_answers_in_order(some: list[Prompted]):
    batch = collate(some)
    assert [tuple(batch.targets[batch.owner == k].tolist()) for k in range(batch.answers)] == [
        row.answers[0] for row in some
    ]


# --- trees -------------------------------------------------------------------------------------------------


def test_a_tree_by_hand():
    """Three answers, of which two begin with 7; no answer's last token is read."""
    tree = Tree(Prompted((5, 6), ((7, 3, 2), (8, 2), (7, 4, 2))), score_prompt=True)
    batch = plant([tree, Tree(Prompted((9,), ((4, 2),)))])
    assert batch.position_ids is not None
    assert batch.mask is not None
    assert batch.input_ids.tolist() == [[5, 6, 7, 3, 8, 4], [9, 4, 0, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 3], [0, 1, 0, 0, 0, 0]]
    assert list(zip(batch.where.tolist(), batch.targets.tolist(), strict=True)) == [
        (0, 6), (1, 7), (2, 3), (3, 2), (1, 8), (4, 2), (2, 4), (5, 2), (6, 4), (7, 2)
    ]  # fmt: skip
    assert tree.paths == [[0], [1, 2, 3], [4, 5], [1, 6, 7]]
    assert batch.mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],  # the second answer does not see the first
        [1, 1, 1, 0, 0, 1],  # the third sees what it shares with the first
    ]
    assert batch.mask[1, 0, 2:].int().tolist() == torch.eye(6).int()[2:].tolist()


def test_a_tree_without_branches_needs_no_mask():
    batch = plant([Tree(Prompted((5, 6), ((7, 8, 2), (7, 8, 2))), score_prompt=True), Tree(Prompted((9,), ((4,),)))])
    assert (batch.mask, batch.position_ids) == (None, None)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 0, 0, 0]]


@pytest.mark.parametrize("score_prompt", [False, True])
def test_answers_score_as_alone(tiny_lm: Callable[..., Any], score_prompt: bool):
    model = AnswerModel(tiny_lm(torch.float64, spread=0.3))

    @settings(max_examples=50)
    @given(st.lists(groups, min_size=1, max_size=4), st.sampled_from([1, 30, 1000]))
    def law(some: list[Prompted], budget: int) -> None:
        together = score(model, some, budget=budget, score_prompt=score_prompt)
        for group, scores in zip(some, together, strict=True):
            start = len(group.prompt) - 1
            alone = [full_logps(model, group.prompt, answer) for answer in group.answers]
            expected = [alone[0][:start]] if score_prompt else []
            expected += [values[start:] for values in alone]
            for one, values in zip(scores, expected, strict=True):
                assert [logp for logp, _ in values] == pytest.approx(one.logps, abs=1e-10)
                assert tuple(best for _, best in values) == one.correct

    with torch.no_grad():
        law()


def full_logps(model: AnswerModel, prompt: tuple[int, ...], answer: tuple[int, ...]) -> list[tuple[float, int]]:
    """log p of every token but the first, and whether it is the arg-max, from the language model itself."""
    ids = torch.tensor([[*prompt, *answer]])
    logits = model.lm(ids).logits[0, :-1]
    logps = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return list(zip(logps.tolist(), (logits.argmax(-1) == ids[0, 1:]).int().tolist(), strict=True))


@torch.no_grad()
@pytest.mark.parametrize("branches", [False, True])
def test_what_stands_in_the_padding_does_not_matter(tiny_lm: Callable[..., Any], branches: bool):
    some = [Prompted((5, 6), ((7, 8, 2),)), Prompted((9,), ((4, 2), (3, 5)) if branches else ((4, 2),))]
    some.append(Prompted((4, 4, 4, 5), ((7, 7, 9, 9, 2),)))
    trees, model = [Tree(g) for g in some], AnswerModel(tiny_lm(spread=0.3))
    batches = [(plant(trees), [len(t) for t in trees])]
    batches += [] if branches else [(collate(some), [len(g) for g in some])]
    for batch, lengths in batches:
        before = model.logps(batch)
        pads = torch.arange(batch.input_ids.shape[1]) >= torch.tensor(lengths)[:, None]
        assert pads.any()
        batch.input_ids[pads] = 33
        assert torch.equal(model.logps(batch), before)


# --- plans -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 90), max_size=40), st.integers(1, 200))
def test_by_length_uses_every_index_once_within_the_budget(lengths: list[int], budget: int):
    batches = list(by_length(lengths, budget))
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    widths = [lengths[i] for b in batches for i in b]
    assert widths == sorted(widths, reverse=True)


lengths_of = {n: [(7 * i) % 23 + 3 for i in range(n)] for n in range(91)}
plan_sizes = {
    "forget": st.integers(1, 40),
    "retain": st.integers(1, 90),
    "size": st.integers(1, 7),
    "accumulation": st.integers(1, 4),
    "seed": st.integers(0, 5),
}


@given(**plan_sizes)
def test_epochs_cover_forget_once_and_take_retain_in_turn(
    forget: int, retain: int, size: int, accumulation: int, seed: int
):
    taken: list[int] = []
    for epoch in range(4):
        plan = plan_epoch(
            lengths_of[forget], lengths_of[retain], size=size, accumulation=accumulation, seed=seed, epoch=epoch
        )
        micro = [m for step in plan for m in step.micro]
        assert sorted(i for f, _ in micro for i in f) == list(range(forget))
        assert all(len(f) == len(r) <= size for f, r in micro)
        assert [len(step.micro) for step in plan[:-1]] == [accumulation] * (len(plan) - 1)
        assert 1 <= len(plan[-1].micro) <= accumulation
        taken += [i for _, r in micro for i in r]
    for at in range(0, len(taken) - retain + 1, retain):
        assert sorted(taken[at : at + retain]) == list(range(retain))  # a full pass before any row comes again


@given(n=st.integers(1, 60), size=st.integers(1, 7), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_without_forget_rows_the_retain_rows_are_the_epoch(n: int, size: int, seed: int, epoch: int):
    plan = plan_epoch([], lengths_of[n], size=size, accumulation=2, seed=seed, epoch=epoch)
    micro = [m for step in plan for m in step.micro]
    assert all(f == () for f, _ in micro)
    assert sorted(i for _, r in micro for i in r) == list(range(n))
    assert [len(step.micro) for step in plan[:-1]] == [2] * (len(plan) - 1)


def test_accumulation_groups_the_same_micro_batches():
    options = {"size": 3, "seed": 1, "epoch": 2}
    single = plan_epoch(lengths_of[20], lengths_of[50], accumulation=1, **options)
    grouped = plan_epoch(lengths_of[20], lengths_of[50], accumulation=3, **options)
    assert [m for s in grouped for m in s.micro] == [m for s in single for m in s.micro]
    assert [len(s.micro) for s in grouped] == [3, 3, 1]


@given(forget=st.integers(1, 3), retain=st.integers(1, 3), **{k: plan_sizes[k] for k in ("accumulation", "seed")})
def test_turns_take_rows_of_their_own(forget: int, retain: int, accumulation: int, seed: int):
    """11 forget rows by 2: each turn has as many retain rows as a forget turn of its step; forget rows come once."""
    options = {"size": 2, "accumulation": accumulation, "seed": seed}
    for epoch in range(2):
        plan = plan_epoch(lengths_of[11], lengths_of[40], epoch=epoch, turns=(forget, retain), **options)
        single = plan_epoch(lengths_of[11], lengths_of[40], epoch=epoch, **options)
        assert [tuple(f for f, _ in t.micro if f) for s in plan for t in s.turns if any(f for f, _ in t.micro)] == [
            tuple(f for f, _ in s.micro) for s in single
        ]
        for step in plan:
            sizes = [[len(f) for f, _ in turn.micro if f] for turn in step.turns]
            met = [[len(r) for _, r in turn.micro if r] for turn in step.turns]
            given = [some for some in sizes if some]
            assert len(given) == forget or step is plan[-1]
            assert [some for some in met if some] == [given[j % len(given)] for j in range(retain)]


def test_plans_depend_on_seed_and_epoch_alone():
    def pairs(seed: int, epoch: int, retain: int = 24) -> dict[int, int]:
        plan = plan_epoch(lengths_of[24], lengths_of[retain], size=4, accumulation=1, seed=seed, epoch=epoch)
        return {i: j for step in plan for f, r in step.micro for i, j in zip(f, r, strict=True)}

    made = [pairs(seed, epoch) for seed in range(3) for epoch in range(4)]
    torch.manual_seed(99)
    assert made == [pairs(seed, epoch) for seed in range(3) for epoch in range(4)]
    for i, a in enumerate(made):
        for b in made[:i]:
            assert sum(a[k] == b[k] for k in a) < 8  # by chance 1 of 24
    assert all(pairs(0, e, 7) != pairs(0, e + 1, 7) for e in range(4))


def test_order_and_company_differ_between_epochs():
    orders = [epoch_batches(lengths_of[24], 4, 0, epoch) for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    companies = [{frozenset(b) for b in epoch_batches(lengths_of[90], 2, 0, epoch)} for epoch in range(2)]
    assert companies[0] != companies[1]  # where there are more rows than are sorted together


def test_batches_hold_rows_of_similar_length():
    lengths = [10, 90] * 32
    batches = epoch_batches(lengths, 4, 0, 0)
    assert all(len({lengths[i] for i in b}) == 1 for b in batches)
    assert [lengths[b[0]] for b in batches] != sorted(lengths[b[0]] for b in batches)  # but come in random order


@given(n=st.integers(1, 20), start=st.integers(0, 50), count=st.integers(0, 50), seed=st.integers(0, 3))
def test_cycle_is_one_sequence_wherever_it_is_entered(n: int, start: int, count: int, seed: int):
    assert cycle(n, start, count, seed) == cycle(n, 0, start + count, seed)[start:]


def test_passes_over_the_retain_rows_differ():
    passes = [cycle(24, lap * 24, 24, 0) for lap in range(3)]
    assert passes[0] != passes[1] != passes[2]


# --- several processes -------------------------------------------------------------------------------------


def test_deal_by_hand():
    """Seven rows to two processes, then three: the second pass begins with the process whose turn it is."""
    step = Step((((4, 7, 9), (1, 2, 1, 3)), ((5,), (4, 6))))
    first, second = deal(step, 2, forget=True, retain=True)
    assert [(s.forget, s.retain) for s in first] == [((4, 9), (2, 3)), ((7,), (1, 1))]
    assert [(s.forget, s.retain) for s in second] == [((), (4,)), ((5,), (6,))]
    assert len({k for s in (*first, *second) for k in s.keys}) == 10  # retain row 1 has a name for each time
    ((one, other),) = deal(Step((((4,), (1,)),)), 2, forget=True, retain=False)
    assert (one.forget, one.retain, other.forget, other.retain, other.keys) == ((4,), (), (), (), ())


@pytest.mark.parametrize(("world", "passes", "rows"), [(1, 8, 32), (4, 8, 8), (8, 4, 4), (16, 2, 2), (32, 1, 1)])
def test_no_process_is_without_rows_where_a_step_has_enough(world: int, passes: int, rows: int):
    """TOFU's fine-tuning: 8 micro-batches of 4 rows a step."""
    dealt = deal(Step(tuple(((), tuple(range(4 * i, 4 * i + 4))) for i in range(8))), world, forget=True, retain=True)
    assert len(dealt) == passes
    assert [sum(len(of[rank].keys) for of in dealt) for rank in range(world)] == [rows] * world


@given(world=st.integers(1, 9), size=st.integers(1, 4), n=st.integers(1, 9), kind=st.sampled_from("fr+"))
def test_the_rows_of_a_step_are_dealt_out(world: int, size: int, n: int, kind: str):
    options = {"forget": kind != "r", "retain": kind != "f"}
    for step in plan_epoch(lengths_of[n], lengths_of[3], size=size, accumulation=3, seed=0, epoch=0):
        micro = [(f if options["forget"] else (), r if options["retain"] else ()) for f, r in step.micro]
        alone = [share for (share,) in deal(step, 1, **options)]
        assert [(s.forget, s.retain) for s in alone] == micro  # one process takes the micro-batches as they are
        dealt = deal(step, world, **options)
        counts = [sum(len(of[rank].keys) for of in dealt) for rank in range(world)]
        assert max(counts) - min(counts) <= 1
        assert max(len(s.keys) for of in dealt for s in of) == math.ceil(max(len(f) + len(r) for f, r in micro) / world)
        named = {k: i for s in alone for k, i in zip(s.keys, (*s.forget, *s.retain), strict=True)}
        pairs = [(k, i) for of in dealt for s in of for k, i in zip(s.keys, (*s.forget, *s.retain), strict=True)]
        assert sorted(pairs) == sorted(named.items())  # each row once; a key means the same row anywhere
