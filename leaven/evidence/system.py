"""What a system is: a typed configuration, a run with an outcome, arms and claims."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from leaven.errors import CatalogError

Figures = dict[str, float]


class SystemConfig(BaseModel):
    """Base of every system's configuration: fields with a description and bounds, overridden by `key=value`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, ge=0, lt=2**31, description="seed of initial weights, order of data, corruption and dropout")


@dataclass(frozen=True)
class Measurement:
    """What one arm gave under one seed.

    metrics: figures on the test split, read once.
    validation: figures on the validation split, which picked what was to be picked.
    budget: what the arm used; `steps`, `tokens` or whichever figures the arms must share, under `equal`.
    equal: names of budget figures that must not differ between the arms of a seed.
    chosen: what the validation split picked (learning rates).
    curves: records of the trainings, by stage.
    """

    metrics: Figures
    validation: Figures
    budget: Figures
    equal: tuple[str, ...] = ()
    chosen: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Measurement:
        """The inverse of `to_json`."""
        return Measurement(**{**values, "equal": tuple(values["equal"])})


@dataclass
class Outcome:
    """What a run gave.

    columns, rows: the table of results.
    samples: inputs with what the model made of them.
    curves: records of the trainings, by stage.
    timings: seconds by stage. artefacts: paths by name. model: the trained model, in memory alone.
    """

    system: str
    title: str
    config: dict[str, Any]
    columns: list[str]
    rows: list[list[Any]]
    samples: list[dict[str, str]] = field(default_factory=list)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    artefacts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    model: Any = None

    def save(self, folder: Path) -> None:
        """Write `outcome.json`, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {name: value for name, value in vars(self).items() if name != "model"}
        draft = folder / ".outcome.json"
        draft.write_text(json.dumps(values, indent=1), encoding="utf-8")
        draft.replace(folder / "outcome.json")

    def table(self) -> str:
        """The results as text."""
        cells = [self.columns, *([_shown(value) for value in row] for row in self.rows)]
        widths = [max(len(row[at]) for row in cells) for at in range(len(self.columns))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Note under a name how many seconds the block took."""
    started = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - started


C = TypeVar("C", bound=SystemConfig)


class System(ABC, Generic[C]):
    """One of the 106, as a composition of pieces.

    slug: as in the catalogue. arms: configuration overrides by arm. tiers, smoke: overrides by tier, and those of a run
    of a few seconds. seeds: how many seeds a claim takes by tier. claims: the first is the headline.
    """

    slug: ClassVar[str]
    Config: ClassVar[type[SystemConfig]]
    arms: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    tiers: ClassVar[Mapping[str, Mapping[str, Any]]] = {"embedded": {}}
    smoke: ClassVar[Mapping[str, Any]] = {}
    seeds: ClassVar[Mapping[str, int]] = {"embedded": 5}
    claims: ClassVar[tuple[Any, ...]] = ()

    def __init__(self, config: C) -> None:
        self.config = config

    @classmethod
    def configured(
        cls, *, tier: str = "embedded", arm: str | None = None, smoke: bool = False, **rest: Any
    ) -> System[C]:
        """The system with the overrides of a tier, of an arm and of smoke size, then `rest`.

        Raises: CatalogError for an unknown tier or arm; pydantic's ValidationError for a value out of bounds.
        """
        for what, name, known in (("tier", tier, cls.tiers), ("arm", arm, cls.arms)):
            if name is not None and name not in known:
                raise CatalogError(f"{cls.slug} has no {what} {name!r}; it has {', '.join(known)}")
        overrides = {**cls.tiers[tier], **(cls.smoke if smoke else {}), **(cls.arms[arm] if arm else {}), **rest}
        return cls(cls.Config(**overrides))  # type: ignore[arg-type]

    @abstractmethod
    def run(self, out: Path) -> Outcome:
        """The whole of the system, resumable in its folder."""

    @abstractmethod
    def measure(self, out: Path) -> Measurement:
        """One arm under one seed, for the evidence; what it leaves in `out` serves to resume it."""

    @classmethod
    def apply(cls, loaded: Any, extra: Mapping[str, Any], task: str, text: str, **options: Any) -> list[dict[str, str]]:
        """Use a trained model (`leaven.models.loading.Loaded`) on an input; `extra` is what was saved with it.

        Raises: CatalogError when the system, or the model, has no such task.
        """
        raise CatalogError(f"{cls.slug} has no models to apply to an input, so no task {task!r} either")
