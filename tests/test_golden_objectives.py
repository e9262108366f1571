"""Terms against published implementations: loss and gradient by the logits or the hidden states, in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from soul_cli.objective.edit import TaskVector
from soul_cli.objective.forget import representation
from soul_cli.objective.forget.distribution import CEU, IHL, ME, PDU, UNDIAL, Direction
from soul_cli.objective.forget.likelihood import NPO, TNPO, WGA, Normalize, SatImp, SimNPO
from soul_cli.objective.forget.preference import DPO, FLAT, AltPO, Divergence
from soul_cli.objective.forget.representation import RMU, AdaptiveRMU
from soul_cli.objective.retain import AP, CE, KL, States
from soul_cli.objective.term import Answers, Counts, Logits, Normalise, Reference, Term

Hyper = dict[str, Any]
DIVERGENCES = {
    "total_variation": Divergence.tv, "kl": Divergence.kl, "jensen_shannon": Divergence.js,
    "pearson": Divergence.pearson,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """How an entry of the golden file is computed here."""

    term: Callable[[Hyper], Term]
    normalise: Normalise = Normalise.token
    factor: Callable[[Hyper], float] = field(default=lambda hyper: 1.0)  # what stands in front of the term there
    rtol: float = 1e-9
    atol: float = 1e-12


def simnpo(hyper: Hyper) -> Term:
    return SimNPO("simnpo", hyper["beta"], hyper["delta"])


def simnpo_released(hyper: Hyper) -> Term:
    return SimNPO("simnpo", hyper["beta"], hyper["beta"] * hyper["delta"])


def dpo(hyper: Hyper) -> Term:
    return DPO("dpo", hyper["beta"])


def altpo(hyper: Hyper) -> Term:
    return AltPO("altpo", hyper["beta"], 2, 1.0, 9, None, 0)


def ihl(hyper: Hyper) -> Term:
    return IHL("ihl")


def undial(hyper: Hyper) -> Term:
    return UNDIAL("undial", hyper["beta"])


def kl(hyper: Hyper) -> Term:
    return KL("kl", 1.0)


def pdu(hyper: Hyper) -> Term:
    return PDU("pdu")


# entry of the golden file, version -> how it is computed here
CASES: dict[tuple[str, str], Case] = {
    ("npo", "released"): Case(lambda hyper: NPO("npo", hyper["beta"], Normalize.sum)),
    ("simnpo", "paper"): Case(simnpo),
    ("simnpo", "released"): Case(simnpo_released),
    ("dpo", "released"): Case(dpo),
    ("dpo", "paper"): Case(dpo, factor=lambda hyper: hyper["beta"] / 2),
    ("idkdpo", "released"): Case(dpo),
    ("idkdpo", "paper"): Case(dpo, factor=lambda hyper: 1 / 2),
    ("altpo", "released"): Case(altpo),
    ("ap", "released"): Case(lambda hyper: AP("ap", 1.0, hyper["beta"])),
    ("wga", "released"): Case(lambda hyper: WGA("wga", hyper["beta"])),
    ("satimp", "released"): Case(lambda hyper: SatImp("satimp", hyper["beta1"], hyper["beta2"])),
    ("tnpo", "potential_per_token"): Case(lambda hyper: TNPO("tnpo", hyper["beta"])),
    ("flat", "paper"): Case(lambda hyper: FLAT("flat", DIVERGENCES[hyper["divergence"]])),
    ("undial", "paper"): Case(undial),
    ("ce_u", "released"): Case(lambda hyper: CEU("ce_u", skip_first=True)),
    ("ce_u", "paper"): Case(lambda hyper: CEU("ce_u", skip_first=False)),
    # the code adds 1e-12 to p
    ("me", "released_masked"): Case(lambda hyper: ME("me", Direction.to_model), rtol=1e-9, atol=1e-10),
    ("me", "paper"): Case(lambda hyper: ME("me", Direction.to_uniform), Normalise.row),
    ("pdu_forget", "paper"): Case(pdu),
    ("ihl", "paper"): Case(ihl),
    ("rmu_forget", "per_token"): Case(lambda hyper: RMU("rmu", 7, hyper["coefficient"], 0)),
    ("rmu_forget", "paper"): Case(lambda hyper: RMU("rmu", 7, hyper["coefficient"], 0), Normalise.row, lambda hyper: 4),
    ("rmu_retain", "per_token"): Case(lambda hyper: States("states", 1.0, 7)),
    ("adaptive_rmu_forget", "per_token"): Case(lambda hyper: AdaptiveRMU("rmu_adaptive", 7, hyper["scale"], 0)),
    ("adaptive_rmu_retain", "per_token"): Case(
        lambda hyper: States("states", 1.0, 7), factor=lambda hyper: hyper["alpha"]
    ),
    ("kl_retain", "per_token"): Case(kl),
    ("kl_retain", "paper"): Case(kl, Normalise.row),
    ("ce_retain", "released"): Case(lambda hyper: CE("ce", 1.0)),
}  # fmt: skip


@cache
def golden(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "data" / "objectives" / "golden.json").read_text())


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclass
class Kind:
    """One kind of rows of the golden file: numbers at each answer token, with graph, and before unlearning."""

    policy: Tensor  # (T, V) logits or (T, D) states
    before: Tensor
    targets: Tensor
    owner: Tensor
    padded: Tensor  # the leaf

    @classmethod
    def read(cls, inputs: dict[str, Any], name: str) -> Kind:
        about = inputs[name.removeprefix("states:")]
        rows, positions = torch.tensor(about["where"]).unbind(1)
        padded = f64(inputs[name]["policy"]).requires_grad_()
        before = f64(inputs[name].get("reference", inputs[name]["policy"]))[rows, positions]
        return cls(
            padded[rows, positions], before, torch.tensor(about["targets"]), torch.tensor(about["owner"]), padded
        )


def computed(case: Case, hyper: Hyper, kinds: dict[str, Kind], uses: list[str]) -> Tensor:
    """The loss: of one answer a row, or of the pairs of an answer (the first kind) and one of the other kinds."""
    term = case.term(hyper)
    needs, (first, *others) = term.needs, uses
    rows = range(int(kinds[first].owner.max()) + 1)
    named = [dict.fromkeys(needs.answers, other) | {"answer": first} for other in others or [first]]
    order = [(name, of[name], i) for of in named for i in rows for name in needs.answers]
    tokens = [torch.nonzero(kinds[kind].owner == i).squeeze(1) for _, kind, i in order]

    def gather(what: str) -> Tensor:
        pairs = zip(order, tokens, strict=True)
        return torch.cat([getattr(kinds[kind], what)[some] for (_, kind, _), some in pairs])

    policy, before, targets = gather("policy"), gather("before"), gather("targets")
    lengths = torch.tensor([len(some) for some in tokens])
    owner = torch.repeat_interleave(torch.arange(len(order)), lengths)
    step = Counts(len(order) // len(needs.answers), len(owner), case.normalise)
    which = tuple(name for name, _, _ in order)
    if needs.layer is not None:
        norm = policy.detach().norm(dim=-1).mean().item()  # the code takes the model's own, at the first step
        answers = Answers(owner[:0], owner, lengths, which, states=policy, reference_states=before, reference_norm=norm)
    else:
        reference = term.token(Logits(before, targets)) if needs.reference is Reference.values else None
        values = term.token(Logits(policy, targets, before if needs.reference is Reference.logits else None))
        answers = Answers(values, owner, lengths, which, reference)
    return term.loss(answers, step) * case.factor(hyper)


@pytest.mark.parametrize(("name", "version"), CASES)
def test_loss_and_gradient_are_the_published_ones(
    shared: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str
) -> None:
    file, case = golden(shared), CASES[name, version]
    unit = f64(file["inputs"]["direction"])
    monkeypatch.setattr(representation, "direction", lambda width, seed: unit / unit.norm())
    for entry in (e for e in file["objectives"] if e["name"] == name):
        versions = entry["versions"]
        if version not in versions:  # of one of several inputs alone
            continue
        wanted = versions[versions[version].get("same_as", version)]
        kinds = {use: Kind.read(file["inputs"], use) for use in entry["uses"]}
        loss = computed(case, entry["hyper"], kinds, entry["uses"])
        loss.backward()
        assert loss.item() == pytest.approx(wanted["loss"], rel=case.rtol, abs=case.atol)
        for use, kind in kinds.items():
            assert kind.padded.grad is not None
            rows, positions = torch.tensor(file["inputs"][use.removeprefix("states:")]["where"]).unbind(1)
            whole = wanted["layout"] == "padded"
            found = kind.padded.grad if whole else kind.padded.grad[rows, positions]
            torch.testing.assert_close(found, f64(wanted["grad"][use]), rtol=case.rtol, atol=case.atol)


def test_task_vector_is_the_published_one(shared: Path) -> None:
    for entry in (e for e in golden(shared)["objectives"] if e["name"] == "task_vector"):
        for name, expected in entry["versions"]["paper"]["after"].items():
            before, tuned = f64(entry["before"][name]), f64(entry["finetuned"][name])
            found = TaskVector("task_vector", entry["hyper"]["alpha"]).edited(before, tuned)
            torch.testing.assert_close(found, f64(expected), rtol=1e-9, atol=1e-12)


def test_every_default_of_the_golden_file_is_a_case(shared: Path) -> None:
    """An objective that is added there is missed here."""
    elsewhere = ("pdu_dual", "task_vector")  # no terms
    wanted = {(e["name"], e["default"]) for e in golden(shared)["objectives"] if e["name"] not in elsewhere}
    assert wanted <= CASES.keys()
