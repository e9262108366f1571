"""Forget terms that prefer another answer to the one to forget."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from soul_cli.core.types import UserError
from soul_cli.objective.forget.base import Objective
from soul_cli.objective.losses import preference
from soul_cli.objective.term import Answers, Counts, Needs, Reference


@dataclass
class DPO(Objective):
    """Direct preference optimisation: a refusal before the answer to forget (IdkDPO).

    -(2/beta) log sigmoid(beta (gain of the refusal - gain of the answer)), mean over the questions; gains are of
    summed log-probabilities since before unlearning.  The factor is that of four released codes and of NPO; the DPO
    paper has none, NPO's appendix 1/beta: for these multiply retain.weight by 2/beta or by 2.  The refusal is drawn
    anew in every epoch.
    """

    beta: float

    paper = "Rafailov et al. 2023, arXiv:2305.18290; Zhang et al. 2024, arXiv:2404.05868"
    winner: ClassVar[str] = "refusal"
    needs = Needs(answers=("refusal", "answer"), reference=Reference.values)

    def __post_init__(self) -> None:
        self.check("beta")

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        gain = answers.sums() - answers.reference_sums()
        margin = gain[answers.named(self.winner)] - gain[answers.named("answer")]
        return preference(margin, beta=self.beta).sum() / step.rows


@dataclass
class AltPO(DPO):
    """Alternate preference optimisation: alternatives that the model itself writes before the answer to forget.

    DPO with an alternative in the refusal's place, over all pairs of an answer and one of its alternatives: an epoch is
    a pass over all pairs.  Alternatives are sampled once, from the model before unlearning, and kept.  Those that are
    empty or the answer itself are left out.

    instruction: what the model is asked, with {question} and {answer} in it.  The authors ask for another version of
    the answer with other plausible facts, which takes a model that follows instructions; null asks the question.
    """

    alternatives: int
    temperature: float
    max_new: int  # tokens
    instruction: str | None
    seed: int

    paper = "Mekala et al. 2024, arXiv:2409.13474"
    winner = "alternative"
    needs = Needs(answers=("alternative", "answer"), reference=Reference.values)

    def __post_init__(self) -> None:
        self.check("beta", "alternatives", "temperature", "max_new")
        if self.instruction is not None and "{question}" not in self.instruction:
            raise UserError(f"method.instruction={self.instruction!r}: must hold {{question}}")

    def asked(self, question: str, answer: str) -> str:
        """Return what the model is asked for an alternative."""
        of = {"{question}": question, "{answer}": answer}
        return re.sub("|".join(of), lambda found: of[found[0]], self.instruction or "{question}")


class Divergence(Enum):
    """An f-divergence, by its variational form (Nowozin et al. 2016, arXiv:1606.00709, tables 2 and 6)."""

    tv = "tv"  # total variation
    kl = "kl"  # Kullback-Leibler
    js = "js"  # Jensen-Shannon
    pearson = "pearson"  # Pearson's chi squared

    def activation(self, v: Tensor) -> Tensor:
        """Return g(v), which maps numbers into the domain of the conjugate."""
        if self is Divergence.tv:
            return v.tanh() / 2
        if self is Divergence.js:
            return F.logsigmoid(v) + torch.log(v.new_tensor(2.0))
        return v

    def conjugate(self, t: Tensor) -> Tensor:
        """Return f*(t), the convex conjugate of the divergence's generator."""
        if self is Divergence.kl:
            return (t - 1).exp()
        if self is Divergence.js:
            return -torch.log(2 - t.exp())
        if self is Divergence.pearson:
            return t.square() / 4 + t
        return t


@dataclass
class FLAT(Objective):
    """Loss adjustment with forget data alone: an f-divergence between refusals and answers to forget.

    f*(g(P(answer))) - g(P(refusal)), mean over the questions, where P is the mean over an answer's tokens of their
    probability.  The released code takes this mean over all positions of the padded batch: there it falls with the
    length of prompts and padding (twelve times for 40 tokens padded to 500).  The refusal is drawn anew in every epoch.
    """

    divergence: Divergence

    paper = "Wang et al. 2024, arXiv:2410.11143"
    needs = Needs(answers=("refusal", "answer"))

    def loss(self, answers: Answers, step: Counts) -> Tensor:
        p = answers.sums(answers.values.exp()) / answers.tokens
        f, refused, told = self.divergence, p[answers.named("refusal")], p[answers.named("answer")]
        return (f.conjugate(f.activation(told)) - f.activation(refused)).sum() / step.rows
