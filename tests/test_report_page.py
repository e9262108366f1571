"""Figures, answers and the page; the page is opened and clicked in Chromium where there is one."""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import row, write_epochs, write_run

from soul_cli.objective.methods import METHODS
from soul_cli.optim.build import OPTIMS
from soul_cli.report import answers
from soul_cli.report.cli import main
from soul_cli.report.figures.costs import cost
from soul_cli.report.figures.curves import by_epoch, by_step, epochs, pair, steps
from soul_cli.report.figures.distributions import ecdf, truth_ratios
from soul_cli.report.figures.look import PALETTE, SHAPES, Styles, panels, save
from soul_cli.report.figures.source import Source
from soul_cli.report.figures.tradeoff import frontier, tradeoff
from soul_cli.report.layout import LAYOUTS
from soul_cli.report.page import TEMPLATES, list_answers
from soul_cli.report.read import find_runs
from soul_cli.report.run_page import write_page
from soul_cli.report.tables import tabulate

STYLES = Styles([("npo", "soul")])
NASTY = "</script><script>document.title='owned'</script><b>bold</b> | <!-- a"


def source(root: Path) -> Source:
    runs = find_runs([root])
    return Source(runs, tabulate(runs), LAYOUTS["tofu"])


# --- figures -----------------------------------------------------------------------------------------------


def test_frontier_by_hand() -> None:
    # kept, distance to the wanted forgetting: the second is beaten by the third, equal points stay
    assert frontier([0.9, 0.5, 0.6, 0.2], [0.5, 0.4, 0.3, 0.1]) == [3, 2, 0]
    assert frontier([0.5, 0.5], [0.1, 0.1]) == [0, 1]


def test_truth_ratios_by_hand() -> None:
    rows = [row("forget", 0, "", wrong=2.0), row("forget", 1, "", wrong=3.0), row("retain", 0, "")]
    assert truth_ratios(rows) == pytest.approx([math.exp(-2), math.exp(-1)])
    assert len(truth_ratios([{"split": "forget", "nll": 1.0}])) == 0


def test_band_by_hand(tmp_path: Path) -> None:
    for seed, last in ((0, 2.0), (1, 4.0)):
        folder = write_run(tmp_path, seed, 0.1)
        lines = [{"step": 1, "displacement": 1.0}, {"step": 2, "displacement": last}, {"step": 3, "displacement": 9.0}]
        text = "".join(json.dumps(x) + "\n" for x in lines[: 3 - seed])  # the second run stopped earlier
        (folder / "train.jsonl").write_text(text)
    found = by_step(find_runs([tmp_path]), "displacement")
    assert found is not None
    assert [list(x) for x in found] == [[1, 2], [1.0, 3.0], [0.0, pytest.approx(math.sqrt(2))]]
    assert by_step(find_runs([tmp_path]), "absent") is None


def test_one_optimizer_has_one_colour_in_every_figure(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 0.1, "method=npo", "optim=soul")
    write_run(tmp_path, 0, 0.2, "method=ga", "optim=soul")
    for draw in (tradeoff, ecdf, steps):
        figure, again = draw(source(tmp_path)), draw(source(tmp_path))
        assert figure is not None
        assert again is not None
        assert STYLES.colour("soul") in {line.get_color() for a in figure.axes for line in a.lines}
        assert save(figure) == save(again)  # byte by byte


def test_a_new_method_and_optimizer_need_no_edit_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered ones stand where their registry has them; a folder's that nothing registers stand behind."""
    rows = [("npo", "soul"), ("npo+kl", "soul"), ("new", "newton"), ("old", "sgd")]
    for (name, optim), rouge in zip(rows, (0.1, 0.2, 0.3, 0.4), strict=True):
        folder = write_run(tmp_path, 0, rouge, "method=npo", "optim=soul")
        content = json.loads((folder / "metrics.json").read_text()) | {"method": name, "optim": optim}
        (folder / "metrics.json").write_text(json.dumps(content))
    monkeypatch.setitem(METHODS, "new", METHODS["npo"])
    monkeypatch.setitem(OPTIMS, "newton", OPTIMS["adamw"])
    some = source(tmp_path)
    assert [row for row in some.table if row[1]] == rows
    figure = tradeoff(some)
    assert figure is not None
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels[:7] == ["soul", "newton", "sgd", "npo", "npo+kl", "new", "old"]
    assert len({some.styles.colour(optim) for _, optim in rows}) == 3
    assert len({some.styles.marker(method) for method, _ in rows}) == 4
    assert (some.styles.colour("soul"), some.styles.marker("npo")) == (STYLES.colour("soul"), STYLES.marker("npo"))


