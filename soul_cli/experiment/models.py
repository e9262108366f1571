"""The models of a run: base, target and retain-trained model, fine-tuned where they are not given, and kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soul_cli.core.distributed import Parallel, in_turn, main, once, whole_state, world
from soul_cli.core.files import digest, plain
from soul_cli.core.screen import Bar, bar
from soul_cli.core.types import QA, UserError
from soul_cli.data.encode import Encoder, Pairs
from soul_cli.data.rows import Rows
from soul_cli.evaluate.abilities import abilities
from soul_cli.experiment.base_models import MuonRecipe, Recipe
from soul_cli.experiment.context import Context
from soul_cli.experiment.keys import code
from soul_cli.experiment.tracking import track_step
from soul_cli.models import load as models
from soul_cli.models.load import ModelRef
from soul_cli.objective.methods import Problem, finetuning
from soul_cli.optim.build import Optim
from soul_cli.train.config import TrainConfig
from soul_cli.train.loop import TrainData, Trainer

# --- which models ------------------------------------------------------------------------------------------


def needs_base(context: Context) -> bool:
    """Return False where target and retain-trained model are given or not asked for."""
    return context.config.task.target_model is None


def given_models(context: Context) -> list[ModelRef]:
    """Return the models the user gave, by content."""
    model, task = context.config.model, context.config.task
    paths: list[tuple[str, str | None]] = [(p, None) for p in (task.target_model, task.retain_model) if p]
    if needs_base(context):
        paths.append((model.path, model.revision))
    return [context.given(path, revision) for path, revision in paths]


def unlearned_config(context: Context) -> Any:
    """Return the transformers configuration of the model that is unlearned."""
    given = context.config.task.target_model
    ref = context.given(given) if given else base(context)
    return models.lm_config(ref.path, ref.revision)


def target(context: Context) -> ModelRef:
    """Return the model that has learned everything."""
    if context.config.task.target_model:
        return context.given(context.config.task.target_model)
    return _finetuned(context, "target_model", base(context), context.data.full, "target model")


def retain_trained(context: Context) -> ModelRef | None:
    """Return the model that never saw the forget set; None where there is none to be had without the base model."""
    task = context.config.task
    if task.retain_model:
        return context.given(task.retain_model)
    if task.retain_rows or not needs_base(context):
        return None
    return _finetuned(context, "retain_model", base(context), context.data.retain, "retain-trained model")


def missing(context: Context) -> set[str]:
    """Return which of target and retain-trained model are still to be trained."""
    if not needs_base(context):
        return set()
    ref, out = base(context), set()
    wanted = {"target": context.data.full}
    if not (context.config.task.retain_model or context.config.task.retain_rows):
        wanted["retain"] = context.data.retain
    for name, rows in wanted.items():
        if not context.cache.has("models", _finetune_key(context, ref, rows)):
            out.add(name)
    return out


def base(context: Context) -> ModelRef:
    """Return the model before fine-tuning."""
    model = context.config.model
    return context.given(model.path, model.revision)


# --- fine-tuning -------------------------------------------------------------------------------------------


def _finetuned(context: Context, phase: str, ref: ModelRef, rows: list[QA], label: str) -> ModelRef:
    """Return the base model fine-tuned on rows: target model (full set) or retain-trained model."""
    key = _finetune_key(context, ref, rows)

    def build(work: Path, out: Path) -> None:
        with bar(f"{label}, fine-tuned on {len(rows)} pairs") as progress:
            _finetune(context, ref, rows, context.config.model.finetune, work, out, progress)

    return ModelRef(str(context.entry(phase, "models", key, build)), digest(key))


def _finetune_key(context: Context, ref: ModelRef, rows: list[QA]) -> dict[str, Any]:
    model = context.config.model
    return {
        "base": ref.digest,
        "rows": digest([(qa.question, qa.answer) for qa in rows]),
        "template": [context.template, context.rendered(ref), model.max_length, model.dtype],
        "recipe": plain(model.finetune),
        "seed": context.config.target_seed,
        **_code(model.finetune),
    }


def _code(recipe: Recipe | MuonRecipe) -> dict[str, Any]:
    return code(__name__, libraries=recipe.train.libraries, refusing=(abilities.__module__,))


def _finetune(
    context: Context, ref: ModelRef, rows: list[QA], recipe: Recipe | MuonRecipe, work: Path, out: Path, progress: Bar
) -> None:
    encoder = context.encoder(ref)
    data = TrainData(forget=None, retain=Rows({"answer": Pairs(encoder, rows)}))
    optim, settings, seed = recipe.optim, recipe.train, context.config.target_seed
    lm, _ = train(context, ref, data, finetuning(), optim, settings, seed, work, progress)
    save(lm, encoder, out)


# --- training and writing ----------------------------------------------------------------------------------


def train(
    context: Context,
    ref: ModelRef,
    data: TrainData,
    problem: Problem,
    optim: Optim,
    config: TrainConfig,
    seed: int,
    work: Path,
    progress: Bar,
    after_epoch: Callable[[Any, int, int], None] | None = None,
) -> tuple[Any, list[dict[str, Any]]]:
    """Return the model of the reference, trained (and sharded, with parallel=fsdp), and one record a step.

    after_epoch: see Trainer.train; it gets the model before, and behind the epoch how many steps there were until then.
    """
    run, accelerator = context.config, context.accelerator
    sharded = run.parallel is Parallel.fsdp and world() > 1
    if run.offload and world() > 1 and not sharded:
        raise UserError("offload=true on several processes, each with all states: use parallel=fsdp, which shards them")
    if data.forget:  # what its rows need of the target model is asked while no other model is in memory
        for epoch in range(config.epochs):
            data.forget(epoch)
    lora = config.lora

    def build() -> tuple[Any, Any, Trainer]:
        device = "cpu" if sharded else accelerator.device  # sharded, no device need hold all of it
        lm = context.load(ref, device, load_in_4bit=config.in_4bit)
        if main():
            abilities(lm)  # refuses a model whose own predictions cannot be had
        adapters = lora.attach(lm, seed) if lora else None
        trainer = Trainer(
            lm, data, problem, optim, config, seed, accelerator, sharded=sharded, offload=run.offload,
            activation_checkpointing=run.activation_checkpointing,
        )  # fmt: skip
        return lm, adapters, trainer

    # a model that is sharded is whole in main memory before: one process after the other
    lm, adapters, trainer = in_turn(build, accelerator.device) if sharded else build()

    def report_step(done: int, total: int, record: dict[str, float]) -> None:
        losses = ", ".join(f"{k.removeprefix('loss_')} {v:.3f}" for k, v in record.items() if k.startswith("loss_"))
        progress.to("", done, total, f"loss {losses}")
        if accelerator.trackers:  # those of the unlearning: before it there are none
            track_step(accelerator, done, record)

    def between(epoch: int) -> None:
        assert after_epoch is not None
        after_epoch(lm, epoch, sum(map(len, trainer.plans[:epoch])))

    records = trainer.train(work, report_step, between if after_epoch else None)
    return (lora.merge(adapters, lambda: context.load(ref, "cpu")) if lora else lm), records


def save(lm: Any, encoder: Encoder, out: Path) -> None:
    """Write an ordinary Hugging Face folder, safetensors, in the place of what is there.

    All processes call it: a sharded model is gathered by rank 0.
    """
    state = whole_state(lm)

    def write() -> None:
        shutil.rmtree(out, ignore_errors=True)
        lm.save_pretrained(out, state_dict=state)
        encoder.tokenizer.save_pretrained(out)

    once(write)
