"""Forget terms on the whole distribution of the next token, at the answer tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from torch import Tensor

from soul_cli.objective.forget.base import Mean, Objective
from soul_cli.objective.losses import cross_entropy
from soul_cli.objective.term import Answers, Counts, Logits, Needs, Reference


@dataclass
class UNDIAL(Mean):
    """Self-distillation with adjusted logits: towards the model before unlearning, the true token made unlikelier.

    Cross-entropy of softmax(z' - beta at the true token), z' the logits before unlearning, mean over the answer tokens.
    The authors' code takes every position, prompt and padding included; open-unlearning's lowers, there, the logit of
    the token with number V - 100.
    """

    beta: float

    paper = "Dong et al. 2024, arXiv:2402.10052"
    needs = Needs(reference=Reference.logits)

    def __post_init__(self) -> None:
        self.check("beta", least=0)

    def token(self, at: Logits) -> Tensor:
        assert at.reference is not None
        true = at.targets[:, None]
        adjusted = at.reference.scatter(-1, true, at.reference.gather(-1, true) - self.beta)
        return cross_entropy(adjusted.softmax(-1), at.policy)


@dataclass
class CEU(Objective):
    """Cross-entropy unlearning: towards the model's own distribution without the true token.

    Cross-entropy of softmax(z, -inf at the true token), into which no gradient enters, mean over the answer tokens.
    skip_first leaves out each answer's first token, from mean and count, as the released code and the paper's settings
    do: an answer of one token counts nothing.
    """

    skip_first: bool

    paper = "Yang 2025, arXiv:2503.01224"

    def token(self, at: Logits) -> Tensor:
        others = at.policy.detach().scatter(-1, at.targets[:, None], -math.inf)
        return cross_entropy(others.softmax(-1), at.policy)

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        if not self.skip_first:
            return step.mean(answers)
        values = answers.values * (answers.position > 0)
        rest = replace(answers, values=values, tokens=(answers.tokens - 1).clamp(min=1))
        return replace(step, tokens=max(1, step.tokens - step.rows)).mean(rest)


class Direction(Enum):
    """Which way a divergence between the uniform distribution U and the model's p is taken."""

    to_model = "to_model"  # KL(U ‖ p)
    to_uniform = "to_uniform"  # KL(p ‖ U)


@dataclass
class ME(Mean):
    """Towards the uniform distribution ("maximum entropy"), mean over the answer tokens.

    direction: to_model is KL(U ‖ p), which the authors' code and its published runs have: it does not maximise the
    entropy, but bounds every token's probability from below.  to_uniform is the paper's KL(p ‖ U) = log V - entropy.
    Deviations: answer tokens alone, where the code takes prompt and padding, the paper the question; without the 1e-12
    that the code adds to p.
    """

    direction: Direction

    paper = "Yuan et al. 2024, arXiv:2410.08109"

    def token(self, at: Logits) -> Tensor:
        logps = at.policy.log_softmax(-1)
        size = math.log(logps.shape[-1])
        if self.direction is Direction.to_model:
            return -logps.mean(-1) - size
        return (logps.exp() * logps).sum(-1) + size


@dataclass
class PDU(Objective):
    """Primal-dual unlearning's forget term: flat logits, (max z - mean z)² at each answer token.

    Mean over each answer's tokens, then over the answers.  The released code looks at the logits behind each answer
    token in place of those that predict it.  With combine=sum the retain term has a weight that is given; the paper's
    multiplier is combine=dual.
    """

    paper = "Entesari et al. 2025, arXiv:2506.05314"

    def token(self, at: Logits) -> Tensor:
        return (at.policy.amax(-1) - at.policy.mean(-1)).square()

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        return step.mean_by_row(answers)


@dataclass
class IHL(Mean):
    """Inverted hinge loss: 1 + p(true token) - the largest p of another, mean over the answer tokens.

    The released code takes logits for probabilities where all of a batch lie in [0, 1]; here they never are.
    """

    paper = "Cha et al. 2025, arXiv:2408.06621"

    def token(self, at: Logits) -> Tensor:
        p, true = at.policy.softmax(-1), at.targets[:, None]
        return 1 + p.gather(-1, true).squeeze(-1) - p.scatter(-1, true, -1.0).max(-1).values
