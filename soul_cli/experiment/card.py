"""The model card beside kept weights: README.md, with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from soul_cli import __version__
from soul_cli.core.files import plain
from soul_cli.core.run_folder import NAMES
from soul_cli.core.types import ARROWS, Metric
from soul_cli.experiment.config import RunConfig
from soul_cli.models import packaged

CARD = "README.md"
KEPT = ("retain", "combine", "perturb", "optim", "train", "seed", "target_seed")  # settings, beside the method's own


def write(config: RunConfig, models: dict[str, dict[str, Metric]], names: list[str]) -> str:
    """Return the card of the unlearned model.  models: the metrics of each; names: those of the table."""
    base, hub, licence = start_of(config)
    about = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": hub} if hub else {}),
        **({"license": licence} if licence else {}),
        "tags": ["unlearning", "soul-unlearn", config.method.name],
    }
    columns, lines = table(models, names)
    settings = {k: v for k, v in config.plain().items() if k in KEPT}
    return "\n".join([
        "---", yaml.safe_dump(about, sort_keys=False, allow_unicode=True).rstrip(), "---", "",
        f"# {Path(base).name}, unlearned: {config.title}", "",
        f"{describe_base(base, config)} Then `{config.title}`"
        + (f" with the optimizer `{config.optim.name}`" if config.optimizes else "")
        + f" was to make it forget the forget set of the task `{config.task.name}` (soul-unlearn {__version__}).", "",
        "## Results", "",
        markdown(columns, lines), "",
        "↑ higher is better, ↓ lower is better, →R nearest to the retain-trained model is best.", "",
        "That a model no longer answers does not show that its weights no longer hold what was to be forgotten.", "",
        "## Settings", "",
        "```yaml", yaml.safe_dump({"method": plain(config.method), **settings}, sort_keys=False).rstrip(), "```", "",
        "## Licence", "",
        describe_licence(base, licence), "",
    ])  # fmt: skip


def start_of(config: RunConfig) -> tuple[str, str, str]:
    """Return the name of the model that the run began with, its id on the hub and its licence ("": none is known).

    Of a model of the hub its card is fetched, unless the hub is out of reach.
    """
    from huggingface_hub import hf_hub_download

    given = config.task.target_model or config.model.path
    if known := packaged.origin(given):
        return known
    folder = Path(given).expanduser()
    if folder.is_dir():
        return folder.resolve().name, "", read_licence(lambda: folder / CARD)
    return given, given, read_licence(lambda: Path(hf_hub_download(given, CARD)))


def read_licence(find: Callable[[], Path]) -> str:
    """Return the licence in the front matter of a model's own card; "" where there is none at hand."""
    try:
        parts = find().read_text(encoding="utf-8").split("---\n", 2)
        front = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except Exception:  # whatever a hub and a stranger's file may bring: the card then says that nothing is known
        return ""
    licence = front.get("license") if isinstance(front, dict) else None
    return licence if isinstance(licence, str) else ""


def describe_base(base: str, config: RunConfig) -> str:
    """Return a sentence on the model before unlearning."""
    if config.task.target_model:
        return f"The model is {base}."
    return f"{base} was fine-tuned on the data of the task."


def describe_licence(base: str, licence: str) -> str:
    """Return a sentence on what may be done with the weights."""
    if licence:
        return f"That of {base}: `{licence}`. Its terms hold for these weights too."
    return f"The card of {base} names no licence. Find out its terms before you pass these weights on."


def table(models: dict[str, dict[str, Metric]], names: list[str]) -> tuple[list[str], list[list[str]]]:
    """Return the heads of a table and its lines: of the metrics `names` those that the last model has."""
    last = list(models.values())[-1]
    lines = [
        [f"{name} {ARROWS.get(last[name].goal, '')}".rstrip(), *(number(m.get(name)) for m in models.values())]
        for name in names
        if name in last
    ]
    return ["metric", *(NAMES[model] for model in models)], lines


def number(metric: Metric | None) -> str:
    """Return a value to three digits; "-" where there is none."""
    return "-" if metric is None else f"{metric.value:.3g}"


def markdown(columns: list[str], lines: list[list[str]]) -> str:
    """Return a table in Markdown."""
    rows: list[list[Any]] = [columns, ["---", *["---:"] * (len(columns) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
