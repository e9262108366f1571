"""Whether runs may stand in one table, and what a reader of that table must know."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from soul_cli.core.run_folder import NAMES
from soul_cli.core.types import UserError
from soul_cli.report.read import REFERENCES, SOLVER, WITHOUT_EFFECT, Run, label

# sections of the configuration that must agree for two rows to stand in one table
COMPARABLE = ("task", "model", "eval", "target_seed")


def _parts(runs: Iterable[Run], of: Callable[[Run], Any]) -> dict[str, list[Run]]:
    """Runs by the value of `of`, as text."""
    parts: dict[str, list[Run]] = {}
    for run in runs:
        parts.setdefault(json.dumps(of(run), sort_keys=True, ensure_ascii=False, default=str), []).append(run)
    return parts


def _names(runs: list[Run]) -> str:
    names = [r.folder.name for r in runs]
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def check_comparable(runs: list[Run]) -> None:
    """Rows of one table share data, model, template, evaluation, target seed, questions and definitions."""

    def refuse(what: str, of: Callable[[Run], Any]) -> None:
        parts = _parts(runs, of)
        if len(parts) > 1:
            shown = "; ".join(f"{value[:80]} in {_names(some)}" for value, some in sorted(parts.items()))
            raise UserError(f"these runs do not belong in one table: {what} differs ({shown}). Report them apart")

    keys = dict.fromkeys(k for r in runs for k in r.config if k.split(".")[0] in COMPARABLE)
    for key in keys:
        if key not in WITHOUT_EFFECT:
            refuse(key, lambda r: r.config.get(key))  # noqa: B023 - called at once
    for name in ("n", "definition"):
        for metric in dict.fromkeys(k for r in runs for k in r.metrics["original"]):
            if all(metric in r.metrics["original"] for r in runs):
                refuse(f"{name} of {metric}", lambda r: getattr(r.metrics["original"][metric], name))  # noqa: B023
    _check_cells(runs)


def _check_cells(runs: list[Run]) -> None:
    """A row is one setting over seeds: the same method, optimizer and training, each seed once."""
    cells: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.row is not None:
            cells.setdefault(run.row, []).append(run)
    for row, some in cells.items():
        for key in dict.fromkeys(k for r in some for k in r.settings):
            parts = _parts(some, lambda r: r.settings.get(key))  # noqa: B023 - called at once
            if len(parts) > 1:
                shown = "; ".join(f"{v} in {_names(part)}" for v, part in sorted(parts.items()))
                raise UserError(f"runs of {label(row)} with other settings: {key} differs ({shown}). Report them apart")
        for seed, twice in _parts([r for r in some if r.trained], lambda r: r.seed).items():
            if len(twice) > 1:
                raise UserError(
                    f"two runs of {label(row)} with seed {seed} and the same settings, made by other code or on "
                    f"another machine: {_names(twice)}. Report them apart"
                )


def notes(runs: list[Run]) -> list[str]:
    """What a reader of the table must know and the caption does not say: where rows are not quite alike."""
    out = []
    trained = [r for r in runs if r.trained]
    for key in dict.fromkeys(k for r in trained for k in r.settings if k.startswith("train.")):
        out += _differs(f"{key} differs between rows", trained, key)
    for method in dict.fromkeys(r.content["method"] for r in trained):
        some = [r for r in trained if r.content["method"] == method]
        for key in dict.fromkeys(k for r in some for k in r.settings if k.startswith("method.") and k != SOLVER):
            out += _differs(f"{key} of {method} differs between optimizers", some, key)
    seeds = {label(r.row): sorted({x.seed for x in trained if x.row == r.row}) for r in trained if r.row}
    if len({tuple(s) for s in seeds.values()}) > 1:
        out.append("rows are over different seeds: " + "; ".join(f"{k} {s}" for k, s in seeds.items()))
    for model in REFERENCES:
        for metric in runs[0].metrics.get(model, {}):
            parts = _parts(
                [r for r in runs if metric in r.metrics.get(model, {})],
                lambda r: round(r.metrics[model][metric].value, 6),  # noqa: B023 - called at once
            )
            if len(parts) > 1:
                shown = "; ".join(f"{v} in {_names(some)}" for v, some in parts.items())
                out.append(
                    f"{metric} of the {NAMES[model]} model differs between runs, the table shows the first: {shown}"
                )
                break
    for what in ("git", "machine", "packages"):
        parts = _parts(runs, lambda r: r.environment.get(what))  # noqa: B023 - called at once
        if len(parts) > 1:
            shown = "; ".join(_names(some) for some in parts.values())
            out.append(f"runs were made with different {'code (git commits)' if what == 'git' else what}: {shown}")
    return out


def _differs(what: str, runs: list[Run], key: str) -> list[str]:
    parts = _parts(runs, lambda r: r.settings.get(key))
    if len(parts) < 2:
        return []
    shown = (f"{v} ({', '.join(dict.fromkeys(label(r.row) for r in some if r.row))})" for v, some in parts.items())
    return [f"{what}: {'; '.join(shown)}"]
