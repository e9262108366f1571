"""TOFU: fictitious authors (Maini et al. 2024), with the metrics of TOFU and of SOUL under different names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soul_cli.core.types import QA, Headline, Metric, Prompted, Row, UserError
from soul_cli.data.encode import Encoder
from soul_cli.data.tofu import load_tofu
from soul_cli.evaluate import metrics as m
from soul_cli.evaluate.config import EvalConfig
from soul_cli.evaluate.generate import greedy
from soul_cli.evaluate.judges import make_judge
from soul_cli.evaluate.likelihood import Scored, recited, score
from soul_cli.models.answer_model import AnswerModel
from soul_cli.models.load import end_tokens
from soul_cli.tasks import general_metrics, tofu_metrics
from soul_cli.tasks.base import Measured, Progress, TaskData, counting, measured


@dataclass
class TOFU:
    """The task's configuration and behaviour."""

    name: str
    source: str  # 'embedded', a folder in the hub's layout, or a hub id
    forget: str  # forget01, forget05, forget10
    holdout_authors: int  # authors taken out of both trainings, as non-members
    retain_authors: int | None  # of the others, so many are trained on and kept
    template: str | None  # null: the model's
    forget_names: list[str] | None  # for method=input_based; null: read off the forget set
    target_model: str | None  # a ready model instead of fine-tuning
    retain_model: str | None
    retain_rows: str | None  # a finished evaluation of a retain-trained model

    def __post_init__(self) -> None:
        if not re.fullmatch(r"forget\d\d", self.forget):
            raise UserError(
                f"task.forget={self.forget!r}: must be forget01, forget05 or forget10 (whichever the data has)"
            )
        if self.holdout_authors < 0:
            raise UserError(f"task.holdout_authors={self.holdout_authors}: must be 0 or more")
        if self.retain_authors is not None and self.retain_authors < 1:
            raise UserError(f"task.retain_authors={self.retain_authors}: must be 1 or more, or null")
        for key in ("target_model", "retain_model"):
            if self.holdout_authors and getattr(self, key):
                raise UserError(
                    f"task.holdout_authors={self.holdout_authors} with task.{key}: a ready model was not trained here "
                    "and may well know these authors, so that they are no non-members; set task.holdout_authors=0 and "
                    "put rows on authors it never saw into holdout_perturbed.json"
                )

    def load(self, cache_dir: Path) -> TaskData:
        data = load_tofu(self.source, self.forget, self.holdout_authors, cache_dir, self.retain_authors)
        names = self.forget_names or data.names
        prompt = (
            "You must not reveal anything about the following authors: "
            + ", ".join(names)
            + ". If a question concerns one of them, say that you do not know. Answer all other questions."
        )
        few = self.retain_authors
        notes = data.notes if few is None else [*data.notes, f"a part of the data: {few} authors in the retain set"]
        return TaskData(
            full=data.full, forget=data.forget, retain=data.retain, refusals=data.refusals, system_prompt=prompt,
            splits=data.splits, notes=notes, digest=data.digest,
        )  # fmt: skip

    # --- before anything is trained ------------------------------------------------------------------------

    def measure(self, encoder: Encoder, split: str, items: list[QA]) -> list[Measured]:
        pairs: list[QA] = []
        for item in items:
            others = [text for text in (item.paraphrased_answer, *item.perturbed_answer) if text]
            pairs += [QA(item.question, text) for text in (item.answer, *others)]
            if item.paraphrased_question:
                pairs += [QA(item.paraphrased_question, text) for text in others]
        return measured(encoder, pairs)

    def cut(self, encoder: Encoder, splits: dict[str, list[QA]], config: EvalConfig) -> list[str]:
        for split, items in splits.items():
            for _, _, question in _generated(items):
                if (size := len(encoder.prompt(question))) >= config.max_total:
                    raise UserError(
                        f"{split}: the prompt of {question[:60]!r} takes {size} tokens, so that eval.max_total="
                        f"{config.max_total} leaves no room for an answer; take more"
                    )
        long = {split: [n - 1 for n in encoder.pair_lengths(items)] for split, items in splits.items()}
        long = {split: [n for n in sizes if n > config.max_total] for split, sizes in long.items()}
        shown = ", ".join(f"{split} {len(n)} (longest {max(n)} tokens)" for split, n in long.items() if n)
        return [f"eval.max_total={config.max_total} ends answers before the true one does: {shown}"] if shown else []

    def most_total(self, config: EvalConfig) -> int:
        return config.max_total

    def check_retain_rows(self, rows: list[Row], splits: dict[str, list[QA]]) -> None:
        given = [row.get("question") for row in rows if row["split"] == "forget"]
        own = [item.question for item in splits["forget"]]
        if given != own:
            at = next((i for i, pair in enumerate(zip(given, own, strict=False)) if pair[0] != pair[1]), None)
            first = "" if at is None else f", the first of which is {given[at]!r} where this run asks {own[at]!r}"
            raise UserError(
                f"task.retain_rows={self.retain_rows}: {len(given)} forget questions{first}; this run asks {len(own)}. "
                "Give rows of the same task.forget and eval.limit"
            )

    # --- model -> rows -------------------------------------------------------------------------------------

    def evaluate(
        self, lm: Any, encoder: Encoder, split: str, items: list[QA], config: EvalConfig, progress: Progress
    ) -> list[Row]:
        rows = [self._text_row(split, i, item, encoder) for i, item in enumerate(items)]
        begun = self._add_scores(rows, items, lm, encoder, config, progress)
        self._add_generations(rows, items, begun, lm, encoder, config, progress)
        return rows

    @staticmethod
    def _text_row(split: str, index: int, item: QA, encoder: Encoder) -> Row:
        return {
            "split": split,
            "index": index,
            "question": item.question,
            "gold": item.answer,
            "prompt": encoder.tokenizer.decode(encoder.prompt(item.question)),
        }

    @staticmethod
    def _add_scores(
        rows: list[Row], items: list[QA], lm: Any, encoder: Encoder, config: EvalConfig, progress: Progress
    ) -> list[tuple[int, ...]]:
        """All answers to one question in one forward.  -> how much of its own answer greedy decoding begins with."""
        plan = _groups(items, encoder)
        scores: dict[tuple[int, str], list[Scored]] = {}
        prompts: dict[int, Scored] = {}
        begun: dict[int, tuple[int, ...]] = {}
        results = score(
            AnswerModel(lm),
            [g for _, _, g in plan],
            budget=config.batch_tokens,
            score_prompt=True,
            progress=counting(progress, "scoring", len(plan)),
        )
        for (i, kind, group), (prompt, *answers) in zip(plan, results, strict=True):
            scores.setdefault((i, kind), []).extend(answers)
            if kind == "own":
                prompts.setdefault(i, prompt)
                begun.setdefault(i, recited(encoder.prompt(items[i].question), group, answers[0]))
        for i, (row, item) in enumerate(zip(rows, items, strict=True)):
            answer, *others = scores[i, "own"]
            row["nll"] = answer.nll
            row["answer_logps"] = [round(x, 6) for x in answer.logps]
            row["prompt_logps"] = [round(x, 6) for x in prompts[i].logps]
            row["correct"] = list(answer.correct)
            if item.paraphrased_answer:
                row["paraphrased_nll"], others = others[0].nll, others[1:]
            row["perturbed_nll"] = [s.nll for s in others]
            if (i, "asked") in scores:
                right, *wrong = scores[i, "asked"]
                row["asked_paraphrased_nll"] = right.nll
                row["asked_perturbed_nll"] = [s.nll for s in wrong]
        return [begun[i] for i in range(len(items))]

    @staticmethod
    def _add_generations(
        rows: list[Row], items: list[QA], begun: list[tuple[int, ...]], lm: Any, encoder: Encoder,
        config: EvalConfig, progress: Progress,
    ) -> None:  # fmt: skip
        places = _generated(items)
        prompts = [encoder.prompt(question) for _, _, question in places]
        made = greedy(
            lm,
            prompts,
            ends={encoder.end, *end_tokens(lm, encoder.tokenizer)},
            most_new=[encoder.system_tokens + config.max_total - len(p) for p in prompts],
            known=[begun[i] if key == "generation" else () for i, key, _ in places],
            budget=config.batch_tokens,
            progress=counting(progress, "generating", len(places)),
        )
        for (i, key, _), ids in zip(places, made, strict=True):
            rows[i][key] = encoder.decode(ids)
        judged = []
        for row, item in zip(rows, items, strict=True):
            row["rougeL"] = m.rouge_l(item.answer, row["generation"])
            row["contains"] = m.contains(item.answer, row["generation"])
            row["fluency"] = m.ngram_entropy(row["generation"])
            if item.paraphrased_question and item.perturbed_answer:
                judged.append((row, [item.paraphrased_answer, *item.perturbed_answer]))
        if judged:
            judge = make_judge(config.judge, config.sbert_model)
            for key, text in (("similarity", "asked_generation"), ("similarity_own", "generation")):
                similar = judge([r[text] for r, _ in judged], [c for _, c in judged])
                for (row, _), values in zip(judged, similar, strict=True):
                    row[key] = values

    # --- rows -> metrics -----------------------------------------------------------------------------------

    def summarise(
        self, rows: list[Row], retain_rows: list[Row] | None, config: EvalConfig
    ) -> tuple[dict[str, Metric], dict[str, str]]:
        own = general_metrics.own_rows(rows)
        metrics, absent = tofu_metrics.summarise(own, retain_rows, config)
        general, missing = general_metrics.summarise(rows)
        return metrics | general, absent | missing

    selection_score = staticmethod(tofu_metrics.selection_score)

    def headline(self) -> list[Headline]:
        return tofu_metrics.HEADLINE

    def columns(self) -> list[str]:
        return [*tofu_metrics.COLUMNS, *general_metrics.COLUMNS]


def _groups(items: list[QA], encoder: Encoder) -> list[tuple[int, str, Prompted]]:
    """Return what is scored of each item (by index): its own question, "own", and the paraphrase, "asked"."""
    groups: list[tuple[int, str, Prompted]] = []
    for i, item in enumerate(items):
        paraphrase = [item.paraphrased_answer] if item.paraphrased_answer else []
        own = [item.answer, *paraphrase, *item.perturbed_answer]
        groups += [(i, "own", g) for g in encoder.group(item.question, own)]
        if item.paraphrased_question:
            asked = [*paraphrase, *item.perturbed_answer]
            groups += [(i, "asked", g) for g in encoder.group(item.paraphrased_question, asked)]
    return groups


def _generated(items: list[QA]) -> list[tuple[int, str, str]]:
    """Return the questions that answers are generated to: index of the item, where the answer stands, question."""
    places = [(i, "generation", item.question) for i, item in enumerate(items)]
    return places + [
        (i, "asked_generation", item.paraphrased_question) for i, item in enumerate(items) if item.paraphrased_question
    ]
