"""Who is measured: a system under one of its arms, with what the user changed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from leaven.errors import CatalogError, ConfigError
from leaven.evidence.system import System


@dataclass(frozen=True)
class Entrant:
    """A system under an arm, or as it is by default where `arm` is None.

    label: its name in tables. overrides: configuration values that the user set, nested where the configuration is.
    """

    label: str
    system: type[System[Any]]
    arm: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def configured(self, *, tier: str, smoke: bool, seed: int) -> System[Any]:
        """The system, ready to be measured.

        Raises: CatalogError for an unknown tier or arm; ConfigError for an override of what makes the arm what it is;
        pydantic's ValidationError for a value out of bounds.
        """
        made = self.system.configured(tier=tier, arm=self.arm, smoke=smoke, seed=seed)
        if not self.overrides:
            return made
        of_arm = self.system.arms[self.arm] if self.arm else {}
        clash = sorted(set(self.overrides) & set(of_arm))
        if clash:
            raise ConfigError(
                f"{clash[0]} is what the arm {self.label} is about (it sets {clash[0]}={of_arm[clash[0]]!r}): "
                f"leave it, or take {self.system.slug} without the arm"
            )
        return self.system(self.system.Config(**_merged(made.config.model_dump(), self.overrides)))


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        inner = merged.get(name)
        merged[name] = _merged(inner, value) if isinstance(value, Mapping) and isinstance(inner, Mapping) else value
    return merged


def entrant(spec: str, system: type[System[Any]], overrides: Mapping[str, Any] | None = None) -> Entrant:
    """The entrant that `SLUG` or `SLUG:ARM` names; `system` is the class of the slug.

    Raises: CatalogError for an unknown arm, with those that exist.
    """
    slug, colon, arm = spec.partition(":")
    if colon and arm not in system.arms:
        raise CatalogError(
            f"{spec}: {slug} has no arm {arm!r}; it has {', '.join(system.arms)}.{near(arm, system.arms)}"
        )
    return Entrant(spec, system, arm or None, overrides or {})


def claim_entrants(system: type[System[Any]], tier: str) -> list[Entrant]:
    """The arms that a claim run measures: those that the tier's claims name, and the ablations that no claim names.

    Raises: CatalogError for an unknown tier or one without a claim; ConfigError for a claim about a missing arm.
    """
    if tier not in system.tiers:
        listed = ", ".join(system.tiers)
        raise CatalogError(f"{system.slug} has no tier {tier!r}; it has {listed}.{near(tier, system.tiers)}")
    claims = [claim for claim in system.claims if tier in claim.tiers]
    if not claims:
        tiers = sorted({one for claim in system.claims for one in claim.tiers}) or ["none"]
        raise CatalogError(f"{system.slug} has no claim in tier {tier!r}; tiers with claims: {', '.join(tiers)}")
    needed = {arm for claim in claims for arm in (claim.better, claim.than)}
    for arm in sorted(needed - set(system.arms)):
        raise ConfigError(f"{system.slug}: a claim names the arm {arm!r}; the arms are {', '.join(system.arms)}")
    elsewhere = {arm for claim in system.claims for arm in (claim.better, claim.than)} - needed
    return [Entrant(arm, system, arm) for arm in system.arms if arm not in elsewhere]


def near(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """A sentence saying what was probably meant, empty where nothing is close."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {found[0]}?" if found else ""
