import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from leaven.errors import ConfigError
from leaven.evidence.statistics import PairedEffect, decide, paired_effect, reach_of_all_pairs, spread, verdict

A = [0.71, 0.64, 0.69, 0.75, 0.66]
B = [0.62, 0.61, 0.66, 0.60, 0.64]


def test_bounds_agree_with_scipys_paired_t_test():
    effect = paired_effect(A, B)
    reference = stats.ttest_rel(A, B)
    low, high = reference.confidence_interval(0.95)
    assert effect.interval() == pytest.approx((low, high), rel=1e-10)
    assert effect.mean == pytest.approx(np.mean(np.array(A) - B))
    # A one-sided bound is an end of the two-sided interval of twice the error.
    one_sided = reference.confidence_interval(0.90)
    assert (effect.lower(), effect.upper()) == pytest.approx(tuple(one_sided), rel=1e-10)


def test_the_bound_excludes_zero_exactly_when_the_one_sided_p_value_is_below_five_percent():
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        a, b = generator.normal(0.5, 1, 5), generator.normal(0, 1, 5)
        p = stats.ttest_rel(a, b, alternative="greater").pvalue
        excludes = paired_effect(list(a), list(b)).lower() > 0
        assert excludes == (p < 0.05)
        seen.add(excludes)
    assert seen == {True, False}


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_lower_bound_covers_the_true_effect_in_95_of_100_runs(seeds):
    generator = np.random.default_rng(seeds)
    trials = 4000
    covered = sum(PairedEffect(tuple(generator.normal(0.3, 1.0, seeds))).lower() <= 0.3 for _ in range(trials))
    # Four standard errors of a share of 0.95.
    assert abs(covered / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


def test_two_seeds_in_closed_form():
    # With one degree of freedom t is Cauchy: its 95% quantile is tan(0.45 pi).
    effect = PairedEffect((1.0, 3.0))
    assert effect.lower() == pytest.approx(2 - math.tan(0.45 * math.pi))
    assert effect.interval()[1] == pytest.approx(2 + math.tan(0.475 * math.pi))


def test_one_seed_has_no_bound_and_decides_nothing():
    effect = paired_effect([1.0], [0.0])
    assert (effect.mean, effect.lower(), effect.upper()) == (1.0, -math.inf, math.inf)
    assert verdict(effect, 0.5) == verdict(effect, -0.5) == "undecided"
    assert verdict(paired_effect([0.0], [1.0]), 0.5) == "undecided"


def test_the_same_difference_under_every_seed():
    effect = paired_effect([0.75, 0.5, 0.25], [0.5, 0.25, 0.0])
    assert effect.interval() == (0.25, 0.25)
    assert verdict(effect, 0.25) == "holds"
    assert verdict(effect, 0.3) == "undecided"
    assert verdict(paired_effect([0.0, 0.25], [0.5, 0.75]), 0.1) == "reversed"


def test_equal_figures_computed_in_two_ways_are_no_effect():
    effect = paired_effect([0.1 + 0.2] * 4, [0.3] * 4)
    assert effect.differences == (0.0,) * 4
    assert verdict(effect, 0.0) == "undecided"


def test_a_margin_that_is_met_up_to_rounding_is_met():
    effect = paired_effect([0.7, 0.7], [0.65, 0.65])
    assert effect.mean < 0.05 and verdict(effect, 0.05) == "holds"


@pytest.mark.parametrize(
    ("by", "mean", "lower", "upper", "expected"),
    [
        (0.1, 0.2, 0.05, 0.35, "holds"),
        (0.1, 0.1, 0.05, 0.15, "holds"),
        (0.1, 0.09, 0.05, 0.13, "undecided"),
        (0.1, 0.2, 0.0, 0.4, "undecided"),
        (0.1, 0.2, -0.1, 0.5, "undecided"),
        (0.1, -0.1, -0.3, 0.1, "undecided"),
        (0.1, -0.1, -0.2, 0.0, "undecided"),
        (0.1, -0.2, -0.3, -0.1, "reversed"),
        (0.0, 0.1, 0.05, 0.15, "holds"),
        (0.0, 0.0, 0.0, 0.0, "undecided"),
        (-0.1, -0.05, -0.09, -0.01, "holds"),
        (-0.1, 0.2, 0.1, 0.3, "holds"),
        (-0.1, 0.0, -0.1, 0.1, "undecided"),
        (-0.1, 0.0, -0.2, 0.2, "undecided"),
        (-0.1, -0.2, -0.3, -0.1, "undecided"),
        (-0.1, -0.3, -0.4, -0.2, "reversed"),
    ],
)
def test_verdicts(by, mean, lower, upper, expected):
    assert decide(by, mean, lower, upper) == expected


figures = st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=2, max_size=8)


