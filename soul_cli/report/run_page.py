"""report.html of one run, in its folder: what the terminal says in short, in full."""

from __future__ import annotations

from pathlib import Path

from soul_cli.core.distributed import by_rank_0
from soul_cli.core.files import write_text
from soul_cli.core.run_folder import METRICS, PAGE
from soul_cli.report import answers
from soul_cli.report.figures.gallery import drawn
from soul_cli.report.figures.look import svg
from soul_cli.report.figures.source import Source
from soul_cli.report.headline import absences, cost_words, epoch_words, headline_of, lines, title_of
from soul_cli.report.layout import layout_of
from soul_cli.report.page import Picture, page_html
from soul_cli.report.read import Run, columns_of, read_run
from soul_cli.report.tables import caption, grid, tabulate


@by_rank_0
def write_page(folder: Path) -> None:
    """Write the page of a finished run into its folder, unless it is there and as new as the results."""
    page = folder / PAGE
    if not page.is_file() or page.stat().st_mtime < (folder / METRICS).stat().st_mtime:
        write_text(page, run_html(read_run(folder)))


def run_html(run: Run) -> str:
    """Return the page of one run."""
    content = run.content
    layout, table = layout_of(content["task"], columns_of(content)), tabulate([run])
    last = "this_run" if "this_run" in run.metrics else "original"
    sentences = [*absences(content["absent"].get(last, {})), epoch_words(content["epoch_eval"])]
    return page_html(
        title_of(content, trained=run.trained),
        headline=lines(headline_of(content), run.metrics),
        sentences=[cost_words(content["cost"])],
        full=grid(table, layout, caption([run], layout), list(filter(None, sentences)), brief=False),
        beside=[],
        pictures=[Picture(words, svg(figure)) for _, words, figure in drawn(Source([run], table, layout), alone=True)],
        runs=[run],
        layout=layout,
        speakers=answers.list_speakers([run], layout.variants),
    )
