"""Rows that have whatever a term needs, with numbers made up."""

from __future__ import annotations

import torch

from soul_cli.core.types import Prompted
from soul_cli.data.rows import Rows
from soul_cli.objective.term import Reference, Term


def rows_for(term: Term, some: list[Prompted], width: int) -> Rows:
    """Rows of these answers; those of another name are the next row's.  width: of hidden states."""
    needs = term.needs
    others = [Prompted(row.prompt, other.answers) for row, other in zip(some, [*some[1:], some[0]], strict=True)]
    named = {name: some if name == "answer" else others for name in needs.answers}
    lengths = {name: [len(row.answers[0]) for row in rows] for name, rows in named.items()}
    values = {
        name: [torch.full((n,), -1.0 - i / 9, dtype=torch.float64) for i, n in enumerate(sizes)]
        for name, sizes in lengths.items()
    }
    states = {
        name: [(torch.arange(1.0 * width * n).view(-1, width) + i).sin().double() for i, n in enumerate(sizes)]
        for name, sizes in lengths.items()
    }
    return Rows(
        named,
        values=values if needs.reference is Reference.values else {},
        states=states if needs.reference in (Reference.logits, Reference.states) else {},
        norm=1.5 if needs.reference is Reference.norm else None,
    )
