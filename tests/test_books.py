"""Books to chunks: encodings, frames, sentence ends, overlaps, and the memory that a large book takes."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soul_cli.core.types import UserError
from soul_cli.data.books import (
    Chunk,
    check_disjoint,
    content,
    cut,
    detect,
    expand,
    file_texts,
    read_chunks,
    sentences,
    traces,
)


def write(folder: Path, name: str, text: str | bytes) -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_sentences_by_hand():
    text = 'He left.\nThe door, 3 ft. wide, shut. "Wait!" she said. "Who is it?" Nobody\nanswered'
    assert list(sentences([text, " Next. "])) == [
        "He left.", "The door, 3 ft. wide, shut.", '"Wait!" she said.', '"Who is it?"', "Nobody answered", "Next.",
    ]  # fmt: skip


def test_cut_by_hand():
    assert list(cut(["a b c", "d e", "f", "g h i j k l m"], 5)) == ["a b c d e", "f", "g h i j k", "l m"]


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=9).map(" ".join)), st.integers(1, 7))
def test_cut_keeps_every_word_in_order_and_every_chunk_short(pieces: list[str], words: int):
    chunks = list(cut(pieces, words))
    assert " ".join(chunks).split() == " ".join(pieces).split()
    assert all(1 <= len(c.split(" ")) <= words for c in chunks)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str):
    text = "Le garçon mangeait des crêpes près de la forêt, où l’été était déjà passé. Il répétait « oui ». " * 20
    path = Path(write(tmp_path, "book.txt", text.encode(encoding)))
    assert " ".join(" ".join(file_texts(path)).split()) == text.strip()


def test_a_character_that_straddles_two_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("soul_cli.data.books.BLOCK", 3)
    assert detect(Path(write(tmp_path, "book.txt", "aaé€ü" * 5))) == "utf-8-sig"


def test_gutenberg_frame_comes_off(tmp_path: Path):
    text = (
        "The Project Gutenberg eBook of X\n\nLicence blurb.\n\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\n"
        "Real text\nin two lines.\n\nMore.\n\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\n\nDonations.\n"
    )
    paragraphs = list(file_texts(Path(write(tmp_path, "x.txt", text))))
    assert [" ".join(p.split()) for p in paragraphs] == ["Real text in two lines.", "More."]


def test_a_packed_book(tmp_path: Path):
    text = "Le garçon mangeait des crêpes. " * 20
    path = write(tmp_path, "book.txt.gz", gzip.compress(text.encode("cp1252")))
    assert expand([str(tmp_path)], "k") == [path]
    assert read_chunks(path, 5, 1)[0].text == "Le garçon mangeait des crêpes."


CHINESE = "北京是一座古老的城市。"


@pytest.mark.parametrize(
    "text", [CHINESE * 2500, f"{CHINESE * 20}\n\n" * 125, f"{CHINESE[:6]}\n{CHINESE[6:]}\n" * 2500]
)
def test_a_book_without_spaces(tmp_path: Path, text: str):
    chunks = read_chunks(write(tmp_path, "book.txt", text), 90, None)
    assert {len(c.text) for c in chunks[:-1]} == {88}  # eight sentences of eleven characters
    assert "".join(c.text for c in chunks) == CHINESE * 2500


def test_one_word_of_many_letters_is_cut_by_letters(tmp_path: Path):
    chunks = read_chunks(write(tmp_path, "book.txt", "x" * 200_000), 90, None)
    assert [len(c.text) for c in chunks] == [9000] * 22 + [2000]


def test_words_that_a_frame_left_are_named(tmp_path: Path):
    one = write(
        tmp_path,
        "one.txt",
        "The lamp was lit. " * 60 + "Ask the Project Gutenberg Literary Archive. " + "So it was. " * 60,
    )
    two = write(tmp_path, "two.txt", "The lamp was lit. " * 60)
    chunks = [c for book in (one, two) for c in read_chunks(book, 90, None)]
    assert traces(chunks) == {
        one: "lamp was lit. The lamp was lit. Ask the Project Gutenberg Literary Archive. So it was. So it was."
    }


def test_a_folder_of_a_data_set_is_known_by_content(tmp_path: Path):
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    (data / "train.jsonl").write_text('{"text": "One."}\n')
    before = content(f"hub:{data}", cache)
    assert content(f"hub:{data}", cache) == before != content(f"hub:{data}::test", cache)
    (data / "train.jsonl").write_text('{"text": "Two."}\n')
    assert content(f"hub:{data}", cache) != before
    assert content("hub:allenai/c4:en", cache) == "hub:allenai/c4:en"


def test_documents_must_be_text(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text('{"text": "One two three."}\n{"text": null}\n')
    with pytest.raises(UserError, match="document 2: field 'text' must be text, is NoneType"):
        read_chunks(f"hub:{tmp_path}", 3, None)
    (tmp_path / "train.jsonl").write_text('{"words": "One two three."}\n')
    with pytest.raises(UserError, match="its documents have no field 'text'"):
        read_chunks(f"hub:{tmp_path}", 3, None)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html>\n<html><p>A book.</p></html>", "this is HTML; give plain text"),
        (b"%PDF-1.7\n", "this is a PDF"),
        (b"PK\x03\x04word/document.xml", "this is a zip archive, an office file or an e-book"),
        (gzip.compress(b"A book of words. " * 900, mtime=0)[:40], "cannot be read"),
        (("\u4eac" * 20).encode(), "20 words are less than one chunk"),
        (b" \n\n ", "the book is empty"),
        (b"\x7fELF\x02\x01\x01\0\0\0" + bytes(range(256)) * 8, "no text file"),
        (b"A few words only.", "4 words are less than one chunk"),
    ],
)
def test_bad_books_are_named(tmp_path: Path, held: bytes, words: str):
    path = write(tmp_path, "bad.txt", held)
    with pytest.raises(UserError, match=words) as error:
        read_chunks(path, 90, None)
    assert "bad.txt" in str(error.value)


def test_expand(tmp_path: Path):
    one, two = write(tmp_path, "a.txt", "x"), write(tmp_path, "b.txt", "y")
    write(tmp_path, "c.pdf", "z")
    assert expand([str(tmp_path), "hub:x/y"], "k") == [one, two, "hub:x/y"]
    with pytest.raises(UserError, match=r"task\.k.*/no/such"):
        expand(["/no/such"], "task.k")
    with pytest.raises(UserError, match="given twice"):
        expand([one, str(tmp_path)], "k")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"no \.txt file"):
        expand([str(tmp_path / "none")], "k")


def test_a_data_set_is_streamed(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text('{"text": "One two three. Four five six."}\n{"text": "Seven eight nine."}\n')
    chunks = read_chunks(f"hub:{tmp_path}", 3, 2)
    assert [c.text for c in chunks] == ["One two three.", "Four five six."]
    with pytest.raises(UserError, match="cannot read the data set"):
        read_chunks("hub:/no/such", 3, None)


def test_overlap_is_refused():
    long = "The ferryman counted the lanterns twice before he dared to untie the rope."
    own = "Nobody had told the lighthouse keeper that the war was already over."
    forget = [Chunk(f"{own} Yes.", "f.txt"), Chunk(f"{long} Yes.", "f.txt")]
    check_disjoint(forget, [Chunk("Yes. A sentence of some length that stands in no other book at all.", "r.txt")])
    with pytest.raises(UserError, match=r"f\.txt.*r\.txt.*ferryman"):
        check_disjoint(forget, [Chunk(f"Other words. {long}", "r.txt")])


LARGE = """
import resource, sys
from soul_cli.data.encode import Encoder, Pairs
from soul_cli.tasks import TASKS
from small_models import train_tokenizer
words = [f"word{i}" for i in range(5000)]
with open(sys.argv[1] + "/large.txt", "w") as f:
    for i in range(1_000_000):
        f.write(" ".join(words[(i * j) % 4999] for j in range(1, 11)).capitalize() + ".\\n")
small = "The keeper of the light walked down to the water and found nothing but a rope and a shoe. " * 8
open(sys.argv[1] + "/small.txt", "w").write(small)
task = TASKS["copyright"]("copyright", [sys.argv[1] + "/small.txt"], [sys.argv[1] + "/large.txt"], [], [], 90, [20],
                          None, 300, "text", None, None, None)
data = task.load(None)
assert len(data.retain) > 90_000, len(data.retain)
pairs = Pairs(Encoder(train_tokenizer([small], 300, 4096), "text", 4096), data.retain)
assert len(pairs) == len(data.retain) and len(pairs[-1]) == len(pairs[len(pairs) - 1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_ten_million_words_stay_small(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", LARGE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2000, f"{done.stdout} MB"
