"""report.html: one file that opens from disk, without a network."""

from __future__ import annotations

import base64
import math
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from soul_cli.core.run_folder import NAMES
from soul_cli.core.streams import printable
from soul_cli.core.types import ARROWS, Row
from soul_cli.report.answers import Place, Speaker, name_of, question_of
from soul_cli.report.headline import RULE, Shown
from soul_cli.report.layout import Layout, rank
from soul_cli.report.read import Run, label
from soul_cli.report.tables import LEGEND, Grid, short

TEMPLATES = Path(__file__).with_name("templates")
POINT = 4 / 3  # CSS pixels
WIDE = 768  # CSS pixels: a figure above it has a line of its own
ANSWERS_CAP = 24_000  # answers on the page: 60 runs with 390 questions each, about 5 MB
# of the machine and its user, not of the experiment
PRIVATE = ("cache_dir", "output_dir", "trackers", "force", "save_model", "push_to_hub", "verbose")


@dataclass(frozen=True)
class Picture:
    """A figure on the page."""

    caption: str
    svg: bytes

    @property
    def url(self) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()

    @property
    def wide(self) -> bool:
        """Whether it has several panels side by side, and takes the whole width of the page."""
        return self.size[0] > WIDE

    @property
    def size(self) -> tuple[int, int]:
        """Width and height at which its letters are as large as the text's, in CSS pixels."""
        found = re.search(rb'width="([\d.]+)pt" height="([\d.]+)pt"', self.svg)
        assert found is not None
        return round(float(found[1]) * POINT), round(float(found[2]) * POINT)


def environment() -> Environment:
    """Return templates in which everything is escaped unless a template says otherwise."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    templates.filters["short"] = short
    templates.filters["key"] = lambda x: str(x).replace("inf", "Infinity")  # as JavaScript reads it
    return templates


def table_html(grids: list[Grid]) -> str:
    """Return the tables alone, as a document."""
    return environment().get_template("table.html.j2").render(grids=grids, legend=LEGEND)


def page_html(
    title: str,
    *,
    headline: Grid | list[Shown],
    sentences: list[str],
    full: Grid,
    beside: list[Grid],
    pictures: list[Picture],
    runs: list[Run],
    layout: Layout,
    speakers: list[Speaker],
) -> str:
    """Return the page.

    headline: of several runs a table, of one run lines.  sentences: what stands below the headline.
    full: all columns, of which those that are `brief` are shown until others are chosen.
    beside: the table with the paper's numbers, or nothing.
    """
    alone = isinstance(headline, list)
    return environment().get_template("page.html.j2").render(
        title=title,
        alone=alone,
        headline=headline,
        names={model: NAMES[model] for model in runs[0].metrics},
        arrows=ARROWS,
        rule=RULE,
        sentences=sentences,
        full=full,
        beside=beside,
        legend=LEGEND,
        pictures=pictures,
        runs=list_runs(runs),
        browser=list_answers(speakers, layout.scores),
    )  # fmt: skip


def list_runs(runs: list[Run]) -> dict[str, Any]:
    """Return every run with the settings that vary between runs as columns, and all of its settings to unfold."""
    runs = sorted(runs, key=lambda r: (rank(*(r.row or (r.content["method"], ""))), r.seed))
    configs = [{k: v for k, v in r.config.items() if k not in PRIVATE} for r in runs]
    varying = _varying(configs)
    return {"varying": varying, "lines": [_run(run, c, varying) for run, c in zip(runs, configs, strict=True)]}


def _varying(configs: list[dict[str, Any]]) -> list[str]:
    """Return the keys that differ between runs, but for those that a row's name has."""
    keys = dict.fromkeys(k for c in configs for k in c if k not in ("method.name", "optim.name"))
    return [k for k in keys if len({str(c.get(k)) for c in configs}) > 1]


def _run(run: Run, config: dict[str, Any], varying: list[str]) -> dict[str, Any]:
    return {
        "name": label(run.row) if run.row else run.content["method"],
        "folder": run.folder.name,
        "values": [config.get(k) for k in varying],
        "seconds": sum(run.content["cost"].get(p, {}).get("seconds", 0.0) for p in ("unlearn", "evaluate")),
        "config": "\n".join(f"{k}: {v}" for k, v in config.items()),
        "environment": "\n".join(f"{k}: {v}" for k, v in run.environment.items()),
    }


def list_answers(speakers: list[Speaker], scores: tuple[str, ...], cap: int = ANSWERS_CAP) -> dict[str, Any]:
    """Return questions and answers for the page's script, each text once.

    Where there are more than `cap` answers, the same seeded sample of questions is shown for every model, split by
    split in proportion; counts says how many of how many.
    """
    splits: dict[str, list[Place]] = {}
    for place in dict.fromkeys(place for speaker in speakers for place in speaker.rows):
        splits.setdefault(place[0], []).append(place)
    share = min(1.0, cap / max(1, sum(map(len, splits.values())) * len(speakers)))
    sample = {
        split: sorted(random.Random(0).sample(places, max(1, math.floor(len(places) * share))))
        for split, places in splits.items()
    }
    return {
        "models": [{"method": s.method, "optim": s.optim, "seed": s.seed, "name": s.name} for s in speakers],
        "questions": [_question(place, speakers, scores) for places in sample.values() for place in places],
        "counts": {split: [len(places), len(splits[split])] for split, places in sample.items()},
        "sampled": share < 1,
    }


def _question(place: Place, speakers: list[Speaker], scores: tuple[str, ...]) -> dict[str, Any]:
    rows = [s.rows.get(place) for s in speakers]
    first = next(row for row in rows if row)
    return {
        "split": place[0], "place": name_of(place), "question": printable(question_of(first)),
        "gold": printable(first["gold"]),
        "answers": [None if row is None else [printable(row["generation"]), _scores(row, scores)] for row in rows],
    }  # fmt: skip


def _scores(row: Row, names: tuple[str, ...]) -> list[list[Any]]:
    """Return [name, value] pairs: the row's own fields, then the probability of the gold answer."""
    fields = [[name, round(row[name], 3)] for name in names if isinstance(row.get(name), int | float)]
    if "nll" in row:  # NaN: the model's logits were no numbers
        p = 0.0 if math.isnan(row["nll"]) else math.exp(-row["nll"])
        fields.append(["p(gold)", float(f"{p:.3g}")])
    return fields
