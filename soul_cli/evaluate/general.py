"""General ability through EleutherAI's lm-evaluation-harness (the extra 'lm-eval'), imported only when asked for."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from soul_cli.core import cost
from soul_cli.core.files import digest, sha256
from soul_cli.core.types import Row, UserError

SPLIT = "lm_eval"  # of the rows made here, one a task of lm-eval
ZERO_SHOT = ("arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "piqa", "rte", "winogrande")
# The tasks that `general` stands for, and where under data_dir their documents lie: those of the stock tasks' splits,
# with their fields.  The hub's BoolQ (SuperGLUE) opens each passage with its title, "Ethanol fuel -- ..."; the original
# release has none, and a file made of it gives another accuracy.
FILES = {
    "wikitext": "wikitext-2-raw/test.jsonl",
    "arc_challenge": "zero_shot/arc_challenge/test.jsonl",
    "arc_easy": "zero_shot/arc_easy/test.jsonl",
    "boolq": "zero_shot/boolq/lm_eval.validation.jsonl",
    "hellaswag": "zero_shot/hellaswag/validation.jsonl",
    "openbookqa": "zero_shot/openbookqa/test.jsonl",
    "piqa": "zero_shot/piqa/validation.jsonl",
    "rte": "zero_shot/rte/validation.jsonl",
    "winogrande": "zero_shot/winogrande/validation.jsonl",
    "truthfulqa_mc1": "truthfulqa/multiple_choice.validation.jsonl",
    "truthfulqa_mc2": "truthfulqa/multiple_choice.validation.jsonl",
}
GENERAL = "general"
WINDOW_TOKENS = 8192  # a forward's: logits of 16 windows of 8,192 tokens are 25 GB at a vocabulary of 49,152


@dataclass
class LmEvalConfig:
    """Which tasks of lm-eval a model is put to, and where their documents come from."""

    tasks: list[str]  # names of lm-eval; 'general' stands for the eleven of FILES; empty: off
    data_dir: str | None  # local documents for the eleven; null: lm-eval's stock tasks, from the hub
    include_path: str | None  # folder of further task files (YAML of lm-eval)
    limit: int | None  # documents a task, from its start; null: all
    batch_size: int  # sequences a forward; of those cut into whole windows, as many as WINDOW_TOKENS allow
    max_length: int | None  # tokens a window, on which perplexities depend; null: all the model reads

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"eval.lm_eval.limit={self.limit}: must be 1 or more, or null")
        if self.batch_size < 1:
            raise UserError(f"eval.lm_eval.batch_size={self.batch_size}: must be 1 or more")
        if self.max_length is not None and self.max_length < 2:
            raise UserError(f"eval.lm_eval.max_length={self.max_length}: must be 2 or more, or null")
        if not self.tasks:
            return
        if find_spec("lm_eval") is None:
            raise UserError(
                f"eval.lm_eval.tasks={list(self.tasks)} needs the extra 'lm-eval': pip install 'soul-unlearn[lm-eval]'"
            )
        if self.include_path is not None and not Path(self.include_path).expanduser().is_dir():
            raise UserError(f"eval.lm_eval.include_path={self.include_path}: must be a folder of lm-eval task files")
        for name, file in self.local_files().items():
            if not file.is_file():
                raise UserError(
                    f"eval.lm_eval.data_dir={self.data_dir}: the task {name} needs {FILES[name]} there; "
                    "null takes the documents from the hub"
                )

    def names(self) -> list[str]:
        """Return the tasks one by one, 'general' spelled out, none twice."""
        spelled = [name for task in self.tasks for name in (FILES if task == GENERAL else [task])]
        return list(dict.fromkeys(spelled))

    def local_files(self) -> dict[str, Path]:
        """Return task -> its documents, for the tasks that read data_dir."""
        if self.data_dir is None:
            return {}
        root = Path(self.data_dir).expanduser()
        return {name: root / FILES[name] for name in self.names() if name in FILES}

    def identity(self) -> dict[str, Any] | None:
        """Return what determines the rows, files by content instead of by path; None: off."""
        if not self.tasks:
            return None
        included = Path(self.include_path).expanduser() if self.include_path else None
        own = sorted(p for p in included.rglob("*") if p.is_file() and p.suffix != ".pyc") if included else []
        return {
            "tasks": self.names(),
            "data": {name: sha256(file) for name, file in self.local_files().items()},
            "included": digest([(str(p.relative_to(included)), sha256(p)) for p in own if included]),
            "limit": self.limit,
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "lm_eval": version("lm_eval"),
        }


def prepare(config: LmEvalConfig) -> None:
    """Load every task, so that what cannot be had is said before anything costly."""
    for name in config.names():
        _task(name, config)


def evaluate(
    lm: Any,
    tokenizer: Any,
    name: str,
    config: LmEvalConfig,
    *,
    system: str = "",
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Row]:
    """Evaluate the model on a task, group or tag; return a row for each task (and group with a score of its own) in it.

    system: a system prompt, which stands before every prompt, two newlines after it; perplexities have no prompt.
    Prompts are lm-eval's plain ones: no chat template.  Generators are seeded, so the rows can be made again.
    """
    loaded = _task(name, config)
    with _quiet():
        from lm_eval.evaluator import evaluate as lm_evaluate

        set_seed(0)
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config("num_fewshot", 0)
            task.set_fewshot_seed(0)
        model = _model(lm, tokenizer, config, progress)
        results = lm_evaluate(
            model, loaded, limit=config.limit, bootstrap_iters=1000, log_samples=False,
            system_instruction=f"{system}\n\n" if system else None,
        )  # fmt: skip
    conditions = {
        "limit": config.limit,
        "window": model.max_length,
        # requests that lost their beginning, being longer than the window; None: of a group
        "cut": model.cut if len(loaded["tasks"]) == 1 else None,
    }
    rows = [_row(task, results) | conditions for task in results["results"]]
    return [row for row in rows if row["metrics"]]


def _row(task: str, results: dict[str, Any]) -> Row:
    """Return the row of one task from lm-eval's results."""
    scores = results["results"][task]
    metrics = {}
    for key, value in scores.items():
        metric, _, chosen = key.partition(",")  # "acc,none", "acc_stderr,none"; the part behind the comma is a filter
        if not chosen or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        stderr = scores.get(f"{metric}_stderr,{chosen}")
        metrics[metric if chosen == "none" else f"{metric}_{chosen}"] = {
            "value": float(value),
            "stderr": float(stderr) if isinstance(stderr, (int, float)) else None,
            "higher_is_better": results["higher_is_better"].get(task, {}).get(metric, True),
        }
    return {
        "split": SPLIT,
        "task": task,
        "version": results["versions"].get(task),
        "lm_eval": version("lm_eval"),
        "metrics": metrics,
        "n": scores.get("sample_len", 0),
    }


