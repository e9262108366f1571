"""Project Gutenberg's frames, old and new: the text between them, and nothing else."""

from __future__ import annotations

import pytest

from soul_cli.data.gutenberg import TRACES, body

TEXT = [f"Line {n} of the book." for n in range(1, 13)]
BOOK = "\n\n".join(TEXT)
HEAD = (
    "The Project Gutenberg EBook of X, by Y\n\nThis eBook is for the use of anyone anywhere\nat no cost, see "
    "www.gutenberg.org\n\nTitle: X\n\nAuthor: Y\n\n"
)
PRINT = (
    '***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\nWhy is this "Small Print!" here?\n\nYou know.\n\n'
    "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n"
)
WELCOME = "**Welcome To The World of Free Plain Vanilla Electronic Texts**\n\nInformation.\n\n"


def marked(start: str, end: str) -> str:
    return f"{HEAD}{start}\n\n{BOOK}\n\n{end}\n\nSection 1. Terms of use.\n"


FRAMES = {
    "none": BOOK,
    "today's": marked("*** START OF THE PROJECT GUTENBERG EBOOK X ***", "*** END OF THE PROJECT GUTENBERG EBOOK X ***"),
    "this": marked("*** START OF THIS PROJECT GUTENBERG EBOOK X ***", "*** END OF THIS PROJECT GUTENBERG EBOOK X ***"),
    "indented": marked("  *** START OF THE PROJECT GUTENBERG EBOOK", "\t*** END OF THE PROJECT GUTENBERG EBOOK"),
    "two stars": marked("**START OF THE PROJECT GUTENBERG EBOOK X**", "**END OF THE PROJECT GUTENBERG EBOOK X**"),
    "no blank": marked("***START OF THE PROJECT GUTENBERG EBOOK X***", "***END OF THE PROJECT GUTENBERG EBOOK X***"),
    "no stars": marked("START OF THE PROJECT GUTENBERG EBOOK X", "END OF THE PROJECT GUTENBERG EBOOK X"),
    "dashes": marked("-----Start of Project Gutenberg eBook X-----", "-----End of Project Gutenberg eBook X-----"),
    "trade mark": marked("*** START OF THE PROJECT GUTENBERG-TM EBOOK", "*** END OF THE PROJECT GUTENBERG™ EBOOK"),
    "beginning": marked("*** BEGINNING OF THE PROJECT GUTENBERG EBOOK ***", "*** END: THE PROJECT GUTENBERG EBOOK ***"),
    "wrapped": marked(
        "*** START OF THIS PROJECT GUTENBERG EBOOK OF THE LONG\nAND WINDING TITLE ***",
        "*** END OF THE\nPROJECT GUTENBERG EBOOK X ***",
    ),
    "start alone": f"{HEAD}*** START OF THE PROJECT GUTENBERG EBOOK X ***\n{BOOK}",
    "end alone": f"{BOOK}\n\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\n\nSection 1.",
    "end alone, of 1995": f"{HEAD}{BOOK}\n\nEnd of Project Gutenberg's X, by Y\n\nSection 1.",
    "end alone, German": f"{BOOK}\n\nEnde dieses Projekt Gutenberg Etextes X\n",
    "licence alone": f"{BOOK}\n\n*** START: FULL LICENSE ***\n\nTHE FULL PROJECT GUTENBERG LICENSE\nPLEASE READ",
    "small print first": f"{WELCOME}{PRINT}{BOOK}\n\nEnd of The Project Gutenberg Etext of X\n",
    "small print first, no end": f"{WELCOME}{PRINT}{BOOK}\n",
    "small print first, its end wrapped": PRINT.replace("*Ver", "\n*Ver") + BOOK + "\n\nEnd of Project Gutenberg",
    "small print last": f"{HEAD}{BOOK}\n\nEnd of the Project Gutenberg Etext of X\n\n{PRINT}",
    "small print last, no end": f"{BOOK}\n\n{PRINT}",
    "small print, then start": PRINT + marked("*** START OF THE PROJECT GUTENBERG", "*** END OF PROJECT GUTENBERG"),
}  # fmt: skip


def kept(text: str) -> list[str]:
    lines = text.splitlines(keepends=True)
    return [lines[n].strip() for some in body(lines) for n in some if lines[n].strip()]


@pytest.mark.parametrize("frame", FRAMES)
def test_the_frame_comes_off(frame: str):
    assert kept(FRAMES[frame]) == TEXT


@pytest.mark.parametrize("frame", ["today's", "small print first"])
def test_two_books_in_one_file(frame: str):
    assert kept(f"{FRAMES[frame]}\n{FRAMES[frame]}") == TEXT * 2


def test_a_book_that_speaks_of_such_things_stays_whole():
    lines = [
        "Chapter I. The Small Print", "Title: a word he disliked.", "Start of the race.", "The end of it came soon.",
        "He had read it at Project Gutenberg, of all places.", "End of the line, said the guard.", "*** * ***",
    ]  # fmt: skip
    text = "\n\n".join([*TEXT, *lines, *TEXT])
    assert kept(text) == [*TEXT, *lines, *TEXT]


def test_small_print_without_an_end_before_the_text_is_left_for_the_reader():
    text = f"{PRINT.split('*END')[0]}{BOOK}"
    assert kept(text)[-12:] == TEXT
    assert kept(f"{BOOK}\n\n{PRINT.split('*END')[0]}") == TEXT


def test_traces():
    for text in (
        "the Project  Gutenberg-tm mark",
        "at www.gutenberg.net",
        "Distributed Proofreaders",
        "Digitized by Google",
    ):
        assert TRACES.search(text)
    assert not TRACES.search("Gutenberg printed a Bible; the project was his own.")
