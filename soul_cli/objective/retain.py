"""Retain terms: what is minimised on the rows to keep."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from soul_cli.objective.losses import distance, preference
from soul_cli.objective.term import Answers, Counts, Logits, Needs, Reference, Term


@dataclass
class NoRetain:
    """No retain rows."""

    name: str


@dataclass
class Retain(Term):
    """Base of the retain terms.  weight: its factor beside the forget term; 0 leaves the retain rows out."""

    weight: float

    group = "retain"

    def __post_init__(self) -> None:
        self.check("weight", least=0)


@dataclass
class CE(Retain):
    """Cross-entropy of the answers to keep."""

    paper = "SOUL, section 3"

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        return -step.mean(answers)


@dataclass
class KL(Retain):
    """The next token's distribution as before unlearning: KL(p' ‖ p), p' before, mean over the answer tokens.

    Section 3.2 takes the mean over all positions, its code prompt and padding included; here answer tokens count
    alone, as in every other term.
    """

    paper = "Maini et al. 2024, arXiv:2401.06121"
    needs = Needs(reference=Reference.logits)

    def token(self, at: Logits) -> Tensor:
        assert at.reference is not None
        before, now = at.reference.log_softmax(-1), at.policy.log_softmax(-1)
        return (before.exp() * (before - now)).sum(-1)

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        return step.mean(answers)


@dataclass
class States(Retain):
    """Hidden states behind a block as they were before unlearning (RMU's retain term).

    Mean over the width of the squared difference, mean over the answer tokens.  Deviations as in RMU: states where
    answer tokens are predicted, and the mean over the width of the released codes.
    """

    layer: int | None  # counted from 0; null: as deep as DEPTH says

    paper = "Li et al. 2024, arXiv:2403.03218"

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs(layer=self.layer, head=False, reference=Reference.states)

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        assert answers.states is not None
        assert answers.reference_states is not None
        return step.mean(answers, distance(answers.states, answers.reference_states))


@dataclass
class AP(Retain):
    """Answer preservation: the answer before a refusal, without a reference.

    -(1/beta) log sigmoid(beta (log p(answer) - log p(refusal))), mean over the questions.  Made for methods that teach
    refusals (method=po, IDK+AP).  Each question's refusal is drawn once a run; the authors' code draws anew each time.
    """

    beta: float

    paper = "Yuan et al. 2024, arXiv:2410.08109"
    needs = Needs(answers=("answer", "refusal"))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("beta")

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        sums = answers.sums()
        margin = sums[answers.named("answer")] - sums[answers.named("refusal")]
        return preference(margin, beta=self.beta).sum() / 2 / step.rows


RETAINS: dict[str, type] = {"none": NoRetain, "ce": CE, "kl": KL, "states": States, "ap": AP}
