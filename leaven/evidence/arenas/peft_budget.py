"""Sizes of methods under one budget of numbers that train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from leaven.adapt.peft import Method
from leaven.adapt.peft.sites import projections
from leaven.errors import ConfigError

Family = Callable[[int], Method]
"""A method by its width: a rank, a bottleneck or a length."""


def learned_numbers(model: nn.Module, method: Method) -> int:
    """How many numbers a method would train and keep in a model, which is not changed."""
    parameters: dict[int, Any] = {id(p): p for patch in method.settled().build(model, None) for p in patch.parameters()}
    return sum(p.numel() for p in parameters.values())


def projection_numbers(model: nn.Module) -> int:
    """Numbers in the attention and feed-forward projections of a model."""
    return sum(part.weight(model).numel() for part in projections(model) if part.role)


def width_for(model: nn.Module, family: Family, numbers: float) -> int:
    """The width, at least 1, whose count comes nearest; counts grow linearly with the width."""
    first, second = (learned_numbers(model, family(width)) for width in (1, 2))
    return max(1, 1 + round((numbers - first) / (second - first)))


def matched_widths(
    model: nn.Module, families: Mapping[str, Family], numbers: float, *, tolerance: float = 0.03
) -> dict[str, int]:
    """Widths of several families that train equally many numbers, about as many as asked for.

    The first family's widths are tried outward from the nearest, up to half and double, until all others come within
    the tolerance of its count.

    Raises: ConfigError when none do.
    """
    (lead, family), *others = families.items()
    middle = width_for(model, family, numbers)
    order = sorted(range(max(1, middle // 2), 2 * middle + 1), key=lambda width: (abs(width - middle), width))
    for width in order:
        target = learned_numbers(model, family(width))
        found = {lead: width, **{name: width_for(model, other, target) for name, other in others}}
        counts = [learned_numbers(model, families[name](at)) for name, at in found.items()]
        if all(abs(count - target) <= tolerance * target for count in counts):
            return found
    raise ConfigError(
        f"no widths of {', '.join(families)} train equally many numbers within {100 * tolerance:g} % near "
        f"{round(numbers)}: the matrices are too small for this budget, raise it"
    )
