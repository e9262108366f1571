"""One experiment, in order: target model, retain-trained model, unlearn, evaluate, write, print."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from accelerate.tracking import get_available_trackers
from accelerate.utils import set_seed

from soul_cli import results
from soul_cli.cache import Cache, code_digest, digest, locked, read_json, read_lines, sha256
from soul_cli.config import RunConfig
from soul_cli.distributed import main, once, start
from soul_cli.evaluate import general
from soul_cli.models import ModelRef
from soul_cli.pipeline import EVALUATION, TRAINING, Pipeline, save, versions, write_rows
from soul_cli.plan import describe
from soul_cli.screen import Bar, bar, say
from soul_cli.types import Metric, Row, UserError

WORK = "work"  # in a run folder, until the run is finished: checkpoints, the unlearned model, finished splits


def run(config: RunConfig) -> Path:
    """Run (or find finished) one experiment; returns its folder.  On several processes all of them call it."""
    check_trackers(config.trackers)
    accelerator = start(config.trackers)
    data = once(lambda: config.task.load(config.cache))
    pipe = Pipeline(config, data, Cache(config.cache, say), accelerator)
    key = digest(
        {
            "config": config.identity(),
            "data": data.digest,
            "models": [ref.digest for ref in pipe.ready()],
            "retain_rows": sha256(rows_of(config.task.retain_rows)) if config.task.retain_rows else None,
            "code": code_digest(*TRAINING, *EVALUATION),
            "versions": versions(),
        }
    )
    folder = run_folder(config, key)
    lock = folder.parent / f".{folder.name}.lock"
    waiting = f"another process is at work on {folder}; waiting"
    with locked(lock, lambda: say(waiting)) if main() else nullcontext():
        if once(lambda: finished(folder, key, config)):
            say(f"finished before ({folder}); force=true runs it again")
        else:
            general.prepare(config.eval.lm_eval)
            say(describe(config, data, pipe, folder))
            _run(pipe, folder, key)
    results.show(folder)
    return folder


def check_trackers(names: list[str]) -> None:
    available = [str(t) for t in get_available_trackers()]
    unknown = [n for n in names if n not in available]
    if unknown:
        raise UserError(
            f"trackers={unknown}: not installed or not known to Accelerate; installed: {available or 'none'}"
        )


def run_folder(config: RunConfig, key: str) -> Path:
    name = f"{config.method.name}-{config.optim.name}-seed{config.seed}-{key[:8]}"
    if not config.method.trains:
        name = f"{config.method.name}-{key[:8]}"
    return Path(config.output_dir).expanduser() / config.task.name / name


def finished(folder: Path, key: str, config: RunConfig) -> bool:
    if config.force:
        shutil.rmtree(folder, ignore_errors=True)
        return False
    if config.save_model and not (folder / "model").is_dir():
        return False
    return read_json(folder / "metrics.json", {}).get("key") == key


def _run(pipe: Pipeline, folder: Path, key: str) -> None:
    config, data, task = pipe.config, pipe.data, pipe.config.task
    plain = config.plain()
    once(lambda: results.write_config(folder, plain))
    if config.trackers:
        pipe.accelerator.project_configuration.set_directories(str(folder))
        pipe.accelerator.init_trackers("soul-unlearn", {"config": str(plain)})
    seconds: dict[str, float] = {}
    rows: dict[str, list[Row]] = {}

    with timed(seconds, "target_model"):
        target = pipe.target()
    with timed(seconds, "retain_model"):
        retain = pipe.retain_trained()
    with timed(seconds, "evaluate_original"):
        rows["original"] = pipe.rows(target, "the original model")
    with timed(seconds, "evaluate_retain_trained"):
        kept = read_lines(rows_of(task.retain_rows)) if task.retain_rows else None
        if retain is not None:
            kept = pipe.rows(retain, "the retain-trained model")
        if kept is not None:
            rows["retain_trained"] = kept
    if config.method.prompts:
        say(f"system prompt: {data.system_prompt}")
        with timed(seconds, "evaluate"):
            rows["this_run"] = pipe.rows(target, "the prompted model", data.system_prompt)
    elif config.method.trains:
        rows["this_run"] = _unlearn(pipe, target, folder, seconds)

    once(lambda: _write(pipe, folder, key, rows, seconds))
    for tracker in pipe.accelerator.trackers:
        tracker.finish()


def _write(pipe: Pipeline, folder: Path, key: str, rows: dict[str, list[Row]], seconds: dict[str, float]) -> None:
    config, task = pipe.config, pipe.config.task
    for name, some in rows.items():
        write_rows(folder / results.rows_file(name), some)
    summaries: dict[str, dict[str, Metric]] = {}
    absent: dict[str, dict[str, str]] = {}
    for name, some in rows.items():
        summaries[name], absent[name] = task.summarise(
            some, rows.get("retain_trained"), config.eval, facts_trained=config.model.facts_trained
        )
    results.write_metrics(folder, key, config.plain(), summaries, absent, seconds, task.headline())
    shutil.rmtree(folder / WORK, ignore_errors=True)


def _unlearn(pipe: Pipeline, target: ModelRef, folder: Path, seconds: dict[str, float]) -> list[Row]:
    """Unlearn, then evaluate.  `work` holds checkpoints, the unlearned model and finished splits until the run ends."""
    config = pipe.config
    work = folder / WORK
    model = work / "model"
    if not once(model.is_dir):
        set_seed(config.seed)
        with timed(seconds, "unlearn"), bar(f"unlearning, {config.method.name} with {config.optim.name}") as progress:
            _train(pipe, target, folder, progress)
    with timed(seconds, "evaluate"), bar("evaluating the unlearned model") as progress:
        unlearned = ModelRef(str(model), "")
        rows = pipe.evaluate(lambda: pipe.load(unlearned), pipe.encoder(unlearned), work, progress)

    def keep() -> None:
        shutil.rmtree(folder / "model", ignore_errors=True)
        shutil.copytree(model, work / ".kept", dirs_exist_ok=True)
        (work / ".kept").rename(folder / "model")

    if config.save_model:
        once(keep)
    return rows


def _train(pipe: Pipeline, target: ModelRef, folder: Path, progress: Bar) -> None:
    """Unlearn and write work/model.  A function of its own: the trained model is gone when the evaluation begins."""
    config, work = pipe.config, folder / WORK
    temporary = work / ".model"
    data = pipe.unlearning_data(target, config.method)
    lm, records = pipe.train(target, data, config.method, config.optim, config.train, config.seed, work, progress)
    once(lambda: shutil.rmtree(temporary, ignore_errors=True))
    save(lm, pipe.encoder(target), temporary)

    def publish() -> None:
        results.write_steps(folder, records)
        temporary.rename(work / "model")
        shutil.rmtree(work / "checkpoint", ignore_errors=True)

    once(publish)


def rows_of(given: str) -> Path:
    """The file of task.retain_rows: a rows file, or that of a run folder.

    Of a run folder it is the unlearned model's, with method=none the original's.
    """
    path = Path(given).expanduser()
    for file in (path / "rows.jsonl", path / "rows_original.jsonl", path):
        if file.is_file():
            return file
    raise UserError(f"task.retain_rows={given}: no such file (a rows.jsonl, or a run folder)")


@contextmanager
def timed(seconds: dict[str, Any], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - began, 1)
