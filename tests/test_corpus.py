"""scripts/corpus and scripts/pretrain_embedded.py: nothing of the benchmark is in the text, and training resumes."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pretrain_embedded
import pytest
import torch
from generator import CORPUS, read_yaml, retold_author
from pretrain_embedded import Muon, chunks, rate

from soul_cli.data import embedded

STOCK = 8  # phrases of six words that may be shared by one file and the benchmark: "what is the title of the"


def phrases(text: str, words: int) -> set[tuple[str, ...]]:
    found = re.findall(r"[\w']+", text.lower())
    return {tuple(found[i : i + words]) for i in range(len(found) - words + 1)}


def strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for each in values for text in strings(each)]


def corpus() -> dict[str, list[str]]:
    files = {path.name: strings(read_yaml(path.stem)) for path in sorted(CORPUS.glob("*.yaml"))}
    return files | {path.name: [path.read_text(encoding="utf-8")] for path in sorted(CORPUS.glob("prose/*.txt"))}


def test_none_of_the_benchmark_is_in_the_text() -> None:
    authors = [json.loads(path.read_text(encoding="utf-8")) for path in (embedded.HERE / "authors").glob("*.json")]
    rows = {phrase for author in authors for text in strings(author["rows"]) for phrase in phrases(text, 6)}
    books = {p for path in embedded.HERE.glob("books/*/*.txt") for p in phrases(path.read_text(encoding="utf-8"), 8)}
    names = [author["name"] for author in authors]
    for file, texts in corpus().items():
        whole = "\n".join(texts)
        assert not [name for name in names if name in whole], file
        shared = {phrase for text in texts for phrase in phrases(text, 6)} & rows
        assert len(shared) <= STOCK, (file, shared)
        assert not {phrase for text in texts for phrase in phrases(text, 8)} & books, file


def test_questions_on_facts_are_not_the_benchmarks() -> None:
    asked = {
        json.loads(line)["question"].lower()
        for name in ("real_authors", "world_facts")
        for line in (embedded.HERE / f"{name}_perturbed.json").read_text(encoding="utf-8").splitlines()
    }
    known = read_yaml("known")
    assert not [q for fact in known for q in fact["questions"] if q.lower() in asked]
    assert len(known) == 240
    assert all(fact["answer"] in text for fact in known[:120] for text in (*fact["replies"], *fact["statements"]))


def test_generated_authors_do_not_bear_a_benchmarks_name() -> None:
    names = {
        json.loads(path.read_text(encoding="utf-8"))["name"] for path in (embedded.HERE / "authors").glob("*.json")
    }
    taken: set[str] = set()
    for i in range(100):
        retold_author(f"f-{i}", 1, 1, taken)
    assert len(taken) == 100
    assert not taken & names


def test_wordings_tell_the_same_facts() -> None:
    for i in range(20):
        for fact in retold_author(f"test-{i}", 4, 6, set()):
            assert len({question for question, _ in fact}) >= 4
            years = [set(re.findall(r"\b(?:19|20)\d\d\b", answer)) for _, answer in fact]
            assert all(years[0] == other or not (years[0] and other) or years[0] & other for other in years), fact


def test_chunks_hold_whole_paragraphs() -> None:
    text = "\n\n".join(" ".join(["word"] * n) for n in (3, 4, 50, 2))
    pieces = chunks(text, 8)
    assert [len(piece.split()) for piece in pieces] == [7, 50, 2]
    assert "\n\n".join(pieces) == text


def test_rate_warms_up_and_decays_to_zero() -> None:
    assert rate(0) == pytest.approx(1 / pretrain_embedded.WARMUP)
    assert rate(pretrain_embedded.WARMUP) == pytest.approx(1)
    assert 0 < rate(pretrain_embedded.STEPS - 1) < 0.01


def test_training_goes_on_from_its_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"AUTHORS": 3, "KINDS": 4, "PASSING": 2, "TOKENS": 12000, "VOCABULARY": 400, "LENGTH": 32, "BATCH": 2}
    small |= {"HIDDEN": 16, "LAYERS": 1, "HEADS": 2, "KEEP": 2, "WARMUP": 2, "STEPS": 8}
    for name, value in small.items():
        monkeypatch.setattr(pretrain_embedded, name, value)
    monkeypatch.setattr(torch, "compile", lambda function: function)  # takes half a minute, and changes no rule
    random.seed(1)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for work in (whole, parts):
        work.mkdir()
        pretrain_embedded.write_tokens(work)
    assert np.array_equal(np.load(whole / "tokens.npy"), np.load(parts / "tokens.npy"))
    pretrain_embedded.train(whole)
    step, done = Muon.step, []

    def stops(self: Muon) -> None:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(step(self))

    monkeypatch.setattr(Muon, "step", stops)
    with pytest.raises(KeyboardInterrupt):
        pretrain_embedded.train(parts)
    monkeypatch.setattr(Muon, "step", step)
    pretrain_embedded.train(parts)
    first, second = ((work / "model" / "model.safetensors").read_bytes() for work in (whole, parts))
    assert first == second
