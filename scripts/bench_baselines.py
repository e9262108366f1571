"""What the project is measured against, written as it is commonly done."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from soul_cli.core.types import QA, Row
from soul_cli.data.batches import Step, collate
from soul_cli.data.encode import Encoder
from soul_cli.data.rows import Rows
from soul_cli.evaluate import metrics as m
from soul_cli.evaluate.judges import make_judge
from soul_cli.objective.term import Kinds
from soul_cli.train.loop import Trainer

Pair = tuple[tuple[int, ...], tuple[int, ...]]  # prompt, answer


# --- evaluation --------------------------------------------------------------------------------------------


def evaluate_in_batches(lm: Any, encoder: Encoder, items: list[QA], size: int, max_total: int) -> list[Row]:
    """Rows of a forget split: batches of `size` in order, each metric a pass of its own, whole logits.

    size 1 is the straightforward loop.
    """

    def pair(question: str, answer: str) -> Pair:
        encoded = encoder.pair(question, answer)
        return encoded.prompt, encoded.answers[0]

    def scores(asked: list[Pair]) -> list[list[float]]:
        return [x for at in range(0, len(asked), size) for x in token_logps(lm, asked[at : at + size])]

    def nll(asked: list[Pair]) -> list[float]:
        return [-sum(x[-len(answer) :]) / len(answer) for x, (_, answer) in zip(scores(asked), asked, strict=True)]

    rows: list[Row] = [{} for _ in items]
    own = [pair(qa.question, qa.answer) for qa in items]
    for row, value in zip(rows, nll(own), strict=True):
        row["nll"] = value
    for row, logps, (prompt, _) in zip(rows, scores(own), own, strict=True):  # membership
        row["prompt_logps"], row["answer_logps"] = logps[: len(prompt) - 1], logps[len(prompt) - 1 :]
    for prefix, key in (("", "question"), ("asked_", "paraphrased_question")):
        right = nll([pair(getattr(qa, key), qa.paraphrased_answer) for qa in items])
        wrong = nll([pair(getattr(qa, key), a) for qa in items for a in qa.perturbed_answer])
        for i, row in enumerate(rows):
            k = len(items[i].perturbed_answer)
            row[prefix + "paraphrased_nll"], row[prefix + "perturbed_nll"] = right[i], wrong[k * i : k * i + k]
    for name, key in (("generation", "question"), ("asked_generation", "paraphrased_question")):
        prompts = [encoder.prompt(getattr(qa, key)) for qa in items]
        made = [x for at in range(0, len(items), size) for x in generate(lm, prompts[at : at + size], max_total)]
        for row, ids in zip(rows, made, strict=True):
            row[name] = encoder.decode(ids)
    read_texts(rows, items)
    return rows


def read_texts(rows: list[Row], items: list[QA]) -> None:
    """The metrics of texts, which are the project's own."""
    for row, qa in zip(rows, items, strict=True):
        row["rougeL"] = m.rouge_l(qa.answer, row["generation"])
        row["contains"] = m.contains(qa.answer, row["generation"])
        row["fluency"] = m.ngram_entropy(row["generation"])
    judge, candidates = make_judge("rougeL", ""), [[qa.paraphrased_answer, *qa.perturbed_answer] for qa in items]
    for key, text in (("similarity", "asked_generation"), ("similarity_own", "generation")):
        for row, values in zip(rows, judge([row[text] for row in rows], candidates), strict=True):
            row[key] = values


@torch.inference_mode()
def token_logps(lm: Any, asked: Sequence[Pair]) -> list[list[float]]:
    """Log-probability of every token but the first of prompt + answer."""
    ids = [[*prompt, *answer] for prompt, answer in asked]
    width = max(map(len, ids))
    padded = torch.tensor([x + [0] * (width - len(x)) for x in ids])
    mask = torch.tensor([[1] * len(x) + [0] * (width - len(x)) for x in ids])
    logps = lm(input_ids=padded, attention_mask=mask, use_cache=False).logits[:, :-1].log_softmax(-1)
    values = logps.gather(2, padded[:, 1:, None]).squeeze(2).tolist()
    return [row[: len(x) - 1] for row, x in zip(values, ids, strict=True)]


@torch.inference_mode()
def generate(lm: Any, prompts: Sequence[tuple[int, ...]], max_total: int) -> list[list[int]]:
    """transformers' greedy generation, padded on the left.  Every prompt may use up its own room."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    most = max_total - min(map(len, prompts))
    out = lm.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=most)[:, width:].tolist()
    return [[t for t in x[: max_total - len(p)] if t not in (0, 2)] for x, p in zip(out, prompts, strict=True)]


# --- training ----------------------------------------------------------------------------------------------


class ReferenceInMemory(Trainer):
    """A copy of the model stays in memory and scores the forget rows in every step."""

    frozen: Any = None

    def _step(self, step: Step, index: int, rows: Mapping[Kinds, Rows]) -> dict[str, float]:
        if self.frozen is None:
            self.frozen = copy.deepcopy(self.model).eval().requires_grad_(False)
        some = rows[Kinds.forget]
        for forget, _ in step.micro:
            batch = collate([some.answers["answer"][i] for i in forget])
            with torch.no_grad():
                logps = self.frozen.logps(batch)
            for n, i in enumerate(forget):
                some.values["answer"][i] = logps[batch.owner == n]
        return super()._step(step, index, rows)


def plain_soul_step(
    tensors: Sequence[tuple[Tensor, Tensor, Tensor]], *, lr: float, beta1: float, rho: float, eps: float, wd: float
) -> dict[str, float]:
    """Algorithm 1 as one writes it down, tensor by tensor, with the numbers that are logged.  tensors: p, m, h."""
    unclipped, active, square, size = 0, 0, 0.0, 0.0
    with torch.no_grad():
        for p, m_, h in tensors:
            m_.mul_(beta1).add_(p.grad, alpha=1 - beta1)
            ratio = m_ / torch.clamp(rho * h, min=eps)
            p.mul_(1 - lr * wd).sub_(lr * ratio.clamp(-1, 1))
            unclipped += int(((ratio.abs() < 1) & (m_ != 0)).sum())
            active += int((m_ != 0).sum())
            square += float(m_.norm()) ** 2
            size += float(h.abs().sum())
    return {"unclipped_share": unclipped / max(1, active), "m_norm": square**0.5, "h_l1": size}
