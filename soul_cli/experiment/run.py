"""One experiment, in order: target model, retain-trained model, unlearn, evaluate, write, print."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate.utils import set_seed

from soul_cli.core import cost
from soul_cli.core.cache import Cache
from soul_cli.core.distributed import once, start
from soul_cli.core.files import digest, sha256
from soul_cli.core.run_folder import RunFolder
from soul_cli.core.screen import Bar, bar, log
from soul_cli.core.types import Metric, Row
from soul_cli.evaluate import general
from soul_cli.evaluate.config import Select
from soul_cli.evaluate.judges import make_judge
from soul_cli.experiment import card, evaluation, hub, models, tracking, unlearning
from soul_cli.experiment.checks import check
from soul_cli.experiment.config import RunConfig
from soul_cli.experiment.context import Context
from soul_cli.experiment.epochs import EpochEvaluation
from soul_cli.experiment.header import describe, method_label
from soul_cli.experiment.keys import code
from soul_cli.models.load import ModelRef
from soul_cli.objective.edit import IU, TaskVector
from soul_cli.objective.methods import Prompting
from soul_cli.tasks.base import read_retain_rows
from soul_cli.train import checkpoint


def run(config: RunConfig) -> Path:
    """Run (or find finished) one experiment and return its folder.  On several processes all of them call it."""
    with reproducible() if config.deterministic else nullcontext():
        return _experiment(config)


@contextmanager
def reproducible() -> Iterator[None]:
    """Let torch take deterministic algorithms in the block, and refuse what has none."""
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at the first product
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _experiment(config: RunConfig) -> Path:
    accelerator = start()
    if config.push_to_hub is not None:
        hub.check(config.push_to_hub)
    data = once(lambda: config.task.load(config.cache))
    context = Context(config, data, Cache(config.cache, log), accelerator)
    config.settle_layers(models.unlearned_config(context).num_hidden_layers)
    key = digest(
        {
            "config": config.identity(),
            "data": data.digest,
            "models": [(ref.digest, context.rendered(ref)) for ref in models.given_models(context)],
            "retain_rows": sha256(evaluation.retain_rows_file(rows)) if (rows := config.task.retain_rows) else None,
            **code(__name__, libraries=config.libraries),
        }
    )
    folder = RunFolder(run_path(config, key))
    with folder.locked(lambda: log(f"another process is at work on {folder.path}; waiting")):
        if config.force:
            folder.clear()
        if folder.is_finished(key, with_model=config.save_model):
            log(f"finished before ({folder.path}); force=true runs it again")
        else:
            prepare(config)
            notes = check(context)
            log(describe(context, folder.path, notes))
            _run(context, folder, key)
        folder.tidy()
    if config.push_to_hub is not None:
        hub.push(config.push_to_hub, folder.model)
    return folder.path


def prepare(config: RunConfig) -> None:
    """Load what the evaluation needs beside models, so that what cannot be had is said before anything costly."""
    general.prepare(config.eval.lm_eval)
    make_judge(config.eval.judge, config.eval.sbert_model)


def run_path(config: RunConfig, key: str) -> Path:
    """Return where the run lies."""
    parts = [config.title]
    parts += [config.optim.name] if config.optimizes else []
    parts += [f"seed{config.seed}"] if config.changes_weights else []
    name = "-".join([*parts, key[:8]])
    return Path(config.output_dir).expanduser() / config.task.name / name


def _run(context: Context, folder: RunFolder, key: str) -> None:
    config, data, task = context.config, context.data, context.config.task
    plain = config.plain()
    folder.write_config(plain)
    context.ledger = cost.Ledger(folder.work / "cost.json")
    rows: dict[str, list[Row]] = {}

    target = models.target(context)
    retain = models.retain_trained(context)
    rows["original"] = evaluation.rows(context, "evaluate_original", target, "the original model")
    if retain is not None:
        rows["retain_trained"] = evaluation.rows(context, "evaluate_retain_trained", retain, "the retain-trained model")
    elif task.retain_rows:
        rows["retain_trained"] = read_retain_rows(evaluation.retain_rows_file(task.retain_rows))
    with tracking.tracked(context.accelerator, config.trackers, str(folder.path), plain):
        if isinstance(config.method, Prompting):
            log(f"system prompt: {data.system_prompt}")
            rows["this_run"] = evaluation.rows(context, "evaluate", target, "the prompted model", data.system_prompt)
        elif config.changes_weights:
            rows["this_run"] = _unlearn(context, target, folder, rows)
        folder.write_rows(rows)
        metrics, absent = once(lambda: _summarise(config, rows))
        tracking.track_result(context.accelerator, folder.steps(), metrics, task.columns())
    if config.save_model and config.changes_weights:
        folder.keep_model(once(lambda: card.write(config, metrics, task.columns())))
    folder.write_metrics(
        key, plain, config.title, metrics, absent, context.ledger.phases, task.headline(), task.columns()
    )


def _summarise(
    config: RunConfig, rows: dict[str, list[Row]]
) -> tuple[dict[str, dict[str, Metric]], dict[str, dict[str, str]]]:
    """Return the metrics of each model, and why those that are absent are."""
    metrics, absent = {}, {}
    for name, some in rows.items():
        metrics[name], absent[name] = config.task.summarise(some, rows.get("retain_trained"), config.eval)
    return metrics, absent


def _unlearn(context: Context, target: ModelRef, folder: RunFolder, others: dict[str, list[Row]]) -> list[Row]:
    """Unlearn, then evaluate; return the rows.  others: those of the original and the retain-trained model."""
    config = context.config
    if not folder.is_trained():
        set_seed(config.seed)
        with cost.measure(), bar(f"unlearning, {method_label(config)}") as progress:
            _train(context, target, folder, others, progress)
    with cost.measure(), bar("evaluating the unlearned model") as progress:
        unlearned = ModelRef(str(folder.trained), "")
        rows = evaluation.evaluate(
            context, lambda: context.load(unlearned), context.encoder(unlearned), folder.work, progress
        )
        context.ledger.note("evaluate", cost.spent(), cached=False)
    return rows


def _train(context: Context, target: ModelRef, folder: RunFolder, others: dict[str, list[Row]], progress: Bar) -> None:
    """Unlearn, and put the model in place.

    A function of its own: the trained model is gone when the evaluation begins.
    """
    config, weights, encoder = context.config, folder.work / ".model", context.encoder(target)
    data = unlearning.unlearning_data(context, target)
    between = EpochEvaluation(context, folder, encoder, others, progress) if config.evaluates_epochs else None
    if isinstance(config.method, IU):
        lm, records = unlearning.influence(context, target, data, config.method, progress)
    elif isinstance(config.method, TaskVector):
        lm, records = unlearning.against_task_vector(context, target, data, config.method, folder.work, progress)
    else:
        assert config.problem is not None
        lm, records = models.train(
            context, target, data, config.problem, config.optim, config.train, config.seed, folder.work, progress,
            between,
        )  # fmt: skip
    outcome = None
    if between is not None:
        outcome = once(between.outcome)
        context.ledger.note("evaluate_epochs", between.spent(), cached=False)
    if between is not None and config.epoch_eval.select is Select.best:
        weights = between.best
    else:
        models.save(lm, encoder, weights)
    context.ledger.note("unlearn", cost.spent(), cached=False)
    folder.write_trained(weights, records, outcome)
    checkpoint.clear(folder.work)
