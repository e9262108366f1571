"""The embedded benchmark: the project's own writing, laid out as TOFU is on the hub.

44 fictitious authors with 20 questions each.  1-40 are trained on, 37-40 are forgotten (forget10), 39-40 in forget05,
1-4 make the perturbed retain set, 41-44 are held out from every training.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from soul_cli.core.files import digest, locked, publish, sha256

HERE = Path(__file__).parent
TRAINED = 40  # authors


def write_layout(folder: Path, authors: list[dict[str, Any]]) -> None:
    """Write authors in the hub's layout.  The last 4 of every 44 shares are held out, as in the embedded set."""
    held = len(authors) // 11
    trained, holdout = authors[:-held], authors[-held:]

    def rows(some: list[dict[str, Any]], *fields: str) -> list[dict[str, Any]]:
        return [{f: r[f] for f in fields or r} for a in some for r in a["rows"]]

    tenth, twentieth = len(trained) // 10, len(trained) // 20
    files = {
        "full": rows(trained, "question", "answer"),
        "retain_perturbed": rows(trained[:tenth]),
        "holdout_perturbed": rows(holdout),
    }
    for share, count in (("10", tenth), ("05", twentieth)):
        if not count:
            continue
        files[f"forget{share}"] = rows(trained[-count:], "question", "answer")
        files[f"forget{share}_perturbed"] = rows(trained[-count:])
        files[f"retain{100 - int(share)}"] = rows(trained[:-count], "question", "answer")
    folder.mkdir(parents=True)
    for name, content in files.items():
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in content)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    for name in ("real_authors_perturbed.json", "world_facts_perturbed.json", "idontknow.jsonl"):
        (folder / name).write_bytes((HERE / name).read_bytes())


def layout(cache_dir: Path) -> Path:
    """Return the embedded data as a folder in the hub's layout, written once, whichever process comes first."""
    sources = sorted((HERE / "authors").glob("*.json"))
    shipped = [Path(__file__), *sources, *sorted(HERE.glob("*.json*"))]
    folder = cache_dir / "data" / f"embedded-{digest([sha256(p) for p in shipped])}"
    if folder.is_dir():
        return folder
    with locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            temporary = folder.with_suffix(".out")
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            write_layout(temporary, [json.loads(s.read_text(encoding="utf-8")) for s in sources])
            publish(temporary, folder)
    return folder
