"""Closed forms of the loop's parts: budgets, schedules, groups, guard, averages, randomness."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from leaven.errors import ConfigError
from leaven.training.budgets import Budget, Counters
from leaven.training.config import GuardConfig, TrainingConfig
from leaven.training.ema import WeightAverage
from leaven.training.guard import Guard
from leaven.training.parameter_groups import parameter_groups
from leaven.training.randomness import global_rng_state, mix, preserved_rng, set_global_rng_state
from leaven.training.schedules import Schedule


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("200 steps", {"steps": 200}),
        ("200", {"steps": 200}),
        ("1M tokens", {"tokens": 1e6}),
        ("5k examples", {"examples": 5000}),
        ("30s", {"seconds": 30}),
        ("5min", {"seconds": 300}),
        ("1.5h", {"seconds": 5400}),
        ("1e15 flops", {"flops": 1e15}),
        ("2 Pflops", {"flops": 2e15}),
        ("2000 steps, 5min", {"steps": 2000, "seconds": 300}),
    ],
)
def test_budgets_are_read_and_written(text: str, limits: dict[str, float]) -> None:
    budget = Budget.parse(text)
    assert budget.limits == limits
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("soon", "cannot read 'soon'"),
        ("5 parsecs", "unknown unit 'parsecs'"),
        ("0 steps", "expected a number greater than 0"),
        ("1.5 steps", "expected a whole number"),
        ("5min, 3h", "limits seconds twice"),
    ],
)
def test_budgets_that_cannot_be_read(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Budget.parse(text)


def test_sums_and_shares_of_budgets() -> None:
    assert Budget.parse("600 steps").scaled(2 / 3).limits == {"steps": 400}
    assert Budget.parse("1 steps").scaled(0.1).limits == {"steps": 1}
    assert Budget.parse("90s").scaled(0.5).limits == {"seconds": 45}
    assert Budget.parse("5 steps").plus(Budget.parse("7 steps")).limits == {"steps": 12}
    with pytest.raises(ConfigError, match="in the same unit"):
        Budget.parse("5 steps").plus(Budget.parse("7s"))


def test_the_first_limit_reached_ends_and_the_largest_share_counts() -> None:
    budget = Budget.parse("100 steps, 1000 tokens")
    assert budget.fraction(Counters(steps=20, tokens=500)) == 0.5
    assert budget.exhausted(Counters(steps=99, tokens=999)) is None
    assert budget.exhausted(Counters(steps=3, tokens=1000)) == "tokens"


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "inverse-sqrt"])
@pytest.mark.parametrize("warmup", [0.1, 10.0])
def test_schedules_equal_their_formulas(name: str, warmup: float) -> None:
    schedule = Schedule(name, warmup, floor=0.2)  # type: ignore[arg-type]
    for step in range(101):
        fraction = step / 100
        passed = max(0.0, (fraction - 0.1) / 0.9)
        expected = {
            "constant": 1.0,
            "linear": 0.2 + 0.8 * (1 - passed),
            "cosine": 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * passed)),
            "inverse-sqrt": math.sqrt(0.1 / fraction) if fraction else 1.0,
        }[name]
        assert schedule.factor(step, fraction) == pytest.approx(step / 10 if step < 10 else expected, abs=1e-9)


def test_groups_by_decay_and_rate() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    config = TrainingConfig(learning_rate=0.1, weight_decay=0.3, lr_factors={"1.*": 0.5})
    found = {
        tuple(g["names"]): (g["lr"], g["weight_decay"]) for g in parameter_groups(model.named_parameters(), config)
    }
    assert found == {("0.weight",): (0.1, 0.3), ("0.bias",): (0.1, 0.0), ("1.weight", "1.bias"): (0.05, 0.0)}
    with pytest.raises(ConfigError, match=r"pattern '2\.\*' fits no trainable parameter; the nearest names are"):
        parameter_groups(model.named_parameters(), TrainingConfig(lr_factors={"2.*": 1.0}))
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        parameter_groups(model.named_parameters(), config)


def test_swapping_the_average_twice_changes_nothing() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    average = WeightAverage({"w": weight}, 0.75)
    with torch.no_grad():
        weight.copy_(torch.tensor([5.0, 6.0]))
    average.update()
    torch.testing.assert_close(average.average["w"], torch.tensor([2.0, 3.0]))
    average.swap()
    torch.testing.assert_close(weight.detach(), torch.tensor([2.0, 3.0]))
    average.swap()
    torch.testing.assert_close(weight.detach(), torch.tensor([5.0, 6.0]))


def test_the_guard_compares_within_a_kind_of_loss() -> None:
    guard = Guard(GuardConfig(window=8, spike_mads=5, spike_steps=1))
    for step in range(20):
        assert guard.inspect(step, "tagging", 0.3, 1.0) is None
        assert guard.inspect(step, "spans", 8.0, 1.0) is None
    reason = guard.inspect(20, "tagging", 8.0, 1.0)
    assert reason is not None and "above" in reason
    assert guard.inspect(21, "spans", 8.0, 1.0) is None
    assert guard.inspect(22, "spans", math.inf, 1.0) == "loss is inf"
    assert guard.inspect(23, "spans", 8.0, math.nan) == "gradient norm is nan"
    copy = Guard(guard.config)
    copy.load_state_dict(guard.state_dict())
    assert copy.state_dict() == guard.state_dict() and copy.total_returns == 3


@given(st.lists(st.integers(-(2**63), 2**64), min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 62))
def test_mixed_seeds_are_in_range_and_change_with_every_bit(parts: list[int], at: int, bit: int) -> None:
    seed = mix(*parts)
    assert 0 <= seed < 2**63
    other = list(parts)
    other[at % len(parts)] ^= 1 << bit
    assert mix(*other) != seed


def test_global_generators_are_put_back() -> None:
    import random

    import numpy as np

    state = global_rng_state()
    first = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
    set_global_rng_state(state)
    with preserved_rng():
        torch.rand(5), np.random.rand(5), random.random()
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == first


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"warmup": 1.5}, "a share below 1 or a whole number"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"schedule": "inverse-sqrt", "warmup": 0}, "set warmup above 0"),
        ({"lr_factors": {"x": -1.0}}, "expected at least 0"),
        ({"patience": 3}, "needs a metric"),
    ],
)
def test_settings_that_contradict_each_other(options: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TrainingConfig(**options)
