"""What the unlearning of a run works on: its rows, the reference log-probabilities, and influence unlearning."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from soul_cli.core.distributed import gather, main, share
from soul_cli.core.files import digest, write_text
from soul_cli.core.screen import Bar
from soul_cli.core.types import QA, Prompted
from soul_cli.data.encode import Pairs
from soul_cli.evaluate.likelihood import score
from soul_cli.experiment.context import Context
from soul_cli.experiment.keys import code
from soul_cli.models import load as models
from soul_cli.models.answer_model import AnswerModel
from soul_cli.models.load import ModelRef
from soul_cli.objective.methods import IU, Method
from soul_cli.train.influence import Influence
from soul_cli.train.loop import TrainData


def unlearning_data(context: Context, target: ModelRef, method: Method) -> TrainData:
    """Return the encoded rows to forget and to keep, and reference log-probabilities where the method uses them."""
    encoder = context.encoder(target)
    forget = Pairs(encoder, context.data.forget)
    retain = Pairs(encoder, context.data.retain if method.needs_retain else [])
    reference = _reference_logps(context, target, forget) if method.uses_reference else []
    if not method.learns_refusal:
        return TrainData(lambda epoch: forget, retain, reference)

    def refusals(epoch: int) -> Pairs:
        generator = torch.Generator().manual_seed(context.config.seed * 1_000_003 + epoch)
        drawn = torch.randint(len(context.data.refusals), (len(forget),), generator=generator).tolist()
        asked = zip(context.data.forget, drawn, strict=True)
        return Pairs(encoder, [QA(qa.question, context.data.refusals[i]) for qa, i in asked])

    return TrainData(refusals, retain, reference)


def _reference_logps(context: Context, target: ModelRef, forget: Sequence[Prompted]) -> list[float]:
    """Return summed answer log-probabilities under the target model: constants, so computed once and kept."""
    config = context.config
    key = {
        "model": target.digest,
        "rows": digest([(p.prompt, p.answers) for p in forget]),  # the template in them
        "dtype": config.model.dtype,
        "precision": config.train.precision,
        **code(__name__),
    }

    def build(work: Path, out: Path) -> None:
        model = AnswerModel(context.load(target))
        device, precision = context.accelerator.device, config.train.precision
        scored = score(
            model, share(forget), budget=config.eval.batch_tokens,
            autocast=lambda: models.autocast(device, precision),
        )  # fmt: skip
        logps = gather([math.fsum(s[0].logps) for s in scored])
        if main():
            write_text(out / "logps.json", json.dumps(logps))

    return json.loads((context.entry("reference", "reference", key, build) / "logps.json").read_text())


def influence(
    context: Context, ref: ModelRef, data: TrainData, method: IU, progress: Bar
) -> tuple[Any, list[dict[str, Any]]]:
    """Return the model of the reference after the one step of method=iu, and the step's record."""
    lm = context.load(ref, "cpu")
    run = Influence(lm, data, method, context.config.train, context.config.seed, context.accelerator)
    return lm, run.unlearn(lambda done, total, what: progress.to("", done, total, what))