@given(figures, st.floats(0, 10))
def test_swapping_the_arms_or_the_sign_turns_the_effect_round(pairs, by):
    a, b = [one for one, _ in pairs], [other for _, other in pairs]
    effect, swapped = paired_effect(a, b), paired_effect(b, a)
    assert swapped.differences == tuple(-one for one in effect.differences)
    assert swapped.upper() == pytest.approx(-effect.lower(), abs=1e-9)
    assert paired_effect(a, b, smaller_is_better=True) == swapped
    assert not (verdict(effect, by) == "holds" and verdict(swapped, by) == "holds")
    if verdict(effect, by) == "holds":
        assert verdict(effect, -1.0) == "holds"


def test_pairing_removes_what_the_seeds_share():
    shared = [0.0, 10.0, -10.0, 5.0]
    effect = paired_effect([one + 1 + 0.01 * at for at, one in enumerate(shared)], shared)
    assert verdict(effect, 0.5) == "holds"


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([math.nan], [1.0]), ([1.0], [math.inf])])
def test_figures_that_give_no_effect(a, b):
    with pytest.raises(ConfigError, match=r"finite|same seeds"):
        paired_effect(a, b)


def test_spread():
    assert spread([1.0, 2.0, 4.0]) == (pytest.approx(7 / 3), pytest.approx(np.std([1, 2, 4], ddof=1)))
    assert spread([2.0]) == (2.0, None)


def test_of_two_rows_the_reach_of_all_pairs_is_the_paired_interval():
    low, high = paired_effect(A, B).interval()
    assert reach_of_all_pairs([A, B]) == pytest.approx((high - low) / 2, rel=1e-6)
    assert reach_of_all_pairs([[1.0], [2.0]]) == math.inf
    # Rows that differ by the same at every seed leave no doubt, whatever the seeds do.
    assert reach_of_all_pairs([[1.0, 5.0, 3.1], [2.0, 6.0, 4.1], [0.5, 4.5, 2.6]]) == 0.0


def test_the_reach_of_all_pairs_by_a_linear_model():
    rows = np.random.default_rng(3).normal(size=(4, 6))
    systems, seeds = np.eye(4).repeat(6, 0), np.tile(np.eye(6), (4, 1))
    design = np.hstack([systems, seeds[:, 1:]])
    _, squares, rank, _ = np.linalg.lstsq(design, rows.ravel(), rcond=None)
    # Tables of the studentized range: 4.08 for 4 groups on 15 degrees of freedom.
    assert 24 - rank == 15
    expected = 4.08 * math.sqrt(squares[0] / 15 / 6)
    assert reach_of_all_pairs(rows.tolist()) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("rows", "seeds"), [(3, 3), (5, 3)])
def test_all_intervals_hold_together_in_95_of_100_comparisons(rows, seeds):
    generator, trials, held = np.random.default_rng(rows), 2000, 0
    for _ in range(trials):
        figures = generator.normal(size=(rows, seeds)) + generator.normal(0, 5, seeds)
        means = figures.mean(1)
        held += means.max() - means.min() <= reach_of_all_pairs(figures.tolist())
    assert abs(held / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)
