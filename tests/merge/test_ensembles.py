"""Ensembles of logits, and soups compared with them."""

from __future__ import annotations

import pytest
import torch
from merge.nets import CLASSES, INPUTS, Net, batches, near
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional as F

from leaven.merge import greedy_ensemble, logit_ensemble, logits_of, soup_versus_ensemble, uniform_soup

# The models differ by more than a fine-tuning would.
pytestmark = pytest.mark.filterwarnings("ignore:no common ancestor")
DATA = batches(1, 40)[0]


def linear(count: int) -> list[dict[str, Tensor]]:
    return [near(nn.Linear(INPUTS, CLASSES).state_dict(), seed, 1.0) for seed in range(count)]


def linear_logits(state: dict[str, Tensor]) -> Tensor:
    return F.linear(DATA["x"], state["weight"], state["bias"])


def net_logits(state: dict[str, Tensor]) -> Tensor:
    return functional_call(Net(), state, (DATA["x"],))


def test_a_soup_of_linear_models_is_their_ensemble() -> None:
    states = linear(4)
    ensemble = logit_ensemble(logits_of(states, linear_logits))
    assert torch.allclose(linear_logits(uniform_soup(states).state()), ensemble, atol=1e-6)


def test_a_soup_of_networks_is_not_an_average_of_predictions() -> None:
    states = [near(Net().state_dict(), seed, 0.5) for seed in range(3)]
    ensemble = logit_ensemble(logits_of(states, net_logits))
    assert not torch.allclose(net_logits(uniform_soup(states).state()), ensemble, atol=1e-2)


def test_greedy_ensemble_by_hand() -> None:
    logits = torch.tensor([[[4.0]], [[0.0]], [[10.0]], [[20.0]]])
    accepted, trials = greedy_ensemble(logits, lambda x: -abs(float(x) - 8))
    assert accepted == (2, 0) and len(trials) == 7


def test_for_linear_models_both_sides_vanish() -> None:
    first, second = ({n: t.double() for n, t in state.items()} for state in linear(2))
    x = DATA["x"].double()
    found = soup_versus_ensemble(first, second, lambda s: F.linear(x, s["weight"], s["bias"]), DATA["y"], points=101)
    assert found.difference.abs().max() < 1e-14
    assert found.approximation.abs().max() < 3e-4  # the error of the second differences


def test_both_sides_are_those_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    start, delta, bend = (torch.randn(50, CLASSES, generator=generator, dtype=torch.float64) for _ in range(3))
    labels, scale = torch.randint(0, CLASSES, (50,), generator=generator), 1.7

    def logits(a: Tensor) -> Tensor:
        return start + a * delta + 0.2 * bend * a**2

    def loss(a: Tensor) -> Tensor:
        return F.cross_entropy(scale * logits(a), labels)

    ends = [{"a": torch.full((1,), value, dtype=torch.float64)} for value in (0.0, 1.0)]
    found = soup_versus_ensemble(*ends, lambda state: logits(state["a"]), labels, scale=scale, points=101)
    change = logits(torch.tensor(1.0)) - logits(torch.tensor(0.0))
    for place, a in enumerate(found.alpha):
        ensemble = F.cross_entropy(
            scale * ((1 - a) * logits(torch.tensor(0.0)) + a * logits(torch.tensor(1.0))), labels
        )
        assert torch.isclose(found.difference[place], loss(a) - ensemble, atol=1e-12)
        p = (scale * logits(a)).softmax(-1)
        mean = (p * change).sum(-1, keepdim=True)
        variance = (p * (change - mean) ** 2).sum(-1).mean()
        expected = a * (1 - a) / 2 * (scale**2 * variance - grad(grad(loss))(a))
        assert torch.isclose(found.approximation[place], expected, atol=2e-5)


def test_on_networks_the_approximation_follows_the_difference() -> None:
    state = Net().state_dict()
    first, second = near(state, 1, 0.6), near(state, 2, 0.6)
    found = soup_versus_ensemble(first, second, net_logits, DATA["y"])
    assert found.alpha.shape == found.difference.shape == (9,)
    assert torch.equal(found.difference, found.soup_loss - found.ensemble_loss)
    assert found.correlation > 0.9
