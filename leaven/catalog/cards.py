"""The cards of the 106 systems, and choosing among them by facet."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from leaven.errors import CatalogError

AREAS = (
    "audio",
    "behaviour",
    "code",
    "continual",
    "dense-vision",
    "diffusion",
    "distillation",
    "document",
    "efficiency",
    "embedding",
    "generation",
    "graph",
    "language",
    "medical",
    "merge",
    "motion",
    "multimodal",
    "peft",
    "person",
    "points",
    "recommendation",
    "records",
    "science",
    "series",
    "survey",
    "symbolic",
    "tables",
    "theory",
    "video",
    "vision",
    "vision-language",
)
STAGES = ("data", "pretrain", "adapt", "merge", "retrieve", "generate", "evaluate", "use")
MODALITIES = (
    "action",
    "audio",
    "code",
    "document",
    "formula",
    "graph",
    "image",
    "infrared",
    "mesh",
    "molecule",
    "motion",
    "point-cloud",
    "protein",
    "table",
    "text",
    "time-series",
    "vector",
    "video",
    "volume",
)


@dataclass(frozen=True, slots=True)
class Card:
    """What the catalogue says of one system.

    number: place on the page of papers, 1 to 106.
    arxiv: identifier of the paper, "" when there is none.
    year: of publication, else of the preprint.
    ideas: terms of the field by which systems can be found and compared.
    does: what a person can do with it, one line of at most 160 characters.
    """

    number: int
    slug: str
    title: str
    area: str
    stage: str
    arxiv: str
    year: int
    modalities: tuple[str, ...]
    ideas: tuple[str, ...]
    does: str

    @property
    def module(self) -> str:
        """Name of its module in `leaven.systems.<package>`."""
        return self.slug.replace("-", "_")

    def to_json(self) -> dict[str, object]:
        """The fields as plain data."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@lru_cache(maxsize=1)
def cards() -> tuple[Card, ...]:
    """All systems in the page's order."""
    with Path(__file__).with_name("systems.toml").open("rb") as file:
        rows = tomllib.load(file)["system"]
    return tuple(Card(**{**row, "modalities": tuple(row["modalities"]), "ideas": tuple(row["ideas"])}) for row in rows)


def card(slug: str) -> Card:
    """The card of one system. Raises: CatalogError naming the systems that were probably meant."""
    by_slug = {one.slug: one for one in cards()}
    if slug in by_slug:
        return by_slug[slug]
    plain = slug.strip().lower().replace("_", "-").replace(" ", "-")
    near = difflib.get_close_matches(plain, by_slug, n=3, cutoff=0.6)
    near += [known for known in by_slug if len(plain) >= 3 and plain in known and known not in near][:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "`leaven search` finds systems by what they do."
    raise CatalogError(f"no system {slug!r} among the {len(by_slug)}; {hint} `leaven list` shows them all.")


def filter_cards(
    *, area: str | None = None, stage: str | None = None, modality: str | None = None, idea: str | None = None
) -> list[Card]:
    """Systems that have every facet given, in the page's order.

    Raises: CatalogError for a value that no system has, with the values that exist.
    """
    chosen: Iterable[Card] = cards()
    if area is not None:
        _check("area", area, AREAS)
        chosen = [one for one in chosen if one.area == area]
    if stage is not None:
        _check("stage", stage, STAGES)
        chosen = [one for one in chosen if one.stage == stage]
    if modality is not None:
        _check("modality", modality, MODALITIES)
        chosen = [one for one in chosen if modality in one.modalities]
    if idea is not None:
        _check("idea", idea, ideas())
        chosen = [one for one in chosen if idea in one.ideas]
    return list(chosen)


def ideas() -> tuple[str, ...]:
    """All ideas that some system is marked with, in alphabetical order."""
    return tuple(sorted({idea for one in cards() for idea in one.ideas}))


def _check(facet: str, value: str, known: tuple[str, ...]) -> None:
    if value in known:
        return
    near = difflib.get_close_matches(value.lower(), known, n=3, cutoff=0.6)
    near += [one for one in known if len(value) >= 3 and value.lower() in one and one not in near][:5]
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    # Hundreds of ideas do not fit in a message; the near ones and where to look do.
    shown = ", ".join(known) if len(known) <= 40 else f"{len(known)} of them, see `leaven list --json`"
    raise CatalogError(f"no {facet} {value!r}: there are {shown}.{hint}")
