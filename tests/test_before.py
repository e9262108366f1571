"""What is checked before anything is trained: the length of every text, and rows of another run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import finish, start

from soul_cli.core.types import QA, Row, UserError
from soul_cli.data.encode import Encoder
from soul_cli.evaluate.config import EvalConfig
from soul_cli.experiment.config import compose
from soul_cli.tasks.base import TaskData, check_lengths, measure_training, measured, read_retain_rows

FULL = QA("What?", "Right.", "Which?", "Quite right.", ("Wrong.", "Quite wrong."))


def quiet(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def encoder(tokenizer: Any) -> Encoder:
    return Encoder(tokenizer, "plain", 128)


class Recording(Encoder):
    """Notes what it encodes."""

    longest = 0

    def pair(self, question: str, answer: str) -> Any:
        made = super().pair(question, answer)
        self.longest = max(self.longest, len(made))
        return made

    def text(self, text: str) -> Any:
        made = super().text(text)
        self.longest = max(self.longest, len(made))
        return made


@pytest.mark.parametrize(
    ("task", "split", "items"),
    [
        ("tofu", "forget", [FULL]),
        ("tofu", "real_authors", [QA("What?", "Right.", perturbed_answer=("Wrong.", "Not at all."))]),
        ("tofu", "holdout", [QA("What?", "Right.")]),
        ("copyright", "forget", [QA("", " ".join(f"w{n}" for n in range(32)))]),
        ("copyright", "heldout_text", [QA("", "A few words only.")]),
    ],
)
def test_the_longest_text_of_an_evaluation_is_known_before(
    tiny_lm: Callable[..., Any], tokenizer: Any, task: str, split: str, items: list[QA]
):
    config = compose([f"task={task}", *(["task.prompt_words=[20]"] if task == "copyright" else [])])
    recorder = Recording(tokenizer, "plain", 512)
    found = config.task.measure(recorder, split, items)
    assert recorder.longest == 0
    config.task.evaluate(tiny_lm(vocab=len(tokenizer)), recorder, split, items, config.eval, quiet)
    assert max(size for _, size in found) == recorder.longest > 0


def test_texts_that_do_not_fit_are_counted_and_named(encoder: Encoder):
    parts = {"forget": measured(encoder, [QA("Short?", "Yes."), QA("Long?", "x" * 90), QA("Longer?", "x" * 95)])}
    sizes = [size for _, size in parts["forget"]]
    check_lengths(parts, sizes[2])
    with pytest.raises(UserError) as error:
        check_lengths(parts | {"world_facts": [("Huge?", 900)]}, sizes[1] - 1)
    assert str(error.value) == (
        f"texts that model.max_length={sizes[1] - 1} does not hold (prompt, answer, end): forget: 2 of 3, the first is "
        f"number 2, 'Long?', the longest has {sizes[2]} tokens; world_facts: 1 of 1, the first is number 1, 'Huge?', "
        "the longest has 900 tokens"
    )


def test_refusals_are_measured_with_the_longest_question(encoder: Encoder):
    data = TaskData([], [QA("A?", "a"), QA("A longer one?", "b")], [], ["No.", "I cannot say."], "", {}, [], "")
    parts = measure_training(encoder, data, data.forget, refused=data.forget)
    assert parts["refusals"] == [
        (text, len(encoder.pair("A longer one?", text))) for text in ("No.", "I cannot say.")
    ]  # fmt: skip
    assert "refusals" not in measure_training(encoder, data, data.forget, refused=[])


def test_what_the_evaluation_cuts_is_said(encoder: Encoder):
    config = compose([])
    splits = {"forget": [FULL], "retain": [FULL, QA("What?", "x" * 40)]}
    whole = len(encoder.pair("What?", "x" * 40)) - 1

    def cut(most: int) -> list[str]:
        return config.task.cut(encoder, splits, EvalConfig(**{**vars(config.eval), "max_total": most}))

    assert cut(whole) == []
    assert cut(whole - 1) == [
        f"eval.max_total={whole - 1} ends answers before the true one does: retain 1 (longest {whole} tokens)"
    ]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"split": "forget", "question": "What?"}], None),
        ([{"split": "forget", "question": "Who?"}], "'Who?' where this run asks 'What?'"),
        ([{"split": "forget", "question": "What?"}] * 2, "2 forget questions; this run asks 1"),
        ([{"split": "forget"}], "None where this run asks 'What?'"),
    ],
)
def test_rows_of_other_questions_are_refused(rows: list[Row], words: str | None):
    task = compose(["task.retain_rows=some/rows.jsonl"]).task
    if words is None:
        task.check_retain_rows(rows, {"forget": [FULL]})
        return
    with pytest.raises(UserError) as error:
        task.check_retain_rows(rows, {"forget": [FULL]})
    assert "task.retain_rows=some/rows.jsonl" in str(error.value)
    assert words in str(error.value)


def test_rows_of_another_book_are_refused():
    task = compose(["task=copyright"]).task
    splits = {"forget_text": [QA("", "One."), QA("", "Two.")]}
    task.check_retain_rows([{"split": "forget_text", "gold": g} for g in ("One.", "Two.")], splits)
    with pytest.raises(UserError, match="its 1 chunks to forget are not this run's 2"):
        task.check_retain_rows([{"split": "forget_text", "gold": "One."}], splits)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no row of the split 'forget'"),
        ('{"split": "retain"}', "no row of the split 'forget'"),
        ('{"splits": 1}', "line 1: field 'split' is missing"),
        ("[1]", "item 1: must be a JSON object"),
        (b'{"split": "forget", "gold": "\xe9"}', "line 1: not UTF-8"),
        ('{"split": "forget"}\n{"split"', "line 2: not JSON"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, text: str | bytes, message: str):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=rf"rows\.jsonl.*{message}"):
        read_retain_rows(path)
    path.write_text('\ufeff{"split": "forget", "nll": NaN}\n')
    assert read_retain_rows(path)[0]["split"] == "forget"


def test_nothing_is_trained_before_the_checks(data: Path, tmp_path: Path):
    """One false answer too long for the model, and rows of another run: each ends the run with one message."""
    cache, out, folder = tmp_path / "cache", tmp_path / "out", tmp_path / "data"
    folder.mkdir()
    for file in data.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    lines = (folder / "world_facts_perturbed.json").read_text().splitlines()
    row = json.loads(lines[4])
    lines[4] = json.dumps(row | {"perturbed_answer": [*row["perturbed_answer"][:-1], "very " * 900]})
    (folder / "world_facts_perturbed.json").write_text("\n".join(lines))
    said = finish(start(folder, cache, out, "model.max_length=512"), code=2)
    assert "world_facts: 1 of" in said
    assert "texts that model.max_length=512 does not hold" in said
    (tmp_path / "rows.jsonl").write_text('{"split": "forget", "question": "Who?"}\n')
    said = finish(start(data, cache, out, f"task.retain_rows={tmp_path}/rows.jsonl"), code=2)
    assert "'Who?' where this run asks" in said
    assert not list(cache.glob("models/*/cost.json"))
