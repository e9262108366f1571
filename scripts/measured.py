"""A line of the benchmarks' tables; no module that takes seconds to import."""

from __future__ import annotations

from dataclasses import dataclass

LINES = "lines.jsonl"  # what the stages of gpu.py measured
OK = "finished"


@dataclass
class Measured:
    """One line of the table.  goal: (">=" or "<=", number), or None where the line only reports."""

    what: str
    size: str
    value: float
    goal: tuple[str, float] | None
    detail: str
    why: str = ""  # what stands in the way where the goal is missed

    def verdict(self) -> str:
        if self.goal is None:
            return "reported"
        sign, number = self.goal
        if self.value >= number if sign == ">=" else self.value <= number:
            return "met"
        by = abs(self.value / number - 1)
        return f"**missed by {by:.0%}**" + (f": {self.why}" if self.why else "")
