"""What a paper claims, as an inequality between two arms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """One arm is better than another on one metric, by at least a margin.

    says: the claim in one sentence.
    metric: name of a figure of `Measurement.metrics`; larger is better unless `smaller_is_better`.
    better, than: names of arms.
    by: smallest effect worth calling it, in the metric's unit. Below 0 the claim is one of non-inferiority: `better`
        may be worse than `than` by at most this much.
    paper: what the paper reports.
    tiers: the tiers in which the claim is tested.
    """

    says: str
    metric: str
    better: str
    than: str
    by: float
    paper: str = ""
    smaller_is_better: bool = False
    tiers: tuple[str, ...] = ("embedded", "standard")
