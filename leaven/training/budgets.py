"""How long to train: a budget in steps, tokens, examples, seconds or floating-point operations."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from leaven.errors import ConfigError

_MULTIPLES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12, "P": 1e15}
_UNITS: dict[str, tuple[str, float]] = {
    **dict.fromkeys(("step", "steps"), ("steps", 1.0)),
    **dict.fromkeys(("token", "tokens"), ("tokens", 1.0)),
    **dict.fromkeys(("example", "examples"), ("examples", 1.0)),
    **dict.fromkeys(("flop", "flops"), ("flops", 1.0)),
    **dict.fromkeys(("s", "sec", "second", "seconds"), ("seconds", 1.0)),
    **dict.fromkeys(("min", "minute", "minutes"), ("seconds", 60.0)),
    **dict.fromkeys(("h", "hour", "hours"), ("seconds", 3600.0)),
}
_LIMITS = ("steps", "tokens", "examples", "seconds", "flops")
_WHOLE = ("steps", "tokens", "examples")
_TERM = re.compile(r"(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(?P<unit>[A-Za-z]*(?: [A-Za-z]+)?)")
_EXAMPLES = '"200 steps", "1M tokens", "5k examples", "30s", "5min", "2h", "1e15 flops", or several: "2000 steps, 5min"'


@dataclass
class Counters:
    """What a run has used so far, summed over all processes.

    `seconds` is the time spent in training steps: evaluation and checkpoint writing are left out, so that two arms with
    the same budget train for the same time.
    """

    steps: int = 0
    tokens: int = 0
    examples: int = 0
    seconds: float = 0.0
    flops: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """The counters by name."""
        return asdict(self)


class Budget(BaseModel):
    """One or several limits; training ends at whichever is reached first.

    A budget in seconds cannot be reproduced exactly: how many steps fit, and with them the schedule, depend on the
    machine and on what else it does. All other units give the same run every time.

    Raises: ConfigError if there is no limit, or one is not positive or not a whole number where it must be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = None
    tokens: int | None = None
    examples: int | None = None
    seconds: float | None = None
    flops: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
            value = _limits(value)
        if isinstance(value, dict):
            _check_limits(value)
        return value

    @classmethod
    def parse(cls, value: Budget | str | int) -> Budget:
        """Read a budget from text such as "200 steps", "5min" or "1M tokens"; a bare whole number is steps.

        Raises: ConfigError that names the part that could not be read.
        """
        return value if isinstance(value, Budget) else cls(**_limits(value))

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by unit."""
        return {unit: limit for unit in _LIMITS if (limit := getattr(self, unit)) is not None}

    def fraction(self, used: Counters) -> float:
        """Share of the budget that is used, in [0, 1]: the largest share over the limits."""
        return min(1.0, max(float(getattr(used, unit)) / limit for unit, limit in self.limits.items()))

    def exhausted(self, used: Counters) -> str | None:
        """The first limit that has been reached, or None while there is budget left."""
        return next((unit for unit, limit in self.limits.items() if getattr(used, unit) >= limit), None)

    def scaled(self, share: float) -> Budget:
        """The same limits times a share; whole numbers are rounded, to at least 1."""
        return Budget(
            **{u: max(1, round(limit * share)) if u in _WHOLE else limit * share for u, limit in self.limits.items()}
        )

    def plus(self, other: Budget) -> Budget:
        """The sum of two budgets. Raises: ConfigError unless both limit the same units."""
        if set(self.limits) != set(other.limits):
            raise ConfigError(
                f"budgets {str(self)!r} and {str(other)!r} cannot be added: give both in the same unit, such as steps"
            )
        return Budget(**{unit: limit + other.limits[unit] for unit, limit in self.limits.items()})

    def __str__(self) -> str:
        """Text that `parse` reads back to the same budget."""
        return ", ".join(f"{limit!r} {unit}" for unit, limit in self.limits.items())


def _limits(value: str | int | float) -> dict[str, float]:
    """Limits by unit from a whole number of steps or a comma-separated text."""
    if isinstance(value, int | float):
        return {"steps": value}
    limits: dict[str, float] = {}
    for term in value.split(","):
        unit, limit = _limit(term.strip(), value)
        if unit in limits:
            raise ConfigError(f"budget {value!r} limits {unit} twice; give each unit once, as in {_EXAMPLES}")
        limits[unit] = limit
    return limits


def _limit(term: str, whole: str) -> tuple[str, float]:
    match = _TERM.fullmatch(term)
    if match is None:
        raise ConfigError(f"budget {whole!r}: cannot read {term!r}; expected a number and a unit, as in {_EXAMPLES}")
    number, unit = float(match["number"]), match["unit"].replace(" ", "")
    if not unit:
        return "steps", number
    if unit.lower() not in _UNITS:
        number, unit = number * _MULTIPLES.get(unit[0], 1.0), unit[1:] if unit[0] in _MULTIPLES else unit
    if unit.lower() not in _UNITS:
        raise ConfigError(f"budget {whole!r}: unknown unit {match['unit']!r}; expected one as in {_EXAMPLES}")
    name, factor = _UNITS[unit.lower()]
    return name, number * factor


def _check_limits(limits: dict[str, Any]) -> None:
    unknown = sorted(set(limits) - set(_LIMITS))
    if unknown:
        raise ConfigError(f"budget: unknown limit {unknown[0]!r}; the limits are {', '.join(_LIMITS)}")
    given = {unit: limit for unit, limit in limits.items() if limit is not None}
    if not given:
        raise ConfigError(f"budget: no limit given, so training would never end; expected for example {_EXAMPLES}")
    for unit, limit in given.items():
        number = not isinstance(limit, bool) and isinstance(limit, int | float)
        if not number or not 0 < limit < float("inf"):
            raise ConfigError(f"budget: {unit} is {limit!r}; expected a number greater than 0")
        if unit in _WHOLE and limit != int(limit):
            raise ConfigError(f"budget: {unit} is {limit!r}; expected a whole number")
