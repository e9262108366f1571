"""How models are evaluated."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from soul_cli.core.types import UserError
from soul_cli.evaluate.general import LmEvalConfig
from soul_cli.evaluate.judges import JUDGES, judge_identity


@dataclass
class EvalConfig:
    """How a model is evaluated."""

    batch_tokens: int | None  # padded tokens a batch; null: by what is free (room.py)
    max_total: int  # prompt + generated answer, tokens (TOFU: 200); a system prompt comes on top
    min_k: float  # K of Min-K%, percent (SOUL: 50)
    judge: str  # nearest-answer accuracy: rougeL or sbert
    sbert_model: str  # 'packaged', a folder or a hub id
    limit: int | None  # rows a split, from its start; null: all
    lm_eval: LmEvalConfig  # general ability

    def __post_init__(self) -> None:
        if self.max_total < 1:
            raise UserError(f"eval.max_total={self.max_total}: must be 1 or more")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise UserError(f"eval.batch_tokens={self.batch_tokens}: must be 1 or more, or null")
        if not 0 < self.min_k <= 100:
            raise UserError(f"eval.min_k={self.min_k}: must be above 0, at most 100")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"eval.limit={self.limit}: must be 1 or more, or null")
        if self.judge not in JUDGES:
            raise UserError(f"eval.judge={self.judge!r}: must be one of {', '.join(JUDGES)}")

    @property
    def libraries(self) -> set[str]:
        """Return the libraries that this asks for, of those that others do without."""
        sbert = {"sentence_transformers"} if self.judge == "sbert" else set()
        return sbert | ({"lm_eval"} if self.lm_eval.tasks else set())

    def identity(self) -> dict[str, Any]:
        """Return all that determines rows, as plain values; files by content, not by path."""
        values = {k: v for k, v in asdict(self).items() if k != "sbert_model"}
        return {**values, "judge": judge_identity(self.judge, self.sbert_model), "lm_eval": self.lm_eval.identity()}


class Select(Enum):
    """Whose weights are evaluated in full: those of the last epoch, or of the one with the highest selection score."""

    last = "last"
    best = "best"


@dataclass
class EpochEvalConfig:
    """Evaluation during unlearning, on a few rows a split."""

    every: int | None  # epochs; null: off
    limit: int  # rows a split, from its start
    select: Select

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise UserError(f"epoch_eval.every={self.every}: must be 1 or more, or null")
        if self.limit < 1:
            raise UserError(f"epoch_eval.limit={self.limit}: must be 1 or more")
        if self.select is Select.best and self.every is None:
            raise UserError("epoch_eval.select=best: needs epoch_eval.every, the epochs between evaluations")
