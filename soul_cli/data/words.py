"""Words and sentences of any script.

A word is what stands between spaces.  Where a script puts no spaces between words (Chinese, Japanese, Thai, ...), each
character counts as one; in any other long run without a space, LONGEST characters do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

LONGEST = 100  # characters: what ordinary prose joins by dashes, and most addresses, are shorter
# letters and punctuation of scripts that are written without spaces, as ranges of a character class
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\u0f00-\u0fff"  # Thai, Lao, Burmese, Khmer, Tibetan
    "\u2e80-\u2fdf\u3000-\u30ff\u3105-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"  # Chinese, kana, bopomofo
    "\uf900-\ufaff\ufe30-\ufe4f\uff01-\uff65\uff66-\uff9f\U00020000-\U0003ffff"  # forms, full and half width, rare Han
)
# vowel signs and tone marks of those scripts, and accents of any: no letter of their own
MARKS = (
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u1056-\u1059\u105e-\u1060"
    "\u1071-\u1074\u1082-\u108d\u17b4-\u17d3\u0f71-\u0f84\u0f86-\u0f97\u0f99-\u0fbc\u0300-\u036f\u3099\u309a\ufe00-\ufe0f"
)
_WORD = re.compile(rf"[{UNSPACED}][{MARKS}]*|[^\s{UNSPACED}]{{1,{LONGEST}}}")
_RUN_ON = re.compile(rf"[^\s{UNSPACED}]{{{LONGEST + 1},}}")
_HAS_UNSPACED = re.compile(f"[{UNSPACED}]")
_WRAP = re.compile(rf"(?<=[{UNSPACED}])[^\S\n]*\n\s*(?=[{UNSPACED}])")
_CLOSING = "\"'”’»)\\]」』）】》〉"
_FULL_STOP = rf"[。！？｡][{_CLOSING}]*"  # of scripts that need no space behind it
_SENTENCE_END = re.compile(
    rf"[.!?؟।॥۔][{_CLOSING}]*\s+(?=[\"'“‘«„¿¡(\[]*([^\W_]))|{_FULL_STOP}\s*(?![。！？｡{_CLOSING}])"
)
_STOPPED = re.compile(rf"{_FULL_STOP}$")


def ends(text: str) -> Iterator[int]:
    """Return where each word of the text ends."""
    return (match.end() for match in _WORD.finditer(text))


def count(text: str) -> int:
    """Return how many words the text has."""
    words = text.split()
    if (text.isascii() or not _HAS_UNSPACED.search(text)) and len(max(words, key=len, default="")) <= LONGEST:
        return len(words)  # the usual case, quickly
    return sum(1 for _ in ends(text))


def split_at(text: str, words: int) -> tuple[str, str]:
    """Return the first `words` words of the text and the rest, without the space between them."""
    end = next((end for n, end in enumerate(ends(text), 1) if n == words), len(text)) if words else 0
    return text[:end], text[end:].lstrip()


def join(first: str, second: str) -> str:
    """Return two sentences as one text, with a space between them unless the first ends without need of one."""
    return first + second if not first or _STOPPED.search(first) else f"{first} {second}"


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a paragraph, whitespace normalised, lines joined."""
    flat = " ".join((text if text.isascii() else _WRAP.sub("", text)).split())
    at = 0
    for match in _SENTENCE_END.finditer(flat):
        if match.end() < len(flat) and not (match[1] or "A").islower():
            yield flat[at : match.end()].rstrip()
            at = match.end()
    if at < len(flat):
        yield flat[at:]


def run_on(text: str) -> str:
    """Return the first run of more than LONGEST characters without a space, in a script that has spaces, or ""."""
    match = _RUN_ON.search(text)
    return match[0] if match else ""
