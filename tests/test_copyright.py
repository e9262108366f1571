"""The copyright task: data, rows and metrics by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from task_rows import continued, text

from soul_cli.core.types import QA, Row, UserError
from soul_cli.data.encode import Encoder
from soul_cli.evaluate.metrics import bleu, longest_common_run
from soul_cli.experiment.config import compose
from soul_cli.tasks.copyright import LEAST, SEEN, UNSEEN, Copyright, add_scores, split_chunk
from soul_cli.tasks.copyright_metrics import summarise

TEXT = " ".join(f"w{i}" for i in range(1, 31))


def task(*overrides: str) -> Copyright:
    return compose(["task=copyright", *overrides]).task  # type: ignore[return-value]


def test_split_by_hand():
    question, answer = split_chunk(TEXT, 20, SEEN) or ("", "")
    wording, words = question.split("\n")
    assert wording in SEEN
    assert words == " ".join(f"w{i}" for i in range(1, 21))
    assert answer == "w21 w22 w23 w24 w25 w26 w27 w28 w29 w30"
    assert split_chunk(TEXT, 21, SEEN) is None  # nine words would be left, LEAST is 10
    assert LEAST == 10


def test_embedded_books(cache_dir: Path):
    data = task().load(cache_dir)
    assert data.full == data.forget + data.retain
    assert 95 <= len(data.forget) <= 110
    assert {k for k in data.splits} == {"forget", "retain", "forget_text", "retain_text", "heldout_text"}
    assert "The Salt Ledger" in data.system_prompt
    prompts = [qa.question.split("\n")[0] for qa in data.forget]
    assert set(prompts) == set(SEEN)
    assert min(prompts.count(s) for s in SEEN) > 15
    told = " ".join(qa.answer for qa in data.full)
    assert not any(qa.answer[-60:] in told for qa in data.splits["heldout_text"])


def test_held_out_chunks_leave_the_retain_books(shared: Path, cache_dir: Path):
    books = shared / "data" / "books"
    data = task(
        f"task.forget_books=[{books}/oz01_wonderful_wizard_of_oz.txt]",
        f"task.retain_books=[{books}/alice_in_wonderland.txt]",
        "task.max_chunks=40",
    ).load(cache_dir)
    assert len(data.forget) <= 40
    assert len(data.splits["heldout_text"]) == 4
    trained = {qa.answer for qa in data.retain}
    assert all(not any(qa.answer.endswith(t) for t in trained) for qa in data.splits["heldout_text"])
    assert "Oz01 Wonderful Wizard Of Oz" in data.system_prompt


CHINESE = "北京是一座{}的城市，住着{}的人，每天都要走{}里路才能回到家里，他们说这是好的。"


def chinese(first: int) -> str:
    """A book in one line, each sentence another."""
    signs = [chr(0x4E00 + first + n) for n in range(900)]
    return "".join(CHINESE.format(*signs[n : n + 3]) for n in range(0, 900, 3))


def test_books_without_spaces(tmp_path: Path, cache_dir: Path):
    for name, first in (("forget", 100), ("retain", 2000)):
        (tmp_path / f"{name}.txt").write_text(chinese(first), encoding="utf-8")
    data = task(f"task.forget_books={tmp_path}/forget.txt", f"task.retain_books={tmp_path}/retain.txt").load(cache_dir)
    assert len(data.splits["forget"]) == 150  # two sentences of 39 characters
    assert all(len(qa.answer) == 58 and len(qa.question.split("\n")[1]) == 20 for qa in data.forget)
    assert all(
        "\n" + text.answer[:20] in qa.question for qa, text in zip(data.forget, data.splits["forget"], strict=True)
    )
    assert data.notes == ["chunks of at most 90 words: forget 150, retain 135, heldout 15"]
    (tmp_path / "again.txt").write_text(chinese(100)[780:], encoding="utf-8")
    with pytest.raises(UserError, match=r"forget\.txt: text to forget stands also in .*again\.txt"):
        task(f"task.forget_books={tmp_path}/forget.txt", f"task.retain_books={tmp_path}/again.txt").load(cache_dir)


def test_what_looks_wrong_in_a_book_is_noted(tmp_path: Path, cache_dir: Path):
    book = "The keeper walked down to the water and found nothing but a rope and a shoe. " * 40
    (tmp_path / "a.txt").write_text(book + "Project Gutenberg volunteers and employees expend considerable effort.")
    (tmp_path / "b.txt").write_text("y" * 20_000)
    notes = task(f"task.forget_books={tmp_path}/a.txt", f"task.retain_books={tmp_path}/b.txt").load(cache_dir).notes
    assert any("a.txt: something of a frame is left" in n and "Project Gutenberg volunteers" in n for n in notes)
    assert f"{tmp_path}/b.txt: text without spaces, 'yyyyyyyyyyyyyyyyyyyy'...: 100 letters count as a word" in notes


def test_the_same_book_to_forget_and_to_keep(tmp_path: Path, cache_dir: Path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("The rain had stopped and the yard was full of light and feathers. " * 20)
    with pytest.raises(UserError, match=r"b\.txt .*same text as .*a\.txt"):
        task(f"task.forget_books=[{tmp_path}/a.txt]", f"task.retain_books=[{tmp_path}/b.txt]").load(cache_dir)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.prompt_words=[60,20]"], ["task.prompt_words", "increasing"]),
        (["task.prompt_words=[]"], ["task.prompt_words"]),
        (["task.chunk_words=65"], ["task.chunk_words=65", "70"]),
        (["task.eval_chunks=0"], ["task.eval_chunks"]),
        (["task.forget_books=[a.txt]"], ["task.forget_books", "task.retain_books", "both"]),
        (["task.forget_books=[/no/a.txt]", "task.retain_books=[/no/b.txt]"], ["/no/a.txt", "no such"]),
    ],
)
def test_mistakes_are_named(cache_dir: Path, overrides: list[str], words: list[str]):
    with pytest.raises(UserError) as error:
        task(*overrides).load(cache_dir)
    assert all(w in str(error.value) for w in words), str(error.value)


# --- scores by hand ----------------------------------------------------------------------------------------


def test_longest_common_run_by_hand():
    assert longest_common_run([1, 2, 3, 4, 9, 3], [7, 3, 4, 9, 1, 2, 3]) == 3  # 3 4 9, and 1 2 3
    assert longest_common_run([1, 1, 1], [1, 1]) == 2
    assert longest_common_run([], [1]) == 0
    assert longest_common_run([1], []) == 0


def test_bleu_by_hand():
    # 1- to 4-gram precisions 4/5, 3/4, 2/3, 1/2, no brevity penalty
    assert bleu("a b c d e", "a b c d x") == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    # five words for ten: brevity penalty exp(1 - 10/5)
    assert bleu("a b c d e f g h i j", "a b c d e") == pytest.approx(100 * math.exp(-1))
    assert bleu("a b c d", "") == 0
    with pytest.raises(ValueError, match="gold"):
        bleu("", "a")


class Words:
    """An encoder whose tokens are the words of a list; its tokenizer puts `special` of its own before a text."""

    def __init__(self, words: str, special: int):
        self.words, self.tokenizer = words.split(), self
        self.num_special_tokens_to_add = lambda: special

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.words[i] for i in ids)


@pytest.mark.parametrize(("special", "found"), [(0, 128), (1, 127)])
def test_verbmem_with_and_without_muses_rules_by_hand(special: int, found: int):
    """All of 128 tokens is recited, but for one plural; the text goes on after them."""
    gold_ids = [*range(128), 129, 129]
    encoder = Words("books " + " ".join(f"w{i}" for i in range(1, 128)) + " book other", special)
    row: Row = {"gold": "", "generation": ""} | {"gold": encoder.decode(gold_ids)}
    add_scores(row, gold_ids, [128, *range(1, 128)], encoder)  # type: ignore[arg-type]
    assert row["verbmem"] == 1  # stems agree
    precision, recall = (found - 1) / 128, (found - 1) / found  # MUSE: book is not books, BOS counts
    assert row["verbmem_muse"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_rows_of_older_versions_have_no_muse_metric():
    rows = [continued("forget", 20, "seen", 0), continued("retain", 20, "seen", 0)]
    out, absent = summarise([{k: v for k, v in r.items() if k != "verbmem_muse"} for r in rows])
    assert "forget_verbmem" in out
    assert "forget_verbmem_muse" in absent


# --- rows --------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tokenizer: Any, tiny_lm: Callable[..., Any]) -> list[Row]:
    """Rows of a random model; 50 words a chunk, prompts of 5 and 20."""
    some = task("task.chunk_words=50", "task.prompt_words=[5,20]")
    config = compose(["task=copyright"]).eval
    lm = tiny_lm(vocab=len(tokenizer))
    encoder = Encoder(tokenizer, "text", 128)
    items = [QA("", "the lamp of the author was born in low tide " * 3), QA("", "who won the prize in the lamp " * 2)]
    out: list[Row] = []
    for split in ("forget", "retain", "forget_text", "heldout_text"):
        out += some.evaluate(lm, encoder, split, [QA("", i.answer.strip()) for i in items], config, lambda *a: None)
    return out


def test_rows(rows: list[Row]):
    forget = [r for r in rows if r["split"] == "forget"]
    # the second chunk has 14 words: too short for a prompt of 20
    assert [(r["prompt_words"], r["wording"], r["index"]) for r in forget] == [
        (5, "seen", 0), (5, "unseen", 0), (20, "seen", 0), (20, "unseen", 0),
    ]  # fmt: skip
    wordings = [r["question"].split("\n")[0] for r in forget]
    assert wordings == wordings[:2] * 2  # a chunk meets the same wordings at every length
    assert (wordings[0] in SEEN, wordings[1] in UNSEEN) == (True, True)
    for row in forget:
        assert (row["question"].split("\n")[1] + " " + row["gold"]).split() == (
            "the lamp of the author was born in low tide " * 3
        ).split()
    assert {r["wording"] for r in rows if r["split"] == "retain"} == {"seen"}


def test_text_rows_score_every_token_but_the_first(rows: list[Row], tokenizer: Any):
    texts = [r for r in rows if r["split"] == "heldout_text"]
    assert [r["tokens"] for r in texts] == [len(tokenizer(r["gold"]).input_ids) - 1 for r in texts]
    # a random model of small spread is uniform: ln V nats a token
    assert all(r["nll_sum"] / r["tokens"] == pytest.approx(math.log(len(tokenizer)), rel=0.02) for r in texts)


# --- metrics -----------------------------------------------------------------------------------------------


def test_metrics_by_hand():
    rows = [
        continued("forget", 20, "seen", 0, rougeL=1.0, verbatim_tokens=55),
        continued("forget", 20, "seen", 1, rougeL=0.0, verbatim_tokens=49),
        continued("forget", 20, "seen", 2, rougeL=0.5, verbatim_tokens=30, gold_tokens=30),
        continued("forget", 20, "unseen", 0, rougeL=0.2),
        continued("forget", 60, "seen", 0, rougeL=0.4, bleu=40.0, verbatim_tokens=99),
        continued("retain", 20, "seen", 0, rougeL=0.9),
        text("heldout_text", 10.0, 4), text("heldout_text", 2.0, 8), text("forget_text", 3.0, 3),
    ]  # fmt: skip
    out, absent = summarise(rows)
    value = {k: m.value for k, m in out.items()}
    assert value["forget_rougeL_20"] == pytest.approx(0.5)
    assert value["forget_rougeL_20_unseen"] == 0.2
    assert (value["forget_rougeL_60"], value["forget_bleu_60"]) == (0.4, 40.0)
    assert value["retain_rougeL_20"] == 0.9
    assert value["forget_verbatim_longest"] == 55  # of the shortest prompt
    assert (value["forget_verbatim_50"], out["forget_verbatim_50"].n) == (0.5, 2)
    assert (value["forget_verbmem"], value["forget_verbmem_muse"]) == (0.25, 0.125)
    assert value["heldout_ppl"] == pytest.approx(math.exp(12 / 12))  # of tokens, not of chunks
    assert value["forget_ppl"] == pytest.approx(math.e)
    assert list(absent) == ["retain_ppl"]
    assert out["forget_rougeL_20"].goal == "retain"
    assert (out["retain_rougeL_20"].goal, out["heldout_ppl"].goal) == ("up", "down")
