"""Terms against published implementations: loss and gradient by the logits, in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from soul_cli.objective.forget import NPO, Normalize
from soul_cli.objective.retain import CE, KL
from soul_cli.objective.term import Answers, Counts, Logits, Normalise, Reference, Term

# entry of the golden file, version -> the term of its hyperparameters, how means are taken
TERMS: dict[tuple[str, str], tuple[Callable[[dict[str, Any]], Term], Normalise]] = {
    ("npo", "released"): (lambda hyper: NPO("npo", hyper["beta"], Normalize.sum), Normalise.token),
    ("kl_retain", "per_token"): (lambda hyper: KL("kl", 1.0), Normalise.token),
    ("kl_retain", "paper"): (lambda hyper: KL("kl", 1.0), Normalise.row),
    ("ce_retain", "released"): (lambda hyper: CE("ce", 1.0), Normalise.token),
}


def computed(term: Term, given: dict[str, Any], normalise: Normalise) -> tuple[float, Tensor]:
    """Loss and its gradient by the logits of the answer tokens (T, V)."""
    rows, positions = torch.tensor(given["where"]).unbind(1)
    logits = torch.tensor(given["policy"], dtype=torch.float64)[rows, positions].requires_grad_()
    before = torch.tensor(given["reference"], dtype=torch.float64)[rows, positions]
    targets, owner = torch.tensor(given["targets"]), torch.tensor(given["owner"])
    needs, tokens = term.needs, torch.bincount(owner)
    reference = term.token(Logits(before, targets)) if needs.reference is Reference.values else None
    values = term.token(Logits(logits, targets, before if needs.reference is Reference.logits else None))
    step = Counts(len(tokens), len(owner), normalise)
    loss = term.loss(Answers(values, owner, tokens, reference=reference), step)
    loss.backward()
    assert logits.grad is not None
    return loss.item(), logits.grad


@pytest.mark.parametrize(("name", "version"), TERMS)
def test_loss_and_gradient_are_the_published_ones(shared: Path, name: str, version: str) -> None:
    golden = json.loads((shared / "data" / "objectives" / "golden.json").read_text())
    make, normalise = TERMS[name, version]
    for entry in (e for e in golden["objectives"] if e["name"] == name):
        (kind,) = entry["uses"]
        wanted = entry["versions"][version]
        loss, gradient = computed(make(entry["hyper"]), golden["inputs"][kind], normalise)
        assert loss == pytest.approx(wanted["loss"], rel=1e-9, abs=1e-12)
        expected = torch.tensor(wanted["grad"][kind], dtype=torch.float64)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
