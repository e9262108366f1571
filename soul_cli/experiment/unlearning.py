"""What the unlearning of a run works on: its rows, what the target model made of them, and influence unlearning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from soul_cli.core.distributed import gather, main, share
from soul_cli.core.files import digest, plain, read_json, write_text
from soul_cli.core.screen import Bar, log
from soul_cli.core.types import QA, Prompted, UserError
from soul_cli.data.encode import Encoder, Pairs
from soul_cli.data.kept import Kept, keep
from soul_cli.data.rows import NO_ROWS, Rows
from soul_cli.evaluate.likelihood import each
from soul_cli.evaluate.sample import sample
from soul_cli.experiment.context import Context
from soul_cli.experiment.keys import code
from soul_cli.experiment.models import train
from soul_cli.models import load as models
from soul_cli.models.answer_model import AnswerModel
from soul_cli.models.load import ModelRef
from soul_cli.objective.edit import IU, TaskVector
from soul_cli.objective.forget.preference import AltPO
from soul_cli.objective.losses import wide
from soul_cli.objective.methods import finetuning
from soul_cli.objective.term import Kinds, Logits, Reference, Term
from soul_cli.train.influence import Influence
from soul_cli.train.loop import TrainData


def unlearning_data(context: Context, target: ModelRef) -> TrainData:
    """Return the encoded rows to forget and to keep, with what the terms need of the target model."""
    encoder, problem, data = context.encoder(target), context.config.problem, context.data
    if problem is None:  # an edit of the weights
        forget, retain = (Rows({"answer": Pairs(encoder, items)}) for items in (data.forget, data.retain))
        return TrainData(lambda epoch: forget, retain)

    @cache  # the loop asks for all epochs' order first, then for the rows of each
    def rows(kind: Kinds, draw: int) -> Rows:
        term, items = problem.terms[kind], data.forget if kind is Kinds.forget else data.retain
        return _rows(context, target, term, _answers(context, target, encoder, term, items, draw))

    kept = rows(Kinds.retain, 0) if problem.retain else NO_ROWS
    if problem.forget is None:
        return TrainData(None, kept)
    redraws = Kinds.forget in problem.answers_with("refusal")
    return TrainData(lambda epoch: rows(Kinds.forget, epoch if redraws else 0), kept)


def _answers(
    context: Context, target: ModelRef, encoder: Encoder, term: Term, items: list[QA], draw: int
) -> dict[str, Sequence[Prompted]]:
    """Return the answers of each name that the term needs, by row.  draw: the number of the draw of refusals."""
    if isinstance(term, AltPO):
        pairs = alternatives(context, target, encoder, term, items)
        others = [Prompted(encoder.prompt(qa.question), ((*ids, encoder.end),)) for qa, ids in pairs]
        return {"alternative": others, "answer": Pairs(encoder, [qa for qa, _ in pairs])}
    of = {"answer": lambda: items, "refusal": lambda: _refused(context, items, draw)}
    return {name: Pairs(encoder, of[name]()) for name in term.needs.answers}


def _refused(context: Context, items: list[QA], draw: int) -> list[QA]:
    """Return questions, each with a refusal that is drawn anew in every draw."""
    refusals = context.data.refusals
    generator = torch.Generator().manual_seed(context.config.seed * 1_000_003 + draw)
    drawn = torch.randint(len(refusals), (len(items),), generator=generator).tolist()
    return [QA(qa.question, refusals[i]) for qa, i in zip(items, drawn, strict=True)]


# --- alternatives ------------------------------------------------------------------------------------------


def alternatives(
    context: Context, target: ModelRef, encoder: Encoder, term: AltPO, items: list[QA]
) -> list[tuple[QA, list[int]]]:
    """Return pairs of a question to forget and an alternative to its answer, as token ids, sampled once and kept.

    Those that are empty or the answer itself are left out and counted.  UserError: none is left.
    """
    config = context.config
    asked = [encoder.prompt(term.asked(qa.question, qa.answer)) for qa in items]
    room = [room_for(encoder, term, qa) for qa in items]
    key = {
        "prompts": digest([asked, room]),
        "sampled": [term.alternatives, term.temperature, term.seed],
        **_asked_model(context, target),
    }

    def build(work: Path, out: Path) -> None:
        lm, mine = context.load(target, load_in_4bit=config.train.in_4bit), share(range(len(items) * term.alternatives))
        of = [i // term.alternatives for i in mine]
        made = sample(
            lm, [asked[i] for i in of], keys=mine, seed=term.seed, temperature=term.temperature,
            ends={encoder.end, *models.end_tokens(lm, encoder.tokenizer)}, most_new=[room[i] for i in of],
            budget=config.eval.batch_tokens,
        )  # fmt: skip
        every = gather(made)
        if main():
            write_text(out / "alternatives.json", json.dumps(every))

    made = read_json(context.entry("alternatives", "alternatives", key, build) / "alternatives.json", [])
    every = [(items[i // term.alternatives], ids) for i, ids in enumerate(made)]
    pairs = [(qa, ids) for qa, ids in every if encoder.decode(ids) not in ("", qa.answer.strip())]
    if not pairs:
        raise UserError(
            f"method={term.name}: the model answers every question to forget with nothing or the answer itself; take a "
            "higher method.temperature, or a method.instruction that asks for another answer"
        )
    if len(pairs) < len(every):
        none = len(items) - len({id(qa) for qa, _ in pairs})
        log(
            f"alternatives: {len(every) - len(pairs)} of {len(every)} are empty or the answer itself, and left out; "
            f"{none} of {len(items)} questions have none"
        )
    return pairs


def room_for(encoder: Encoder, term: AltPO, qa: QA) -> int:
    """Return how many tokens an alternative may have: it is written behind what is asked, and read as an answer."""
    prompts = (encoder.prompt(question) for question in (term.asked(qa.question, qa.answer), qa.question))
    return min(term.max_new, encoder.max_length - 1 - max(map(len, prompts)))


# --- the model before unlearning ---------------------------------------------------------------------------


def _rows(context: Context, target: ModelRef, term: Term, answers: dict[str, Sequence[Prompted]]) -> Rows:
    """Return rows with what the term needs of the target model: constants, so computed once and kept."""
    if term.needs.reference is Reference.none:
        return Rows(answers)
    kept = {name: _before(context, target, term, pairs) for name, pairs in answers.items()}
    if term.needs.reference is Reference.values:
        return Rows(answers, values=kept)
    if term.needs.reference is Reference.norm:
        norms = [t.double() for some in kept.values() for t in some]
        return Rows(answers, norm=float(torch.cat(norms).mean()))
    return Rows(answers, states=kept)


def _asked_model(context: Context, target: ModelRef) -> dict[str, Any]:
    """Return what of a key names the model and its form, that in which it is trained, and the code that asks it."""
    in_4bit = context.config.train.in_4bit
    libraries = {"bitsandbytes"} if in_4bit else set[str]()
    dtype = context.config.model.dtype
    return {"model": target.digest, "dtype": dtype, "in_4bit": in_4bit, **code(__name__, libraries=libraries)}


def _before(context: Context, target: ModelRef, term: Term, rows: Sequence[Prompted]) -> Kept:
    """Return what the target model makes of each row's answer tokens: what the term needs as its reference."""
    config, kind = context.config, term.needs.reference
    own = type(term).token is not Term.token  # the usual values are the same for all terms
    key = {
        "rows": digest([(p.prompt, p.answers) for p in rows]),  # the template in them
        "of": [kind.value, (plain(term) if own else None) if kind is Reference.values else term.needs.layer],
        "precision": config.train.precision,
        **_asked_model(context, target),
    }

    def build(work: Path, out: Path) -> None:
        device, precision = context.accelerator.device, config.train.precision
        model = AnswerModel(context.load(target, load_in_4bit=config.train.in_4bit))
        found = each(
            model, share(rows), (lambda *logits: term.token(Logits(*logits))) if kind is Reference.values else None,
            layer=term.needs.layer, budget=config.eval.batch_tokens,
            autocast=lambda: models.autocast(device, precision),
        )  # fmt: skip
        keep([wide(t).norm(dim=-1) for t in found] if kind is Reference.norm else found, out)

    return Kept(context.entry("reference", "reference", key, build))


# --- edits of the weights ----------------------------------------------------------------------------------


def influence(
    context: Context, ref: ModelRef, data: TrainData, method: IU, progress: Bar
) -> tuple[Any, list[dict[str, Any]]]:
    """Return the model of the reference after the one step of method=iu, and the step's record."""
    lm = context.load(ref, "cpu")
    run = Influence(lm, data, method, context.config.train, context.config.seed, context.accelerator)
    return lm, run.unlearn(lambda done, total, what: progress.to("", done, total, what))


def against_task_vector(
    context: Context, ref: ModelRef, data: TrainData, method: TaskVector, work: Path, progress: Bar
) -> tuple[Any, list[dict[str, Any]]]:
    """Return the model of the reference after method=task_vector, and one record a step of its fine-tuning."""
    assert data.forget is not None
    config = context.config
    learned = TrainData(None, data.forget(0))  # in the place of the rows to retain, on which fine-tuning trains
    tuned, records = train(context, ref, learned, finetuning(), config.optim, config.train, config.seed, work, progress)
    lm = context.load(ref)
    with torch.no_grad():
        for p, q in zip(lm.parameters(), tuned.parameters(), strict=True):
            p.copy_(method.edited(p, q.to(p.device)))
    return lm, records
