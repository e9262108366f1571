"""Sweeps: the members of a `sweep=` group or of -m, run by Hydra's launcher, each whatever becomes of the others.

A sweep is a list of grids; its members are all combinations of each.  Where it has a `validation`, the members are
settings to choose from: they run on seeds of their own, the best setting of each choice of groups (method, optimizer,
combination ...) is chosen by the task's selection score, and that one runs on the seeds to report.
"""

from __future__ import annotations

import traceback
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from soul_cli.core import interrupt
from soul_cli.experiment.overrides import normalise, quoted, read

Member = dict[str, str]  # override -> value, as typed on the command line
Setting = tuple[tuple[str, str], ...]  # a member's overrides, but for where and on which seed it runs

VALIDATION, REPORTED = "validation", "reported"  # folders of a sweep that chooses


@dataclass(frozen=True)
class Outcome:
    """What became of a member: its run folder, or why there is none."""

    member: Member
    folder: Path | None  # OUTPUT_DIR/TASK/RUN
    error: str = ""


def overrides(member: Member) -> list[str]:
    """Return a member's overrides as Hydra takes them."""
    return [f"{key}={value}" for key, value in member.items()]


def expand(grids: Sequence[dict[str, Any]], given: Sequence[Member]) -> list[Member]:
    """All combinations of each grid with each line of the command line's; each once.

    grids: override -> value or list of values.  A value given for a key of the grids chooses those that list it; where
    none does, it takes the place of theirs.
    """
    lists = [{k: v if isinstance(v, list) else [v] for k, v in grid.items()} for grid in grids or [{}]]

    def fits(grid: dict[str, list[Any]], key: str, value: str) -> bool:
        listing = [g for g in lists if normalise(value) in [normalise(quoted(v)) for v in g.get(key, [])]]
        return key not in grid or not listing or grid in listing

    members = []
    for grid in lists:
        for line in given:
            if all(fits(grid, k, v) for k, v in line.items()):
                free = {k: v for k, v in grid.items() if k not in line}
                members += [
                    dict(zip(free, map(quoted, values), strict=True)) | line for values in product(*free.values())
                ]
    return [dict(m) for m in dict.fromkeys(tuple(m.items()) for m in members)]


class Members(Sweeper):
    """The sweeper behind `hydra/sweeper: members`; its arguments are explained there."""

    config: DictConfig
    hydra_context: HydraContext
    launcher: Launcher

    def __init__(self, grids: Any, choose: Any):
        self.grids, self.choose = plain(grids), plain(choose)
        self.started = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Outcome]:
        """Run all members; ends with their table and, where some failed, with an error that names them."""
        self._check_choice()
        members = expand(self.grids, self._given(arguments))
        if self.choose is None or self.config.plan:  # a plan leaves nothing to choose by
            outcomes = self._run(members)
            print_table(outcomes)
        else:
            outcomes = self._choose(members)
        fail(outcomes)
        return outcomes

    def _check_choice(self) -> None:
        from soul_cli.core.types import UserError

        chooses = self.choose if isinstance(self.choose, dict) else {}
        kinds = {"validation_seeds": list, "validation_overrides": dict, "seeds": list}
        if self.choose is not None and not all(isinstance(chooses.get(key), kind) for key, kind in kinds.items()):
            raise UserError(
                f"hydra.sweeper.choose: must be null or have validation_seeds (a list), validation_overrides and seeds "
                f"(a list); it is {self.choose}"
            )

    def _choose(self, members: list[Member]) -> list[Outcome]:
        """Try every setting on the validation seeds, then run the best ones on the seeds to report."""
        out = str(self.config.output_dir)
        seeds = [read(m["seed"]) for m in members if "seed" in m] or self.choose["seeds"]
        cheaper = {k: quoted(v) for k, v in self.choose["validation_overrides"].items()}
        settings = expand([{"seed": self.choose["validation_seeds"]}], [without(m, "seed") for m in members])
        tried = self._run(settings, cheaper | {"output_dir": quoted(f"{out}/{VALIDATION}")})
        reported = expand([{"seed": seeds}], best(tried))
        outcomes = self._run(reported, {"output_dir": quoted(f"{out}/{REPORTED}")})
        print_table(outcomes)
        if any(o.folder for o in outcomes):
            print_report("--compare", out)
        return [*tried, *outcomes]

    def _given(self, arguments: list[str]) -> list[Member]:
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        (lines,) = BasicSweeper.split_arguments(parser.parse_overrides(arguments), None)
        return [dict(word.split("=", 1) for word in line) for line in lines]

    def _run(self, members: list[Member], more: Member | None = None) -> list[Outcome]:
        """Launch the members, each with `more`; their outcomes in the same order."""
        from soul_cli.core.screen import log

        lines = [overrides(m | (more or {})) for m in members]
        self._check(lines)
        log(f"sweep of {len(lines)} members")
        alone = isinstance(self.launcher, BasicLauncher)  # in this process
        with nullcontext() if alone else interrupt.passed_on():
            returns = self.launcher.launch(lines, initial_job_idx=self.started)
        self.started += len(members)
        outcomes = []
        for member, done in zip(members, returns, strict=True):
            result = done.return_value
            if isinstance(result, Exception):  # its traceback has been shown
                outcomes.append(Outcome(member, None, str(result) or type(result).__name__))
            else:
                outcomes.append(Outcome(member, Path(result)))
        return outcomes

    def _check(self, lines: list[list[str]]) -> None:
        """Check every member's configuration before the first of them costs anything."""
        from soul_cli.core.types import UserError
        from soul_cli.experiment.config import load
        from soul_cli.experiment.run import prepare

        names: list[str] = []
        for line in lines:
            raw = self.hydra_context.config_loader.load_sweep_config(self.config, line)
            try:
                own = OmegaConf.masked_copy(raw, [str(key) for key in raw if key != "hydra"])
                config = load(own, list(raw.hydra.overrides.task))
                if not config.plan:
                    prepare(config)
                if config.push_to_hub in names:
                    raise UserError(
                        f"push_to_hub={config.push_to_hub}: several members would overwrite each other's model"
                    )
                names += [config.push_to_hub] if config.push_to_hub else []
            except UserError as error:
                raise UserError(f"{error} (member {' '.join(line)}; none has been run)") from None


def plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def without(member: Member, key: str) -> Member:
    return {k: v for k, v in member.items() if k != key}


def best(outcomes: Iterable[Outcome]) -> list[Member]:
    """Of each choice of groups (method, optim, combine ...) the best setting by selection score, mean over its seeds.

    A setting that failed on a seed, as one that diverges, scores 0 there.
    """
    from soul_cli.core.run_folder import RunFolder
    from soul_cli.tasks import TASKS

    cells: dict[Setting, dict[Setting, list[float]]] = {}
    for o in outcomes:
        cell = tuple(item for item in o.member.items() if "." not in item[0] and item[0] != "seed")
        setting: Setting = tuple(without(o.member, "seed").items())
        score = 0.0
        if o.folder is not None:
            score = TASKS[o.folder.parent.name].selection_score(RunFolder(o.folder).models())
        cells.setdefault(cell, defaultdict(list))[setting].append(score)
    chosen = []
    for scores in cells.values():
        means = [(fmean(some), setting) for setting, some in scores.items()]
        chosen.append(dict(max(means, key=itemgetter(0))[1]))
    return chosen


def print_table(outcomes: list[Outcome]) -> None:
    """Print the table of the finished members."""
    folders = sorted({str(o.folder) for o in outcomes if o.folder is not None})
    if len(folders) > 1:
        print_report(*folders)


def print_report(*given: str) -> None:
    """Print what soul-report prints for these arguments."""
    from soul_cli.core.screen import console, log
    from soul_cli.core.types import UserError
    from soul_cli.report.cli import arguments, report

    try:
        console.print(report(arguments(list(given))), markup=False, soft_wrap=True)
    except UserError as error:  # as where a row has several settings: there is nothing wrong with the runs
        log(f"no table: {error}")


def fail(outcomes: list[Outcome]) -> None:
    """Raise UserError that names the members that failed, if any."""
    from soul_cli.core.types import UserError

    failed = [o for o in outcomes if o.folder is None]
    if failed:
        lines = "".join(f"\n  {' '.join(overrides(o.member))}: {o.error}" for o in failed)
        raise UserError(
            f"{len(failed)} of {len(outcomes)} members failed, the others are finished:{lines}\n"
            "Checkpoints of those that had begun stay in their work folders; the same command goes on from there"
        )


def forget_frames(error: BaseException) -> None:
    """Let go of what the functions that an error ended had in hand, as a model and its optimizer's states.

    Hydra keeps a member's error until the sweep ends, and with it the frames of its traceback.
    """
    todo: list[BaseException | None] = [error]
    seen = set[int]()
    while todo:
        each = todo.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            todo += [each.__cause__, each.__context__]
