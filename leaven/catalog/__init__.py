"""Which systems exist: the catalogue, its facets and its search."""

from leaven.catalog.cards import AREAS, MODALITIES, STAGES, Card, card, cards, filter_cards, ideas
from leaven.catalog.search import Hit, search_cards
from leaven.catalog.status import Status, Verdict, checkout, evidence_dir, status, statuses

__all__ = [
    "AREAS",
    "MODALITIES",
    "STAGES",
    "Card",
    "Hit",
    "Status",
    "Verdict",
    "card",
    "cards",
    "checkout",
    "evidence_dir",
    "filter_cards",
    "ideas",
    "search_cards",
    "status",
    "statuses",
]
