"""README.md and docs/: commands compose, links resolve, numbers are those of results/, every key is explained."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from soul_cli.core.files import CONFIGS
from soul_cli.core.types import UserError
from soul_cli.evaluate import metrics as m
from soul_cli.experiment.config import compose
from soul_cli.objective.combine import COMBINES
from soul_cli.objective.methods import METHODS
from soul_cli.objective.perturb import PERTURBS
from soul_cli.objective.retain import RETAINS
from soul_cli.optim.build import OPTIMS
from soul_cli.report import layout

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
ONES_OWN = ("cache", "doctor")  # commands that are no run
FENCED = re.compile(r"^(?P<indent> *)```(?P<kind>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.M | re.S)


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    """scripts/docs.py."""
    spec = importlib.util.spec_from_file_location("docs_script", ROOT / "scripts" / "docs.py")
    assert spec
    assert spec.loader
    module = sys.modules["docs_script"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- commands --------------------------------------------------------------------------------------------------


def code(text: str) -> Iterator[str]:
    """Yield the lines of code of a page, and its code in running text."""
    for block in FENCED.finditer(text):
        yield from block["code"].replace("\\\n", " ").splitlines()
    text = FENCED.sub("", text)
    yield from (line for line in text.splitlines() if line.startswith("    "))
    yield from re.findall(r"`([^`\n]+)`", text)


def commands(text: str) -> list[str]:
    """Return what stands behind soul-unlearn in a page, however it is started."""
    found = []
    for line in code(text):
        for inner in re.findall(r"--wrap \"([^\"]+)\"", line) or [line]:
            match = re.search(r"(?:^|[ \"])(?:soul-unlearn|-m soul_cli\.cli)(?: (.*))?$", inner.strip())
            if match and match[1]:
                found.append(" ".join(map(shlex.quote, shlex.split(match[1], comments=True))))
    return list(dict.fromkeys(found))


GROUPS = ("task", "model", "method", "retain", "combine", "perturb", "optim")
ALL = list(dict.fromkeys(c for page in PAGES for c in commands(page.read_text(encoding="utf-8"))))


def overrides(command: str) -> list[str]:
    """Return the overrides of a command; [] where it is no run."""
    words = shlex.split(command)
    if words[0] in ONES_OWN or "..." in words or any(word.endswith("=help") for word in words):
        return []
    return [w for w in words if not w.startswith("-") and w not in ("job", "hydra")]


@pytest.mark.parametrize("command", ALL)
def test_every_command_composes(command: str) -> None:
    given = overrides(command)
    if not given:
        return
    parsed = OverridesParser.create().parse_overrides(given)
    lists = [
        [f"{o.key_or_group}={v}" for v in o.sweep_string_iterator()] if o.is_sweep_override() else [o.input_line]
        for o in parsed
    ]
    usual = [some[0] for some in lists]
    for number, some in enumerate(lists):
        for value in some if number == 0 else some[1:]:
            check([*usual[:number], value, *usual[number + 1 :]])


def check(given: list[str]) -> None:
    if any(word.startswith(("sweep=", "hydra/", "hydra.")) for word in given):
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            raw = hydra_compose("config", given, return_hydra_config=True)
        assert "sweep=" not in " ".join(given) or raw.hydra.sweeper.grids
    else:
        try:
            compose([*given, "plan=true"])  # a plan needs no folders
        except UserError as error:
            if not re.search("needs the extra|not installed", str(error)):
                raise


def test_commands_are_found_in_every_form() -> None:
    text = """
Inline `soul-unlearn a=1` and `soul-report x`.

    soul-unlearn -m 'b=[x y]' c=2   # why
    sbatch --gpus=1 --wrap "torchrun --standalone -m soul_cli.cli d=3"

