"""Where the text stands in a file of Project Gutenberg, between header and licence, in all the forms these have had."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

_PG = r"PROJE[CK]T\s+GUTENBERG"
# what a line begins with, after blanks and ornaments; small print is known by its stars alone
_START = re.compile(rf"[\W_]*(?:START|BEGIN(?:NING)?)\W+OF\s+(?:THE\s+|THIS\s+)?{_PG}", re.IGNORECASE)
_END = re.compile(
    rf"[\W_]*(?:(?:END|ENDE|FIN|FINE|FIM|EINDE|SLUT)\b.{{0,24}}?{_PG}|START:?\s+FULL\s+LICENSE"
    rf"|THE\s+FULL\s+{_PG}(?:-TM|™)?\s+LICENSE)",
    re.IGNORECASE,
)
_SMALL_PRINT = re.compile(r"\W*\*[\W_]*(?:START\W+)?THE\s+SMALL\s+PRINT", re.IGNORECASE)
_SMALL_PRINT_END = re.compile(r"\W*\*[\W_]*END\W+(?:OF\s+)?(?:THE\s+)?SMALL\s+PRINT", re.IGNORECASE)
_KINDS = {"start": _START, "end": _END, "small print": _SMALL_PRINT, "small print's end": _SMALL_PRINT_END}
_WORDS = ("gutenberg", "small print", "full license")  # every marker has one of them
WRAPPED = 3  # lines of a marker, at most
LONGEST = 2000  # characters of a header's paragraph
# what a frame says of itself: in a paragraph before the text it is the header's, in a chunk it is worth a note
TRACES = re.compile(
    rf"{_PG}|gutenberg-tm|gutenberg\.(?:org|net)|pgdp\.net|distributed\s+proofread|digiti[sz]ed\s+by\s+google",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"\W*(?:title|author|(?:release|posting) date|last updated|most recently updated|language|edition|translator|editor"
    r"|illustrator|credits|character set|(?:this |\W*)e-?(?:book|text)|produced by|prepared by|transcribed)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Marker:
    kind: str
    first: int  # line
    last: int


def body(lines: Iterable[str]) -> list[range]:
    """Return the numbers of the lines that are text: all of them where the file has no such frame."""
    markers, header, count = _scan(lines)
    ends = [m.first for m in markers if m.kind == "small print's end"]
    # small print without an end: behind the text it goes on to the end of the file, before it nobody knows how far
    markers = [
        m for m in markers
        if m.kind != "small print" or 2 * m.first > count or any(m.first < end for end in ends)
    ]  # fmt: skip
    begin = header if not markers or _is_behind(markers, count) else None
    kept: list[range] = []
    for at, marker in enumerate(markers):
        if marker.kind in ("end", "small print"):
            if begin is not None:
                kept.append(range(begin, marker.first))
            begin = None
        elif _opens(markers, at, count, bool(kept)):
            between = at and markers[at - 1].kind == "small print's end"  # and the start: header
            if begin is not None and not between:
                kept.append(range(begin, marker.first))
            begin = marker.last + 1
    return kept if begin is None else [*kept, range(begin, count)]


def _is_behind(markers: list[_Marker], count: int) -> bool:
    """Whether text stands before the first marker."""
    first, *others = markers
    if first.kind != "small print":
        return first.kind == "end"
    closed = next((m.last for m in others if m.kind == "small print's end"), count)
    return first.first > count - closed


def _opens(markers: list[_Marker], at: int, count: int, found: bool) -> bool:
    """Whether text follows a marker: behind small print at a book's end (found) only what is longer than that."""
    marker = markers[at]
    if marker.kind == "start" or not found:
        return True
    before = markers[at - 1].first
    after = markers[at + 1].first if at + 1 < len(markers) else count
    return after - marker.last > marker.first - before


def _scan(lines: Iterable[str]) -> tuple[list[_Marker], int, int]:
    """-> markers; the lines of a header that has no marker; the number of lines."""
    markers: list[_Marker] = []
    paragraph = ""
    header, in_header, count, skip = 0, True, 0, -1
    for number, window in _windows(lines):
        count = number + 1
        if number <= skip:
            continue
        line = window[0]
        if line and (kind := _kind(" ".join(window[:2]))):
            closed = next((n for n, part in enumerate(window) if part.endswith("*")), 0) if line.startswith("*") else 0
            skip = number + closed
            markers.append(_Marker(kind, number, skip))
            in_header = False
        elif in_header and line:
            paragraph = f"{paragraph} {line}"
            in_header = len(paragraph) < LONGEST
        elif in_header and paragraph:
            in_header = bool(TRACES.search(paragraph) or (header and _HEADER.match(paragraph)))
            header, paragraph = (number if in_header else header), ""
    return markers, header, count


def _kind(text: str) -> str | None:
    """Which marker a text begins with."""
    lowered = text.lower()
    if not any(words in lowered for words in _WORDS):
        return None
    return next((kind for kind, pattern in _KINDS.items() if pattern.match(text)), None)


def _windows(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Each line's number, and the line with those behind it of the same paragraph that its marker may reach to."""
    held: list[str] = []
    number = 0
    for line in chain(lines, [""] * (WRAPPED - 1)):
        held.append(line.strip())
        if len(held) == WRAPPED:
            yield number, held[: held.index("")] if "" in held and held[0] else held
            del held[0]
            number += 1
