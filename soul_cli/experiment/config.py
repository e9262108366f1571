"""The run's configuration: Hydra composes values, dataclasses check names, types and ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from soul_cli.core.files import CONFIGS
from soul_cli.core.types import UserError
from soul_cli.evaluate.config import EpochEvalConfig, EvalConfig, Select
from soul_cli.experiment.base_models import MODELS, AnyModel
from soul_cli.objective.methods import METHODS, Method
from soul_cli.optim.build import OPTIMS, Optim
from soul_cli.tasks import TASKS
from soul_cli.tasks.base import Task
from soul_cli.train.config import TrainConfig

# a group's `name` -> the dataclass that is its schema and its behaviour
GROUPS: dict[str, Mapping[str, type]] = {
    "task": TASKS,
    "method": METHODS,
    "optim": OPTIMS,
    "model": MODELS,
}
# sections that have one schema
SECTIONS = {"train": TrainConfig, "eval": EvalConfig, "epoch_eval": EpochEvalConfig}


class Parallel(Enum):
    """How several processes train one model: each has it whole and gradients are summed, or it is sharded (FSDP2)."""

    ddp = "ddp"
    fsdp = "fsdp"


@dataclass
class RunConfig:
    """One experiment."""

    task: Task
    method: Method
    optim: Optim
    model: AnyModel
    train: TrainConfig
    eval: EvalConfig
    epoch_eval: EpochEvalConfig
    seed: int
    target_seed: int
    force: bool
    save_model: bool
    output_dir: str
    cache_dir: str
    trackers: list[str]
    parallel: Parallel
    offload: bool  # optimizer states in main memory, sharded parameters too
    activation_checkpointing: bool
    plan: bool  # print what the run needs, and end
    gpu: str | None  # of the plan: a name in configs/gpus.yml; null: all of them
    gpus: int  # of the plan

    # what changes where a result lies or how it is computed, not what it is
    NOT_RESULT = (
        "force", "save_model", "output_dir", "cache_dir", "trackers", "parallel", "offload", "activation_checkpointing",
        "plan", "gpu", "gpus",
    )  # fmt: skip
    OF_TRAINING = ("train", "seed")

    def identity(self) -> dict[str, Any]:
        """All that determines the result, as plain values."""
        between = plain(self.epoch_eval) if self.evaluates_epochs else None
        ignored = self.NOT_RESULT if self.method.trains else self.NOT_RESULT + self.OF_TRAINING
        kept = {k: v for k, v in self.plain().items() if k not in ignored}
        return kept | {"eval": self.eval.identity(), "epoch_eval": between}

    @property
    def evaluates_epochs(self) -> bool:
        return self.method.optimizes and self.epoch_eval.every is not None

    def plain(self) -> dict[str, Any]:
        """As plain values, but for an optimizer that has no effect."""
        kept = (f.name for f in fields(self) if f.name != "optim" or self.method.optimizes)
        return {name: plain(getattr(self, name)) for name in kept}

    @property
    def cache(self) -> Path:
        return Path(self.cache_dir).expanduser()


def plain(value: Any) -> Any:
    """A dataclass tree as dicts, enums as their values."""
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value.value if isinstance(value, Enum) else value


def load(raw: DictConfig) -> RunConfig:
    """Composed values -> checked objects.  Names every missing key; nothing has been loaded yet."""
    missing = sorted(OmegaConf.missing_keys(raw))
    if missing:
        raise UserError("no value for " + ", ".join(missing) + "; set it on the command line, KEY=VALUE")
    parts: dict[str, Any] = {}
    for key in (f.name for f in fields(RunConfig)):
        if key not in raw:
            raise UserError(f"the key {key!r} is missing in the configuration")
        if key in GROUPS:
            parts[key] = _typed(key, raw[key], _schema(key, raw[key]))
        elif key in SECTIONS:
            parts[key] = _typed(key, raw[key], SECTIONS[key])
        else:
            parts[key] = raw[key]
    switches = ("force", "save_model", "offload", "activation_checkpointing", "plan")
    for key, kind in (("seed", int), ("target_seed", int), ("gpus", int), *((key, bool) for key in switches)):
        if type(parts[key]) is not kind:
            raise UserError(f"{key}={parts[key]!r}: must be {'true or false' if kind is bool else 'a whole number'}")
    if parts["gpus"] < 1:
        raise UserError(f"gpus={parts['gpus']}: must be 1 or more")
    parts["trackers"] = list(parts["trackers"])
    if parts["parallel"] not in Parallel.__members__:
        raise UserError(f"parallel={parts['parallel']!r}: must be one of {', '.join(Parallel.__members__)}")
    parts["parallel"] = Parallel(parts["parallel"])
    config = RunConfig(**parts)
    if config.parallel is Parallel.fsdp and config.method.one_shot:
        raise UserError(
            f"parallel=fsdp with method={config.method.name}: its curvature is that of whole parameters; "
            "use parallel=ddp"
        )
    for where, train in {"model.finetune.train": config.model.finetune.train, "train": config.train}.items():
        if train.lora and not config.plan:
            train.lora.check()
        if train.lora and config.parallel is Parallel.fsdp:
            raise UserError(f"parallel=fsdp with {where}.lora: adapters are not sharded; use parallel=ddp")
        if train is config.train and train.lora and config.epoch_eval.select is Select.best:
            raise UserError("epoch_eval.select=best with train.lora: adapters are merged at the end; use select=last")
        if train.lora and config.model.dtype == "float64" and train.lora.load_in_4bit:
            raise UserError(f"{where}.lora.load_in_4bit=true with model.dtype=float64: take bfloat16 or float32")
    return config


def _schema(group: str, values: DictConfig) -> type:
    name = values.get("name")
    if name not in GROUPS[group]:
        raise UserError(f"{group}.name={name!r}: must be one of {', '.join(GROUPS[group])}")
    return GROUPS[group][name]


def _listed(values: DictConfig, schema: Any) -> DictConfig:
    """The values with each single one a list where a list is meant: task.forget_books=oz.txt."""
    out = values.copy()
    for node, kind in get_type_hints(schema).items():
        if node in values and not OmegaConf.is_missing(values, node) and (value := values[node]) is not None:
            if is_dataclass(kind) and isinstance(value, DictConfig):
                out[node] = _listed(value, kind)
            elif any(get_origin(k) is list for k in (kind, *get_args(kind))) and not isinstance(value, ListConfig):
                out[node] = [value]
    return out


def _typed(key: str, values: DictConfig, schema: type) -> Any:
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), _listed(values, schema)))
    except OmegaConfBaseException as error:
        text = str(error).splitlines()[0]
        where = f"{key}.{error.full_key}" if error.full_key else key
        known = ", ".join(f.name for f in fields(schema))
        raise UserError(f"{where}: {text} (keys of {key}: {known})") from None


def compose(overrides: list[str]) -> RunConfig:
    """The configuration of one run from command-line overrides, for scripts and tests."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return load(hydra_compose("config", overrides))
