"""Whether runs may stand in one table, and what a reader of that table must know."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from soul_cli.core.run_folder import NAMES
from soul_cli.core.types import UserError
from soul_cli.report.read import REFERENCES, SOLVER, TERMS, WITHOUT_EFFECT, Run, label

# sections of the configuration that must agree for two rows to stand in one table
COMPARABLE = ("task", "model", "eval", "target_seed")
ENVIRONMENT = {"git": "code (git commits)", "machine": "machine", "packages": "packages"}


def group_by(runs: Iterable[Run], value_of: Callable[[Run], Any]) -> dict[str, list[Run]]:
    """Return the runs of each value, which is given as text."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(value_of(run), sort_keys=True, ensure_ascii=False, default=str), []).append(run)
    return groups


def folder_names(runs: list[Run]) -> str:
    """Return the names of the first two folders, and how many more there are."""
    names = [r.folder.name for r in runs]
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def describe(groups: dict[str, list[Run]]) -> str:
    """Return which value which folders have."""
    return "; ".join(f"{value[:80]} in {folder_names(runs)}" for value, runs in sorted(groups.items()))


def check_comparable(runs: list[Run]) -> None:
    """Refuse runs of other data, model, template, evaluation, target seed, questions or definitions.

    Then rows that are more than one setting over seeds.  Raises UserError that names what differs and where.
    """

    def refuse(what: str, value_of: Callable[[Run], Any]) -> None:
        groups = group_by(runs, value_of)
        if len(groups) > 1:
            raise UserError(
                f"these runs do not belong in one table: {what} differs ({describe(groups)}). Report them apart"
            )

    for key in dict.fromkeys(k for r in runs for k in r.config if k.split(".")[0] in COMPARABLE):
        if key not in WITHOUT_EFFECT:
            refuse(key, lambda r: r.config.get(key))  # noqa: B023 - called at once
    shared = set.intersection(*(set(r.metrics["original"]) for r in runs))
    for attribute in ("n", "definition"):
        for metric in sorted(shared):
            refuse(f"{attribute} of {metric}", lambda r: getattr(r.metrics["original"][metric], attribute))  # noqa: B023
    rows: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.row is not None:
            rows.setdefault(run.row, []).append(run)
    for row, members in rows.items():
        _check_row(row, members)


def _check_row(row: tuple[str, str], runs: list[Run]) -> None:
    """Refuse a row of several settings, or with one seed twice."""
    for key in dict.fromkeys(k for r in runs for k in r.settings):
        groups = group_by(runs, lambda r: r.settings.get(key))  # noqa: B023 - called at once
        if len(groups) > 1:
            raise UserError(
                f"runs of {label(row)} with other settings: {key} differs ({describe(groups)}). Report them apart"
            )
    for seed, same in group_by([r for r in runs if r.trained], lambda r: r.seed).items():
        if len(same) > 1:
            raise UserError(
                f"two runs of {label(row)} with seed {seed} and the same settings, made by other code or on "
                f"another machine: {folder_names(same)}. Report them apart"
            )


def notes(runs: list[Run]) -> list[str]:
    """Return what a reader of the table must know and the caption does not say: where rows are not quite alike."""
    trained = [r for r in runs if r.trained]
    return [
        *_training_notes(trained), *_method_notes(trained), *_seed_notes(trained), *_reference_notes(runs),
        *_environment_notes(runs),
    ]  # fmt: skip


def _training_notes(runs: list[Run]) -> list[str]:
    keys = dict.fromkeys(k for r in runs for k in r.settings if k.startswith("train."))
    return [note for key in keys for note in _setting_notes(f"{key} differs between rows", runs, key)]


def _method_notes(runs: list[Run]) -> list[str]:
    found = []
    for method in dict.fromkeys(r.content["method"] for r in runs):
        members = [r for r in runs if r.content["method"] == method]
        for key in dict.fromkeys(k for r in members for k in r.settings if k.split(".")[0] in TERMS and k != SOLVER):
            found += _setting_notes(f"{key} of {method} differs between optimizers", members, key)
    return found


def _setting_notes(what: str, runs: list[Run], key: str) -> list[str]:
    """Return one note with the rows of each value, or none where there is one value."""
    groups = group_by(runs, lambda r: r.settings.get(key))
    if len(groups) < 2:
        return []
    rows = (f"{v} ({', '.join(dict.fromkeys(label(r.row) for r in part if r.row))})" for v, part in groups.items())
    return [f"{what}: {'; '.join(rows)}"]


def _seed_notes(runs: list[Run]) -> list[str]:
    seeds: dict[str, set[int]] = {}
    for run in runs:
        if run.row:
            seeds.setdefault(label(run.row), set()).add(run.seed)
    if len({frozenset(values) for values in seeds.values()}) < 2:
        return []
    return ["rows are over different seeds: " + "; ".join(f"{row} {sorted(v)}" for row, v in seeds.items())]


def _reference_notes(runs: list[Run]) -> list[str]:
    """Return, for each reference, a note on the first metric in which the runs' own evaluations of it differ."""
    found = []
    for model in REFERENCES:
        for metric in runs[0].metrics.get(model, {}):
            having = [r for r in runs if metric in r.metrics.get(model, {})]
            groups = group_by(having, lambda r: round(r.metrics[model][metric].value, 6))  # noqa: B023 - called at once
            if len(groups) > 1:
                of = f"{metric} of the {NAMES[model]} model"
                found.append(f"{of} differs between runs, the table shows the first: {describe(groups)}")
                break
    return found


def _environment_notes(runs: list[Run]) -> list[str]:
    found = []
    for key, words in ENVIRONMENT.items():
        groups = group_by(runs, lambda r: r.environment.get(key))  # noqa: B023 - called at once
        if len(groups) > 1:
            folders = "; ".join(map(folder_names, groups.values()))
            found.append(f"runs were made with different {words}: {folders}")
    return found