def test_colours_and_markers_do_not_run_out() -> None:
    names = [(f"m{i:02}", f"o{i:02}") for i in range(60)]
    styles = Styles(names)
    assert {styles.colour(o) for _, o in names} == set(PALETTE)
    assert len({styles.marker(m) for m, _ in names[:30]}) == 30
    figure, ((axes,),) = panels(1, 1, 3, 3)
    for shape in SHAPES:
        axes.plot([0], [0], marker=shape)
    assert save(figure)


def test_curves_by_hand(tmp_path: Path) -> None:
    write_epochs(write_run(tmp_path, 0, 0.1, "optim=soul"), [0.9, 0.5, 0.1], [0.9, 0.8, 0.7])
    write_epochs(write_run(tmp_path, 1, 0.2, "optim=soul"), [0.9, 0.7], [0.9, 0.6])  # an epoch less
    write_epochs(write_run(tmp_path, 0, 0.3, "optim=adamw"), [0.9, 0.8, 0.7], [0.9, 0.9, 0.9])
    runs = [r for r in find_runs([tmp_path]) if r.content["optim"] == "soul"]
    found = by_epoch(runs, "forget_rougeL")
    assert found is not None
    x, mean, sd = found
    assert list(x) == [0, 1]
    assert list(mean) == [0.9, pytest.approx(0.6)]
    assert list(sd) == [0, pytest.approx(math.sqrt(0.02))]
    figure = epochs(source(tmp_path))
    assert figure is not None
    top, bottom = figure.axes
    assert (top.get_ylabel(), bottom.get_ylabel()) == ("forget_rougeL", "retain_rougeL")  # there is no accuracy
    drawn = {line.get_color(): list(line.get_ydata()) for line in top.lines}
    assert drawn[STYLES.colour("soul")] == [0.9, pytest.approx(0.6)]
    assert drawn[STYLES.colour("adamw")] == [0.9, 0.8, 0.7]
    assert drawn["black"] == [0.9, 0.9]  # the original's level
    assert save(figure) == save(epochs(source(tmp_path)))  # type: ignore[arg-type]


def test_the_curves_metric_is_the_first_that_is_there(tmp_path: Path) -> None:
    write_epochs(write_run(tmp_path, 0, 0.1), [0.9, 0.5], [0.9, 0.8], metric="acc_own")
    some = source(tmp_path)
    assert pair(some, some.runs) == ("forget_acc_own", "retain_acc_own")


def test_displacement_is_that_of_the_kept_epoch(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 0, 0.1)
    assert find_runs([tmp_path])[0].metrics["this_run"]["displacement"].value == 2.0
    write_epochs(folder, [0.9, 0.5], [0.9, 0.8])  # epoch 1 of 2
    assert find_runs([tmp_path])[0].metrics["this_run"]["displacement"].value == 1.0


def test_cost_figure_by_hand(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 0.1, "optim=soul")
    write_run(tmp_path, 1, 0.1, "optim=soul")
    figure = cost(source(tmp_path))
    assert figure is not None
    time, memory = figure.axes
    assert [(b.get_x(), b.get_width()) for b in time.patches] == [(0, 10.5), (10.5, 5.0), (0, 60.0)]
    assert [(b.get_x(), b.get_width()) for b in memory.patches] == [(0, 100.0), (0, 10.0), (10.0, 20.0)]


def test_nothing_to_draw_is_no_figure(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 0.1, "method=input_based")
    assert steps(source(tmp_path)) is None
    assert ecdf(source(tmp_path)) is None
    assert cost(source(tmp_path)) is None
    write_run(tmp_path, 0, 0.1, "method=npo")
    assert epochs(source(tmp_path)) is None


# --- answers -----------------------------------------------------------------------------------------------


