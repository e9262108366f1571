#!/usr/bin/env python3
"""Write what README.md and docs/ take from elsewhere: the page of keys, and numbers from results/.

    python scripts/docs.py           # rewrite docs/keys.md, and every table and number behind a mark
    python scripts/docs.py --check   # write nothing; name the files that are not as this would write them

Keys come from configs/: a key's line is its value there and the comment beside it.
Numbers have a mark, an HTML comment, which neither GitHub nor the built pages show:

    0.583<!-- table1_tofu_embedded_wide npo adamw forget_quality_D -->

is the value of the column forget_quality_D in the one row of results/table1_tofu_embedded_wide.csv that has the values
npo and adamw, rounded to the digits that stand there.  Of a file with an ending (`bench.md`), the first table is read.
A table has one mark above it, in YAML:

    <!-- table table1_tofu_embedded_wide
    head: method, optimizer              # of the first columns
    rows:
      original: original                 # what the first columns show, parted by commas: the values that find the row
      npo, adamw: npo adamw
    columns: {KS D ↓: forget_quality_D}  # title: further values that find the row, where needed, and the column
    digits: 3                            # behind the point; with ± where the file has a column COLUMN_sd
    -->
"""

from __future__ import annotations

import csv
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, RESULTS, KEYS = ROOT / "configs", ROOT / "results", ROOT / "docs" / "keys.md"
GROUPS = {  # in the order of a command line: what one chooses
    "task": "The benchmark, or your own data in its form.",
    "model": "The base model, and how it is fine-tuned into the target and the retain-trained model.",
    "method": "What is minimised on the rows to forget. See [Methods and optimizers](methods.md).",
    "retain": "What is minimised on the rows to keep.",
    "combine": "How the two gradients make a step.",
    "perturb": "Where the gradient is taken.",
    "optim": "The optimizer.",
}
PRESETS = {"experiment": "Whole settings.", "sweep": "Several runs. See [Sweeps](sweeps.md)."}
MEANINGS = {  # of keys whose comment gives the source or less: they stand before it
    "epoch_eval.limit": "rows a split that an evaluation between epochs asks",
    "force": "do the run",
    "gpu": "the GPU",
    "gpus": "number of GPUs",
    "output_dir": "where run folders are written, by task",
    "optim.lr": "peak rate",
    "train.epochs": "passes over the forget rows",
}
FALLBACKS = {  # of keys that several files have, where none has a comment
    "accumulation": "micro-batches a step",
    "architecture": "the model's shape, for plans",
    "beta": "how sharply the log-ratio to the model before unlearning is weighed",
    "beta1": "share of the momentum that the next step keeps",
    "beta2": "share of the second average that the next step keeps",
    "dtype": "type of the weights: float32, bfloat16, float64",
    "eps": "least divisor of a step",
    "base.optim": "the optimizer of the base phase",
    "base.train": "length and portions of the base phase, with the keys of `train`",
    "finetune.optim": "the optimizer of fine-tuning",
    "finetune.train": "length and portions of fine-tuning, with the keys of `train`",
    "lr": "peak rate",
    "max_length": "tokens that a question and its answer may have; a system prompt comes on top",
    "momentum": "share of the momentum that the next step keeps",
    "path": "a hub id or a folder",
    "rho": "factor of the curvature in the divisor of a step",
    "scale_ratio": "each scale of the line search is this many times the one before",
    "steps": "steps that look for the worst place",
    "template": "prompt template: plain, text, llama2, soul_released, or chat, the tokenizer's own",
    "weight_decay": "decoupled; spares biases and norms",
}


# --- keys ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A key of a YAML file, with its value as it stands there and the comment beside it."""

    name: str  # a.b.c
    value: str
    words: str


