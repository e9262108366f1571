"""The methods: objectives that are trained, edits of the weights, prompts; and the whole problem a run solves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import ClassVar

from soul_cli.core.types import UserError
from soul_cli.objective import edit
from soul_cli.objective.combine import Combine, Sum
from soul_cli.objective.forget import distribution, likelihood, preference, representation
from soul_cli.objective.forget.base import Finetune, Objective
from soul_cli.objective.perturb import Perturb, Unperturbed
from soul_cli.objective.retain import CE, NoRetain, Retain
from soul_cli.objective.term import Kinds, Term


@dataclass
class Original:
    """The model as it is."""

    name: str


@dataclass
class Prompting:
    """No training: a system prompt lists what not to answer about."""

    name: str

    paper: ClassVar[str] = "SOUL, Table 1"


Method = Objective | edit.Edit | Prompting | Original

METHODS: dict[str, type] = {
    "none": Original,
    "input_based": Prompting,
    "finetune": Finetune,
    "ga": likelihood.GA,
    "graddiff": likelihood.GradDiff,
    "po": likelihood.PO,
    "npo": likelihood.NPO,
    "simnpo": likelihood.SimNPO,
    "dpo": preference.DPO,
    "altpo": preference.AltPO,
    "wga": likelihood.WGA,
    "satimp": likelihood.SatImp,
    "tnpo": likelihood.TNPO,
    "flat": preference.FLAT,
    "undial": distribution.UNDIAL,
    "ce_u": distribution.CEU,
    "me": distribution.ME,
    "pdu": distribution.PDU,
    "ihl": distribution.IHL,
    "rmu": representation.RMU,
    "rmu_adaptive": representation.AdaptiveRMU,
    "iu": edit.IU,
    "task_vector": edit.TaskVector,
}
# what published runs have beside a forget term, where it is not cross-entropy
USUAL = {"ga": "none", "flat": "none", "undial": "none", "ce_u": "none", "rmu": "states", "rmu_adaptive": "states"}


def usual_retain(method: str) -> str:
    """Return the retain term that goes with a method where none is chosen."""
    return USUAL.get(method, "ce")


@dataclass(frozen=True)
class Problem:
    """What the loop minimises, and how the gradients make its steps."""

    forget: Objective | None
    retain: Retain | None
    combine: Combine
    perturb: Perturb

    @property
    def kinds(self) -> Kinds:
        """Which rows are run."""
        return (Kinds.forget if self.forget else Kinds(0)) | (Kinds.retain if self.retain else Kinds(0))

    @property
    def weight(self) -> float:
        """The factor of the retain term; 1 where it is alone or absent."""
        return self.retain.weight if self.forget and self.retain else 1.0

    @property
    def terms(self) -> dict[Kinds, Term]:
        """The terms of both kinds, forget first."""
        pairs: dict[Kinds, Term | None] = {Kinds.forget: self.forget, Kinds.retain: self.retain}
        return {kind: term for kind, term in pairs.items() if term is not None}

    def answers_with(self, name: str) -> Kinds:
        """Return the kinds of rows whose term needs answers of this name."""
        return reduce(or_, (kind for kind, term in self.terms.items() if name in term.needs.answers), Kinds(0))

    @property
    def steps(self) -> list[Kinds]:
        """The optimizer steps a step of the run is made of, without those that have no rows."""
        return [both for kinds in self.combine.steps if (both := kinds & self.kinds)]

    @property
    def passes(self) -> list[Kinds]:
        """Whose rows are passed over, pass after pass, in one optimizer step of each kind."""
        taken = (some for step in self.steps for kinds in self.combine.passes if (some := kinds & step))
        return [kinds for some in taken for kinds in self.perturb.passes(some)]

    @property
    def turns(self) -> tuple[int, int]:
        """How many optimizer steps on forget rows and on retain rows follow each other."""
        return self.combine.turns(Kinds.forget), self.combine.turns(Kinds.retain)

    @property
    def buffers(self) -> int:
        """Gradient-sized tensors of each weight that stand beside the gradient that is computed, at most.

        What a combination holds it holds while it waits for a retain gradient, a perturbation while it takes that of
        forget rows: not at once.
        """
        return self.combine.kept + max(self.combine.buffers, self.perturb.buffers)


def problem(method: Objective, retain: Retain | NoRetain, combine: Combine, perturb: Perturb) -> Problem:
    """Return the problem of a configuration; what makes no sense is an error.

    A retain term of weight 0 costs nothing: its rows are left out.
    """
    kept = None if isinstance(retain, NoRetain) or (retain.weight == 0 and method.forgets) else retain
    if not method.forgets and kept is None:
        raise UserError(f"method={method.name} trains on the retain rows alone: retain={retain.name} leaves none")
    missing = "forget" if not method.forgets else "retain" if isinstance(retain, NoRetain) else ""
    if combine.paired and missing:
        raise UserError(
            f"combine={combine.name} with method={method.name}, retain={retain.name}: there is no {missing} term; "
            "take combine=sum"
        )
    if combine.paired and len(combine.steps) == 1 and kept is None:
        raise UserError(f"combine={combine.name} with retain.weight=0: it needs the retain rows; take combine=sum")
    if not method.forgets and not isinstance(perturb, Unperturbed):
        raise UserError(
            f"perturb={perturb.name} with method={method.name}: there is no forget term to perturb; take perturb=none"
        )
    place, end = getattr(perturb, "layer", None), method.needs.layer
    if place is not None and end is not None and not method.needs.head and place > end:
        raise UserError(
            f"perturb.layer={perturb.place} with method={method.name}, whose forward ends behind layer "
            f"{method.needs.layer}: take that layer or one before it"
        )
    return Problem(method if method.forgets else None, kept, combine, perturb)


def graddiff() -> Problem:
    """Return gradient difference: what an edit of the weights passes over the rows for."""
    return Problem(likelihood.GA("ga"), CE("ce", 1.0), Sum("sum"), Unperturbed("none"))


def finetuning() -> Problem:
    """Return cross-entropy on the retain rows, as fine-tuning minimises it."""
    return Problem(None, CE("ce", 1.0), Sum("sum"), Unperturbed("none"))
