"""Text of any script cut into the words that ROUGE, BLEU and the n-gram entropy count.

On ASCII text each is what its library or paper has: `tokens` rouge-score's tokenizer, BLEU's sacrebleu's.  Beyond it:
letters, digits and their marks of all scripts make words, a character of a script without spaces between words is a
word, and accents on Latin letters do not tell words apart.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import regex

# Chinese and Japanese; Thai, Lao, Khmer, Burmese and others as Unicode's line breaking has them
SCRIPTS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Line_Break=SA}]"
UNSPACED = rf"[{SCRIPTS}--\p{{M}}]\p{{M}}*"
SPACED = rf"[[\p{{L}}\p{{M}}\p{{N}}%s]--{SCRIPTS}]+"
SYMBOL = r"[\p{So}--[\uFFFD]]"  # emoji and the like; none is in ASCII

WORD = regex.compile("|".join((UNSPACED, SPACED % "", SYMBOL)), regex.VERSION1)
WORD_OR_MARK = regex.compile("|".join((UNSPACED, SPACED % "_", r"[^\p{L}\p{M}\p{N}_\s]")), regex.VERSION1)
TO_SPACE_OUT = regex.compile(UNSPACED + r"|[[\p{East_Asian_Width=W}\p{East_Asian_Width=F}]&&\p{P}]", regex.VERSION1)
IGNORABLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")  # soft hyphens, joiners, marks of direction
ACCENTED = regex.compile(r"(\p{Latin})\p{M}+")
ROUGE_WORDS = "words as rouge-score's in ASCII; letters of all scripts, unspaced ones by character, Latin accents off"

BLEU_WORDS = "sacrebleu's 13a tokens; unspaced scripts by character"


def fold(text: str) -> str:
    """Return text without what does not tell words apart: case, accents on Latin letters, compatibility forms."""
    if text.isascii():
        return text.lower()
    parts = IGNORABLE.sub("", unicodedata.normalize("NFKD", text).casefold())
    return unicodedata.normalize("NFC", ACCENTED.sub(r"\1", parts))


def tokens(text: str, *, stemmed: bool) -> list[str]:
    """Return the words of a text for ROUGE; with stemmed, Porter's stems of those in ASCII of four letters or more.

    For ASCII text the tokens of rouge_score.tokenize.
    """
    words = WORD.findall(fold(text))
    return [stem(word) if len(word) > 3 and word.isascii() else word for word in words] if stemmed else words


@dataclass(frozen=True)
class RougeTokenizer:
    """The tokenizer as rouge-score asks for one."""

    stemmed: bool

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        return tokens(text, stemmed=self.stemmed)


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """Return Porter's stem of a word, as rouge-score takes it from nltk."""
    return _stemmer().stem(word)


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer  # here, not above: seconds that a mistyped option need not wait

    return PorterStemmer()


def words_and_marks(text: str) -> list[str]:
    """Return words in lower case and single punctuation marks, in order."""
    return WORD_OR_MARK.findall(IGNORABLE.sub("", unicodedata.normalize("NFC", text)).lower())


def space_out(text: str) -> str:
    """Return text with spaces around each character of unspaced scripts and around their punctuation."""
    return text if text.isascii() else TO_SPACE_OUT.sub(r" \g<0> ", unicodedata.normalize("NFC", text))