def read_keys(path: Path) -> tuple[str, list[Key]]:
    """Return the comment that a file opens with, and its keys; `name`, `defaults` and hydra's are left out."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    root = yaml.compose(text)
    keys = list(_keys(root, "", lines, len(lines))) if isinstance(root, yaml.MappingNode) else []
    opening = []
    for line in lines:
        if not line.startswith("#"):
            break
        opening.append(line.lstrip("# ").strip())
    return " ".join(line for line in opening if not line.startswith("@")), keys


def _keys(node: yaml.MappingNode, prefix: str, lines: list[str], end: int) -> Iterator[Key]:
    """Yield the keys of a block of lines that ends before line `end`."""
    starts = [key.start_mark.line for key, _ in node.value]
    for (key, value), stop in zip(node.value, [*starts[1:], end], strict=True):
        name = f"{prefix}{key.value}"
        if name in ("defaults", "hydra", "name"):
            continue
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _keys(value, f"{name}.", lines, stop)
            continue
        first, last = value.start_mark, value.end_mark
        raw = "\n".join(lines[first.line : last.line + 1])
        shown = raw[first.column : len(raw) - len(lines[last.line]) + last.column]
        yield Key(name, " ".join(shown.split()), _comment(lines, key.start_mark, last, stop))


def _comment(lines: list[str], key: yaml.Mark, value_end: yaml.Mark, stop: int) -> str:
    """Return the comment beside a key: behind it or its value, and on the indented lines that follow."""
    found = []
    for number in range(key.line, stop):
        line = lines[number]
        behind = line[value_end.column :] if number == value_end.line else line[key.column + 1 :]
        match = re.search(r"(?:^|\s)#\s?(.*)$", behind if number <= value_end.line else line)
        alone = line.lstrip().startswith("#")
        if match and (number <= value_end.line or (alone and line.index("#") > key.column)):
            found.append(match[1].strip())
    return " ".join(found)


def _explained(key: Key, siblings: list[Key]) -> Key:
    """Return the key with words: its own, those of a file beside its own, or of FALLBACKS."""
    others = (other.words for other in siblings if other.name == key.name)
    last = key.name.rsplit(".")[-1]
    words = key.words or next(filter(None, others), "") or FALLBACKS.get(key.name) or FALLBACKS.get(last, "")
    return Key(key.name, key.value, "; ".join(filter(None, (MEANINGS.get(key.name), words))))


def _table(keys: list[Key], prefix: str) -> list[str]:
    cells = [(f"`{prefix}{k.name}`", f"`{k.value}`", k.words.replace("|", "\\|")) for k in keys]
    return ["| key | value | what it does |", "|---|---|---|", *("| " + " | ".join(c) + " |" for c in cells), ""]


def keys_page() -> str:
    """Return docs/keys.md."""
    out = [
        "<!-- written by scripts/docs.py from the comments in configs/: do not edit -->",
        "# Every key",
        "",
        "Every key can be set on the command line, `KEY=VALUE`. The values here are those of the files in `configs/`; "
        "a preset may replace them, and `soul-unlearn ... --cfg job` prints what holds "
        "(see [Configuration](configuration.md)).",
        "",
        "## The run",
        "",
    ]
    _, keys = read_keys(CONFIGS / "config.yaml")
    out += _table([_explained(k, []) for k in keys if "." not in k.name], "")
    for section in ("train", "eval", "epoch_eval"):
        out += [f"## {section}", ""]
        out += _table([_explained(k, []) for k in keys if k.name.startswith(f"{section}.")], "")
    for group, what in GROUPS.items():
        files = sorted((CONFIGS / group).glob("*.yaml"))
        read = {file.stem: read_keys(file) for file in files}
        siblings = [key for _, some in read.values() for key in some]
        out += [f"## {group}", "", what, ""]
        for name, (opening, some) in read.items():
            out += [f"### {group}={name}", ""]
            out += [f"{opening}.", ""] if opening else []
            out += _table([_explained(k, siblings) for k in some], f"{group}.") if some else ["No keys.", ""]
    for group, what in PRESETS.items():
        out += [f"## {group}", "", what, "", "| preset | what it is |", "|---|---|"]
        for file in sorted((CONFIGS / group).rglob("*.yaml")):
            name = file.relative_to(CONFIGS / group).with_suffix("").as_posix()
            opening, _ = read_keys(file)
            out.append(f"| `{group}={name}` | {opening.replace('|', chr(92) + '|')} |")
        out.append("")
    return "\n".join(out)


# --- numbers ---------------------------------------------------------------------------------------------------

NUMBER = re.compile(r"(?P<shown>[−+-]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?)(?P<mark><!-- (?P<address>[^>\n]+?) -->)")
TABLE = re.compile(
    r"(?P<mark>^<!-- table (?P<file>\S+)\n(?P<spec>.*?)^-->\n)(?P<table>\n?(?:^\|[^\n]*\n)+)?", re.M | re.S
)


@lru_cache
def rows(name: str) -> list[dict[str, str]]:
    """Return a file of results/ by its name; without an ending it is a CSV file."""
    if not name.endswith(".md"):
        with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    text = (RESULTS / name).read_text(encoding="utf-8")
    cells = [[c.strip() for c in line.strip("|\n").split("|")] for line in re.findall(r"^\|.*$", text, re.M)]
    width = len(cells[0])
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:] if len(line) == width]


def value(address: str) -> tuple[dict[str, str], str]:
    """Return the row and the column that an address names: FILE VALUE... COLUMN.  ValueError: not exactly one row."""
    name, *values, column = shlex.split(address)
    found = [row for row in rows(name) if set(values) <= set(row.values())]
    if len(found) > 1:  # values of the first columns come before those of others
        found = [row for row in found if values == list(filter(None, row.values()))[: len(values)]]
    if len(found) != 1 or column not in found[0]:
        raise ValueError(f"{address}: {len(found)} rows, column {column}; there must be one row that has the column")
    return found[0], column


def as_shown(number: str, like: str) -> str:
    """Return a number of a file in the form of the one that stands in a text: digits, sign, thousands."""
    digits = len(like.partition(".")[2])
    if "e" in like:
        return re.sub(r"e([+-])0?(\d)", lambda m: f"e{m[1].replace('+', '')}{m[2]}", f"{float(number):.0e}")
    sign = "+" if like[0] == "+" else ""
    text = f"{float(number):{sign},.{digits}f}"
    text = text if "," in like or len(like) < 4 else text.replace(",", "")
    return text.replace("-", "−") if like[0] == "−" else text


def _cell(file: str, words: str, column: str, digits: int) -> str:
    row, name = value(f"{file} {words} {column}")
    if not row[name]:
        return "-"
    like = "0." + "0" * digits if digits else "0"
    spread = row.get(f"{name}_sd", "")
    shown = as_shown(row[name], like)
    return f"{shown} ± {as_shown(spread, like)}" if spread else shown


def table(file: str, spec: dict[str, Any]) -> str:
    """Return the table of a mark, as Markdown."""
    columns, digits = spec["columns"], spec.get("digits", 3)
    head = [part.strip() for part in spec["head"].split(",")]
    lines = [[*head, *columns], ["---"] * (len(head) + len(columns))]
    for label, words in spec["rows"].items():
        first = [part.strip() for part in str(label).split(",", len(head) - 1)]
        first += ["-"] * (len(head) - len(first))
        lines.append([*first, *(_cell(file, words, column, digits) for column in columns.values())])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def filled(text: str) -> str:
    """Return a page with its marked tables and numbers as results/ has them."""

    def number(found: re.Match[str]) -> str:
        row, column = value(found["address"])
        return as_shown(row[column], found["shown"]) + found["mark"]

    def whole(found: re.Match[str]) -> str:
        return f"{found['mark']}\n{table(found['file'], yaml.safe_load(found['spec']))}"

    return NUMBER.sub(number, TABLE.sub(whole, text))


# --- pages -----------------------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """Return every page as this script would write it."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    out = {file: filled(file.read_text(encoding="utf-8")) for file in files if file != KEYS}
    return {**out, KEYS: keys_page()}


def stale() -> list[str]:
    """Return the pages that are not as this script would write them."""
    return [
        str(file.relative_to(ROOT))
        for file, text in pages().items()
        if not file.is_file() or file.read_text(encoding="utf-8") != text
    ]


def main(words: list[str]) -> None:
    """Write, or check."""
    if words not in ([], ["--check"]):
        sys.exit(__doc__)
    if words:
        sys.exit(", ".join(names) + ": run scripts/docs.py" if (names := stale()) else 0)
    for file, text in pages().items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
