"""Words of every script: what is the same is scored as the same, and ASCII text as the libraries score it."""

from __future__ import annotations

import unicodedata

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from rouge_score import tokenize

from soul_cli.evaluate import metrics as m
from soul_cli.evaluate.judges import rouge_judge
from soul_cli.evaluate.words import fold, space_out, tokens

TEXTS = {
    "Cyrillic": "Мама мыла раму, а потом ушла домой",
    "Greek": "Η μαμά έπλυνε το παράθυρο και έφυγε",
    "Arabic": "كتب المؤلف رواية عن مدينة بعيدة جدا",
    "Hebrew": "הסופר כתב ספר על עיר רחוקה מאוד",
    "Hindi": "लेखक ने एक दूर के शहर पर किताब लिखी",
    "Tamil": "எழுத்தாளர் தொலைதூர நகரம் பற்றி நூல் எழுதினார்",
    "Armenian": "Հեղինակը գրեց գիրք հեռավոր քաղաքի մասին",
    "Georgian": "ავტორმა დაწერა წიგნი შორეული ქალაქის შესახებ",
    "Amharic": "ደራሲው ስለ ሩቅ ከተማ መጽሐፍ ጻፈ",
    "Korean": "작가는 먼 도시에 관한 책을 썼다",
    "Chinese": "作者写了一本关于遥远城市的书。",
    "Japanese": "作家は遠い町についてノートを書いた。",
    "Thai": "ผู้เขียนเขียนหนังสือเกี่ยวกับเมือง",
    "Khmer": "អ្នកនិពន្ធបានសរសេរសៀវភៅ",
    "Burmese": "စာရေးသူသည်စာအုပ်ရေးခဲ့သည်",
    "Latin with accents": "Élan, façade, Ångström, naïve, Straße, Þórr",
    "emoji": "🙂 🎉 🌍 🚀 ✨",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_same_text_is_the_same_in_every_script(text: str) -> None:
    assert m.rouge_l(text, text) == 1
    assert m.rouge_l_f1(text, text) == m.rouge_l_f1(text, text, stemmed=False) == 1
    assert m.bleu(text, text) == pytest.approx(100)
    assert m.contains(text, f"- {text} -") == 1
    assert m.ngram_entropy(text) > 1
    assert m.rouge_l(unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)) == 1
    assert rouge_judge([text], [[text, "another answer"]]) == [[1.0, 0.0]]


@pytest.mark.parametrize("script", ["Cyrillic", "Chinese", "Thai", "Hindi"])
def test_half_of_a_text_is_about_half_of_it(script: str) -> None:
    text = TEXTS[script]
    assert 0.3 < m.rouge_l(text, text[: len(text) // 2]) < 0.7
    assert m.rouge_l(text, TEXTS["Greek"]) == 0


def test_words_by_hand() -> None:
    assert tokens("Élan vs. ÉLAN, Straße", stemmed=False) == ["elan", "vs", "elan", "strasse"]
    assert tokens("北京 2024年", stemmed=False) == ["北", "京", "2024", "年"]
    assert tokens("हिन्दी में", stemmed=False) == ["हिन्दी", "में"]  # vowel signs are of the word
    assert tokens("й и", stemmed=False) == ["й", "и"]  # two letters of Cyrillic, not one with an accent
    assert m.rouge_l("北京城", "北京") == pytest.approx(2 / 3)
    assert m.rouge_l("Élan", "Elan") == 1
    assert m.rouge_l("co\u00adoperate", "cooperate") == 1
    assert m.contains("Gabriel García Márquez", "It was GABRIEL GARCIA MARQUEZ.") == 1
    assert m.contains("Gabriel Garcia", "It was Gabriel") == 0


def test_entropy_sees_the_characters_of_unspaced_scripts() -> None:
    """A text of n different characters has n - 1 bigrams and n - 2 trigrams, as one of n words has."""
    assert m.ngram_entropy("一二三四") == pytest.approx(m.ngram_entropy("one two three four"))
    assert m.ngram_entropy("一一一一一一") == 0


def test_bleu_of_chinese_is_that_of_sacrebleus_chinese_tokens() -> None:
    gold, made = "作者写了一本关于遥远城市的书，出版于2024年。", "作者写了一本关于城市的旧书，出版于2023年。"
    expected = sacrebleu.corpus_bleu([made], [[gold]], tokenize="zh").score
    assert m.bleu(gold, made) == pytest.approx(expected)
    assert 30 < expected < 90


@given(st.text(st.characters(codec="ascii"), max_size=60))
def test_ascii_is_cut_as_rouge_score_cuts_it(text: str) -> None:
    assert tokens(text, stemmed=True) == tokenize.tokenize(text, PorterStemmer())
    assert tokens(text, stemmed=False) == tokenize.tokenize(text, None)
    assert space_out(text) == text
    assert fold(text) == text.lower()


@given(st.text(max_size=30))
def test_any_text_is_cut_without_loss_of_letters(text: str) -> None:
    folded = fold(text)
    assert fold(folded) == folded
    words = "".join(tokens(text, stemmed=False))
    letters = [c for c in folded if unicodedata.category(c)[0] in "LN"]
    assert [c for c in words if unicodedata.category(c)[0] in "LN"] == letters