def test_answers_side_by_side(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 0.1, answer=NASTY)
    write_run(tmp_path, 1, 0.2)
    some = answers.one_each(answers.list_speakers(find_runs([tmp_path])))
    assert [s.name for s in some] == ["original", "retain-trained", "npo soul, seed 0"]
    text = answers.markdown(some, answers.choose(some, [2], 0, 0))
    assert "**forget 2** What of forget 2?" in text
    assert "| gold | gold 2 |\n| original | the original 2 |\n| retain-trained | the floor 2 |" in text
    assert "<script" not in text
    assert r"&lt;/b&gt; \| &lt;!-- a 2 |" in text


def test_control_characters_are_shown_as_escapes(tmp_path: Path) -> None:
    """In answers.md and on the page; rows.jsonl keeps them.  Half a character could not be written at all."""
    raw = "\x1b[31mred\x00\x1c\x85\u202e \ud83d\r\nnext"
    shown = r"\x1b[31mred\x00\x1c\x85\u202e \ud83d"
    write_run(tmp_path / "runs", 0, 0.1, answer=raw)
    main([str(tmp_path / "runs"), "--out", f"{tmp_path}/", "--questions", "0"])
    assert answers.md(raw) == shown.replace("\\", "\\\\").replace("[", "\\[") + " next"
    for name in ("answers.md", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert not re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["questions"][0]["answers"][2][0].startswith(shown)


def test_rows_of_one_index_are_told_apart(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 0, 0.1)
    rows = [{**row("forget", 0, f"after {w}"), "prompt_words": w} for w in (20, 60)]
    rows.append({"split": "forget_text", "index": 0, "gold": "scored only"})
    (folder / "rows_original.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    some = answers.list_speakers(find_runs([tmp_path]), ("prompt_words",))[:1]
    assert [answers.name_of(p) for p in some[0].rows] == ["forget 0, prompt_words 20", "forget 0, prompt_words 60"]
    assert "| original | after 20 |" in answers.markdown(some, answers.choose(some, [0], 0, 0))


def test_random_questions_are_the_same_for_a_seed(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 0.1)
    some = answers.list_speakers(find_runs([tmp_path]))
    draws = [answers.choose(some, None, 2, seed) for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len({tuple(d) for d in draws}) > 1
    assert all(len(d) == 2 and {p[0] for p in d} == {"forget"} for d in draws)


def test_the_browser_says_what_it_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 0.1)
    some = answers.list_speakers(find_runs([tmp_path]))
    every, half = list_answers(some, ("rougeL",)), list_answers(some, ("rougeL",), cap=12)  # 3 models x 8 questions
    assert (every["counts"], every["sampled"]) == ({"forget": [4, 4], "retain": [4, 4]}, False)
    assert (half["counts"], half["sampled"]) == ({"forget": [2, 4], "retain": [2, 4]}, True)
    assert len(half["questions"]) == 4
    assert every["questions"][0]["answers"][2] == ["an answer 0", [["rougeL", 0.5], ["p(gold)", 1.0]]]


# --- the page ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("page")
    for seed, rouge in enumerate((0.1, 0.3)):
        write_run(tmp_path / "runs", seed, rouge, "method=npo", "optim=soul", answer=NASTY)
    write_run(tmp_path / "runs", 0, 0.5, "method=npo", "optim=adamw", answer="blue whale")
    write_run(tmp_path / "runs", 0, 0.4, "method=ga", "optim=adamw")
    main([str(tmp_path / "runs"), "--out", f"{tmp_path}/", "--paper"])
    return tmp_path / "report.html"


def test_the_page_is_self_contained_and_escaped(page: Path) -> None:
    text = page.read_text()
    assert text.count("<script") == text.count("</script>") == 2  # its data and its code
    assert "owned'" not in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert "default-src 'none'" in text
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["questions"][0]["answers"][4][0] == f"{NASTY} 0"


HARNESS = """<!doctype html><iframe id="page" src="report.html" style="width: WIDTHpx; height: 800px"></iframe>
<pre id="result"></pre>
<script>
addEventListener("load", () => {
  const view = document.getElementById("page").contentWindow, doc = view.document, out = {};
  const one = (selector) => doc.querySelector(selector);
  const set = (selector, value, kind) => {
    one(selector).value = value;
    one(selector).dispatchEvent(new view.Event(kind));
  };
  const text = (row) => `${row.cells[0].textContent} ${row.cells[1].textContent}`;
  const rows = () => [...one("#results tbody").rows].filter((row) => !row.hidden).map(text);
  const buttons = [...one("#results thead").querySelectorAll("button")];
  const heading = (name) => buttons.find((button) => button.textContent.startsWith(name));
  const names = () => [...doc.querySelectorAll("#example .who")].map((e) => e.firstChild.textContent);
  out.title = doc.title;
  out.overflow = doc.documentElement.scrollWidth - doc.documentElement.clientWidth;
  const images = [...doc.querySelectorAll("figure img")];
  out.cut = images.filter((image) => image.getBoundingClientRect().right > doc.documentElement.clientWidth).length;
  out.images = images.length;
  const focusable = [...doc.querySelectorAll("a, button, input, select, summary, [tabindex='0']")].filter((e) => {
    return e.checkVisibility() && !e.disabled;
  });
  out.unseen = focusable.filter((e) => {
    e.focus({ focusVisible: true });
    return doc.activeElement !== e || view.getComputedStyle(e).outlineStyle !== "solid";
  }).map((e) => e.outerHTML.slice(0, 80));
  out.focused = focusable.length;
  one("figure .enlarge")?.click();
  out.enlarged = one("figure .enlarge")?.getAttribute("aria-pressed");
  out.sections = [...doc.querySelectorAll("section")].map((e) => e.id);
  const columns = () => [...one("#results thead").rows[1].cells].slice(3).filter((e) => !e.hidden).map((e) => e.title);
  const groups = () => [...one("#results thead").rows[0].cells].slice(1).filter((e) => !e.hidden)
    .map((e) => `${e.textContent} ${e.colSpan}`);
  const tick = (selector) => one(`.chooser ${selector}`).click();
  out.opened = columns();
  one(".chooser .usual").click(); out.usual = [columns(), groups(), view.location.hash];
  tick("[value=retain_acc]"); tick("fieldset:last-child .group");
  out.chosen = [columns(), groups(), view.location.hash];
  one("nav a[href='#answers']").click(); out.section = [view.location.hash, doc.activeElement.textContent];
  one(".chooser .every").click();
  out.start = rows();
  heading("ROUGE-L").click(); out.up = rows();
  heading("ROUGE-L").click(); out.down = rows();
  set("#results .filter", "soul npo", "input"); out.filtered = rows();
  out.count = one("#results .count").textContent;
  out.position = one("#position").textContent; out.asked = one("#example .what").textContent; out.names = names();
  out.answer = [...doc.querySelectorAll("#example .what")].pop().textContent;
  one("#next").click(); out.next = one("#example .what").textContent;
  set("#split", "retain", "change"); out.split = one("#position").textContent + " " + one("#example .what").textContent;
  set("#seed", "", "change"); set("#optim", "soul", "change"); out.everySeed = names();
  set("#optim", "", "change"); set("#text", "BLUE 3", "input"); out.found = one("#position").textContent;
  set("#text", "no such words", "input"); out.none = one("#position").textContent;
  document.getElementById("result").textContent = JSON.stringify(out);
});
</script>"""


def clicked(page: Path, width: int, fragment: str = "") -> dict[str, Any]:
    """What the page shows while it is clicked, in an iframe of the given width in pixels."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("Chromium is not installed")
    harness = page.with_name("harness.html")
    harness.write_text(HARNESS.replace("WIDTH", str(width)).replace("report.html", f"{page.name}{fragment}"))
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --allow-file-access-from-files --dump-dom"
    )
    command = [chromium, *flags.split(), f"--user-data-dir={page.parent / f'profile{width}'}", harness.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="result">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stdout[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def seen(page: Path) -> dict[str, Any]:
    return clicked(page, 1280)


def test_the_page_in_a_browser(seen: dict[str, Any]) -> None:
    assert seen["title"] == "Unlearning report: tofu"  # no answer ran as code
    assert seen["start"] == ["original –", "retain-trained –", "ga adamw", "npo adamw", "npo soul"]
    # forget ROUGE-L: .9, .2, .4, .5, .2; equal numbers keep their order
    assert seen["up"] == ["retain-trained –", "npo soul", "ga adamw", "npo adamw", "original –"]
    assert seen["down"] == ["original –", "npo adamw", "ga adamw", "retain-trained –", "npo soul"]
    assert (seen["filtered"], seen["count"]) == (["npo soul"], "1 of 5 rows")
    assert (seen["position"], seen["asked"]) == ("1 of 8 questions", "What of forget 0?")
    assert seen["names"][2:] == [
        "original", "retain-trained", "ga adamw, seed 0", "npo adamw, seed 0", "npo soul, seed 0",
    ]  # fmt: skip
    assert seen["answer"] == f"{NASTY} 0"
    assert seen["next"] == "What of forget 1?"
    assert seen["split"] == "1 of 4 questions What of retain 0?"
    assert seen["everySeed"][4:] == ["npo soul, seed 0", "npo soul, seed 1"]
    assert (seen["found"], seen["none"]) == ("1 of 1 questions", "no question passes the filters")
    assert seen["overflow"] == 0
    assert seen["sections"] == ["headline", "answers", "results", "paper", "figures", "runs"]


def test_columns_are_chosen_in_a_browser(page: Path, seen: dict[str, Any]) -> None:
    rest = ["retain_rougeL", "unlearn_seconds", "unlearn_peak_mb", "optimizer_state_mb"]
    usual = ["forget_quality", "forget_rougeL", "retain_acc", *rest]
    assert seen["opened"] == usual
    assert seen["usual"] == [usual, ["Forgetting efficacy 2", "Utility on retain 2", "Cost 3"], ""]
    # one column off, and all of the last group on
    costs = ["unlearn_seconds", "unlearn_peak_mb", "optimizer_state_mb", "parameter_mb", "unlearn_tokens",
             "unlearn_forward_passes", "unlearn_backward_passes", "evaluate_seconds"]  # fmt: skip
    chosen = ["forget_quality", "forget_rougeL", "retain_rougeL", *costs]
    assert seen["chosen"] == [
        chosen,
        ["Forgetting efficacy 2", "Utility on retain 1", "Cost 8"],
        f"#columns={','.join(chosen)}",
    ]
    assert seen["section"] == [f"#answers&columns={','.join(chosen)}", "Answers"]
    assert clicked(page, 1280, "#results&columns=retain_acc,no_such")["opened"] == ["retain_acc"]


def test_the_page_fits_a_phone_and_the_keyboard(page: Path) -> None:
    seen = clicked(page, 390)
    assert (seen["overflow"], seen["cut"], seen["images"]) == (0, 0, 4)
    assert seen["focused"] > 30
    assert seen["unseen"] == []  # what has the focus shows it
    assert seen["enlarged"] == "true"


class Outline(HTMLParser):
    """What a screen reader and the keyboard meet: headings, and controls without a name."""

    def __init__(self, text: str):
        super().__init__()
        self.headings: list[int] = []
        self.unnamed: list[str] = []
        self.labels = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.labels += tag == "label"
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        named = {
            "input": self.labels > 0, "select": self.labels > 0, "img": bool(given.get("alt")),
            "button": given.get("type") == "button", "th": "scope" in given,
        }  # fmt: skip
        if not named.get(tag, "tabindex" not in given or bool(given.get("aria-label"))):
            self.unnamed.append(f"{tag} {given}")
        if int(given.get("tabindex") or 0) > 0 or "onclick" in given:
            self.unnamed.append(f"{tag} {given}")

    def handle_endtag(self, tag: str) -> None:
        self.labels -= tag == "label"


def check_markup(text: str) -> None:
    outline = Outline(text)
    assert outline.unnamed == []
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(outline.headings))
    assert '<html lang="en">' in text
    assert "width=device-width" in text


def test_headings_labels_and_buttons(page: Path) -> None:
    check_markup(page.read_text())


CSS = (TEMPLATES / "page.css").read_text()


def test_nothing_has_a_fixed_width() -> None:
    """But for what is narrower than a phone: 390 pixels less the margins."""
    for amount, unit in re.findall(
        r"(?<![-\w])(?:min-)?width: ([\d.]+)(px|rem|em|ch)", re.sub(r"@media[^{]*", "", CSS)
    ):
        assert float(amount) * {"px": 1}.get(unit, 16) <= 350


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_is_that_of_wcag_aa(scheme: int) -> None:
    """4.5 for letters, 3 for the edges of controls and the mark of the focus; no colour stands elsewhere."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    assert len(blocks) == 2
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[scheme]))
    for letters, ground in product(("ink", "quiet", "accent"), ("paper", "soft")):
        assert contrast(colours[letters], colours[ground]) >= 4.5, (letters, ground)
    assert contrast(colours["ink"], colours["notice"]) >= 4.5
    for edge in ("edge", "accent", "notice-edge"):
        assert contrast(colours[edge], colours["paper"]) >= 3, edge
    rest = re.sub(r":root \{.*?\}", "", CSS, flags=re.DOTALL)
    assert set(re.findall(r"#[0-9a-f]{3,8}\b", rest)) == {"#fff"}  # behind figures


