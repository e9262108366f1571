"""The run's configuration: Hydra composes values, dataclasses check names, types and ranges."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from soul_cli.core.distributed import Parallel
from soul_cli.core.files import CONFIGS, plain
from soul_cli.core.places import check_writable, default_cache, expand_home
from soul_cli.core.types import UserError
from soul_cli.data.prompts import CHAT, TEMPLATES
from soul_cli.evaluate.config import EpochEvalConfig, EvalConfig, Select
from soul_cli.experiment.base_models import MODELS, AnyModel
from soul_cli.experiment.overrides import COMPOSING, explain_composition, quoted
from soul_cli.objective.combine import COMBINES, Combine
from soul_cli.objective.edit import Edit
from soul_cli.objective.forget.base import Objective
from soul_cli.objective.methods import METHODS, Method, Problem, problem, usual_retain
from soul_cli.objective.perturb import PERTURBS, Perturb
from soul_cli.objective.retain import RETAINS, NoRetain, Retain
from soul_cli.objective.term import DEPTH
from soul_cli.optim.build import OPTIMS, Optim
from soul_cli.tasks import TASKS
from soul_cli.tasks.base import Task
from soul_cli.train.config import TrainConfig

# a group's `name` -> the dataclass that is its schema and its behaviour
GROUPS: dict[str, Mapping[str, type]] = {
    "task": TASKS,
    "method": METHODS,
    "retain": RETAINS,
    "combine": COMBINES,
    "perturb": PERTURBS,
    "optim": OPTIMS,
    "model": MODELS,
}
# sections that have one schema
SECTIONS = {"train": TrainConfig, "eval": EvalConfig, "epoch_eval": EpochEvalConfig}
KINDS = {bool: "true or false", int: "a whole number", str: """text; a name like 1.5 or true is typed '"1.5"'"""}
SEEDS = 2**32  # NumPy takes no others


@dataclass
class RunConfig:
    """One experiment."""

    task: Task
    method: Method
    retain: Retain | NoRetain
    combine: Combine
    perturb: Perturb
    optim: Optim
    model: AnyModel
    train: TrainConfig
    eval: EvalConfig
    epoch_eval: EpochEvalConfig
    seed: int
    target_seed: int
    force: bool
    save_model: bool
    push_to_hub: str | None  # a repository of the Hugging Face hub; null: the model stays here
    output_dir: str
    cache_dir: str
    trackers: list[str]
    parallel: Parallel
    offload: bool  # optimizer states in main memory, sharded parameters too
    activation_checkpointing: bool
    deterministic: bool  # on a GPU: the same bits each time
    preset: str | None  # the file in configs/ whose searched settings this run has, unless others were typed
    plan: bool  # print what the run needs, and end
    gpu: str | None  # of the plan: a name in configs/gpus.yml; null: all of them
    gpus: int  # of the plan
    verbose: bool  # print all metrics, not the headline alone

    # what changes where a result lies or how it is computed, not what it is
    NOT_RESULT = (
        "force", "save_model", "push_to_hub", "output_dir", "cache_dir", "trackers", "parallel", "offload",
        "activation_checkpointing", "deterministic", "preset", "plan", "gpu", "gpus", "verbose",
    )  # fmt: skip
    OF_TRAINING = ("train", "seed")  # of no effect where nothing is trained
    OF_PROBLEM = ("retain", "combine", "perturb")  # of no effect without an objective

    @property
    def changes_weights(self) -> bool:
        return isinstance(self.method, Objective | Edit)

    @property
    def optimizes(self) -> bool:
        """Whether the training loop runs, and with it an optimizer."""
        return isinstance(self.method, Objective) or (isinstance(self.method, Edit) and self.method.trains)

    @cached_property
    def problem(self) -> Problem | None:
        """What a method minimises; None of one that has no objective."""
        if not isinstance(self.method, Objective):
            return None
        return problem(self.method, self.retain, self.combine, self.perturb)

    def settle_layers(self, layers: int) -> None:
        """Replace layer=null by the block at DEPTH of a model of so many: the run and its keys then hold the choice."""
        for part in (self.method, self.retain, self.perturb):
            if getattr(part, "layer", 0) is None:
                part.layer = min(layers - 1, round(DEPTH * layers))  # type: ignore[union-attr]
        self.__dict__.pop("problem", None)
        _ = self.problem  # refuses what only the blocks' numbers can tell

    @property
    def title(self) -> str:
        """The method's name, with what differs from what usually goes with it: npo+kl+alternating."""
        others = {self.retain.name: usual_retain(self.method.name), self.combine.name: "sum", self.perturb.name: "none"}
        more = [name for name, usual in others.items() if name != usual] if self.problem else []
        return "+".join([self.method.name, *more])

    def identity(self) -> dict[str, Any]:
        """All that determines the result, as plain values."""
        between = plain(self.epoch_eval) if self.evaluates_epochs else None
        ignored = self.NOT_RESULT if self.changes_weights else self.NOT_RESULT + self.OF_TRAINING
        kept = {k: v for k, v in self.plain().items() if k not in ignored}
        return kept | {"eval": self.eval.identity(), "epoch_eval": between}

    @property
    def evaluates_epochs(self) -> bool:
        return self.problem is not None and self.epoch_eval.every is not None

    def plain(self) -> dict[str, Any]:
        """As plain values, but for groups that have no effect."""
        effective = {"optim": self.optimizes, **dict.fromkeys(self.OF_PROBLEM, self.problem is not None)}
        kept = (f.name for f in fields(self) if effective.get(f.name, True))
        return {name: plain(getattr(self, name)) for name in kept}

    @property
    def libraries(self) -> set[str]:
        """Return the libraries that this configuration asks for, of those that others do without."""
        return {*self.train.libraries, *self.model.finetune.train.libraries, *self.eval.libraries}

    @property
    def cache(self) -> Path:
        return Path(self.cache_dir).expanduser()


