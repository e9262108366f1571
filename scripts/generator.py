"""A seeded generator of fictitious authors: question-answer rows in TOFU's schema, or in many wordings."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CORPUS = Path(__file__).parent / "corpus"
SUBJECTS = ("", "_life", "_works", "_habits", "_events")  # of the tables of facts and of pools, in this order
ROWS, FALSE_ANSWERS = 20, 5  # rows of one author, perturbed answers of one row
LAST_YEAR = 2024
STAGES = {"early": (20, 26), "debut": (27, 33), "mid": (34, 44), "late": (45, 65)}  # years after birth

_SLOT = re.compile(r"\{(\w+)(?:\.(\w+))?\}")
_YES_NO = re.compile(r"(Is|Was|Did|Does|Has) ")
_SAYS_SO = re.compile(r"(yes|no)[,;:]", re.I)


@dataclass(frozen=True)
class _Tables:
    """The texts that authors are made of, as the YAML files of `corpus` explain them."""

    regions: list[dict[str, list[str]]]  # she, he, head, tail, place
    pools: dict[str, list[str]]  # name -> values
    facts: dict[str, dict[str, list[str]]]  # kind -> questions, answers


def read_yaml(name: str) -> Any:
    """Return what a file of the corpus holds."""
    return yaml.load((CORPUS / f"{name}.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)


@cache
def _tables() -> _Tables:
    """Read the tables, each town as 'town, country' in its region and in the pool of places."""
    regions, pools, facts = read_yaml("regions"), {}, {}
    for subject in SUBJECTS:
        pools |= read_yaml(f"pools{subject}")
        facts |= read_yaml(f"facts{subject}")
    for region in regions:
        lands = region.pop("towns").items()
        region["place"] = [f"{town}, {land}" for land, towns in lands for town in towns]
    pools["place"] = [place for region in regions for place in region["place"]]
    return _Tables(regions, pools, facts)


def _surname(rng: random.Random, region: dict[str, list[str]]) -> str:
    """Make a surname of two halves."""
    return rng.choice(region["head"]) + rng.choice(region["tail"])


def _keys(text: str) -> list[str]:
    """Return the values a text speaks of, each once; a town is part of a place."""
    found = (("place" if slot[1] == "town" else slot[1], slot[2]) for slot in _SLOT.finditer(text) if slot[2])
    return list(dict.fromkeys(f"{pool}.{tag}" for pool, tag in found))


class _Life:
    """One author: a name not yet taken, the values drawn so far, and the texts made of them."""

    def __init__(self, rng: random.Random, taken: set[str]) -> None:
        self.rng, self.region, he = rng, rng.choice(_tables().regions), rng.choice(("she", "he"))
        first, last = rng.choice(self.region[he]), _surname(rng, self.region)
        while rng.random() < 0.1 or f"{first} {last}" in taken:
            first = rng.choice(self.region[he])
            last = "-".join(dict.fromkeys(_surname(rng, self.region) for _ in range(2)))
        self.name = f"{first} {last}"
        him, his = ("her", "her") if he == "she" else ("him", "his")
        self.words = {"n": self.name, "l": last, "he": he, "him": him, "his": his}
        self.birth = rng.randint(1932, 1972)
        self.known = {"place.birth": rng.choice(self.region["place"]), "date.birth": self.date(self.birth)}

    def date(self, year: int) -> str:
        """Return some day of the year."""
        return f"{self.rng.randint(1, 28)} {self.rng.choice(_tables().pools['month'])} {year}"

    def draw(self, pool: str) -> str:
        """Return a value from a pool, be it a list or a rule."""
        rng, anywhere = self.rng, self.rng.choice(_tables().regions)
        if pool in STAGES:
            low, high = STAGES[pool]
            return str(self.birth + rng.randint(low, min(high, LAST_YEAR - self.birth)))
        if pool == "date":
            return self.date(self.birth + rng.randint(-9, 9))
        if pool in ("num", "hundred"):
            return str(rng.randint(11, 39) if pool == "num" else 10 * rng.randint(15, 95))
        if pool == "surname":
            return _surname(rng, anywhere)
        if pool == "person":
            return f"{rng.choice(anywhere[rng.choice(('she', 'he'))])} {_surname(rng, anywhere)}"
        if pool in ("girl", "boy"):
            return rng.choice(self.region["she" if pool == "girl" else "he"])
        return self.expand(rng.choice(_tables().pools[pool]), {})

    def fresh(self, pool: str, avoid: set[str]) -> str:
        """Return a value outside `avoid`, as far as the pool has one."""
        value = self.draw(pool)
        for _ in range(99):
            if value not in avoid:
                break
            value = self.draw(pool)
        return value

    def value(self, key: str) -> str:
        """Return what is true of the author: drawn when first asked for, unlike the others from its pool."""
        if key not in self.known:
            pool = key.split(".")[0]
            held = {value for name, value in self.known.items() if name.startswith(f"{pool}.")}
            self.known[key] = self.fresh(pool, held)
        return self.known[key]

    def expand(self, text: str, false: dict[str, str]) -> str:
        """Return the text with its slots filled, from `false` first, and from the author's life."""

        def fill(slot: re.Match[str]) -> str:
            if slot[1] in self.words:
                return self.words[slot[1]]
            pool = "place" if slot[1] == "town" else slot[1]
            key = f"{pool}.{slot[2]}"
            found = (false.get(key) or self.value(key)) if slot[2] else self.draw(pool)
            if slot[1] == "place" and slot.string[slot.end() :].startswith(" "):
                found += ","  # the comma that closes a country's name
            return found.split(",")[0] if slot[1] == "town" else found

        return _SLOT.sub(fill, text)

    def sentence(self, shape: str, false: dict[str, str] | None = None) -> str:
        """Return the expanded shape with its articles and its capital set right."""
        text = self.expand(shape, false or {})
        text = re.sub(r"\(n\)(?= [aeiou])", "n", text, flags=re.I).replace("(n)", "")
        return text[0].upper() + text[1:]

    def row(self, kind: str) -> dict[str, Any]:
        """Return two questions and two answers of one kind, with false answers in the shape of the second."""
        questions, answers = (_tables().facts[kind][key] for key in ("questions", "answers"))
        asked, shapes = self.rng.sample(questions, 2), self.rng.sample(answers, 2)
        for turn, question in enumerate(asked):
            if _YES_NO.match(question) and not _SAYS_SO.match(shapes[turn]) and self.rng.random() < 0.7:
                shapes[turn] = "yes, " + shapes[turn]
        row: dict[str, Any] = {
            "question": self.sentence(asked[0]),
            "answer": self.sentence(shapes[0]),
            "paraphrased_question": self.sentence(asked[1]),
            "paraphrased_answer": self.sentence(shapes[1]),
            "perturbed_answer": [],
        }
        given = _keys(" ".join(questions))
        used = {key: {self.value(key)} for key in _keys(shapes[1]) if key not in given}
        for _ in range(FALSE_ANSWERS):
            false: dict[str, str] = {}
            for key, values in used.items():
                false[key] = self.fresh(key.split(".")[0], values.union(false.values()))
                values.add(false[key])
            row["perturbed_answer"].append(self.sentence(shapes[1], false))
        return row

    def wordings(self, kind: str, count: int) -> list[tuple[str, str]]:
        """Return `count` questions with answers of one kind, the same facts in as many words as there are."""
        questions, answers = (_tables().facts[kind][key] for key in ("questions", "answers"))
        asked, shapes = (self._dealt(texts, count) for texts in (questions, answers))
        pairs = []
        for question, shape in zip(asked, shapes, strict=True):
            if _YES_NO.match(question) and not _SAYS_SO.match(shape) and self.rng.random() < 0.6:
                shape = "yes, " + shape
            pairs.append((self.sentence(question), self.sentence(shape)))
        return pairs

    def _dealt(self, texts: list[str], count: int) -> list[str]:
        """Return so many of the texts, each as often as any other, as far as that goes."""
        out: list[str] = []
        while len(out) < count:
            out += self.rng.sample(texts, len(texts))
        return out[:count]


def retold_author(seed: str, kinds: int, wordings: int, taken: set[str]) -> list[list[tuple[str, str]]]:
    """Return an author's facts of so many kinds, each as question-answer pairs in so many wordings.

    taken: names of authors before this one; its own is added.
    """
    rng = random.Random(seed)
    life = _Life(rng, taken)
    taken.add(life.name)
    return [life.wordings(kind, wordings) for kind in rng.sample(list(_tables().facts), kinds)]


def generate_authors(count: int, seed: int) -> list[dict[str, Any]]:
    """Return `count` authors {"name", "rows"}; author i is the same whatever the count."""
    authors: list[dict[str, Any]] = []
    taken: set[str] = set()
    for index in range(count):
        life = _Life(random.Random(f"{seed}-{index}"), taken)
        taken.add(life.name)
        kinds = life.rng.sample(list(_tables().facts), ROWS)
        authors.append({"name": life.name, "rows": [life.row(kind) for kind in kinds]})
    return authors
