"""One experiment, in order: target model, retain-trained model, unlearn, evaluate, write, print."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

from accelerate.tracking import get_available_trackers
from accelerate.utils import set_seed

from soul_cli.core import cost
from soul_cli.core import run_folder as results
from soul_cli.core.cache import Cache
from soul_cli.core.distributed import main, once, start
from soul_cli.core.files import TEMPORARY, code_digest, digest, locked, read_json, sha256, write_text
from soul_cli.core.screen import Bar, bar, say
from soul_cli.core.types import Metric, Row, UserError
from soul_cli.evaluate import general
from soul_cli.evaluate.config import Select
from soul_cli.experiment.config import RunConfig
from soul_cli.experiment.epochs import BEST, EpochEvaluation
from soul_cli.experiment.header import describe, what
from soul_cli.experiment.pipeline import EVALUATION, UNLEARNING, Pipeline, save, versions, write_rows
from soul_cli.models.load import ModelRef
from soul_cli.objective.methods import IU
from soul_cli.tasks.base import read_retain_rows
from soul_cli.train import checkpoint

WORK = "work"  # in a run folder, until the run is finished: checkpoints, weights, finished splits, costs
OUTCOME = "epoch.json"  # there: which epoch's weights the model has, where epochs were evaluated


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
            "code": code_digest(*UNLEARNING, *EVALUATION),
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
            if config.task.retain_rows:
                config.task.check_retain_rows(read_retain_rows(rows_of(config.task.retain_rows)), pipe.splits())
            pipe.check_texts()
            _run(pipe, folder, key)
        once(lambda: _tidy(folder))
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
    if config.method.one_shot:
        name = f"{config.method.name}-seed{config.seed}-{key[:8]}"
    elif not config.method.trains:
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
    pipe.ledger = cost.Ledger(folder / WORK / "cost.json")
    rows: dict[str, list[Row]] = {}

    target = pipe.target()
    retain = pipe.retain_trained()
    rows["original"] = pipe.rows("evaluate_original", target, "the original model")
    if retain is not None:
        rows["retain_trained"] = pipe.rows("evaluate_retain_trained", retain, "the retain-trained model")
    elif task.retain_rows:
        rows["retain_trained"] = read_retain_rows(rows_of(task.retain_rows))
    if config.method.prompts:
        say(f"system prompt: {data.system_prompt}")
        rows["this_run"] = pipe.rows("evaluate", target, "the prompted model", data.system_prompt)
    elif config.method.trains:
        rows["this_run"] = _unlearn(pipe, target, folder, rows)

    once(lambda: _write(pipe, folder, key, rows))
    for tracker in pipe.accelerator.trackers:
        tracker.finish()


def _write(pipe: Pipeline, folder: Path, key: str, rows: dict[str, list[Row]]) -> None:
    config, task = pipe.config, pipe.config.task
    for name, some in rows.items():
        write_rows(folder / results.rows_file(name), some)
    summaries: dict[str, dict[str, Metric]] = {}
    absent: dict[str, dict[str, str]] = {}
    for name, some in rows.items():
        summaries[name], absent[name] = task.summarise(
            some, rows.get("retain_trained"), config.eval, facts_trained=config.model.facts_trained
        )
    outcome = read_json(folder / WORK / OUTCOME, None)
    results.write_metrics(folder, key, config.plain(), summaries, absent, pipe.ledger.phases, outcome, task.headline())


def _tidy(folder: Path) -> None:
    """Remove what a finished run no longer needs, and what a killed one left half written."""
    shutil.rmtree(folder / WORK, ignore_errors=True)
    for path in folder.glob(TEMPORARY):
        path.unlink(missing_ok=True)


def _unlearn(pipe: Pipeline, target: ModelRef, folder: Path, others: dict[str, list[Row]]) -> list[Row]:
    """Unlearn, then evaluate.  `work` holds checkpoints, the unlearned model and finished splits until the run ends.

    others: rows of the original and the retain-trained model.
    """
    config = pipe.config
    work = folder / WORK
    model = work / "model"
    if not once(model.is_dir):
        set_seed(config.seed)
        with cost.measure(), bar(f"unlearning, {what(config)}") as progress:
            _train(pipe, target, folder, others, progress)
    with cost.measure(), bar("evaluating the unlearned model") as progress:
        unlearned = ModelRef(str(model), "")
        rows = pipe.evaluate(lambda: pipe.load(unlearned), pipe.encoder(unlearned), work, progress)
        pipe.ledger.note("evaluate", cost.spent(), cached=False)

    def keep() -> None:
        shutil.rmtree(folder / "model", ignore_errors=True)
        shutil.copytree(model, work / ".kept", dirs_exist_ok=True)
        (work / ".kept").rename(folder / "model")

    if config.save_model:
        once(keep)
    return rows


def _train(pipe: Pipeline, target: ModelRef, folder: Path, others: dict[str, list[Row]], progress: Bar) -> None:
    """Unlearn and write work/model.  A function of its own: the trained model is gone when the evaluation begins."""
    config, work = pipe.config, folder / WORK
    temporary, encoder = work / ".model", pipe.encoder(target)
    data = pipe.unlearning_data(target, config.method)
    between = EpochEvaluation(pipe, folder, work, encoder, others, progress) if config.evaluates_epochs else None
    if isinstance(config.method, IU):
        lm, records = pipe.influence(target, data, config.method, progress)
    else:
        lm, records = pipe.train(
            target, data, config.method, config.optim, config.train, config.seed, work, progress, between
        )
    once(lambda: shutil.rmtree(temporary, ignore_errors=True))
    if between is not None:
        outcome = once(between.outcome)
        pipe.ledger.note("evaluate_epochs", between.spent(), cached=False)
    if between is not None and config.epoch_eval.select is Select.best:
        temporary = work / BEST
    else:
        save(lm, encoder, temporary)
    pipe.ledger.note("unlearn", cost.spent(), cached=False)

    def publish() -> None:
        results.write_steps(folder, records)
        if between is not None:
            write_text(work / OUTCOME, json.dumps(outcome))
        temporary.rename(work / "model")
        checkpoint.clear(work)

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