# --- the page of one run -----------------------------------------------------------------------------------


def cells(text: str, row: str) -> list[str]:
    """The texts of a row of the headline."""
    found = re.search(rf"<tr><th scope=.row.><small>\w+</small>{row.replace('_', '_<wbr>')} .*?</tr>", text, re.DOTALL)
    assert found is not None
    return [re.sub("<.*?>", "", cell) for cell in re.findall("<td.*?>(.*?)</td>", found[0], re.DOTALL)]


def test_a_run_has_a_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 0, 0.23, answer=NASTY)
    write_epochs(folder, [0.9, 0.5], [0.9, 0.8])
    write_page(folder)
    text = (folder / "report.html").read_text()
    check_markup(text)
    assert "<title>tofu · npo · soul · seed 0</title>" in text
    assert re.findall('<section id="(.*?)">', text) == ["headline", "answers", "results", "figures", "runs"]
    assert cells(text, "forget_rougeL") == ["0.900", "0.200", "0.230", "near"]
    assert cells(text, "retain_rougeL") == ["0.950", "0.900", "0.900", "near"]
    assert "cost: 15.0 s, peak memory 100 MB; cached: target model" in text
    assert "weights of epoch 1 (last of epochs 0, 1)" in text
    assert text.count("<figure") == 4  # all but the trade-off of one point
    assert "over seeds;" not in text
    assert "owned'" not in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert "optim.lr: " in text


