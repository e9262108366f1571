"""Hooks of mkdocs: pages link to files outside docs/, as GitHub shows them; the site gets copies of those."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# file -> its place in the site; docs/results.md has the address results/
COPIES = {
    **{f"results/{f.name}": f"measured/{f.name}" for f in (ROOT / "results").iterdir() if f.suffix in (".md", ".png")},
    **{name: f"project/{name}" for name in ("CONTRIBUTING.md", "CHANGELOG.md")},
}


def on_files(files: Files, config: Any) -> Files:
    """Add the copies."""
    for source, place in COPIES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links point to the copies, and those of the copies to the pages."""
    markdown = re.sub(r"\]\(\.\./([^)#]+)", lambda m: f"]({COPIES.get(m[1], f'../{m[1]}')}", markdown)
    return markdown.replace("](docs/", "](../")
