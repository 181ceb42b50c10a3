"""What a report's page holds, and the HTML that the template makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Table:
    """A table of text; `figures` are the columns that hold numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    caption: str = ""
    figures: set[int] = field(default_factory=set)


@dataclass
class Plot:
    """A figure with its title; `figure` is SVG."""

    title: str
    figure: Any
    legend: list[tuple[str, int]] = field(default_factory=list)


@dataclass
class Chip:
    """A short remark under the title; `kind` is a verdict, or "warning"."""

    text: str
    kind: str = ""


@dataclass
class ClaimCard:
    """A claim with what was found."""

    says: str
    verdict: str
    facts: list[tuple[str, str]]
    figure: Any


@dataclass
class Page:
    """What the template lays out."""

    title: str
    subtitle: str = ""
    chips: list[Chip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    claims: list[ClaimCard] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    strips: list[Plot] = field(default_factory=list)
    curves: list[Plot] = field(default_factory=list)
    samples: list[dict[str, str]] = field(default_factory=list)
    details: list[Table] = field(default_factory=list)

    def html(self) -> str:
        """The page. All text is escaped; no script, style sheet, font or picture is loaded."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("leaven.evidence"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        return environment.get_template("report.html").render(page=self)