def load(raw: DictConfig, overrides: Sequence[str]) -> RunConfig:
    """Return the checked configuration of composed values.  Raises UserError; nothing has been loaded yet.

    overrides: what was typed, of which the values are composed again where a preset is not for these data.
    """
    if raw.get("preset") is not None and not any(o.startswith("tuned=") for o in overrides):
        task = _value("task", raw.task, Task)
        if task.source != "embedded":
            from hydra import compose as hydra_compose

            raw = hydra_compose("config", [*overrides, "~tuned"])
    missing = sorted(OmegaConf.missing_keys(raw))
    if missing:
        raise UserError("no value for " + ", ".join(missing) + "; set it on the command line, KEY=VALUE")
    if raw.get("retain", {}).get("name") == "none":  # a tuned preset's weight is for the method's usual retain term
        raw = raw.copy()
        OmegaConf.set_struct(raw, False)
        raw.retain = {"name": "none"}
    known = [f.name for f in fields(RunConfig)]
    unknown = [str(key) for key in raw if key not in known]
    if unknown:
        raise UserError(f"the configuration has no key {', '.join(unknown)}; it has {', '.join(known)}")
    absent = [key for key in known if key not in raw]
    if absent:
        raise UserError(f"the configuration has no {', '.join(absent)}; give a value, KEY=VALUE")
    config = RunConfig(**{key: _value(key, raw[key], kind) for key, kind in get_type_hints(RunConfig).items()})
    for train in (config.train, config.model.finetune.train):
        train.settle(config.model.dtype)
    for check in (
        _check_numbers,
        _check_names,
        _check_problem,
        _check_parallel,
        _check_lora,
        _check_push,
        _check_folders,
    ):
        check(config)
    return config


def _value(key: str, value: Any, kind: Any) -> Any:
    """Return a key's value as an object: of its group's dataclass, of its section's, or of its own type."""
    if key not in GROUPS and key not in SECTIONS:
        return default_cache() if key == "cache_dir" and value is None else _setting(key, value, kind)
    if not isinstance(value, DictConfig):
        raise UserError(f"{key}={_typed_as(value)}: must be a group of keys; set one of them as {key}.KEY=VALUE")
    return _typed(key, value, _schema(key, value) if key in GROUPS else SECTIONS[key])


def _setting(key: str, value: Any, kind: Any) -> Any:
    """Return a value of a key that stands alone, in the type that RunConfig has for it."""
    if NoneType in get_args(kind):
        if value is None:
            return None
        (kind,) = (k for k in get_args(kind) if k is not NoneType)
    if kind is str and type(value) is int:
        value = str(value)  # as of a folder named by a date
    if isinstance(kind, type) and issubclass(kind, Enum):
        if value not in kind.__members__:
            raise UserError(f"{key}={_typed_as(value)}: must be one of {', '.join(kind.__members__)}")
        return kind[value]
    if get_origin(kind) is list:
        if not isinstance(value, ListConfig) or not all(isinstance(v, str) for v in value):
            some = value if isinstance(value, str) and value else "NAME"
            raise UserError(f"{key}={_typed_as(value)}: must be a list: {key}=[{some}], or [] for none")
        return list(value)
    if type(value) is not kind or value == "" or (kind is str and not _encodable(value)):
        raise UserError(f"{key}={_typed_as(value)}: must be {KINDS[kind]}")
    return value


def _typed_as(value: Any) -> str:
    """Return a value as one types it."""
    return quoted(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)


def _encodable(text: str) -> bool:
    """Return whether files can hold the text: Python reads bytes that are not UTF-8 as half characters."""
    return text == text.encode(errors="ignore").decode()


def _schema(group: str, values: DictConfig) -> type:
    name = values.get("name")
    if name not in GROUPS[group]:
        raise UserError(f"{group}.name={name!r}: must be one of {', '.join(GROUPS[group])}")
    return GROUPS[group][name]


