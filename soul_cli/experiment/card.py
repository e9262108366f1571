"""The model card beside kept weights: README.md, with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from soul_cli import __version__
from soul_cli.core.files import plain
from soul_cli.core.run_folder import NAMES
from soul_cli.core.types import ARROWS, Metric
from soul_cli.experiment.base_models import HubModel
from soul_cli.experiment.config import RunConfig

CARD = "README.md"
KEPT = ("retain", "combine", "perturb", "optim", "train", "seed", "target_seed")  # settings, beside the method's own


def write(config: RunConfig, models: dict[str, dict[str, Metric]], names: list[str]) -> str:
    """Return the card of the unlearned model.  models: the metrics of each; names: those of the table."""
    base, folder = start_of(config)
    licence = read_licence(base, folder) if base else "mit"
    about = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": base} if base and folder is None else {}),
        **({"license": licence} if licence else {}),
        "tags": ["unlearning", "soul-unlearn", config.method.name],
    }
    columns, lines = table(models, names)
    settings = {k: v for k, v in config.plain().items() if k in KEPT}
    return "\n".join([
        "---", yaml.safe_dump(about, sort_keys=False, allow_unicode=True).rstrip(), "---", "",
        f"# {Path(base).name if base else 'Embedded model'}, unlearned: {config.title}", "",
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


def start_of(config: RunConfig) -> tuple[str, Path | None]:
    """Return the name of the model that the run began with ("": trained from scratch), and its folder if it is one."""
    given = config.task.target_model or (config.model.path if isinstance(config.model, HubModel) else "")
    folder = Path(given).expanduser()
    return (folder.resolve().name, folder) if given and folder.is_dir() else (given, None)


def read_licence(name: str, folder: Path | None) -> str:
    """Return what the front matter of a model's own card says; "" where it has none at hand.

    Of a model of the hub its card is fetched, unless the hub is out of reach.
    """
    from huggingface_hub import hf_hub_download

    try:
        path = folder / CARD if folder else Path(hf_hub_download(name, CARD))
        parts = path.read_text(encoding="utf-8").split("---\n", 2)
        front = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except Exception:  # whatever a hub and a stranger's file may bring: the card then says that nothing is known
        return ""
    licence = front.get("license") if isinstance(front, dict) else None
    return licence if isinstance(licence, str) else ""


def describe_base(base: str, config: RunConfig) -> str:
    """Return a sentence on the model before unlearning."""
    if not base:
        return "A small Llama was trained from scratch on the data of the task."
    if config.task.target_model:
        return f"The model is {base}."
    return f"{base} was fine-tuned on the data of the task."


def describe_licence(base: str, licence: str) -> str:
    """Return a sentence on what may be done with the weights."""
    if not base:
        return "The weights were made from scratch with soul-unlearn, which is under the MIT licence."
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
