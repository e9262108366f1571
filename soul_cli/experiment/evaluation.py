"""A model on a benchmark, to rows: part by part, kept, and gone on with after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from soul_cli.core import cost
from soul_cli.core.distributed import everyone, main, once, rank, share, world
from soul_cli.core.files import digest, read_json, read_lines, write_lines, write_text
from soul_cli.core.screen import Bar, Line, bar
from soul_cli.core.types import QA, Row, UserError
from soul_cli.data.encode import Encoder
from soul_cli.evaluate import general
from soul_cli.experiment.context import Context
from soul_cli.experiment.keys import code
from soul_cli.models.load import ModelRef


def rows(context: Context, phase: str, ref: ModelRef, label: str, system: str = "") -> list[Row]:
    """Return the rows of a model that is in the cache or on the hub, computed once."""

    def build(work: Path, out: Path) -> None:
        with bar(f"evaluating {label}") as progress:
            found = evaluate(context, lambda: context.load(ref), context.encoder(ref, system), work, progress)
        if main():
            write_lines(out / "rows.jsonl", found)

    return read_lines(context.entry(phase, "rows", _rows_key(context, ref, system), build) / "rows.jsonl")


def _rows_key(context: Context, ref: ModelRef, system: str) -> dict[str, Any]:
    model, task, config = context.config.model, context.config.task, context.config.eval
    return {
        "model": ref.digest,
        "splits": {name: digest([asdict(qa) for qa in items]) for name, items in splits(context).items()},
        "template": [context.template, context.rendered(ref, system), model.max_length, model.dtype, system],
        "eval": config.identity(),
        **code(__name__, type(task).__module__, libraries=config.libraries),
    }


def splits(context: Context, limit: int | None = None) -> dict[str, list[QA]]:
    """Return the questions of each split.  limit: at most so many, where eval.limit leaves more."""
    most = min((n for n in (context.config.eval.limit, limit) if n is not None), default=None)
    return {name: items[:most] for name, items in context.data.splits.items()}


def evaluate(
    context: Context,
    load: Callable[[], Any],
    encoder: Encoder,
    work: Path,
    progress: Bar | Line,
    limit: int | None = None,
) -> list[Row]:
    """Return the rows of all splits, then lm-eval's.  Each part is kept in `work` as soon as it is done.

    load: called where a part is missing.  limit: rows a split, without lm-eval.
    """
    out: list[Row] = []
    lm = None
    for part, compute in _parts(context, encoder, limit):
        path = work / f"rows_{part}.json"
        done = once(partial(read_json, path, None))
        if done is None:
            lm = load() if lm is None else lm

            def report_progress(what: str, done: int, total: int, part: str = part) -> None:
                progress.to(f"{part}, {what}", done, total)

            with cost.measure():
                cost.count(parameter_bytes=cost.tensor_bytes(lm.parameters()))
                done = {"rows": compute(lm, progress=report_progress), "cost": cost.spent()}
            if main():
                write_text(path, json.dumps(done))
        cost.resume(done["cost"])
        out += done["rows"]
    for i, row in enumerate(row for row in out if row["split"] == general.SPLIT):
        row["index"] = i
    return out


def _parts(context: Context, encoder: Encoder, limit: int | None) -> Iterator[tuple[str, Callable[..., list[Row]]]]:
    """Yield name and evaluation (of a model, to rows) of each part: the task's splits, lm-eval's tasks."""
    config = context.config.eval
    for split, items in splits(context, limit).items():
        yield split, partial(_evaluate_split, context, encoder=encoder, split=split, items=items)
    if limit is not None:
        return
    about = {"tokenizer": encoder.tokenizer, "config": config.lm_eval, "system": encoder.system}
    for name in config.lm_eval.names():
        compute = partial(general.evaluate, name=name, **about)
        yield f"{general.SPLIT}_{name}", lambda lm, progress, run=compute: once(lambda: run(lm, progress=progress))


def _evaluate_split(
    context: Context,
    lm: Any,
    *,
    encoder: Encoder,
    split: str,
    items: list[QA],
    progress: Callable[[str, int, int], None],
) -> list[Row]:
    """Return the rows of a split, by item.  Every process evaluates its share with a whole model of its own."""
    config = context.config
    share_rows = config.task.evaluate(lm, encoder, split, list(share(items)), config.eval, progress)
    for row in share_rows:
        row["index"] = row["index"] * world() + rank()  # in the split, not in the share
    return sorted((row for rows in everyone(share_rows) for row in rows), key=lambda row: row["index"])


def retain_rows_file(given: str) -> Path:
    """Return the file of task.retain_rows: a rows file, or that of a run folder.

    Of a run folder it is the unlearned model's, with method=none the original's.
    """
    path = Path(given).expanduser()
    for file in (path / "rows.jsonl", path / "rows_original.jsonl", path):
        if file.is_file():
            return file
    raise UserError(f"task.retain_rows={given}: no such file (a rows.jsonl, or a run folder)")
