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
from omegaconf import OmegaConf

from soul_cli.core.files import CONFIGS
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
    assert spec and spec.loader
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


ALL = list(dict.fromkeys(c for page in PAGES for c in commands(page.read_text(encoding="utf-8"))))


def overrides(command: str) -> list[str]:
    """Return the overrides of a command; [] where it is no run."""
    words = shlex.split(command)
    if words[0] in ONES_OWN or "method=help" in words or "..." in words:
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
        compose([*given, "plan=true"])  # a plan needs neither folders nor libraries


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


def test_a_wrong_number_is_seen(docs: ModuleType) -> None:
    mark = "<!-- table1_tofu_smollm2_wide npo soul mia -->"
    right = docs.filled(f"0.9{mark}")
    assert right != docs.filled(right).replace("0.", "1.")
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
    text = re.sub(r"<!-- table .*?-->\n(?:\|.*\n)*", "", text, flags=re.S)
    text = re.sub(r"`[^`\n]*`", "", "\n".join(line for line in text.splitlines() if not line.startswith("    ")))
    bare = re.findall(r"(?<![\w.:/])0\.\d{3}(?!\d)(?!<!--)", text)
    assert not bare or name == "docs/metrics.md", bare  # its numbers are worked examples


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


CHOICES = [(g, p.stem) for g in ("task", "model", "method", "retain", "combine", "perturb", "optim")
           for p in sorted((CONFIGS / g).glob("*.yaml"))]  # fmt: skip


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_key_has_a_line(group: str, choice: str) -> None:
    text = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
    lines = dict(re.findall(r"^\| `([\w.]+)` \| .*? \| ?(.*) \|$", text, re.M))
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        made = OmegaConf.to_container(hydra_compose("config", [f"{group}={choice}"]), resolve=False)
    for key in leaves(made):
        parts = key.split(".")
        lined = next((w for n in range(len(parts), 0, -1) if (w := ".".join(parts[:n])) in lines), "")
        if parts[-1] != "name":
            assert lined, f"{key} has no line in docs/keys.md"
            assert lines[lined].strip(), f"{lined} has no words: write a comment beside it in configs/"


@pytest.mark.parametrize(
    ("heading", "names"),
    [("method", METHODS), ("retain", RETAINS), ("combine", COMBINES), ("perturb", PERTURBS), ("optim", OPTIMS)],
)
def test_every_choice_stands_on_the_page_of_methods(heading: str, names: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    missing = [name for name in names if f"`{name}`" not in text]
    assert not missing, f"docs/methods.md does not name {heading}={', '.join(missing)}"


def test_every_column_of_the_reports_stands_on_the_page_of_metrics() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    stems = [re.sub(r"^(forget|retain|real_authors|world_facts|holdout)_", "", re.sub(r"_(\d+)(?=_|$)", "_20", c.metric))
             for made in layout.LAYOUTS.values() for g in made.groups if g.title != "Cost" for c in g.columns]  # fmt: skip
    missing = sorted({s for s in stems if s not in text and s.replace("_20", "_50") not in text})
    assert not missing, missing


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
