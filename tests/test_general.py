"""General ability: configuration, rows -> metrics by hand, and (where lm-eval is installed) the tasks themselves."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from soul_cli.core.cache import Cache
from soul_cli.core.types import Metric, Row, UserError
from soul_cli.evaluate import general, lm_tasks
from soul_cli.evaluate.general import FILES, ZERO_SHOT, LmEvalConfig
from soul_cli.experiment import evaluation
from soul_cli.experiment.config import compose
from soul_cli.experiment.context import Context
from soul_cli.tasks import general_metrics, tofu_metrics

LOCAL_TASKS = Path(general.__file__).parent / "lm_tasks"
needs_lm_eval = pytest.mark.skipif(general.find_spec("lm_eval") is None, reason="the extra 'lm-eval' is not installed")


def settings(**values: Any) -> LmEvalConfig:
    fixed = {"tasks": [], "data_dir": None, "include_path": None, "limit": None, "batch_size": 3, "max_length": None}
    return LmEvalConfig(**{**fixed, **values})


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval counts as installed."""
    monkeypatch.setattr(general, "find_spec", lambda name: object())
    monkeypatch.setattr(general, "version", lambda name: "0.4.13")


# --- configuration -----------------------------------------------------------------------------------------

MISTAKES = [
    (["limit=0"], ["eval.lm_eval.limit=0", "1 or more", "null"]),
    (["batch_size=0"], ["eval.lm_eval.batch_size=0", "1 or more"]),
    (["max_length=1"], ["eval.lm_eval.max_length=1", "2 or more"]),
    (["tasks=null"], ["eval.lm_eval.tasks"]),
    (["tasks=[piqa]", "include_path=/nowhere"], ["eval.lm_eval.include_path=/nowhere", "folder"]),
    (["tasks=[general]", "data_dir=/nowhere"], ["eval.lm_eval.data_dir=/nowhere", "wikitext-2-raw/test.jsonl"]),
]


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize(("overrides", "words"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_mistakes_are_named(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        compose([f"eval.lm_eval.{o}" for o in overrides])
    assert all(w in str(error.value) for w in words), str(error.value)


def test_missing_package_is_named_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(general, "find_spec", lambda name: None)
    assert settings(data_dir="/nowhere").names() == []
    with pytest.raises(UserError, match=r"pip install 'soul-unlearn\[lm-eval\]'"):
        settings(tasks=["piqa"])


@pytest.mark.usefixtures("pretended")
def test_general_stands_for_eleven_tasks() -> None:
    eleven = {*ZERO_SHOT, "wikitext", "truthfulqa_mc1", "truthfulqa_mc2"}
    names = settings(tasks=["piqa", "general", "lambada_openai"]).names()
    assert set(names) == {*eleven, "lambada_openai"}
    assert len(names) == 12
    assert {p.stem for p in LOCAL_TASKS.glob("[a-z]*.yaml")} == eleven


@pytest.mark.usefixtures("pretended")
def test_identity_follows_content_not_paths(tmp_path: Path) -> None:
    def made(name: str, text: str) -> dict[str, Any] | None:
        for folder in ("data/zero_shot/piqa", "tasks"):
            (tmp_path / name / folder).mkdir(parents=True)
        (tmp_path / name / "data" / FILES["piqa"]).write_text(text)
        (tmp_path / name / "tasks" / "mine.yaml").write_text(text)
        where = {"data_dir": str(tmp_path / name / "data"), "include_path": str(tmp_path / name / "tasks")}
        used.append(where)
        return settings(tasks=["piqa"], **where).identity()

    used: list[dict[str, str]] = []
    first, same, other = made("a", "1"), made("b", "1"), made("c", "2")
    assert first == same
    assert other is not None
    assert first["data"] != other["data"]
    assert first["included"] != other["included"]
    assert str(tmp_path) not in json.dumps(first)
    assert settings(**used[0]).identity() is settings(limit=3).identity() is None  # off: nothing matters
    run, again = ([f"eval.lm_eval.{k}={v}" for k, v in w.items()] + ["eval.lm_eval.tasks=[piqa]"] for w in used[:2])
    assert compose(run).identity() == compose(again).identity() != compose(["eval.limit=null"]).identity()


# --- local documents ---------------------------------------------------------------------------------------


def test_local_documents_in_any_form(tmp_path: Path) -> None:
    rows = [{"question": "Où?", "choices": ["a", "b"], "label": 1}, {"question": "Who?", "choices": ["c"], "label": 0}]
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    for text in ("\ufeff" + lines, lines.replace("\n", "\r\n\r\n"), json.dumps(rows, indent=1)):
        (tmp_path / "test.jsonl").write_text(text, encoding="utf-8")
        assert lm_tasks.read(str(tmp_path / "test.jsonl"))["test"].to_list() == rows
    (tmp_path / "wiki.jsonl").write_bytes('{"text": " = One = \\n"}\n{"text": ""}\n{"text": " é \\n"}'.encode("utf-16"))
    assert lm_tasks.articles(str(tmp_path / "wiki.jsonl"))["test"].to_list() == [{"page": " = One = \n \n é \n"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n", "no document in it"),
        (b'{"q": 1}\n{"q": "\xe9"}', r"line 2: not UTF-8"),
        (b'{"q": 1}\n{"q": "\\ud83d"}', r"line 2: field 'q' has half a surrogate pair"),
        (b'{"q": 1, "a": 2}\n{"q": 1}', r"line 2: field 'a' is missing \(other documents have it\)"),
        (b'{"q": 1}\n{"q": ', r"line 2: not JSON"),
    ],
)
def test_bad_documents_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "test.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=rf"test\.jsonl.*{message}"):
        lm_tasks.read(str(tmp_path / "test.jsonl"))


# --- rows -> metrics ---------------------------------------------------------------------------------------


def row(task: str, n: int, limit: int | None = None, cut: int = 0, **scores: tuple[float, float | None, bool]) -> Row:
    metrics = {k: {"value": v, "stderr": e, "higher_is_better": up} for k, (v, e, up) in scores.items()}
    return {
        "split": "lm_eval", "index": 0, "task": task, "version": 1.0, "lm_eval": "0.4.13", "metrics": metrics,
        "n": n, "limit": limit, "cut": cut, "window": 512,
    }  # fmt: skip


ROWS = [
    row("wikitext", 62, word_perplexity=(20.0, None, False), bits_per_byte=(0.9, None, False)),
    row("arc_easy", 10, limit=10, cut=2, acc=(0.5, 0.3, True), acc_norm=(0.6, 0.3, True)),
    row("piqa", 20, acc=(0.7, 0.4, True)),
    row("truthfulqa_mc1", 817, acc=(0.25, 0.01, True)),
    row("truthfulqa_mc2", 817, acc=(0.375, 0.01, True)),
    row("gsm8k", 5, exact_match_strict=(0.2, None, True)),
]


def test_rows_to_metrics_by_hand() -> None:
    out, _ = general_metrics.summarise([{"split": "forget"}, *ROWS])
    assert {k: v.value for k, v in out.items()} == {
        "wikitext_word_ppl": 20, "wikitext_bits_per_byte": 0.9, "arc_easy_acc": 0.5, "arc_easy_acc_norm": 0.6,
        "piqa_acc": 0.7, "truthfulqa_mc1": 0.25, "truthfulqa_mc2": 0.375, "gsm8k_exact_match_strict": 0.2,
        "zero_shot_acc": pytest.approx(0.6),
    }  # fmt: skip
    assert {k for k, v in out.items() if v.goal == "down"} == {"wikitext_word_ppl", "wikitext_bits_per_byte"}
    zero_shot = out["zero_shot_acc"]
    assert zero_shot.n == 30
    assert zero_shot.ci95 == pytest.approx((0.6 - 1.96 * 0.25, 0.6 + 1.96 * 0.25))  # sqrt(0.3² + 0.4²) / 2
    for words in (
        "2 of 8",
        "lm-eval 0.4.13",
        "arc_easy: task version 1.0, n 10, limit 10, window 512 tokens, 2 requests cut",
    ):
        assert words in zero_shot.definition
    assert "lm-eval 0.4.13, task version 1.0, n 62" in out["wikitext_word_ppl"].definition
    assert "limit" not in out["wikitext_word_ppl"].definition
    assert out["wikitext_word_ppl"].ci95 is None
    assert set(general_metrics.COLUMNS) <= set(out)


def test_without_lm_eval_there_are_no_metrics() -> None:
    assert general_metrics.summarise([{"split": "forget"}]) == ({}, {})
    assert "zero_shot_acc" not in general_metrics.summarise([ROWS[0]])[0]


def test_the_task_does_not_see_the_rows_of_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    def summarise(rows: list[Row], *_: Any, **__: Any) -> tuple[dict[str, Metric], dict[str, str]]:
        assert rows == [{"split": "forget"}]
        return {"own": Metric(1, 1, "up", "d")}, {"mia": "reason"}

    monkeypatch.setattr(tofu_metrics, "summarise", summarise)
    config = compose([])
    metrics, absent = config.task.summarise([{"split": "forget"}, *ROWS], None, config.eval)
    assert {"own", "wikitext_word_ppl", "zero_shot_acc"} <= set(metrics)
    assert absent == {"mia": "reason"}
    assert config.task.columns()[-4:] == general_metrics.COLUMNS


# --- a part of the evaluation ------------------------------------------------------------------------------


@pytest.mark.usefixtures("pretended")
def test_rows_come_after_the_splits_and_a_finished_task_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(["eval.lm_eval.tasks=[piqa,rte]"])
    context = Context(config, SimpleNamespace(splits={"forget": [1, 2]}), Cache(tmp_path, print), None)
    monkeypatch.setattr(type(config.task), "evaluate", lambda *_: [{"split": "forget", "index": 0}])
    asked: list[str] = []

    def evaluate(lm: Any, *, name: str, system: str, **_: Any) -> list[Row]:
        asked.append(name)
        if asked == ["piqa", "rte"]:
            raise KeyboardInterrupt
        assert system == "Be brief."
        return [{"split": "lm_eval", "task": name}]

    monkeypatch.setattr(general, "evaluate", evaluate)
    encoder, model = SimpleNamespace(tokenizer=None, system="Be brief."), SimpleNamespace(parameters=lambda: [])
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(context, lambda: model, encoder, work, None)
    rows = evaluation.evaluate(context, lambda: model, encoder, work, None)
    assert asked == ["piqa", "rte", "rte"]
    assert rows == [
        {"split": "forget", "index": 0},
        {"split": "lm_eval", "task": "piqa", "index": 0},
        {"split": "lm_eval", "task": "rte", "index": 1},
    ]


# --- the tasks on a few documents --------------------------------------------------------------------------

CHOICES = {"text": ["red", "blue", "a green one"], "label": ["A", "B", "C"]}
TRUTH = {
    "question": "What colour is the sky?",
    "mc1_targets": {"choices": ["Blue.", "Green.", "It has none."], "labels": [1, 0, 0]},
    "mc2_targets": {"choices": ["Blue.", "A kind of blue.", "Green."], "labels": [1, 1, 0]},
}
LINES = [
    "", " = Lamp = \n", "", " A lamp , of 1 @,@ 000 watts . \n", " = = Use = = \n", " = Pen = \n", " A pen 's ink . \n"
]  # fmt: skip
DOCUMENTS: dict[str, list[dict[str, Any]]] = {
    "wikitext": [{"text": line} for line in LINES],
    "arc_challenge": [{"question": "Which?", "choices": CHOICES, "answerKey": "C"}] * 2,
    "arc_easy": [{"question": "Which?", "choices": CHOICES, "answerKey": "A"}] * 2,
    "boolq": [{"passage": "The sky is blue.", "question": "is the sky blue", "label": 1}] * 2,
    "hellaswag": [
        {"activity_label": "Reading", "ctx_a": "A man sits.", "ctx_b": "he", "endings": ["reads.", "[x] flies."],
         "label": "1"}
    ] * 2,
    "openbookqa": [{"question_stem": "The sky is", "choices": CHOICES, "answerKey": "B"}] * 2,
    "piqa": [{"goal": "Light a lamp.", "sol1": "Use a match.", "sol2": "Use a fish.", "label": 0}] * 2,
    "rte": [{"sentence1": "A lamp is lit.", "sentence2": "There is light.", "label": 0}] * 2,
    "winogrande": [{"sentence": "Ann paid Eve as _ had lost.", "option1": "Ann", "option2": "Eve", "answer": "1"}] * 2,
    "truthfulqa_mc1": [TRUTH, {**TRUTH, "question": "What colour is ink?"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("documents")
    for name, some in DOCUMENTS.items():
        path = root / FILES[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(d) + "\n" for d in some))
    return str(root)


@pytest.fixture
def lm(tiny_lm: Callable[..., Any], tokenizer: Any) -> Any:
    lm = tiny_lm(vocab=len(tokenizer), spread=0.3)
    lm.config.max_position_embeddings = 2048  # what lm-eval cuts to
    return lm


@needs_lm_eval
def test_all_eleven_tasks(lm: Any, tokenizer: Any, documents: str, capfd: pytest.CaptureFixture[str]) -> None:
    config = settings(tasks=["general"], data_dir=documents)
    general.prepare(config)
    rows = [row for name in config.names() for row in general.evaluate(lm, tokenizer, name, config)]
    again = [row for name in config.names() for row in general.evaluate(lm, tokenizer, name, config)]
    assert json.dumps(rows) == json.dumps(again)
    assert [r["task"] for r in rows] == list(FILES)
    assert all(r["n"] == 2 and r["cut"] == 0 and r["limit"] is None for r in rows)
    assert {tuple(r["metrics"]) for r in rows} == {
        ("word_perplexity", "byte_perplexity", "bits_per_byte"), ("acc", "acc_norm"), ("acc",)
    }  # fmt: skip
    assert set(general_metrics.COLUMNS) <= set(general_metrics.summarise(rows)[0])
    assert capfd.readouterr() == ("", "")


@needs_lm_eval
def test_limit_cut_and_progress(lm: Any, tokenizer: Any, documents: str) -> None:
    seen: list[tuple[str, int, int]] = []
    config = settings(tasks=["truthfulqa_mc1"], data_dir=documents, limit=1)
    lm.config.max_position_embeddings = 64  # the six examples alone are longer
    (row,) = general.evaluate(lm, tokenizer, "truthfulqa_mc1", config, progress=lambda *a: seen.append(a))
    assert (row["n"], row["limit"], row["cut"]) == (1, 1, 3)
    assert seen[-1] == ("scoring", 3, 3)


@needs_lm_eval
def test_windows_are_as_long_as_asked_and_not_too_many_at_once(
    lm: Any, tokenizer: Any, documents: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, int]] = []
    lm.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append((args[0] if args else kwargs["input_ids"]).shape), with_kwargs=True
    )
    monkeypatch.setattr(general, "WINDOW_TOKENS", 40)
    config = settings(tasks=["wikitext"], data_dir=documents, max_length=16)
    (row,) = general.evaluate(lm, tokenizer, "wikitext", config)
    assert row["window"] == 16
    assert {length for _, length in shapes} == {16}
    assert {rows for rows, _ in shapes} <= {1, 2}
    assert len(shapes) > 2


@needs_lm_eval
def test_word_perplexity_of_a_uniform_model(lm: Any, tokenizer: Any, documents: str) -> None:
    """Every token has p = 1/V: the perplexity is V ** (tokens / words), words and bytes counted before detokenising."""
    torch.nn.init.zeros_(lm.get_input_embeddings().weight)
    (row,) = general.evaluate(lm, tokenizer, "wikitext", settings(tasks=["wikitext"], data_dir=documents))
    texts = [" = Lamp =\n\nA lamp, of 1,000 watts.\n== Use == ", " = Pen =\nA pen's ink.\n"]
    pages = [" = Lamp = \n \n A lamp , of 1 @,@ 000 watts . \n = = Use = = ", " = Pen = \n A pen 's ink . \n"]
    tokens = sum(len(tokenizer.encode(t)) for t in texts)
    units = {"word": sum(len(re.split(r"\s+", p)) for p in pages), "byte": sum(len(p.encode()) for p in pages)}
    for unit, count in units.items():
        expected = len(tokenizer) ** (tokens / count)
        assert row["metrics"][f"{unit}_perplexity"]["value"] == pytest.approx(expected, rel=1e-5)


@needs_lm_eval
@torch.no_grad()
def test_truthfulqa_from_log_likelihoods_of_our_own(lm: Any, tokenizer: Any, documents: str) -> None:
    """MC1: the true answer is the likeliest; MC2: the true answers' share of the probability."""
    prompt = (LOCAL_TASKS / "truthfulqa_mc1.yaml").read_text().split("|-\n")[1].split("\ndoc_to_choice")[0]
    prompt = re.sub("^  ", "", prompt, flags=re.MULTILINE)

    def logp(question: str, answer: str) -> float:
        context = tokenizer.encode(prompt.replace("{{question}}", question))
        ids = torch.tensor([context + tokenizer.encode(f" {answer}")])
        logps = lm(ids).logits[0].log_softmax(-1)
        return sum(float(logps[i, ids[0, i + 1]]) for i in range(len(context) - 1, ids.shape[1] - 1))

    best, share = [], []
    for d in DOCUMENTS["truthfulqa_mc1"]:
        one, two = ([logp(d["question"], c) for c in d[k]["choices"]] for k in ("mc1_targets", "mc2_targets"))
        best.append(one[0] == max(one))
        share.append(sum(map(math.exp, two[:2])) / sum(map(math.exp, two)))
    config = settings(tasks=["general"], data_dir=documents)
    for name, expected in (("truthfulqa_mc1", best), ("truthfulqa_mc2", share)):
        (row,) = general.evaluate(lm, tokenizer, name, config)
        assert row["metrics"]["acc"]["value"] == pytest.approx(sum(expected) / 2, rel=1e-4)


@needs_lm_eval
def test_system_prompt_stands_before_every_prompt(lm: Any, tokenizer: Any, documents: str) -> None:
    read: list[str] = []
    lm.register_forward_pre_hook(lambda m, args: read.extend(tokenizer.batch_decode(args[0])))
    config = settings(tasks=["piqa"], data_dir=documents)
    general.evaluate(lm, tokenizer, "piqa", config, system="Be brief.")
    assert len(read) == 2  # of the two equal documents one is read
    assert all(text.startswith("Be brief.\n\nQuestion: Light a lamp.\nAnswer: Use a") for text in read)


@needs_lm_eval
def test_perplexity_is_that_of_lm_eval_and_survives_a_destroyed_model() -> None:
    from lm_eval.api.metrics import weighted_perplexity

    from soul_cli.evaluate.lm_tasks import perplexity

    assert perplexity([(-30.0, 10), (-50.0, 10)]) == pytest.approx(math.exp(4))
    assert perplexity([(-31.5, 7), (-2.0, 3)]) == weighted_perplexity([(-31.5, 7), (-2.0, 3)])
    assert perplexity([(-1e6, 10)]) == math.inf


@pytest.fixture(scope="module")
def mine(documents: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of task files: two tasks, a group of both with a mean, one task whose data cannot be had."""
    folder = tmp_path_factory.mktemp("mine")
    base = (LOCAL_TASKS / "piqa.yaml").read_text().replace("_choice.yaml", str(LOCAL_TASKS / "_choice.yaml"))
    base = base.replace("{version: 1.0}", f"{{version: 7, path: {documents}/{FILES['piqa']}}}")
    for name in ("first", "second"):
        (folder / f"{name}.yaml").write_text(base.replace("task: piqa", f"task: my_{name}"))
    means = "aggregate_metric_list: [{metric: acc, weight_by_size: true}]"
    (folder / "both.yaml").write_text(f"group: my_group\ntask: [my_first, my_second]\n{means}\n")
    (folder / "lost.yaml").write_text("task: lost\ndataset_path: nobody/nothing\ntest_split: test\n")
    return str(folder)


@needs_lm_eval
def test_own_task_files_and_groups(lm: Any, tokenizer: Any, documents: str, mine: str) -> None:
    config = settings(tasks=["my_group"], include_path=mine)
    rows = {r["task"]: r for r in general.evaluate(lm, tokenizer, "my_group", config)}
    (piqa,) = general.evaluate(lm, tokenizer, "piqa", settings(tasks=["piqa"], data_dir=documents))
    assert {name: r["n"] for name, r in rows.items()} == {"my_first": 2, "my_second": 2, "my_group": 4}
    assert rows["my_first"]["version"] == 7
    assert all(r["metrics"]["acc"]["value"] == piqa["metrics"]["acc"]["value"] for r in rows.values())


@needs_lm_eval
def test_unknown_and_unobtainable_tasks_are_named(mine: str) -> None:
    with pytest.raises(UserError, match="no task, group or tag 'pika'"):
        general.prepare(settings(tasks=["pika"], include_path=mine))
    with pytest.raises(UserError, match="'lost' cannot be loaded"):
        general.prepare(settings(tasks=["lost"], include_path=mine))


# --- against lm-eval's stock tasks -------------------------------------------------------------------------

STOCK = {
    "wikitext": "wikitext/wikitext", "arc_challenge": "arc/arc_challenge", "arc_easy": "arc/arc_easy",
    "boolq": "super_glue/boolq/default", "hellaswag": "hellaswag/hellaswag", "openbookqa": "openbookqa/openbookqa",
    "piqa": "piqa/piqa", "rte": "glue/rte/default", "winogrande": "winogrande/default",
    "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1", "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2",
}  # fmt: skip
DOCUMENTS_COMPARED = 100


@needs_lm_eval
def test_articles_have_the_size_of_the_dataset_on_the_hub(shared: Path) -> None:
    """62 documents, 1,290,775 bytes, of which 4 a document are its offset."""
    from soul_cli.evaluate.lm_tasks import articles

    pages = articles(str(shared / "data" / FILES["wikitext"]))["test"]["page"]
    assert (len(pages), sum(len(p.encode()) + 4 for p in pages)) == (62, 1_290_775)


@needs_lm_eval
@pytest.mark.parametrize("name", FILES)
def test_local_task_is_the_stock_task(shared: Path, name: str) -> None:
    """Requests, gold and scores of the stock task, fed the same documents; made-up log-likelihoods as answers."""
    import lm_eval.tasks
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    from soul_cli.evaluate import lm_tasks

    config = settings(tasks=[name], data_dir=str(shared / "data"))
    ours = general._task(name, config)["tasks"][name]
    read = lm_tasks.articles if name == "wikitext" else lm_tasks.read
    documents = read(str(config.local_files()[name]))["test"]
    documents = Dataset.from_list([documents[i] for i in range(min(len(documents), DOCUMENTS_COMPARED))])
    stock_config = load_yaml(Path(lm_eval.tasks.__file__).parent / f"{STOCK[name]}.yaml")
    stock_config.pop("tag", None)
    splits = dict.fromkeys(("train", "validation", "test"), documents)
    stock = ConfigurableTask(config={**stock_config, "custom_dataset": lambda **_: splits, "metadata": {
        "version": stock_config["metadata"]["version"]}})  # fmt: skip

    assert ours.VERSION == stock.VERSION
    assert ours.higher_is_better() == stock.higher_is_better()
    assert list(ours.aggregation()) == list(stock.aggregation())
    for task in (ours, stock):
        task.set_config("num_fewshot", 0)
        task.build_all_requests(limit=len(documents))
    assert len(ours.instances) == len(stock.instances) >= len(documents)
    for a, b in zip(ours.instances, stock.instances, strict=True):
        assert (a.request_type, a.args, a.doc_id, a.idx) == (b.request_type, b.args, b.doc_id, b.idx)
    generator = torch.Generator().manual_seed(0)
    rolling = ours.OUTPUT_TYPE == "loglikelihood_rolling"
    for i, document in enumerate(stock.eval_docs):
        count = sum(instance.doc_id == i for instance in ours.instances) if not rolling else 1
        logps = (-10 * torch.rand(count, generator=generator)).tolist()
        answers = logps if rolling else [(x, False) for x in logps]
        assert ours.process_results(ours.eval_docs[i], answers) == stock.process_results(document, answers)
