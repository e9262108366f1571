"""What figures are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from soul_cli.report.figures.look import Styles
from soul_cli.report.layout import Layout, rank
from soul_cli.report.read import Run
from soul_cli.report.tables import Table


@dataclass(frozen=True)
class Source:
    """What figures are drawn from."""

    runs: list[Run]
    table: Table
    layout: Layout

    @cached_property
    def styles(self) -> Styles:
        return Styles(self.table)

    @property
    def axes(self) -> tuple[str, str]:
        """(forgotten, kept) of the trade-off; those of the layout that the runs have."""
        there = {metric for cells in self.table.values() for metric in cells}
        return next((pair for pair in self.layout.axes if there.issuperset(pair)), self.layout.axes[0])

    @property
    def trained(self) -> dict[tuple[str, str], list[Run]]:
        """Row of the table -> its runs, in the table's order."""
        rows: dict[tuple[str, str], list[Run]] = {}
        for run in self.runs:
            if run.row is not None and run.trained:
                rows.setdefault(run.row, []).append(run)
        return dict(sorted(rows.items(), key=lambda item: rank(*item[0])))