```bash
soul-unlearn e=4 \\
    f=5
```
"""
    assert commands(text) == ["e=4 f=5", "-m 'b=[x y]' c=2", "d=3", "a=1"]


def test_a_wrong_command_is_seen() -> None:
    for wrong in ("optim.lrr=1", "method=nopo", "seed=x", "-m seed=0,x", "sweep=table1 nothing=1"):
        with pytest.raises(Exception, match=r"."):
            test_every_command_composes(wrong)


EXAMPLES = {"method=unlikelihood"}  # what the page on extending adds
CHOICE = re.compile(rf"\b({'|'.join((*GROUPS, 'experiment', 'sweep'))})=([a-z][\w/]*)(?![\w/.*=])")
KEY = re.compile(
    rf"(?<![\w/])(?:{'|'.join((*GROUPS, 'train', 'eval', 'epoch_eval'))})\.(?!jsonl)[a-z_]\w*(?:\.[a-z_]\w*)*"
)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "docs/keys.md"])
def test_choices_and_keys_in_the_text_are_there(name: str) -> None:
    known = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs" / "keys.md").read_text(encoding="utf-8"), re.M)
    for span in code((ROOT / name).read_text(encoding="utf-8")):
        for group, choice in CHOICE.findall(span):
            there = (CONFIGS / group / f"{choice}.yaml").is_file() or choice == "help"
            assert there or f"{group}={choice}" in EXAMPLES, f"{group}={choice} is not there"
        for key in KEY.findall(span):
            parts = key.split(".")
            above = {".".join(parts[:n]) for n in range(2, len(parts) + 1)}
            assert above & set(known) or any(k.startswith(f"{key}.") for k in known), f"{key} is no key"


# --- links -----------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head).replace("`", "") for head in heads]
    return {re.sub(r"[^\w\- ]", "", head.lower(), flags=re.A).strip().replace(" ", "-") for head in plain}


@pytest.mark.parametrize("name", [*NAMES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_link_resolves(name: str) -> None:
    page = ROOT / name
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text):
        target, _, anchor = (link[0] or link[1]).partition("#")
        if re.match(r"\w+:", target):
            continue
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{name}: {target} is not there"
        assert not anchor or anchor in anchors(there), f"{name}: {target} has no heading {anchor}"


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"([\w]+\.md)", str(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert sorted(listed) == sorted(p.name for p in (ROOT / "docs").glob("*.md"))


# --- numbers and keys --------------------------------------------------------------------------------------------


def test_numbers_and_keys_are_those_of_their_files(docs: ModuleType) -> None:
    assert docs.stale() == [], "run scripts/docs.py"


def test_a_table_is_filled_from_its_mark_and_what_follows_stays(docs: ModuleType) -> None:
    mark = (
        "<!-- table table1_tofu_smollm2_wide\nhead: method, optimizer\n"
        "rows:\n  original: original\n  npo, soul: npo soul\ncolumns: {D: forget_quality_D}\n-->\n"
    )
    whole = docs.filled(f"Before.\n\n{mark}\nAfter.\n\n| no | table of ours |\n")
    assert whole.startswith(
        f"Before.\n\n{mark}\n| method | optimizer | D |\n| --- | --- | --- |\n| original | - | 0.275 |\n"
    )
    assert whole.endswith("| npo | soul | 0.175 |\n\nAfter.\n\n| no | table of ours |\n")
    assert docs.filled(whole) == whole == docs.filled(whole.replace("0.175", "0.2"))


def test_a_wrong_number_is_seen(docs: ModuleType) -> None:
    mark = "<!-- table1_tofu_smollm2_wide npo soul mia -->"
    assert docs.filled(f"0.000{mark}") == docs.filled(f"0.999{mark}") != f"0.000{mark}"
    assert docs.as_shown("-0.0347", "−0.00") == "−0.03"
    assert docs.as_shown("1803.76", "1,000") == "1,804"
    assert docs.as_shown("0.0123", "+0.000") == "+0.012"
    with pytest.raises(ValueError, match="one row"):
        docs.filled("0.1<!-- table1_tofu_smollm2_wide npo mia -->")


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_results_have_a_mark(name: str) -> None:
    """Three digits behind the point are of a measurement: in text and tables they need a mark."""
    text = FENCED.sub("", (ROOT / name).read_text(encoding="utf-8"))
    text = re.sub(r"<!-- table .*?-->\n\n(?:\|[^\n]*\n)*", "", text, flags=re.S)
    text = re.sub(r"`[^`\n]*`", "", "\n".join(line for line in text.splitlines() if not line.startswith("    ")))
    bare = re.findall(r"(?<![\w.:/])0\.\d{3}(?!\d)(?!<!--)", text)
    assert not bare or name == "docs/metrics.md", bare  # its numbers are worked examples


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_key_has_a_line() -> None:
    text = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
    files = {CONFIGS / "config.yaml": ""} | {f: f"{g}." for g in GROUPS for f in sorted((CONFIGS / g).glob("*.yaml"))}
    assert len(files) > 20
    for file, group in files.items():
        part = text.partition(f"### {group[:-1]}={file.stem}\n")[2] if group else text.partition("## The run")[2]
        lines = dict(re.findall(r"^\| `([\w.]+)` \| .*? \| ?(.*) \|$", re.split(r"^### ", part, flags=re.M)[0], re.M))
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        for key in leaves({k: v for k, v in values.items() if k not in ("defaults", "hydra", "name")}, group):
            parts = key.split(".")
            line = next((k for n in range(len(parts), 0, -1) if (k := ".".join(parts[:n])) in lines), "")
            assert line, f"{key} has no line in docs/keys.md"
            assert lines[line].strip(), f"{line} has no words: write a comment beside it in {file}"


@pytest.mark.parametrize(
    ("heading", "names"),
    [("method", METHODS), ("retain", RETAINS), ("combine", COMBINES), ("perturb", PERTURBS), ("optim", OPTIMS)],
)
def test_every_choice_stands_on_the_page_of_methods(heading: str, names: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    missing = [name for name in names if f"`{name}`" not in text]
    assert not missing, f"docs/methods.md does not name {heading}={', '.join(missing)}"


def test_the_worked_examples_are_right() -> None:
    """Each number as the page shows it, and as the code gives it."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    true, false = [1.0], [[2.0, 4.0]]
    examples = [
        ("a probability of {:.3f}", m.probability(true)[0]),
        ("= {:.3f} and the arithmetic R", m.truth_ratio(true, false, mean="geometric")[0]),
        ("/2)/0.368 = {:.3f}", m.truth_ratio(true, false, mean="arithmetic")[0]),
        ("so D = {:.1f}.", m.ks_test([0.1, 0.2, 0.3, 0.4], [0.3, 0.4, 0.5, 0.6])[1]),
        ("recall 3/5 = {:.1f}", m.rouge_l("She was born in Oslo", "She was raised in Bergen")),
        ("4/6 = {:.3f}", m.extraction_strength([1, 0, 1, 1, 1, 1])),
        ("5/6 = {:.3f}", m.exact_memorization([1, 0, 1, 1, 1, 1])),
        ("= {:.3f} bits", m.ngram_entropy("a b c d")),
        ("scores {:.0f}.", m.ngram_entropy("{{{{{{")),
        ("the score −{:.0f}.", -m.min_k([-0.1, -3, -0.2, -1], 50)),
        ("three are above: {:.2f}", m.auroc([-0.5, -1], [-0.8, -2])),
        ("1/0.3) = {:.2f}", m.harmonic_mean([0.9, 0.9, 0.3])),
        ("is b c d: {:.0f}.", m.longest_common_run([1, 2, 3, 4, 5, 6], [0, 2, 3, 4, 0, 6])),
        ("F1 {:.3f}", m.rouge_l_f1("p q r s t", "p q r s 1 2 3 4 5 6")),
        ("exp(900/400) = {:.2f}", m.perplexity(900, 400)),
        ("At 0.5: 1 − 0.1/0.5 = {:.1f}", m.nearness(0.5, 0.4, 0.9)),
        ("1 − 0.2/0.4 = {:.1f}", m.nearness(0.2, 0.4, 0.9)),
    ]
    flat = " ".join(text.split())
    assert not [shown for words, number in examples if (shown := words.format(number)) not in flat]


def test_every_column_of_the_reports_stands_on_the_page_of_metrics() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    columns = [
        c.metric for made in layout.LAYOUTS.values() for g in made.groups if g.title != "Cost" for c in g.columns
    ]
    split = re.compile(r"^(forget|retain|real_authors|world_facts|holdout)_")
    stems = {split.sub("", re.sub(r"_(20|60|100|300)(?=_|$)", "_20", metric)) for metric in columns}
    assert not [stem for stem in stems if stem not in text]


# --- form ------------------------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("name", NAMES)
def test_python_on_the_pages_parses(name: str) -> None:
    for block in FENCED.finditer((ROOT / name).read_text(encoding="utf-8")):
        if block["kind"] == "python":
            ast.parse(re.sub(rf"^{block['indent']}", "", block["code"], flags=re.M))


def test_the_citation_agrees_with_the_package() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["title"], citation["version"], citation["license"]) == (
        project["name"], project["version"], project["license"],
    )  # fmt: skip
