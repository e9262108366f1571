"""What is looked at before anything is trained: the models, their tokenizers, and every text they will read."""

from __future__ import annotations

from typing import Any, NamedTuple

from soul_cli.core.types import UserError
from soul_cli.data.encode import Encoder
from soul_cli.data.prompts import CHAT, takes_system
from soul_cli.evaluate.abilities import abilities
from soul_cli.experiment import evaluation, models
from soul_cli.experiment.context import Context
from soul_cli.experiment.unlearning import room_for
from soul_cli.models.checks import check_sizes, positions
from soul_cli.models.load import ModelRef, lm_config, load_tokenizer
from soul_cli.objective.forget.preference import AltPO
from soul_cli.objective.methods import Problem, Prompting
from soul_cli.objective.term import Kinds
from soul_cli.tasks.base import TaskData, check_lengths, measure_training, read_retain_rows


class Reader(NamedTuple):
    """A tokenizer, and how many tokens its model reads at most (None: no limit is known)."""

    tokenizer: Any
    limit: int | None


def check(context: Context) -> list[str]:
    """Refuse what could only fail when hours have been spent; return what the reader of the header should know."""
    config, data = context.config, context.data
    first = _first(context)
    encoder = _encoder(context, first)
    if config.problem is not None:
        check_layers(config.problem, models.unlearned_config(context).num_hidden_layers)
        check_answers(config.problem, data, encoder)
    prompts = isinstance(config.method, Prompting)
    notes = _check_texts(context, first, trains=True, system=data.system_prompt if prompts else "")
    if config.task.retain_rows:
        given = read_retain_rows(evaluation.retain_rows_file(config.task.retain_rows))
        config.task.check_retain_rows(given, evaluation.splits(context))
    if config.task.retain_model:
        ref = context.given(config.task.retain_model)
        _check_texts(context, _reader(context, ref), trains=False)
        if "target" in models.missing(context):
            abilities(context.load(ref))  # else it would be asked after the target model is trained
    if config.problem is not None:
        notes += warnings(config.problem)
    if encoder.end != first.tokenizer.eos_token_id:
        end = first.tokenizer.convert_ids_to_tokens(encoder.end)
        notes.append(f"answers end in {end}, with which the chat template ends a turn, not in EOS")
    if prompts and context.template == CHAT and not takes_system(first.tokenizer):
        notes.append("the chat template takes no system role: the system prompt opens the user's turn")
    if config.problem is not None and not config.combine.weighs and config.problem.weight != 1:
        notes.append(
            f"retain.weight={config.problem.weight:g} has no effect: combine={config.combine.name} takes no account of "
            "how long the retain gradient is"
        )
    return notes


def _first(context: Context) -> Reader:
    """Return the reader of the model that everything begins with: the given target model, or the base model."""
    config = context.config
    if config.task.target_model:
        return _reader(context, context.given(config.task.target_model))
    return _reader(context, models.base(context))


def _reader(context: Context, ref: ModelRef) -> Reader:
    config, tokenizer = lm_config(ref.path, ref.revision), load_tokenizer(ref)
    check_sizes(ref.path, config, tokenizer, context.config.model.max_length)
    return Reader(tokenizer, positions(config))


def _encoder(context: Context, reader: Reader, system: str = "") -> Encoder:
    return Encoder(reader.tokenizer, context.template, context.config.model.max_length, system)


def _check_texts(context: Context, reader: Reader, *, trains: bool, system: str = "") -> list[str]:
    """Refuse texts that are too long for model.max_length or the model, a system prompt on top; return notes.

    trains: whether the model is trained with this tokenizer, too.
    """
    config, data, encoder = context.config, context.data, _encoder(context, reader)
    splits = evaluation.splits(context)
    parts = {split: config.task.measure(encoder, split, items) for split, items in splits.items()}
    longest = max([config.task.most_total(config.eval), *(size for some in parts.values() for _, size in some)])
    if trains:
        rows = data.full if models.needs_base(context) else data.forget + data.retain
        refused = config.problem.answers_with("refusal") if config.problem else Kinds(0)
        kinds = {Kinds.forget: data.forget, Kinds.retain: data.retain}
        asked = [qa for kind in refused for qa in kinds[kind]]
        parts = measure_training(encoder, data, rows, refused=asked) | parts
    check_lengths(parts, config.model.max_length)
    notes = config.task.cut(encoder, splits, config.eval)
    on_top = _encoder(context, reader, system).system_tokens
    if reader.limit is not None and longest + on_top > reader.limit:
        prompt = f", {on_top} of them of the system prompt" if system else ""
        raise UserError(
            f"up to {longest + on_top} tokens are read at once in evaluation{prompt} (eval.max_total="
            f"{config.eval.max_total}), the model reads {reader.limit}"
        )
    return notes


def check_layers(problem: Problem, layers: int) -> None:
    """Refuse a term or a perturbation on a layer that the model has not.  layers: how many it has."""
    asked = [(f"{term.group}.layer", term.name, term.needs.layer) for term in problem.terms.values()]
    for key, name, layer in (*asked, ("perturb.layer", problem.perturb.name, problem.perturb.place)):
        if layer is not None and not 0 <= layer < layers:
            raise UserError(f"{key}={layer} ({name}): the model has the layers 0 to {layers - 1}")


def warnings(problem: Problem) -> list[str]:
    """Return what is known to go wrong with a forget term that stands alone."""
    forget = problem.forget
    if forget is None or problem.retain or not forget.alone:
        return []
    return [f"method={forget.name} without a retain term: {forget.alone}"]


def check_answers(problem: Problem, data: TaskData, encoder: Encoder) -> None:
    """Refuse terms whose answers cannot be had: of an empty list of refusals, or no room for alternatives."""
    refusing = [problem.terms[kind] for kind in problem.answers_with("refusal")]
    if refusing and not data.refusals:
        wanted = ", ".join(f"{term.group}={term.name}" for term in refusing)
        raise UserError(f"{wanted}: needs refusals to answer with, and the data have none")
    forget = problem.forget
    if isinstance(forget, AltPO) and any(room_for(encoder, forget, qa) < 1 for qa in data.forget):
        raise UserError(
            f"method={forget.name}: model.max_length={encoder.max_length} leaves no room for an alternative behind "
            "method.instruction; take a shorter one, or null"
        )
