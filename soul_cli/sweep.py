"""Sweeps: the members of a `sweep=` group or of -m, run by Hydra's launcher, each whatever becomes of the others.

A sweep is a list of grids; its members are all combinations of each.  Where it has a `validation`, the members are
settings to choose from: they run on seeds of their own, the best setting of each method and optimizer is chosen by
the task's selection score, and that one runs on the seeds to report.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

Member = dict[str, str]  # override -> value, as typed on the command line
Setting = tuple[tuple[str, str], ...]  # a member's overrides, but for where and on which seed it runs

VALIDATION, REPORTED = "validation", "reported"  # folders of a sweep that chooses


@dataclass(frozen=True)
class Outcome:
    """What became of a member: its run folder, or why there is none."""

    member: Member
    folder: Path | None
    error: str = ""


def words(member: Member) -> list[str]:
    return [f"{key}={value}" for key, value in member.items()]


def expand(grids: Sequence[dict[str, Any]], given: Sequence[Member]) -> list[Member]:
    """All combinations of each grid with each of the command line's, which has the last word; each once.

    grids: override -> value or list of values.
    """
    members = []
    for grid in grids or [{}]:
        free = {k: v if isinstance(v, list) else [v] for k, v in grid.items() if not any(k in m for m in given)}
        for values in product(*free.values()):
            own = {k: "null" if v is None else str(v) for k, v in zip(free, values, strict=True)}
            members += [own | m for m in given]
    return [dict(m) for m in dict.fromkeys(tuple(m.items()) for m in members)]


class Members(Sweeper):
    """The sweeper behind `hydra/sweeper: members`.  validation: seeds, and overrides that make a run cheaper."""

    config: DictConfig
    hydra_context: HydraContext
    launcher: Launcher

    def __init__(self, grids: Any, seeds: Any, validation: Any):
        self.grids, self.seeds, self.validation = map(plain, (grids, seeds, validation))
        self.started = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Outcome]:
        """Run all members; ends with their table and, where some failed, with an error that names them."""
        members = expand(self.grids, self._given(arguments))
        if self.validation is None:
            outcomes = self._run(self._on(members, self.seeds))
            show(outcomes)
        else:
            out = self.config.output_dir
            grid = self._on(members, self.validation["seeds"], **self.validation["overrides"])
            tried = self._run([m | {"output_dir": f"{out}/{VALIDATION}"} for m in grid])
            chosen = self._on(choose(tried), self.seeds)
            outcomes = self._run([m | {"output_dir": f"{out}/{REPORTED}"} for m in chosen])
            show(outcomes)
            outcomes = [*tried, *outcomes]
        fail(outcomes)
        return outcomes

    def _given(self, arguments: list[str]) -> list[Member]:
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        (lines,) = BasicSweeper.split_arguments(parser.parse_overrides(arguments), None)
        return [dict(word.split("=", 1) for word in line) for line in lines]

    @staticmethod
    def _on(members: list[Member], seeds: list[int], **more: Any) -> list[Member]:
        """The members on each seed, unless the member has a seed of its own."""
        extra = {k: str(v) for k, v in more.items()}
        each = [{"seed": str(s)} for s in seeds] or [{}]
        return [dict(m) for m in dict.fromkeys(tuple((s | m | extra).items()) for m in members for s in each)]

    def _run(self, members: list[Member]) -> list[Outcome]:
        self._check(members)
        say_plan(members)
        returns = self.launcher.launch([words(m) for m in members], initial_job_idx=self.started)
        self.started += len(members)
        outcomes = []
        for member, done in zip(members, returns, strict=True):
            try:
                outcomes.append(Outcome(member, Path(done.return_value)))
            except Exception as error:  # what the member raised; its traceback has been shown
                outcomes.append(Outcome(member, None, str(error) or type(error).__name__))
        return outcomes

    def _check(self, members: list[Member]) -> None:
        """Every member's configuration, before the first of them costs anything."""
        from soul_cli.config import load
        from soul_cli.types import UserError

        for member in members:
            raw = self.hydra_context.config_loader.load_sweep_config(self.config, words(member))
            try:
                load(OmegaConf.masked_copy(raw, [str(key) for key in raw if key != "hydra"]))
            except UserError as error:
                raise UserError(f"{error} (member {' '.join(words(member))}; none has been run)") from None


def plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def choose(outcomes: Iterable[Outcome]) -> list[Member]:
    """Of each method and optimizer the setting with the best selection score, mean over its seeds.

    A setting that failed on a seed, as one that diverges, scores 0 there.
    """
    from soul_cli.tasks import TASKS

    cells: dict[tuple[str, ...], dict[Setting, list[float]]] = {}
    for o in outcomes:
        setting: Setting = tuple((k, v) for k, v in o.member.items() if k not in ("seed", "output_dir"))
        cell = tuple(o.member.get(k, "") for k in ("task", "method", "optim"))
        score = 0.0
        if o.folder is not None:
            content = json.loads((o.folder / "metrics.json").read_text())
            score = TASKS[content["task"]].selection_score(content["models"])
        cells.setdefault(cell, defaultdict(list))[setting].append(score)
    best = (max(scores, key=lambda setting: fmean(scores[setting])) for scores in cells.values())
    return [dict(setting) for setting in best]


def say_plan(members: list[Member]) -> None:
    from soul_cli.screen import say

    say(f"sweep    {len(members)} members")


def show(outcomes: list[Outcome]) -> None:
    """The table of the finished members."""
    from soul_cli.report.cli import arguments, report
    from soul_cli.screen import console, say
    from soul_cli.types import UserError

    folders = sorted({str(o.folder) for o in outcomes if o.folder is not None})
    if len(folders) > 1:
        try:
            console.print(report(arguments(folders)), markup=False, soft_wrap=True)
        except UserError as error:  # as where a row has several settings: there is nothing wrong with the runs
            say(f"no table: {error}")


def fail(outcomes: list[Outcome]) -> None:
    """Raise UserError that names the members that failed, if any."""
    from soul_cli.types import UserError

    failed = [o for o in outcomes if o.folder is None]
    if failed:
        lines = "".join(f"\n  {' '.join(words(o.member))}: {o.error}" for o in failed)
        raise UserError(f"{len(failed)} of {len(outcomes)} members failed, the others are finished:{lines}")
