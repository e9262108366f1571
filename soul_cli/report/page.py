"""report.html: one file that opens from disk, without a network."""

from __future__ import annotations

import base64
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from soul_cli.core.types import Row
from soul_cli.report.answers import Place, Speaker, name_of, question_of
from soul_cli.report.layout import Layout, rank
from soul_cli.report.read import Run, label
from soul_cli.report.tables import LEGEND, Grid, short

TEMPLATES = Path(__file__).with_name("templates")
ANSWERS_CAP = 24_000  # answers on the page: 60 runs with 390 questions each, about 5 MB
PRIVATE = ("cache_dir", "output_dir", "trackers", "force", "save_model")  # of the machine, not of the experiment


@dataclass(frozen=True)
class Picture:
    """A figure on the page."""

    caption: str
    svg: bytes
    wide: bool  # several panels: takes the whole width

    @property
    def url(self) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


def environment() -> Environment:
    """Templates in which everything is escaped unless a template says otherwise."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    found.filters["short"] = short
    return found


def table_html(grids: list[Grid]) -> str:
    """The tables alone, as a document."""
    return environment().get_template("table.html.j2").render(grids=grids, legend=LEGEND)


def page_html(
    title: str,
    brief: Grid,
    full: Grid,
    beside: list[Grid],
    pictures: list[Picture],
    runs: list[Run],
    layout: Layout,
    some: list[Speaker],
) -> str:
    """The page.  beside: the table with the paper's numbers, or nothing."""
    return environment().get_template("page.html.j2").render(
        title=title,
        brief=brief,
        full=full,
        beside=beside,
        legend=LEGEND,
        pictures=pictures,
        runs=runs_table(runs),
        browser=browser(some, layout.scores),
    )  # fmt: skip


def runs_table(runs: list[Run]) -> dict[str, Any]:
    """Every run with the settings that vary between runs as columns, and all of its settings to unfold."""
    runs = sorted(runs, key=lambda r: (rank(*(r.row or (r.content["method"], ""))), r.seed))
    kept = [{k: v for k, v in r.config.items() if k not in PRIVATE} for r in runs]
    keys = list(dict.fromkeys(k for c in kept for k in c))
    varying = [k for k in keys if len({str(c.get(k)) for c in kept}) > 1 and k not in ("method.name", "optim.name")]
    lines = []
    for run, config in zip(runs, kept, strict=True):
        lines.append({
            "name": label(run.row) if run.row else run.content["method"],
            "folder": run.folder.name,
            "values": [config.get(k) for k in varying],
            "seconds": sum(run.content["cost"].get(p, {}).get("seconds", 0.0) for p in ("unlearn", "evaluate")),
            "config": "\n".join(f"{k}: {v}" for k, v in config.items()),
            "environment": "\n".join(f"{k}: {v}" for k, v in run.environment.items()),
        })  # fmt: skip
    return {"varying": varying, "lines": lines}


def browser(some: list[Speaker], scores: tuple[str, ...], cap: int = ANSWERS_CAP) -> dict[str, Any]:
    """Questions and answers for the page's script, each text once.

    Where there are more than `cap` answers, the same seeded sample of questions is shown for every model, split by
    split in proportion; counts says how many of how many.
    """
    places = list(dict.fromkeys(place for speaker in some for place in speaker.rows))
    by_split: dict[str, list[Place]] = {}
    for place in places:
        by_split.setdefault(place[0], []).append(place)
    share = min(1.0, cap / max(1, len(places) * len(some)))
    chosen, counts = [], {}
    for split, own in by_split.items():
        n = max(1, math.floor(len(own) * share))
        chosen += sorted(random.Random(0).sample(own, n))
        counts[split] = [n, len(own)]
    models = [{"method": s.method, "optim": s.optim, "seed": s.seed, "name": s.name} for s in some]
    questions = []
    for place in chosen:
        rows = [s.rows.get(place) for s in some]
        first = next(row for row in rows if row)
        questions.append({
            "split": place[0], "place": name_of(place), "question": question_of(first), "gold": first["gold"],
            "answers": [None if row is None else [row["generation"], _scores(row, scores)] for row in rows],
        })  # fmt: skip
    return {"models": models, "questions": questions, "counts": counts, "sampled": share < 1}


def _scores(row: Row, names: tuple[str, ...]) -> list[list[Any]]:
    """[name, value] pairs: the row's own fields, then the probability of the gold answer."""
    found = [[name, round(row[name], 3)] for name in names if isinstance(row.get(name), int | float)]
    return found + ([["p(gold)", float(f"{math.exp(-row['nll']):.3g}")]] if "nll" in row else [])
