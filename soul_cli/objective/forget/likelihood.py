"""Forget terms on log-probabilities of the answers to forget, or of refusals, each by itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from soul_cli.objective.forget.base import Mean, Objective
from soul_cli.objective.losses import npo, preference
from soul_cli.objective.term import Answers, Counts, Needs, Reference


@dataclass
class GA(Mean):
    """Gradient ascent: minus the cross-entropy of the answers to forget."""

    paper = "Jang et al. 2023, arXiv:2210.01504; SOUL, section 3"
    alone = "the loss has no lower bound, so that the model diverges"


@dataclass
class GradDiff(GA):
    """Gradient difference: gradient ascent with retain=ce."""

    paper = "Liu et al. 2022, arXiv:2203.12817; SOUL, section 3"


@dataclass
class PO(Objective):
    """Preference optimisation as in TOFU and SOUL: cross-entropy of a refusal to each question to forget."""

    paper = "Maini et al. 2024, arXiv:2401.06121; SOUL, section 3"
    needs = Needs(answers=("refusal",))

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        return -step.mean(answers)


class Normalize(Enum):
    """How NPO weighs an answer's log-probability."""

    sum = "sum"
    mean = "mean"


@dataclass
class NPO(Objective):
    """Negative preference optimisation: a softplus of what an answer has gained since before unlearning.

    Eq. 3, mean over the answers.  normalize: sum is the NPO paper; mean takes the log-probability per token, as SOUL's
    released code does, which has one log-sigmoid a micro-batch where this has one an answer: the same with one row a
    micro-batch.
    """

    beta: float
    normalize: Normalize

    paper = "Zhang et al. 2024, arXiv:2404.05868"
    needs = Needs(reference=Reference.values)

    def __post_init__(self) -> None:
        self.check("beta")

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        policy, reference = answers.sums(), answers.reference_sums()
        if self.normalize is Normalize.mean:
            policy, reference = policy / answers.tokens, reference / answers.tokens
        return npo(policy, reference, beta=self.beta).sum() / step.rows


@dataclass
class SimNPO(Objective):
    """Simple NPO: no reference; the log-probability per token, against a margin.

    -(2/beta) log sigmoid(-beta/T log p(answer) - margin), mean over the answers.  The released code multiplies its
    margin δ by beta: margin = beta δ.  Both are 0 in all published settings.
    """

    beta: float
    margin: float

    paper = "Fan et al. 2024, arXiv:2410.07163"

    def __post_init__(self) -> None:
        self.check("beta")
        self.check("margin", least=0)

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        gain = -answers.sums() / answers.tokens - self.margin / self.beta
        return preference(gain, beta=self.beta).sum() / step.rows


@dataclass
class Weighted(Objective):
    """Base of the terms that are gradient ascent with a weight a token, into which no gradient enters."""

    def weight(self, logps: Tensor) -> Tensor:
        """Return the weight of each token from its log-probability, (T,) -> (T,)."""
        raise NotImplementedError

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        return step.mean(answers, self.weight(answers.values.detach()) * answers.values)


@dataclass
class WGA(Weighted):
    """Weighted gradient ascent: each token by its probability to the power of beta.

    As all released codes and their settings have it, the mean is over tokens; the paper has the mean over answers of
    the sum over an answer's tokens.
    """

    beta: float

    paper = "Wang et al. 2025, arXiv:2502.19301"

    def __post_init__(self) -> None:
        self.check("beta", least=0)

    def weight(self, logps: Tensor) -> Tensor:
        return (self.beta * logps).exp()


@dataclass
class SatImp(Weighted):
    """Saturation and importance: gradient ascent with weights p^beta1 (1-p)^beta2 a token.

    As in the released codes, the mean is over tokens; the paper has the mean over answers of an answer's sum.
    """

    beta1: float
    beta2: float

    paper = "Yang et al. 2025, arXiv:2505.11953"

    def __post_init__(self) -> None:
        self.check("beta1", "beta2", least=0)

    def weight(self, logps: Tensor) -> Tensor:
        return (self.beta1 * logps).exp() * (-logps.expm1()) ** self.beta2


@dataclass
class TNPO(Objective):
    """Token-wise NPO: NPO of each token by itself.

    The paper states the gradient, that of w log p with w = 2 p^beta / (p^beta + p'^beta) held fast, p' before
    unlearning; this is the loss that has it.  Deviations: the mean is over tokens, as in the authors' code, where the
    paper sums over an answer; without the 1e-5 that this code adds to the denominator.
    """

    beta: float

    paper = "Wang et al. 2025, arXiv:2502.19301"
    needs = Needs(reference=Reference.values)

    def __post_init__(self) -> None:
        self.check("beta")

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        assert answers.reference is not None
        reference = answers.reference.to(answers.values.dtype)
        return step.mean(answers, npo(answers.values, reference, beta=self.beta))
