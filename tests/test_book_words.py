"""soul_cli.data.words: words, sentences and cuts, with spaces between words and without."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soul_cli.data.words import LONGEST, count, ends, join, run_on, sentences, split_at


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("  \n", 0),
        ("one two-three  four's", 3),
        ("Привет, мир", 2),
        ("한국어 문장", 2),  # Korean is written with spaces
        ("北京是一座古老的城市。", 11),
        ("ひらがなとカタカナ", 9),
        ("北京 is old", 4),
        ("ที่นี่", 2),  # two consonants; vowel signs and tone marks are no letters of their own
        ("x" * LONGEST, 1),
        ("x" * (2 * LONGEST + 1), 3),
    ],
)
def test_count_by_hand(text: str, words: int):
    assert count(text) == words == len(list(ends(text)))


def test_split_by_hand():
    assert split_at("one two three", 2) == ("one two", "three")
    assert split_at("one two", 2) == ("one two", "")
    assert split_at("one two", 5) == ("one two", "")
    assert split_at("one two", 0) == ("", "one two")
    assert split_at("北京是一座", 2) == ("北京", "是一座")
    assert split_at("y" * 250, 2) == ("y" * 200, "y" * 50)


@given(st.lists(st.sampled_from(["ab", "北", "京是", "é", "กำ", "z" * 150]), min_size=1), st.integers(0, 30))
def test_a_split_loses_nothing(parts: list[str], words: int):
    text = " ".join(parts)
    first, rest = split_at(text, words)
    assert (first + rest).replace(" ", "") == text.replace(" ", "")
    assert count(first) == min(words, count(text))
    assert count(first) + count(rest) == count(text)
    assert all(a < b for a, b in pairwise(ends(text)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("北京是城市。他说：「好！」然后走了？！真的。", ["北京是城市。", "他说：「好！」", "然后走了？！", "真的。"]),
        ("他说：“好。”然后。  第二", ["他说：“好。”", "然后。", "第二"]),
        ("北京是\n一座城市。", ["北京是一座城市。"]),  # a line's end is no space
        ("one\ntwo", ["one two"]),
        ("Он ушёл. Дверь закрылась! а потом?", ["Он ушёл.", "Дверь закрылась! а потом?"]),
        ("Il part. Élan vital. «Oui.» «Non.»", ["Il part.", "Élan vital.", "«Oui.»", "«Non.»"]),
        ("राम गया। सीता आई।", ["राम गया।", "सीता आई।"]),
        ("He left. _She_ stayed. 3 days", ["He left. _She_ stayed.", "3 days"]),
        ("。", ["。"]),
        ("", []),
    ],
)
def test_sentences_by_hand(text: str, expected: list[str]):
    assert list(sentences(text)) == expected


def test_join_puts_a_space_where_the_script_has_one():
    assert join(join("", "One."), "Two.") == "One. Two."
    assert join("北京。", "他说。") == "北京。他说。"
    assert join("他说：“好。”", "然后") == "他说：“好。”然后"
    assert join("第一章", "北京。") == "第一章 北京。"


def test_a_run_without_a_space():
    assert run_on(f"one {'x' * LONGEST} two {'京' * 300}") == ""
    assert run_on(f"one {'y' * 120} two") == "y" * 120
