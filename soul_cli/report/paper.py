"""The paper's own numbers (paper.yaml), to stand beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from soul_cli.core.types import UserError
from soul_cli.report.layout import Column

FILE = Path(__file__).with_name("paper.yaml")
ROWS = {"first_order": "adamw", "soul": "soul", None: ""}


@dataclass(frozen=True)
class Paper:
    """One table of the paper.  rows: (method, optimizer as we call it) -> column -> number as printed."""

    table: str
    setting: str
    rows: dict[tuple[str, str], dict[str, float]]

    def number(self, row: tuple[str, str], column: Column) -> float | None:
        """Return the number of a row, in our unit; None where the paper has none."""
        printed = self.rows.get(row, {}).get(column.paper)
        return None if printed is None else printed / column.per

    @property
    def caption(self) -> str:
        return (
            f"Beside the paper: {self.table} of Jia et al., SOUL, EMNLP 2024, in our units. Its first order is adamw."
        )

    @property
    def warning(self) -> str:
        return (
            f"the paper's numbers are of another model, data size, judge and template ({self.setting}): compare "
            "directions, not values. Its released code is not its Algorithm 1 but our optim=soul_released"
        )


def read_paper(task: str) -> Paper:
    """Read the paper's table of a task.  Raises UserError where it has none."""
    content: Any = OmegaConf.to_container(OmegaConf.load(FILE))
    if task not in content:
        raise UserError(f"--paper: the paper has no table of task {task!r}; it has {', '.join(content)}")
    table = content[task]
    rows = {(r[0], ROWS[r[1]]): dict(zip(table["columns"], r[2:], strict=True)) for r in table["rows"]}
    return Paper(table["table"], table["setting"], rows)
