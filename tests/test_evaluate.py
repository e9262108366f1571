"""soul_cli.evaluate: scores and greedy answers against plain calls of the language model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from soul_cli.core.files import read_lines, write_lines
from soul_cli.core.types import Prompted
from soul_cli.evaluate import abilities, decoding, generate, likelihood
from soul_cli.evaluate.generate import Told, greedy
from soul_cli.evaluate.likelihood import Scored, each, recited, score
from soul_cli.evaluate.room import bytes_a_token, tokens_a_batch
from soul_cli.experiment.config import compose
from soul_cli.models.answer_model import AnswerModel

GROUPS = [
    Prompted((5, 6, 7), ((8, 9, 2), (10, 2), (11, 12, 13, 2))),
    Prompted((9,), ((4, 2),)),
    Prompted((4, 4, 4, 5, 31, 17), ((7, 7, 9, 9, 40, 2), (3,))),
    Prompted((21, 22), ((23, 2),)),
]


# --- how much at a time ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "kept", "tokens"),
    [(64e9, 0, 32768), (64e9, 40e9, 65536), (300e9, 0, 65536), (8e9, 0, 4096), (0.1e9, 0, 1024), (0, 0, 1024)],
)
def test_a_batch_of_7b_on_a_gpu_by_hand(monkeypatch: pytest.MonkeyPatch, free: float, kept: float, tokens: int):
    """LLaMA2-7B in bfloat16: 2 bytes by 32 layers, keys and values of 4096 each, twice; and 12 x 4096 + 3 x 11008."""
    lm_config = compose(["model=llama2_7b"]).model.architecture.lm_config()
    lm = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.bfloat16, config=lm_config)
    assert bytes_a_token(lm) == 2 * (2 * 2 * 32 * 4096 + 12 * 4096 + 3 * 11008)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: kept + 14e9)  # what PyTorch keeps serves again
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 14e9)
    assert tokens_a_batch(lm) == tokens


def test_what_is_chosen_on_a_processor(tiny_lm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    lm, sizes = tiny_lm(), []
    batches = likelihood.by_length
    monkeypatch.setattr(likelihood, "by_length", lambda lengths, n: (sizes.append(n), batches(lengths, n))[1])
    monkeypatch.setattr(generate, "_batches", lambda lengths, room, wanted, n, mixed: (sizes.append(n), [wanted])[1])
    assert score(AnswerModel(lm), GROUPS, budget=None) == score(AnswerModel(lm), GROUPS, budget=8192)
    each(AnswerModel(lm), GROUPS[1:2], None, layer=None, budget=None)
    greedy(lm, PROMPTS, ends=(), most_new=[1] * len(PROMPTS), budget=None)
    assert set(sizes) == {8192}


# --- likelihood --------------------------------------------------------------------------------------------


def test_nll_is_the_mean_by_hand():
    assert Scored((-1.0, -2.0, -6.0), (1, 0, 0)).nll == 3.0


@torch.no_grad()
@pytest.mark.usefixtures("exact")
def test_score_is_the_loss_of_the_whole_model(tiny_lm: Callable[..., Any]):
    lm = tiny_lm(torch.float64, spread=0.3)
    for group, (prompt, *answers) in zip(
        GROUPS, score(AnswerModel(lm), GROUPS, budget=40, score_prompt=True), strict=True
    ):
        assert len(prompt.logps) == len(group.prompt) - 1
        for answer, scored in zip(group.answers, answers, strict=True):
            ids = torch.tensor([[*group.prompt, *answer]])
            labels = torch.tensor([[-100] * len(group.prompt) + list(answer)])
            out = lm(ids, labels=labels)
            assert scored.nll == pytest.approx(float(out.loss), abs=1e-10)
            best = out.logits[0, len(group.prompt) - 1 : -1].argmax(-1)
            assert scored.correct == tuple((best == torch.tensor(answer)).int().tolist())
            logps = out.logits[0].log_softmax(-1)
            expected = [float(logps[i, t]) for i, t in enumerate(group.prompt[1:])]
            assert prompt.logps == pytest.approx(expected, abs=1e-10)


def test_score_does_not_depend_on_budget_or_order(tiny_lm: Callable[..., Any]):
    model = AnswerModel(tiny_lm(torch.float64, spread=0.3))
    together = score(model, GROUPS, budget=1000)
    done: list[int] = []
    single = score(model, GROUPS, budget=1, progress=done.append)
    backwards = score(model, GROUPS[::-1], budget=20)[::-1]
    for other in (single, backwards):
        for a, b in zip(together, other, strict=True):
            assert [s.correct for s in a] == [s.correct for s in b]
            for x, y in zip(a, b, strict=True):
                assert x.logps == pytest.approx(y.logps, abs=1e-10)
    assert done == [1] * len(GROUPS)


def test_score_of_a_uniform_model(tiny_lm: Callable[..., Any]):
    lm = tiny_lm(vocab=48)
    torch.nn.init.zeros_(lm.get_input_embeddings().weight)
    (((scored),),) = score(AnswerModel(lm), [Prompted((5,), ((6, 2),))], budget=9)
    assert scored.nll == pytest.approx(math.log(48))


# --- generation --------------------------------------------------------------------------------------------

PROMPTS = [(5, 6, 7, 8), (9,), tuple(range(3, 15)), (30, 31), (40, 4, 4), (11, 12, 13, 14, 15), (22,), (7,) * 9]
MAX_TOTAL = 26


@pytest.fixture(params=["relative positions", "absolute positions"])
def lm(request: pytest.FixtureRequest, tiny_lm: Callable[..., Any]) -> Any:
    """A model whose greedy answers wander instead of repeating one token; EOS off, so that tests choose it."""
    lm = tiny_lm(torch.float64, spread=1.0)
    if request.param == "absolute positions":
        sizes = {"vocab_size": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        lm = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=1.0)).to(torch.float64).eval()
    lm.generation_config.eos_token_id = None
    return lm


def expected(lm: Any, eos: int | None, max_total: int = MAX_TOTAL) -> list[list[int]]:
    """What transformers generates for each prompt alone, without its EOS."""
    made = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        options = {"do_sample": False, "max_length": max_total, "eos_token_id": eos, "pad_token_id": 0}
        out = lm.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()
        made.append(out[:-1] if out[-1] == eos else out)
    return made


def up_to(total: int) -> list[int]:
    """The room for new tokens where prompt and answer have at most so many."""
    return [total - len(p) for p in PROMPTS]


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_greedy_is_that_of_transformers(lm: Any, rows: int):
    free = expected(lm, None)
    assert [len(a) for a in free] == [MAX_TOTAL - len(p) for p in PROMPTS]
    options = {"most_new": up_to(MAX_TOTAL), "budget": rows * MAX_TOTAL}
    assert greedy(lm, PROMPTS, ends=(), **options) == free
    eos = free[0][3]
    assert greedy(lm, PROMPTS, ends={eos}, **options) == expected(lm, eos)


def test_greedy_stops_at_every_eos(lm: Any, monkeypatch: pytest.MonkeyPatch):
    """With each token as EOS in turn, rows end early, late and never; the cache shrinks on the way."""
    free, kept = expected(lm, None), []
    select = DynamicCache.batch_select_indices
    monkeypatch.setattr(DynamicCache, "batch_select_indices", lambda s, i: (kept.append(len(i)), select(s, i)))
    for eos in {t for answer in free for t in answer[:8]}:
        cut = [answer[: answer.index(eos)] if eos in answer else answer for answer in free]
        assert greedy(lm, PROMPTS, ends={eos}, most_new=up_to(MAX_TOTAL), budget=1000) == cut
    assert {1, 2, 3} < set(kept)


class Played:
    """In the place of a GPU's recording of a step: the step itself."""

    def __init__(self, rows: decoding.Recorded):
        self.rows = rows

    def replay(self) -> None:
        self.rows.logits = self.rows._step()


