"""Ranking of the cards by the words that they share with a question."""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import lru_cache

from leaven.catalog.cards import Card, cards

FIELD_WEIGHTS = {"slug": 3.0, "does": 2.0, "title": 1.5, "ideas": 1.5, "area": 1.0, "modalities": 0.5, "stage": 0.5}
SATURATION = 1.2
LENGTH_PENALTY = 0.5

_STOP_WORDS = """
a about after all already also an and any are as at be because been before but by can could do does each every
for from get give has have how i if in into is it its just like me more most my need no not of on one only or our
out over should so some something such than that the their them then there these they thing this to too up us use
used using very want was we what when where which while who whom why will with without would you your
"""
_STOP = frozenset(_STOP_WORDS.split())
# Everyday words beside the field's; both sides of a search are written with the second.
_EVERYDAY = {
    "picture": "image",
    "photo": "image",
    "photograph": "image",
    "spreadsheet": "table",
    "thermal": "infrared",
    "film": "movie",
    "maths": "mathematics",
    "math": "mathematics",
    "cheap": "efficient",
    "cheaply": "efficient",
    "lora": "low-rank",
    "alphabet": "script",
    "ocr": "optical character recognition",
    "sql": "queries",
}
_SUFFIXES = (
    ("ifications", "ifi"),
    ("ification", "ifi"),
    ("ifiers", "ifi"),
    ("ifier", "ifi"),
    ("ifying", "ifi"),
    ("ifies", "ifi"),
    ("ified", "ifi"),
    ("ify", "ifi"),
    ("izations", "is"),
    ("isations", "is"),
    ("ization", "is"),
    ("isation", "is"),
    ("izing", "is"),
    ("ising", "is"),
    ("izers", "is"),
    ("izer", "is"),
    ("iser", "is"),
    ("ized", "is"),
    ("ised", "is"),
    ("izes", "is"),
    ("ises", "is"),
    ("ize", "is"),
    ("ise", "is"),
    ("ognition", "ognis"),
    ("ations", ""),
    ("ation", ""),
    ("ative", ""),
    ("ators", ""),
    ("ator", ""),
    ("ating", ""),
    ("ated", ""),
    ("ates", ""),
    ("ate", ""),
    ("ions", ""),
    ("ion", ""),
    ("ally", "al"),
    ("ables", ""),
    ("able", ""),
    ("ings", ""),
    ("ing", ""),
    ("ers", ""),
    ("er", ""),
    ("ors", ""),
    ("or", ""),
    ("ies", "y"),
    ("ied", "y"),
    ("ed", ""),
    ("es", ""),
    ("ly", ""),
    ("s", ""),
    ("e", ""),
)
_SHORTEST_STEM = 3


def stem(word: str) -> str:
    """The part that inflected and derived forms of a word share, in British and American spelling alike."""
    word = word.replace("lling", "ling").replace("lled", "led").replace("our", "or")
    if word.endswith("ss"):
        return word
    for suffix, rest in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= _SHORTEST_STEM:
            word = word[: -len(suffix)] + rest
            break
    return word[:-1] if len(word) > _SHORTEST_STEM and word[-1] == word[-2] and word[-1] not in "ls" else word


def terms(text: str) -> list[str]:
    """Stems of a text's words without function words; a compound counts as its parts."""
    found: list[str] = []
    for word in re.findall(r"[a-z0-9]+", text.lower()):
        if word in _STOP:
            continue
        singular = word[:-1] if word.endswith("s") else word
        plain = _EVERYDAY.get(word) or _EVERYDAY.get(singular) or word
        found += [stem(part) for part in re.findall(r"[a-z0-9]+", plain)]
    return found


@lru_cache(maxsize=1)
def _index() -> tuple[list[dict[str, float]], dict[str, float]]:
    """Weight of every term in every card after BM25's saturation, and the terms' inverse document frequencies."""
    counts = [_weighted_counts(one) for one in cards()]
    lengths = [sum(count.values()) for count in counts]
    mean = sum(lengths) / len(lengths)
    frequency = Counter(term for count in counts for term in count)
    rarity = {term: math.log(1 + (len(counts) - n + 0.5) / (n + 0.5)) for term, n in frequency.items()}
    weights = []
    for count, length in zip(counts, lengths, strict=True):
        norm = SATURATION * (1 - LENGTH_PENALTY + LENGTH_PENALTY * length / mean)
        weights.append({term: n * (SATURATION + 1) / (n + norm) for term, n in count.items()})
    return weights, rarity


def _weighted_counts(one: Card) -> dict[str, float]:
    counts: dict[str, float] = {}
    for field, weight in FIELD_WEIGHTS.items():
        value = getattr(one, field)
        text = value if isinstance(value, str) else " ".join(value)
        for term in terms(text):
            counts[term] = counts.get(term, 0.0) + weight
    return counts


def word_scores(text: str) -> list[float]:
    """BM25 of a question against every card, in the page's order; fields count by `FIELD_WEIGHTS`."""
    weights, rarity = _index()
    asked = set(terms(text))
    return [sum(rarity[term] * weight[term] for term in asked if term in weight) for weight in weights]
