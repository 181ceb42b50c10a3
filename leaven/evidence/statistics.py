"""Paired per-seed differences, their t bounds, and the verdict that follows from them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from leaven.errors import ConfigError

Verdict = Literal["holds", "reversed", "undecided"]
CONFIDENCE = 0.95
# Two figures closer than this share of their size are the same figure computed in two ways.
_SAME = 1e-12


@dataclass(frozen=True)
class PairedEffect:
    """Differences of two arms under the same seeds; positive where the arm that should be better is.

    differences: one per seed, in the metric's unit.
    """

    differences: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean difference."""
        return math.fsum(self.differences) / len(self.differences)

    @property
    def standard_error(self) -> float:
        """Of the mean; infinite for one seed, which says nothing about the spread."""
        if len(self.differences) < 2:
            return math.inf
        return statistics.stdev(self.differences) / math.sqrt(len(self.differences))

    def lower(self, confidence: float = CONFIDENCE) -> float:
        """One-sided lower bound of the mean by the t distribution on n - 1 degrees of freedom; -inf for one seed."""
        return self.mean - self._quantile(confidence)

    def upper(self, confidence: float = CONFIDENCE) -> float:
        """One-sided upper bound; inf for one seed."""
        return self.mean + self._quantile(confidence)

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Two-sided interval; unbounded for one seed."""
        reach = self._quantile((1 + confidence) / 2)
        return self.mean - reach, self.mean + reach

    def _quantile(self, confidence: float) -> float:
        # scipy.special loads in a tenth of the time of scipy.stats, which holds the same function as `t.ppf`.
        from scipy.special import stdtrit

        error = self.standard_error
        if error in (0.0, math.inf):
            return error
        return float(stdtrit(len(self.differences) - 1, confidence)) * error


def paired_effect(better: Sequence[float], than: Sequence[float], *, smaller_is_better: bool = False) -> PairedEffect:
    """The effect of one arm over another.

    Args:
        better, than: a metric of the two arms, (seeds,), in the same order of seeds.
        smaller_is_better: the metric is an error, so that a negative difference is a gain.

    Raises: ConfigError for no seed, different numbers of seeds, or a figure that is not finite.
    """
    if not better or len(better) != len(than):
        raise ConfigError(
            f"paired figures must come from the same seeds, one or more: got {len(better)} and {len(than)}"
        )
    for figure in (*better, *than):
        if not math.isfinite(figure):
            raise ConfigError(f"a figure is {figure}: a verdict needs finite figures")
    sign = -1.0 if smaller_is_better else 1.0
    return PairedEffect(tuple(_difference(sign * one, sign * other) for one, other in zip(better, than, strict=True)))


def reach_of_all_pairs(figures: Sequence[Sequence[float]], confidence: float = CONFIDENCE) -> float:
    """Half the width of intervals of the mean difference of every two rows, which hold together with `confidence`.

    Tukey's honest differences with seeds as blocks: one variance for all rows, on (rows - 1) (seeds - 1) degrees of
    freedom, so that a few seeds of several rivals can decide; of two rows it is the paired t interval.

    Args:
        figures: (rows, seeds), finite, in the same order of seeds.

    Returns: infinite for one seed.
    """
    rows, seeds = len(figures), len(figures[0])
    if seeds < 2:
        return math.inf
    of_seed = [math.fsum(column) / rows for column in zip(*figures, strict=True)]
    of_row = [math.fsum(row) / seeds for row in figures]
    whole = math.fsum(of_row) / rows
    left = [
        value - mean - block + whole
        for row, mean in zip(figures, of_row, strict=True)
        for value, block in zip(row, of_seed, strict=True)
    ]
    degrees = (rows - 1) * (seeds - 1)
    scale = max(abs(value) for row in figures for value in row)
    variance = math.fsum(value * value for value in left) / degrees
    if math.sqrt(variance) <= _SAME * scale:
        return 0.0
    return _range_quantile(confidence, rows, degrees) * math.sqrt(variance / seeds)


@cache
def _range_quantile(confidence: float, rows: int, degrees: int) -> float:
    """Of the studentized range; it is an integral, and takes a tenth of a second."""
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(confidence, rows, degrees))


def _difference(one: float, other: float) -> float:
    return 0.0 if math.isclose(one, other, rel_tol=_SAME, abs_tol=0.0) else one - other


def decide(by: float, mean: float, lower: float, upper: float) -> Verdict:
    """The verdict on a claim.

    by: the margin. From 0 up the claim is one of superiority: it holds when the mean effect reaches `by` and the lower
        bound is above 0, and is reversed when the upper bound is below 0. Under 0 it is one of non-inferiority: it
        holds when the lower bound is above `by`, and is reversed when the upper bound is below `by`.
    mean, lower, upper: mean effect and its one-sided 95% bounds.
    """
    if by < 0:
        return "holds" if lower > by else "reversed" if upper < by else "undecided"
    if (mean >= by or math.isclose(mean, by, rel_tol=1e-9)) and lower > 0:
        return "holds"
    return "reversed" if upper < 0 else "undecided"


def verdict(effect: PairedEffect, by: float) -> Verdict:
    """The verdict on a claim of margin `by`; a single seed decides nothing."""
    return decide(by, effect.mean, effect.lower(), effect.upper())


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None for the deviation of one value."""
    mean = math.fsum(values) / len(values)
    return mean, statistics.stdev(values) if len(values) > 1 else None