def test_a_page_is_written_once_for_the_same_results(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 0, 0.2, "method=input_based")
    page = folder / "report.html"
    write_page(folder)
    page.write_text("mine")
    write_page(folder)
    assert page.read_text() == "mine"
    os.utime(page, (0, 0))  # older than metrics.json
    write_page(folder)
    assert "<title>tofu · input_based</title>" in page.read_text()


@pytest.mark.parametrize("models", [["original"], ["original", "retain_trained"], ["original", "this_run"]])
def test_pages_of_runs_with_fewer_models(tmp_path: Path, models: list[str]) -> None:
    folder = write_run(tmp_path, 0, 0.2, "method=none")
    content = json.loads((folder / "metrics.json").read_text())
    content["models"] = {name: content["models"][name] for name in models}
    content["absent"] = {models[-1]: {"mia": "no held-out authors"}} if models[-1] != "retain_trained" else {}
    (folder / "metrics.json").write_text(json.dumps(content))
    for name, file in (("retain_trained", "rows_retain_trained"), ("this_run", "rows")):
        if name not in models:
            (folder / f"{file}.jsonl").unlink()
    write_page(folder)
    text = (folder / "report.html").read_text()
    check_markup(text)
    assert len(cells(text, "forget_rougeL")) == len(models)
    assert "verdict" not in text[: text.index("<script")].lower()
    assert ("absent: mia (no held-out authors)" in text) is (models[-1] != "retain_trained")


def test_the_page_of_a_task_that_the_report_does_not_know(tmp_path: Path) -> None:
    """Its headline and columns are all that the report knows of it."""
    folder = write_run(tmp_path, 0, 0.2, "task=copyright", change={"task": "new"})
    write_page(folder)
    text = (folder / "report.html").read_text()
    assert "<title>new · npo · soul · seed 0</title>" in text
    assert cells(text, "forget_rougeL") == ["0.900", "0.200", "0.200", "near"]
    assert 'value="forget_rougeL"' in text


def test_the_page_of_a_run_fits_a_phone(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 0, 0.2)
    write_page(folder)
    seen = clicked(folder / "report.html", 390)
    assert (seen["overflow"], seen["cut"], seen["images"], seen["unseen"]) == (0, 0, 3, [])


def test_palette_is_told_apart_in_grey() -> None:
    """Colours differ in lightness too: adamw, soul and soul_released are what every figure compares."""
    shades = sorted(
        float(np.dot([int(STYLES.colour(o)[i : i + 2], 16) for i in (1, 3, 5)], [0.299, 0.587, 0.114]))
        for o in ("adamw", "soul", "soul_released")
    )
    assert np.diff(shades).min() > 20
