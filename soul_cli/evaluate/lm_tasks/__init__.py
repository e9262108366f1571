"""lm-eval task files that read local data.  Each gives what lm-eval's stock task of the same name and version gives.

`metadata.path` names the data file (`soul_cli.evaluate.general` sets it).  The functions here are named by the task
files; what makes a prompt or a score out of a document is lm-eval's own where it is more than a template.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset

from soul_cli.core.types import UserError
from soul_cli.data.reading import read_records


def documents(path: str) -> list[dict[str, Any]]:
    """Return the documents of a file.  UserError: there are none, or one lacks a field that the first has."""
    records = read_records(Path(path))
    if not records:
        raise UserError(f"{path}: no document in it")
    for record in records:
        if lacking := records[0].fields.keys() - record.fields.keys():
            raise UserError(f"{record.place}: field {min(lacking)!r} is missing (other documents have it)")
    return [record.fields for record in records]


def read(path: str, **_: Any) -> dict[str, Dataset]:
    """Return the documents of a file (JSON Lines, or another form of `soul_cli.data.reading`) as the split `test`."""
    return {"test": Dataset.from_list(documents(path))}


def hellaswag(path: str, **_: Any) -> dict[str, Dataset]:
    """Return the same, with the stock task's clean-up done once; as its `process_docs` it would run at every access."""
    from lm_eval.tasks.hellaswag.utils import process_docs

    return {"test": process_docs(read(path)["test"])}


def articles(path: str, **_: Any) -> dict[str, Dataset]:
    """WikiText lines ({"text": line}, a blank line empty) joined to one document an article, as in the hub's
    EleutherAI/wikitext_document_level: an article begins at a title of the first level, ` = Title = `.
    """
    lines = "".join(row["text"] or " \n" for row in documents(path)).split("\n")
    starts = [i for i, line in enumerate(lines) if _is_title(line.strip())]
    return {"test": Dataset.from_list([{"page": "\n".join(lines[a:b])} for a, b in pairwise([*starts, len(lines)])])}


def _is_title(line: str) -> bool:
    return line.startswith("= ") and line.endswith(" =") and not line.startswith("= =") and not line.endswith("= =")


def perplexity(items: list[tuple[float, int]]) -> float:
    """exp(-sum of log-likelihoods / sum of units), as lm-eval's weighted_perplexity, but inf where that overflows.

    items: (nats, words or bytes) a document.  A destroyed model can reach it; its run must still end in a table.
    """
    nats, units = (sum(column) for column in zip(*items, strict=True))
    try:
        return math.exp(-nats / units)
    except OverflowError:
        return math.inf