class Reached:
    """In the place of a GPU's event."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


def test_recorded_steps_give_the_same_answers(lm: Any, monkeypatch: pytest.MonkeyPatch):
    """As on a GPU: the processor is told of the rows that have ended a step late."""
    free, taken, stayed = expected(lm, None), [], []
    keep = decoding.Recorded.keep
    monkeypatch.setattr(decoding.Recorded, "keep", lambda rows, index: (stayed.append(len(index)), keep(rows, index)))
    monkeypatch.setattr(generate, "Told", lambda rows, late: Told(rows, late=True))
    monkeypatch.setattr(torch.cuda, "Event", Reached)
    monkeypatch.setattr(decoding.Recorded, "_record", lambda rows: (taken.append(len(rows.ids)), Played(rows))[1])
    monkeypatch.setattr(abilities, "ways", lambda device: (decoding.Recorded,))
    options = {"most_new": up_to(MAX_TOTAL), "budget": 1000}
    assert greedy(lm, PROMPTS, ends=(), **options) == free
    for eos in {t for answer in free for t in answer[:8]}:
        cut = [answer[: answer.index(eos)] if eos in answer else answer for answer in free]
        assert greedy(lm, PROMPTS, ends={eos}, **options) == cut
    assert abilities.abilities(lm).decoding is decoding.Recorded
    assert {8, 4} < set(taken)
    ends = [3, 2, 2, 2]  # the step in which each row ends: the processor hears of three and of all at once

    def choose(logits: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
        return torch.tensor([2 if count + 1 == ends[i] else 7 for i in rows.tolist()])

    made = greedy(lm, PROMPTS[:4], ends={2}, most_new=[9] * 4, budget=1000, choose=choose)
    assert made == [[7] * (n - 1) for n in ends]
    assert {1, 2, 3} < set(stayed)
    assert 0 not in stayed  # no step without rows


def test_the_processor_is_told_of_the_step_before(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "Event", Reached)
    steps = [torch.tensor([True] * n + [False]) for n in (5, 3, 0)]
    assert [Told(6, late=False)(active) for active in steps[1:2]] == [3]
    late = Told(6, late=True)
    assert [late(active) for active in steps] == [6, 5, 3]


def test_first_token_is_the_arg_max_after_the_prompt(lm: Any):
    first = [int(lm(torch.tensor([p])).logits[0, -1].argmax()) for p in PROMPTS]
    room_for_one = [greedy(lm, [p], ends=(), most_new=[1], budget=99)[0] for p in PROMPTS]
    assert room_for_one == [[t] for t in first]
    made = [greedy(lm, [p], ends={t}, most_new=[9], budget=99) for p, t in zip(PROMPTS, first, strict=True)]
    assert made == [[[]]] * 8


def test_prompts_without_room_get_no_answer(lm: Any):
    done: list[int] = []
    made = greedy(lm, PROMPTS, ends=(), most_new=up_to(5), budget=15, progress=done.append)
    assert [len(m) for m in made] == [max(0, 5 - len(p)) for p in PROMPTS]
    assert [m[:1] for m in made if m] == [a[:1] for a, m in zip(expected(lm, None), made, strict=True) if m]
    assert sum(done) == len(PROMPTS)
    most = [i % 3 for i in range(len(PROMPTS))]
    made = greedy(lm, PROMPTS, ends=(), most_new=most, budget=15)
    assert made == [a[:n] for a, n in zip(expected(lm, None), most, strict=True)]
    assert greedy(lm, [], ends={2}, most_new=[], budget=9) == []


def test_what_is_known_to_be_said_is_not_decoded_again(lm: Any, monkeypatch: pytest.MonkeyPatch):
    """From any right beginning on, the answers are the same, and the model is asked less."""
    free = expected(lm, None)
    eos = free[0][3]
    answers = [[*a[: a.index(eos)], eos] if eos in a else a for a in free]
    options = {"ends": {eos}, "most_new": up_to(MAX_TOTAL), "budget": 60}
    plain = greedy(lm, PROMPTS, **options)
    for cut in (0, 1, 4, MAX_TOTAL):
        known = [tuple(a[: (cut * (i + 1)) // 4]) for i, a in enumerate(answers)]
        assert greedy(lm, PROMPTS, known=known, **options) == plain
    asked: list[int] = []
    monkeypatch.setattr(lm, "forward", lambda *args, **options: asked.append(1))
    whole = [tuple(a) for a in answers]
    assert greedy(lm, PROMPTS, known=whole, **options) == plain
    assert not asked
    short = greedy(lm, PROMPTS, ends={eos}, most_new=[2] * 8, known=whole, budget=60)
    assert short == [a[:2] for a in plain]


def test_recited_ends_before_the_first_miss():
    for correct, expected in (((1, 1, 0, 1), (7, 8)), ((0, 1, 1, 1), ()), ((1, 1, 1, 1), (7, 8, 9, 2))):
        assert recited((5, 6), Prompted((5, 6), ((7, 8, 9, 2),)), Scored((-1.0,) * 4, correct)) == expected


def test_nothing_is_recited_where_the_answer_was_scored_behind_other_ids():
    """As with tokens that hold a space and what follows it: from "[/INST] " the answer is another row of tokens."""
    assert recited((5, 6), Prompted((5,), ((67, 8, 2),)), Scored((-1.0,) * 3, (1, 1, 1))) == ()


# --- rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        'Pécs {q} "x"\n\ttwo',
        "a\u0085b\u2028c",
    ],
)
def test_rows_come_back_as_they_were_written(tmp_path: Path, text: str):
    rows = [{"split": "forget", "generation": text, "nll": 0.1}, {"split": "retain", "correct": [1, 0]}]
    write_lines(tmp_path / "rows.jsonl", rows)
    assert read_lines(tmp_path / "rows.jsonl") == rows
