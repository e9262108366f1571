"""Plain-text books to chunks: any encoding, Project Gutenberg's frame taken off, cut at sentence ends.

Files are read as streams: what is kept of a book are its chunks as text and a hash of each long sentence.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from soul_cli.core.types import UserError

BLOCK = 1 << 20  # bytes read at a time
LOOK = 1 << 18  # bytes an encoding is guessed from
FRAME = re.compile(r"\*\*\* ?(START|END) OF (?:THE|THIS) PROJECT GUTENBERG", re.IGNORECASE)
SENTENCE_END = re.compile(r"""(?<=[.!?])["'”’)\]]*\s+(?=["'“‘(\[]*[A-Z0-9])""")
LONG = 8  # words: shorter sentences ("Yes," he said.) may stand in any two books
HUB = "hub:"
KNOWN = ("utf-8-sig", "utf-16")  # encodings that are told, not guessed


@dataclass(frozen=True)
class Chunk:
    """Whole sentences of one book, whitespace normalised, at most `chunk_words` words."""

    text: str
    book: str  # file or data set it came from


def expand(paths: list[str], key: str) -> list[str]:
    """Files, folders of .txt files and hub data sets -> files and hub data sets, each once, in order."""
    out: list[str] = []
    for entry in paths:
        if entry.startswith(HUB):
            out.append(entry)
            continue
        path = Path(entry).expanduser()
        if path.is_dir():
            inside = sorted(str(p) for p in path.iterdir() if p.suffix == ".txt")
            if not inside:
                raise UserError(f"{key}: the folder {path} has no .txt file")
            out += inside
        elif path.is_file():
            out.append(str(path))
        else:
            raise UserError(f"{key}: {path}: no such file or folder; give plain text files, folders of them, or "
                            f"{HUB}NAME[:CONFIG[:SPLIT]]")  # fmt: skip
    twice = {p for p in out if out.count(p) > 1}
    if twice:
        raise UserError(f"{key}: {', '.join(sorted(twice))} is given twice")
    return out


def read_chunks(book: str, chunk_words: int, most: int | None) -> list[Chunk]:
    """The first `most` chunks of a book (all: None).  Too short for one chunk is an error."""
    texts = hub_texts(book) if book.startswith(HUB) else file_texts(Path(book))
    chunks = [Chunk(text, book) for text in islice(cut(sentences(texts), chunk_words), most)]
    if not chunks:
        raise UserError(f"{book}: the book is empty")
    if len(chunks) == 1 and len(chunks[0].text.split()) < chunk_words // 2:
        count = len(chunks[0].text.split())
        raise UserError(f"{book}: {count} words are less than one chunk (task.chunk_words={chunk_words})")
    return chunks


# --- text --------------------------------------------------------------------------------------------------


def file_texts(path: Path) -> Iterator[str]:
    """Paragraphs of a text file, without Project Gutenberg's header and licence where it has them."""
    encoding = detect(path)
    framed = False
    with path.open(encoding=encoding) as file:
        framed = any((m := FRAME.match(line)) and m[1].upper() == "START" for line in file)
    inside = not framed
    paragraph: list[str] = []
    with path.open(encoding=encoding) as file:
        for line in file:
            if framed and (m := FRAME.match(line)):
                inside = m[1].upper() == "START"
            elif inside and line.strip():
                paragraph.append(line)
            elif paragraph:
                yield " ".join(paragraph)
                paragraph = []
    if paragraph:
        yield " ".join(paragraph)


def hub_texts(name: str) -> Iterator[str]:
    """Documents (field `text`) of a data set on the hub or in a local folder, streamed.  hub:NAME[:CONFIG[:SPLIT]]"""
    from datasets import load_dataset  # brings pyarrow: not needed for files

    repo, config, split = [*name.removeprefix(HUB).split(":"), "", ""][:3]
    try:
        stream = load_dataset(repo, config or None, split=split or "train", streaming=True)
        for document in stream:
            yield document["text"]
    except KeyError:
        raise UserError(f"{name}: its documents have no field 'text'") from None
    except Exception as error:
        raise UserError(
            f"{name}: cannot read the data set ({type(error).__name__}). Download it where there is a network and give "
            "its folder after 'hub:', or give text files"
        ) from error


def detect(path: Path) -> str:
    """The file's encoding: UTF-8 where it decodes as that, else the best guess.  Binary content is an error."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    start = b""
    at = 0
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                start = start or block[:LOOK]
                decoder.decode(block)
                if b"\0" in block:
                    raise UnicodeDecodeError("utf-8", b"\0", 0, 1, "NUL")
                at += len(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return _guess(path, start, at)
    if not start:
        raise UserError(f"{path}: the file is empty")
    return "utf-8-sig"


def _guess(path: Path, start: bytes, at: int) -> str:
    """Encoding from the file's beginning and the block that was not UTF-8."""
    from charset_normalizer import from_bytes, is_binary

    with path.open("rb") as file:
        file.seek(at)
        trouble = file.read(BLOCK)
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    if is_binary(start) or b"\0" in trouble:
        raise UserError(f"{path}: this is no text file (binary content); give plain text")
    matches = from_bytes(start + trouble[:LOOK])
    if not matches:
        raise UserError(f"{path}: its encoding cannot be told; save it as UTF-8")
    if any("cp1252" in match.could_be_from_charset for match in matches):
        return "cp1252"  # the usual one; its Baltic and Central European neighbours differ in a few letters only
    return matches[0].encoding


def sentences(texts: Iterable[str]) -> Iterator[str]:
    """Sentences with single spaces.  A paragraph's end is a sentence's end."""
    for text in texts:
        flat = " ".join(text.split())
        at = 0
        for match in SENTENCE_END.finditer(flat):
            end = match.end()
            yield flat[at:end].rstrip()
            at = end
        if at < len(flat):
            yield flat[at:]


def cut(pieces: Iterable[str], chunk_words: int) -> Iterator[str]:
    """Whole sentences, as many as fit in chunk_words words; a longer sentence is cut at that many words."""
    held: list[str] = []
    for piece in pieces:
        words = piece.split(" ")
        if held and len(held) + len(words) > chunk_words:
            yield " ".join(held)
            held = []
        held += words
        while len(held) > chunk_words:
            yield " ".join(held[:chunk_words])
            held = held[chunk_words:]
    if held:
        yield " ".join(held)


def check_disjoint(forget: list[Chunk], others: list[Chunk]) -> None:
    """No forget chunk may also stand in other books: half or more of its long sentences there is an error."""

    def long_sentences(chunk: Chunk) -> list[int]:
        return [hash(s) for s in sentences([chunk.text]) if s.count(" ") >= LONG - 1]

    known: dict[int, str] = {}
    for chunk in others:
        known.update(dict.fromkeys(long_sentences(chunk), chunk.book))
    for chunk in forget:
        own = long_sentences(chunk)
        found = [known[s] for s in own if s in known]
        if found and 2 * len(found) >= len(own):
            raise UserError(
                f"{chunk.book}: text to forget stands also in {found[0]}, which is to be kept or held out: "
                f"{chunk.text[:80]!r}"
            )
