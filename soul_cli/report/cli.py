"""`soul-report FOLDER... --out NAME`: what is read, what is written."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from soul_cli.core.command import command
from soul_cli.core.files import write_bytes, write_text
from soul_cli.core.streams import printable
from soul_cli.core.types import UserError
from soul_cli.report import answers, compare, render
from soul_cli.report.comparable import check_comparable, notes
from soul_cli.report.figures.gallery import drawn
from soul_cli.report.figures.look import save
from soul_cli.report.figures.source import Source
from soul_cli.report.figures.tradeoff import pareto
from soul_cli.report.headline import headline_of
from soul_cli.report.layout import headline_layout, layout_of
from soul_cli.report.page import Picture, page_html, table_html
from soul_cli.report.paper import read_paper
from soul_cli.report.read import Run, columns_of, find_runs, unfinished
from soul_cli.report.tables import beside_paper, caption, grid, long_csv, tabulate, wide_csv


class Out:
    """Where files go: DIR/table.md, DIR/report.html ... for a folder; NAME.md, NAME_report.html ... for a name."""

    def __init__(self, target: str):
        path = Path(target).expanduser()
        self.folder = path if target.endswith(("/", "\\")) or path.is_dir() else path.parent
        self.name = "" if self.folder == path else path.name
        self.written: list[str] = []

    def path(self, part: str, suffix: str) -> Path:
        """Return where a file goes, and note it as written."""
        if self.name:
            part = "_".join(filter(None, (self.name, re.sub("^(table|compare)_?", "", part))))
        self.written.append(part + suffix)
        return self.folder / (part + suffix)


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="soul-report", description="Tables, figures and a page from finished run folders: mean ± sd over seeds."
    )
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders above them")
    parser.add_argument("--out", help="a folder (existing, or with a slash at its end) or a name that files begin with")
    parser.add_argument("--paper", action="store_true", help="also the paper's own numbers beside ours")
    parser.add_argument("--compare", action="store_true", help="the answer of a sweep that chose its settings")
    parser.add_argument("--questions", type=numbers, help="answers to these forget questions side by side, e.g. 3,17")
    parser.add_argument("--random", type=int, default=3, help="or to this many drawn at random (default 3)")
    parser.add_argument("--random-seed", type=int, default=0, help="seed of that draw (default 0)")
    return parser.parse_args(given)


def numbers(text: str) -> list[int]:
    """Parse 3,17."""
    return [int(part) for part in text.split(",")]


def report(args: argparse.Namespace) -> str:
    """Read, check, write; return what to print."""
    if args.compare:
        return comparison(args.folders, args.out)
    runs = find_runs(args.folders)
    check_comparable(runs)
    task = runs[0].content["task"]
    layout = layout_of(task, columns_of(runs[0].content))
    table = tabulate(runs)
    remarks = [*notes(runs), *(f"not finished and left out: {folder.name}" for folder in unfinished(args.folders))]
    paper = read_paper(task) if args.paper else None
    full, brief = (grid(table, layout, caption(runs, layout), remarks, brief=b) for b in (False, True))
    beside = [beside_paper(table, layout, paper)] if paper else []
    text = "\n".join(render.markdown(g) for g in [brief, *beside])
    if args.out is None:
        return text
    speakers = answers.list_speakers(runs, layout.variants)
    places = answers.choose(speakers, args.questions, args.random, args.random_seed) if speakers else []
    out = Out(args.out)
    write_text(out.path("table", ".md"), text)
    write_text(out.path("table", ".tex"), render.latex([brief, *beside]))
    write_text(out.path("table", ".html"), table_html([brief, *beside]))
    write_text(out.path("table", ".csv"), long_csv(table, layout, paper))
    write_text(out.path("table_wide", ".csv"), wide_csv(table, layout))
    if places:
        write_text(out.path("answers", ".md"), answers.markdown(answers.one_each(speakers), places))
    headline = grid(table, headline_layout(headline_of(runs[0].content)), "", [], brief=False)
    page = page_html(
        f"Unlearning report: {task}", headline=headline, sentences=[], full=full, beside=beside,
        pictures=draw(Source(runs, table, layout), out), runs=runs, layout=layout, speakers=speakers,
    )  # fmt: skip
    write_text(out.path("report", ".html"), page)
    return summary(runs, remarks, out)


def comparison(folders: list[Path], target: str | None) -> str:
    """Return the sentences of --compare; with --out write them, and the runs and the figure behind them."""
    if len(folders) > 1:
        raise UserError("--compare takes one folder, that of a sweep with `validation` and `reported` in it")
    compared = compare.read_comparison(folders[0])
    text = compare.markdown(compared)
    if target is None:
        return text
    out = Out(target)
    write_text(out.path("compare", ".md"), text)
    write_text(out.path("compare", ".csv"), compare.csv(compared))
    for data, suffix in zip(save(pareto(compared)), (".png", ".svg"), strict=True):
        write_bytes(out.path("pareto", suffix), data)
    return text


def draw(source: Source, out: Out) -> list[Picture]:
    """Draw every figure that the runs have something for, as PNG and SVG."""
    pictures = []
    for name, words, figure in drawn(source, alone=False):
        png, svg = save(figure)
        write_bytes(out.path(name, ".png"), png)
        write_bytes(out.path(name, ".svg"), svg)
        pictures.append(Picture(words, svg))
    return pictures


def summary(runs: list[Run], remarks: list[str], out: Out) -> str:
    """Return what was read and written, in words."""
    lines = [f"note: {remark}" for remark in remarks]
    return "\n".join([*lines, f"{len(runs)} runs -> {out.folder}: {', '.join(out.written)}"])


def main(given: list[str] | None = None) -> None:
    """Run `soul-report`; an error of the user's is one line and exit code 2."""
    with command():
        print(printable(report(arguments(given))))