def _model(lm: Any, tokenizer: Any, config: LmEvalConfig, progress: Callable[[str, int, int], None]) -> Any:
    """Return the model as lm-eval wants it."""
    from lm_eval.models.huggingface import HFLM

    class Model(HFLM):
        """Tells how far it is and counts the requests that are cut."""

        done = total = cut = 0

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            self.total += len(requests)
            self.cut += sum(len(context) + len(answer) > self.max_length + 1 for _, context, answer in requests)
            cost.count(scored_tokens=sum(len(context) + len(answer) for _, context, answer in requests))
            answers = super()._loglikelihood_tokens(requests, *args, **kwargs)
            self.done = self.total  # requests that differ in their last token alone share a forward
            progress("scoring", self.done, self.total)
            return answers

        def loglikelihood_rolling(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            self.batch_size_per_gpu = max(1, min(config.batch_size, WINDOW_TOKENS // self.max_length))
            try:
                return super().loglikelihood_rolling(requests, *args, **kwargs)
            finally:
                self.batch_size_per_gpu = config.batch_size

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            self.done += len(inps)
            progress("scoring", self.done, self.total)
            cost.count(forward_passes=1)
            return super()._model_call(inps, *args, **kwargs)

    return Model(pretrained=lm, tokenizer=tokenizer, batch_size=config.batch_size, max_length=config.max_length)


def _task(name: str, config: LmEvalConfig) -> Any:
    """Return lm-eval's {"tasks": {name: Task}, "groups": ...} of a task, group or tag, documents loaded."""
    path = config.local_files().get(name)
    return _load(name, path, None if path else config.include_path)


@cache
def _load(name: str, path: Path | None, include_path: str | None) -> Any:
    with _quiet():
        if path is not None:
            from lm_eval.tasks import TaskManager

            from soul_cli.evaluate import lm_tasks  # brings pyarrow

            here = Path(lm_tasks.__file__).parent
            manager = TaskManager(include_path=here, include_defaults=False, metadata={"path": str(path)})
        else:
            manager = _index(include_path)
        if name not in manager.all_tasks:
            raise UserError(
                f"eval.lm_eval.tasks: lm-eval {version('lm_eval')} has no task, group or tag {name!r}; "
                "'lm-eval ls tasks' lists them, eval.lm_eval.include_path adds some"
            )
        try:
            return manager.load([name])
        except UserError:
            raise
        except Exception as error:
            text = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"eval.lm_eval.tasks: the task {name!r} cannot be loaded ({type(error).__name__}: {text}). Stock tasks "
                "need the hub; for those of 'general', eval.lm_eval.data_dir reads local files instead"
            ) from error


@cache
def _index(include_path: str | None) -> Any:
    """Read all of lm-eval's tasks and the user's own: it takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(Path(include_path).expanduser()) if include_path else None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval and its libraries: log lines below errors, and progress bars, which go to stderr."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with redirect_stderr(io.StringIO()):
        yield
