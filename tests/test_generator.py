"""soul_cli.data.generator: rows for any number of authors, always the same."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from generator import FALSE_ANSWERS, ROWS, generate_authors

from soul_cli.core.files import digest
from soul_cli.core.types import QA
from soul_cli.data.tofu import author_names

TEXTS = ("question", "answer", "paraphrased_question", "paraphrased_answer")


@pytest.fixture(scope="module")
def hundred() -> list[dict[str, Any]]:
    return generate_authors(100, seed=0)


def test_counts_and_fields(hundred: list[dict[str, Any]]):
    assert len(hundred) == 100
    for author in hundred:
        assert set(author) == {"name", "rows"}
        assert len(author["rows"]) == ROWS == 20
        for row in author["rows"]:
            assert set(row) == {*TEXTS, "perturbed_answer"}
            assert len(row["perturbed_answer"]) == FALSE_ANSWERS == 5


def test_names_questions_and_answers_are_unique(hundred: list[dict[str, Any]]):
    rows = [row for author in hundred for row in author["rows"]]
    assert len({a["name"] for a in hundred}) == 100
    assert len({row["question"] for row in rows}) == len({row["answer"] for row in rows}) == 2000
    for row in rows:
        assert len({row["paraphrased_answer"], *row["perturbed_answer"]}) == 6
        assert row["question"] != row["paraphrased_question"]


def test_a_name_is_not_given_twice():
    authors = generate_authors(100, seed=1)  # two of these would draw the same name
    assert len({a["name"] for a in authors}) == 100


def test_texts_are_finished(hundred: list[dict[str, Any]]):
    for author in hundred:
        for row in author["rows"]:
            assert author["name"] in row["question"]
            for text in [*(row[k] for k in TEXTS), *row["perturbed_answer"]]:
                assert text == " ".join(text.split()) != ""
                assert not set("{}|=_") & set(text), text
                assert text[0] == text[0].upper()
            assert all(row[key][-1] in "?." for key in TEXTS if "question" in key)  # "Name the ..."
            assert {text[-1] for text in [row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]]} == {"."}


def test_same_seed_same_authors_whatever_the_count(hundred: list[dict[str, Any]]):
    for count in (0, 1, 7, 60):
        assert generate_authors(count, seed=0) == hundred[:count]
    assert generate_authors(3, seed=1) != hundred[:3]


# of json.dumps(..., sort_keys=True); with other texts the base model is another model
DIGESTS = {(11, 7): "e13f07a17813240a", (44, 0): "0793d5ee2211a23f"}


@pytest.mark.parametrize(("count", "seed"), DIGESTS)
def test_every_text_is_as_it_always_was(count: int, seed: int):
    assert digest(generate_authors(count, seed)) == DIGESTS[count, seed]


def test_no_dependence_on_the_hash_seed(hundred: list[dict[str, Any]]):
    code = (
        "from soul_cli.core.cache import digest; from generator import generate_authors;"
        "print(digest(generate_authors(20, 0)))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == digest(hundred[:20])


def test_names_can_be_read_off_the_rows(hundred: list[dict[str, Any]]):
    rows = [QA(row["question"], row["answer"]) for author in hundred for row in author["rows"]]
    assert author_names(rows) == [a["name"] for a in hundred]
