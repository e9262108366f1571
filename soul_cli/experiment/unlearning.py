"""What the unlearning of a run works on: its rows, what the target model made of them, and influence unlearning."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from soul_cli.core.distributed import share
from soul_cli.core.files import digest, plain
from soul_cli.core.screen import Bar
from soul_cli.core.types import QA
from soul_cli.data.encode import Encoder, Pairs
from soul_cli.data.kept import Kept, keep
from soul_cli.data.rows import NO_ROWS, Rows
from soul_cli.evaluate.likelihood import each
from soul_cli.experiment.context import Context
from soul_cli.experiment.keys import code
from soul_cli.models import load as models
from soul_cli.models.answer_model import AnswerModel
from soul_cli.models.load import ModelRef
from soul_cli.objective.edit import IU
from soul_cli.objective.term import Logits, Reference, Term
from soul_cli.train.influence import Influence
from soul_cli.train.loop import TrainData


def unlearning_data(context: Context, target: ModelRef) -> TrainData:
    """Return the encoded rows to forget and to keep, with what the terms need of the target model."""
    encoder, problem = context.encoder(target), context.config.problem
    forget, retain = Pairs(encoder, context.data.forget), Pairs(encoder, context.data.retain)
    if problem is None:  # an edit of the weights
        return TrainData(lambda epoch: Rows({"answer": forget}), Rows({"answer": retain}))

    kept = _rows(context, target, problem.retain, {"answer": retain}) if problem.retain else NO_ROWS
    term, redraws = problem.forget, problem.answers_with("refusal")
    if term is None:
        return TrainData(None, kept)

    @cache  # the loop asks for all epochs' order first, then for the rows of each
    def rows(draw: int) -> Rows:
        of = {"answer": lambda: forget, "refusal": lambda: _refusals(context, encoder, draw)}
        return _rows(context, target, term, {name: of[name]() for name in term.needs.answers})

    return TrainData(lambda epoch: rows(epoch if redraws else 0), kept)


def _refusals(context: Context, encoder: Encoder, epoch: int) -> Pairs:
    """Return the questions to forget, each with a refusal that is drawn anew in every epoch."""
    data = context.data
    generator = torch.Generator().manual_seed(context.config.seed * 1_000_003 + epoch)
    drawn = torch.randint(len(data.refusals), (len(data.forget),), generator=generator).tolist()
    asked = zip(data.forget, drawn, strict=True)
    return Pairs(encoder, [QA(qa.question, data.refusals[i]) for qa, i in asked])


# --- the model before unlearning ---------------------------------------------------------------------------


def _rows(context: Context, target: ModelRef, term: Term, answers: dict[str, Pairs]) -> Rows:
    """Return rows with what the term needs of the target model: constants, so computed once and kept."""
    needs = term.needs
    before = partial(_before, context, target, term)
    states = needs.reference is Reference.logits or needs.layer is not None
    return Rows(
        answers,
        values={n: before(a, states=False) for n, a in answers.items()} if needs.reference is Reference.values else {},
        states={n: before(a, states=True) for n, a in answers.items()} if states else {},
    )


def _before(context: Context, target: ModelRef, term: Term, rows: Pairs, *, states: bool) -> Kept:
    """Return what the target model makes of each row's answer tokens: the term's values, or hidden states."""
    config = context.config
    own = type(term).token is not Term.token  # the usual values are the same for all terms
    key = {
        "model": target.digest,
        "rows": digest([(p.prompt, p.answers) for p in rows]),  # the template in them
        "of": ["states", term.needs.layer] if states else ["values", plain(term) if own else None],
        "dtype": config.model.dtype,
        "precision": config.train.precision,
        **code(__name__),
    }

    def build(work: Path, out: Path) -> None:
        device, precision = context.accelerator.device, config.train.precision
        model = AnswerModel(context.load(target))
        found = each(
            model, share(rows), None if states else lambda *logits: term.token(Logits(*logits)),
            layer=term.needs.layer, budget=config.eval.batch_tokens,
            autocast=lambda: models.autocast(device, precision),
        )  # fmt: skip
        keep(found, out)

    return Kept(context.entry("reference", "reference", key, build))


def influence(
    context: Context, ref: ModelRef, data: TrainData, method: IU, progress: Bar
) -> tuple[Any, list[dict[str, Any]]]:
    """Return the model of the reference after the one step of method=iu, and the step's record."""
    lm = context.load(ref, "cpu")
    run = Influence(lm, data, method, context.config.train, context.config.seed, context.accelerator)
    return lm, run.unlearn(lambda done, total, what: progress.to("", done, total, what))