def _typed(key: str, values: DictConfig, schema: type) -> Any:
    try:
        given = _with_lists(OmegaConf.to_container(values, resolve=True), schema)
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given))
    except OmegaConfBaseException as error:
        text = str(error).splitlines()[0]
        if "value 'None'" in text or "not Optional" in text:
            text = "must have a value, not null"
        where = f"{key}.{error.full_key}" if error.full_key else key
        known = ", ".join(f.name for f in fields(schema))
        raise UserError(f"{where}: {text} (keys of {key}: {known})") from None


def _with_lists(values: Any, schema: Any) -> Any:
    """Return plain values with a list of one where a text stands for a list of texts, sections inside included."""
    if not (isinstance(values, dict) and is_dataclass(schema)):
        return values
    kinds = get_type_hints(schema)

    def listed(key: Any, value: Any) -> Any:
        kind = kinds.get(key)
        if isinstance(value, str | int | float) and any(get_origin(k) is list for k in (kind, *get_args(kind))):
            return [value]
        return _with_lists(value, next((k for k in (kind, *get_args(kind)) if is_dataclass(k)), None))

    return {key: listed(key, value) for key, value in values.items()}


# --- checks of the whole ---------------------------------------------------------------------------------------


def _check_numbers(config: RunConfig) -> None:
    for key in ("seed", "target_seed"):
        if not 0 <= getattr(config, key) < SEEDS:
            raise UserError(f"{key}={getattr(config, key)}: must be a whole number from 0 to {SEEDS - 1}")
    if config.gpus < 1:
        raise UserError(f"gpus={config.gpus}: must be 1 or more")


def _check_names(config: RunConfig) -> None:
    if config.gpu is not None and config.gpu not in gpus():
        raise UserError(f"gpu={config.gpu}: must be one of {', '.join(gpus())}, or null for all of them")
    template = config.task.template
    if template is not None and template not in (*TEMPLATES, CHAT):
        raise UserError(f"task.template={template!r}: must be one of {', '.join([*TEMPLATES, CHAT])}, or null")
    if config.trackers:
        from accelerate.tracking import get_available_trackers

        available = [str(t) for t in get_available_trackers()]
        unknown = [name for name in config.trackers if name not in available]
        if unknown:
            raise UserError(
                f"trackers={unknown}: not installed or not known to Accelerate; installed: {available or 'none'}"
            )


def _check_problem(config: RunConfig) -> None:
    """Refuse terms that make no sense together."""
    _ = config.problem


def _check_parallel(config: RunConfig) -> None:
    if config.parallel is Parallel.fsdp and isinstance(config.method, Edit):
        raise UserError(f"parallel=fsdp with method={config.method.name}: it edits whole parameters; use parallel=ddp")


def _check_lora(config: RunConfig) -> None:
    for where, train in {"model.finetune.train": config.model.finetune.train, "train": config.train}.items():
        if train.lora is None:
            continue
        if not config.plan:
            train.lora.check()
        if config.parallel is Parallel.fsdp:
            raise UserError(f"parallel=fsdp with {where}.lora: adapters are not sharded; use parallel=ddp")
        if train is config.train and config.epoch_eval.select is Select.best:
            raise UserError("epoch_eval.select=best with train.lora: adapters are merged at the end; use select=last")
        if config.model.dtype == "float64" and train.lora.load_in_4bit:
            raise UserError(f"{where}.lora.load_in_4bit=true with model.dtype=float64: take bfloat16 or float32")


def _check_push(config: RunConfig) -> None:
    if config.push_to_hub is None:
        return
    if not config.save_model:
        raise UserError(f"push_to_hub={config.push_to_hub}: the kept model is pushed; set save_model=true too")
    if not config.changes_weights:
        raise UserError(
            f"push_to_hub={config.push_to_hub} with method={config.method.name}, which changes no weights: there is "
            "no model to push"
        )


def _check_folders(config: RunConfig) -> None:
    """Results must have a place.  What is in a cache that can only be read is read."""
    out, cache = (expand_home(getattr(config, key), key) for key in ("output_dir", "cache_dir"))
    if config.plan:
        return
    check_writable(out, "output_dir")
    if not (cache.is_dir() and os.access(cache, os.R_OK | os.X_OK)):
        check_writable(cache, "cache_dir")


def described(group: str) -> str:
    """Return what a group offers, a line each: name, first line of the docstring, paper."""
    lines = []
    for name, kind in GROUPS[group].items():
        paper = getattr(kind, "paper", "")
        lines.append(f"{name:<16}{str(kind.__doc__).splitlines()[0]}" + (f" ({paper})" if paper else ""))
    return "\n".join(lines)


def gpus() -> dict[str, dict[str, float]]:
    """Return the table of GPUs: name -> memory, rates."""
    return OmegaConf.to_container(OmegaConf.load(CONFIGS / "gpus.yml"))  # type: ignore[return-value]


def compose(overrides: list[str]) -> RunConfig:
    """Return the configuration of one run from command-line overrides.  UserError: they make none."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            return load(hydra_compose("config", overrides), overrides)
        except COMPOSING as error:
            text = explain_composition(error, sweeps=False)
            if text is None:
                raise
            raise UserError(text) from error
