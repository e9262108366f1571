"""`soul-unlearn cache`: what lies in the cache, how large and how old it is, and how to make room."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from soul_cli.core.cache import Entry, entries
from soul_cli.core.places import default_cache, expand_home
from soul_cli.core.screen import log
from soul_cli.core.types import UserError

DAY = 24 * 60 * 60  # seconds


def main(given: Sequence[str]) -> None:
    """List the entries, or clear them.  A run makes again what it misses."""
    args = arguments(given)
    if args.older_than < 0:
        raise UserError(f"--older-than {args.older_than:g}: must be 0 or more, in days")
    root = expand_home(args.cache_dir, "cache_dir")
    found = list(entries(root))
    kinds = sorted({entry.kind for entry in found})
    if args.kind and found and args.kind not in kinds:
        raise UserError(f"--kind {args.kind}: {root} has {', '.join(kinds)}")
    oldest = time.time() - args.older_than * DAY
    chosen = [e for e in found if (not args.kind or e.kind == args.kind) and e.made <= oldest]
    log(describe(chosen))
    log(f"{len(chosen)} entries, {size(sum(e.size for e in chosen))} in {root}")
    if args.action == "clear" and chosen and (args.yes or confirmed()):
        clear(chosen)


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="soul-unlearn cache",
        description="Models, rows and data that runs keep to have them once. `list` shows them, `clear` removes them "
        "after a question; what a run builds or uses at the time stays.",
    )
    parser.add_argument("action", nargs="?", default="list", choices=["list", "clear"], help="default: list")
    parser.add_argument("--kind", help="entries of this kind alone, e.g. models, rows, reference")
    parser.add_argument(
        "--older-than", type=float, default=0, metavar="DAYS", help="entries made so long ago, or longer"
    )
    parser.add_argument("--cache-dir", default=default_cache(), help="the cache (default: %(default)s)")
    parser.add_argument("--yes", action="store_true", help="clear without a question")
    return parser.parse_args(given)


def describe(found: Sequence[Entry]) -> str:
    """Return a table of entries, a line each, by kind and then the largest first."""
    now = time.time()
    ordered = sorted(found, key=lambda e: (e.kind, -e.size))
    cells = [("kind", "size", "age", "of"), *((e.kind, size(e.size), age(now - e.made), e.of) for e in ordered)]
    widths = [max(len(line[i]) for line in cells) for i in range(3)]
    lines = (f"{k:{widths[0]}}  {s:>{widths[1]}}  {a:>{widths[2]}}  {of}".rstrip() for k, s, a, of in cells)
    return "\n".join(lines)


def confirmed() -> bool:
    """Ask on the terminal.  UserError: there is none to ask on."""
    if not sys.stdin.isatty():
        raise UserError("nothing was removed: there is no terminal to ask on; add --yes")
    return input("remove them? [y/N] ").strip().lower() in ("y", "yes")


def clear(chosen: Sequence[Entry]) -> None:
    """Remove entries, and say what stays."""
    stays = [entry for entry in chosen if not entry.remove()]
    gone = sum(e.size for e in chosen) - sum(e.size for e in stays)
    log(f"removed {len(chosen) - len(stays)} entries, {size(gone)}")
    for entry in stays:
        log(f"stays, in use: {entry.kind}, {entry.of} ({entry.target})")


def size(count: float) -> str:
    """Return bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def age(seconds: float) -> str:
    """Return a time in the largest unit that it has one of."""
    for unit, length in (("d", DAY), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
