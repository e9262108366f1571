"""Plain-text books to chunks: any encoding, Project Gutenberg's frame taken off, cut at sentence ends.

Files are read as streams: what is kept of a book are its chunks as text and a hash of each long sentence.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import IO

from soul_cli.core.files import digest, file_digest, sha256
from soul_cli.core.types import UserError
from soul_cli.data import gutenberg
from soul_cli.data.reading import marked_encoding, open_bytes, refuse_foreign
from soul_cli.data.words import count, join, split_at
from soul_cli.data.words import sentences as sentences_of

BLOCK = 1 << 20  # bytes read at a time
LOOK = 1 << 18  # bytes an encoding is guessed from
LONG = 8  # words: shorter sentences ("Yes," he said.) may stand in any two books
HUB = "hub:"
KNOWN = ("utf-8-sig", "utf-16", "utf-32")  # encodings that are told, not guessed
BOOKS = (".txt", ".txt.gz")
HTML = re.compile(rb"\s*(<\?xml[^>]*>\s*)?<(!doctype html|html)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Chunk:
    """Whole sentences of one book, whitespace normalised, at most `chunk_words` words."""

    text: str
    book: str  # file or data set it came from


def expand(paths: list[str], key: str) -> list[str]:
    """Return the files and hub data sets that files, folders of .txt files and hub data sets stand for, in order."""
    out: list[str] = []
    for entry in paths:
        if entry.startswith(HUB):
            out.append(entry)
            continue
        path = Path(entry).expanduser()
        if path.is_dir():
            inside = sorted(str(p) for p in path.iterdir() if p.name.lower().endswith(BOOKS))
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
    """Return the first `most` chunks of a book (all: None).  Too short for one chunk is an error."""
    texts = hub_texts(book) if book.startswith(HUB) else file_texts(Path(book))
    chunks = [Chunk(text, book) for text in islice(cut(sentences(texts), chunk_words), most)]
    if not chunks:
        raise UserError(f"{book}: the book is empty")
    if len(chunks) == 1 and (words := count(chunks[0].text)) < chunk_words // 2:
        raise UserError(f"{book}: {words} words are less than one chunk (task.chunk_words={chunk_words})")
    return chunks


# --- text --------------------------------------------------------------------------------------------------


@contextmanager
def open_text(path: Path, encoding: str) -> Iterator[IO[str]]:
    """Open a book as text, unpacked where it is gzip."""
    with open_bytes(path) as file, TextIOWrapper(file, encoding=encoding) as text:
        yield text


def file_texts(path: Path) -> Iterator[str]:
    """Yield the paragraphs of a text file, without Project Gutenberg's header and licence where it has them."""
    encoding = detect(path)
    with open_text(path, encoding) as file:
        kept = gutenberg.body(file)
    paragraph: list[str] = []
    with open_text(path, encoding) as file:
        for number, line in enumerate(file):
            if line.strip() and any(number in some for some in kept):
                paragraph.append(line)
            elif paragraph:
                yield "".join(paragraph)
                paragraph = []
    if paragraph:
        yield "".join(paragraph)


def hub_texts(name: str) -> Iterator[str]:
    """Yield the documents (field `text`) of a data set on the hub or in a local folder, streamed.

    name: hub:NAME[:CONFIG[:SPLIT]]
    """
    from datasets import load_dataset  # brings pyarrow: not needed for files

    repo, config, split = _hub_parts(name)
    try:
        stream = load_dataset(repo, config or None, split=split or "train", streaming=True)
        for number, document in enumerate(stream, 1):
            if not isinstance(text := document["text"], str):
                raise UserError(f"{name}, document {number}: field 'text' must be text, is {type(text).__name__}")
            yield text
    except UserError:
        raise
    except KeyError:
        raise UserError(f"{name}: its documents have no field 'text'") from None
    except Exception as error:
        raise UserError(
            f"{name}: cannot read the data set ({type(error).__name__}). Download it where there is a network and give "
            "its folder after 'hub:', or give text files"
        ) from error


def _hub_parts(name: str) -> tuple[str, str, str]:
    """Repository or folder, configuration, split."""
    repo, config, split = [*name.removeprefix(HUB).split(":"), "", ""][:3]
    return repo, config, split


def content(book: str, cache_dir: Path) -> str:
    """Return a hash of what a book holds; of a data set on the hub its name."""
    if not book.startswith(HUB):
        open_bytes(Path(book)).close()  # an error of its own
        return sha256(Path(book))
    folder = Path(_hub_parts(book)[0]).expanduser()
    if not folder.is_dir():
        return book
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return digest([_hub_parts(book)[1:], file_digest(files, cache_dir)])


def detect(path: Path) -> str:
    """Return the file's encoding: as marked, UTF-8 where it decodes as that, else the best guess.

    UserError: it is no plain text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    start = trouble = b""
    try:
        with open_bytes(path) as file:
            while block := file.read(BLOCK):
                if not start:
                    start = block[:LOOK]
                    _check_plain(path, start)
                    if encoding := marked_encoding(start):
                        return encoding
                trouble = block
                decoder.decode(block)
                if b"\0" in block:
                    raise UserError(f"{path}: this is no text file (binary content); give plain text")
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return _guess(path, start, trouble)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not start:
        raise UserError(f"{path}: the file is empty")
    return "utf-8-sig"


def _check_plain(path: Path, start: bytes) -> None:
    refuse_foreign(path, start)
    if HTML.match(start):
        raise UserError(f"{path}: this is HTML; give plain text")


def _guess(path: Path, start: bytes, trouble: bytes) -> str:
    """Return the encoding from the file's beginning and the block that was not UTF-8."""
    from charset_normalizer import from_bytes, is_binary

    if is_binary(start) or b"\0" in trouble:
        raise UserError(f"{path}: this is no text file (binary content); give plain text")
    matches = from_bytes(start + trouble[:LOOK])
    if not matches:
        raise UserError(f"{path}: its encoding cannot be told; save it as UTF-8")
    if any("cp1252" in match.could_be_from_charset for match in matches):
        return "cp1252"  # the usual one; its Baltic and Central European neighbours differ in a few letters only
    return matches[0].encoding


def sentences(texts: Iterable[str]) -> Iterator[str]:
    """Yield sentences with single spaces.  A paragraph's end is a sentence's end."""
    for text in texts:
        yield from sentences_of(text)


def cut(pieces: Iterable[str], chunk_words: int) -> Iterator[str]:
    """Yield whole sentences, as many as fit in chunk_words words; a longer sentence is cut at that many words."""
    held, words = "", 0
    for piece in pieces:
        more = count(piece)
        if held and words + more > chunk_words:
            yield held
            held, words = "", 0
        held, words = join(held, piece), words + more
        while words > chunk_words:
            first, held = split_at(held, chunk_words)
            words -= chunk_words
            yield first
    if held:
        yield held


def traces(chunks: list[Chunk]) -> dict[str, str]:
    """Return, for each book in whose chunks something of a frame is left, words that name it, with those around."""
    found: dict[str, str] = {}
    for chunk in chunks:
        if chunk.book not in found and (match := gutenberg.TRACES.search(chunk.text)):
            found[chunk.book] = chunk.text[max(0, match.start() - 40) : match.end() + 40]
    return found


def check_disjoint(forget: list[Chunk], others: list[Chunk]) -> None:
    """Refuse a forget chunk that also stands in other books: half or more of its long sentences there is an error."""

    def long_sentences(chunk: Chunk) -> list[int]:
        return [hash(s) for s in sentences([chunk.text]) if count(s) >= LONG]

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
