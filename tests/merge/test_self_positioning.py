"""Self Positioning."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge.nets import INPUTS, CrossEntropy, Net, SquaredError, batches, finite_difference, near
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from leaven.errors import ConfigError, ModelError
from leaven.merge import PositionedModel, ProbeObjective, TaskVector, open_weights, self_position, slerp_coefficients

# Vectors of random models differ from them by more than a fine-tuning would.
pytestmark = pytest.mark.filterwarnings("ignore:no common ancestor")
BASE = Net().state_dict()
TUNED = [near(BASE, seed) for seed in (1, 2, 3)]
VECTORS = [TaskVector(state, BASE) for state in TUNED]


def slerp(u: Tensor, v: Tensor, t: float) -> Tensor:
    angle = torch.acos((u @ v) / (u.norm() * v.norm()))
    return (torch.sin((1 - t) * angle) * u + torch.sin(t * angle) * v) / torch.sin(angle)


def chain(vectors: Tensor, a: list[float], share_of_sum: bool) -> Tensor:
    """The definition, on the long vectors themselves."""
    found = vectors[0]
    for i in range(1, len(a)):
        before = sum(a[:i]) if share_of_sum else sum(a[:i]) / i
        found = slerp(found, vectors[i], a[i] / (before + a[i]))
    return found


def test_equal_proportions_of_four_orthogonal_vectors() -> None:
    ones, unit = torch.ones(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    exact = [math.sqrt(1 / 8), math.sqrt(1 / 8), 0.5, math.sqrt(0.5)]
    assert torch.allclose(slerp_coefficients(ones, unit), torch.tensor(exact, dtype=torch.float64))
    found = slerp_coefficients(ones, unit, share_of_sum=True)
    assert [round(c, 2) for c in found.tolist()] == [0.57, 0.57, 0.46, 0.38]
    assert float(found.square().sum()) == pytest.approx(1.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.05, 5), min_size=2, max_size=6), st.integers(0, 999), st.booleans())
def test_coefficients_from_inner_products_are_those_of_the_chain(a: list[float], seed: int, by_sum: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(a), 40, generator=generator, dtype=torch.float64) + 0.3
    proportions = torch.tensor(a, dtype=torch.float64)
    c = slerp_coefficients(proportions, vectors @ vectors.T, share_of_sum=by_sum)
    assert torch.allclose(c @ vectors, chain(vectors, a, by_sum), atol=1e-12)
    assert torch.allclose(slerp_coefficients(3.7 * proportions, vectors @ vectors.T, share_of_sum=by_sum), c)


def test_parallel_and_zero_vectors_are_interpolated_linearly() -> None:
    a = torch.tensor([1.0, 3.0], dtype=torch.float64)
    for rows in ([[1.0, 0.0], [2.0, 1e-6]], [[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0]]):
        vectors = torch.tensor(rows, dtype=torch.float64)
        assert torch.allclose(slerp_coefficients(a, vectors @ vectors.T), torch.tensor([0.25, 0.75]).double())


def test_the_angle_is_that_of_all_tensors_together() -> None:
    base = {"a": torch.zeros(2), "b": torch.zeros(2)}
    states = (
        {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 2.0])},
        {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([2.0, 0.0])},
    )

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

        def forward(self) -> Tensor:
            return torch.cat([self.a, self.b])

    model = PositionedModel(Two(), [TaskVector(state, base) for state in states])
    u, v = (torch.cat([s["a"], s["b"]]) for s in states)
    assert torch.allclose(model(), slerp(u, v, 0.5), atol=1e-6)
    each = torch.cat([slerp(states[0][n], states[1][n], 0.5) for n in "ab"])
    assert not torch.allclose(model(), each, atol=1e-2)
    assert not torch.allclose(model(), (u + v) / 2, atol=1e-2)


def test_it_starts_at_one_and_its_parameters_are_the_scalars_alone() -> None:
    model = PositionedModel(Net(), VECTORS)
    assert {n: tuple(p.shape) for n, p in model.named_parameters()} == {"raw_proportions": (3,), "raw_length": ()}
    assert torch.allclose(model.proportions, torch.ones(3)) and model.length.item() == pytest.approx(1)


def test_one_specialist_at_length_one_is_itself() -> None:
    found = PositionedModel(Net(), VECTORS[:1]).merged().state()
    assert all(torch.allclose(tensor, TUNED[0][name], atol=1e-6) for name, tensor in found.items())


def test_gradients_are_finite_differences() -> None:
    model = PositionedModel(Net(), VECTORS).double()
    batch = {n: t.double() if t.is_floating_point() else t for n, t in batches(1)[0].items()}
    objective = ProbeObjective(CrossEntropy(), 0.05)

    def loss() -> Tensor:
        return objective(model, batch).total

    with torch.no_grad():
        model.raw_proportions.copy_(torch.tensor([0.2, 1.1, 0.7]))
    loss().backward()
    for place in range(3):
        expected = finite_difference(loss, model.raw_proportions, (place,), 1e-4)
        assert float(model.raw_proportions.grad[place]) == pytest.approx(expected, abs=1e-8)
    assert float(model.raw_length.grad) == pytest.approx(finite_difference(loss, model.raw_length, (), 1e-4), abs=1e-8)


def test_the_gradient_of_the_length_is_that_of_the_efficient_form() -> None:
    model = PositionedModel(Net(), VECTORS)
    batch = batches(1)[0]
    ProbeObjective(CrossEntropy(), 0.05)(model, batch).total.backward()
    weights = {n: t.detach().requires_grad_() for n, t in model.weights().items()}
    F.cross_entropy(functional_call(Net(), weights, (batch["x"],)), batch["y"]).backward()
    position = {n: (t.detach() - BASE[n]) / model.length.item() for n, t in weights.items()}
    expected = sum(float((weights[n].grad * position[n]).sum()) for n in weights) + 0.05
    softplus = torch.sigmoid(model.raw_length).item()
    assert float(model.raw_length.grad) == pytest.approx(expected * softplus, abs=1e-5)


def test_the_search_reaches_the_nonnegative_least_squares_optimum() -> None:
    start = nn.Linear(INPUTS, 1, bias=False).state_dict()
    specialists = [near(start, seed, 1.0) for seed in (1, 2, 3)]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, INPUTS, generator=generator)
    true = start["weight"] + sum(
        c * (s["weight"] - start["weight"]) for c, s in zip((0.5, 0.3, 0.6), specialists, strict=True)
    )
    y = F.linear(x, true)[:, 0] + 0.1 * torch.randn(200, generator=generator)
    columns = torch.stack([F.linear(x, s["weight"] - start["weight"])[:, 0] for s in specialists], 1)
    expected, _ = nnls(columns.double().numpy(), (y - F.linear(x, start["weight"])[:, 0]).double().numpy())
    assert expected.min() > 0.1

    found = self_position(
        nn.Linear(INPUTS, 1, bias=False),
        start,
        specialists,
        SquaredError(),
        [{"x": x, "y": y}],
        penalty=0,
        steps=400,
        learning_rate=0.03,
    )
    assert torch.allclose(found.model.per_vector(), torch.from_numpy(expected), atol=2e-3)
    merged = found.model.merged().state()["weight"]
    assert torch.allclose(merged, found.model.weights()["weight"], atol=1e-6)


def test_one_vector_is_a_line_search() -> None:
    start = nn.Linear(INPUTS, 1, bias=False).state_dict()
    vector = TaskVector(near(start, 1, 1.0), start)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, INPUTS, generator=generator), torch.randn(50, generator=generator)
    column, target = F.linear(x, vector.tensor("weight"))[:, 0], y - F.linear(x, start["weight"])[:, 0]
    target = target + 3 * column
    best = float(column @ target / (column @ column))
    model = PositionedModel(nn.Linear(INPUTS, 1, bias=False), [vector])
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=50, line_search_fn="strong_wolfe")
    batch = {"x": x, "y": target + F.linear(x, start["weight"])[:, 0]}

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = ProbeObjective(SquaredError(), 0.0)(model, batch).total
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(model.length) == pytest.approx(best, abs=1e-3)


def test_the_penalty_shortens_the_step(tmp_path: Path) -> None:
    data = batches(2, 32)
    lengths = []
    for penalty in (0.0, 0.3):
        found = self_position(Net(), BASE, TUNED, CrossEntropy(), data, penalty=penalty, steps=40, learning_rate=0.05)
        lengths.append(found.trace[-1]["length"])
        assert len(found.trace) == 40 and {"probe", "length", "proportion_3"} <= found.trace[0].keys()
    assert lengths[1] < lengths[0] - 0.1
    norms = torch.tensor([vector.norm() for vector in VECTORS], dtype=torch.float64)
    assert torch.allclose(found.norms, norms) and torch.allclose(found.cosines.diagonal(), torch.ones(3).double())
    found.model.merged().save(tmp_path / "merged.safetensors")
    saved = open_weights(tmp_path / "merged.safetensors").state()
    assert all(torch.allclose(t, found.model.weights()[n], atol=1e-6) for n, t in saved.items())


def test_wrong_calls() -> None:
    with pytest.raises(ConfigError, match="two or more"):
        self_position(Net(), BASE, TUNED[:1], CrossEntropy(), batches())
    with pytest.raises(ConfigError, match="penalty is -1"):
        self_position(Net(), BASE, TUNED, CrossEntropy(), batches(), penalty=-1)
    with pytest.raises(ModelError, match=r"from specialist 2:\s+head\.bias: only in the base"):
        self_position(Net(), BASE, [TUNED[0], {n: t for n, t in BASE.items() if n != "head.bias"}], CrossEntropy(), [])
    with pytest.raises(ModelError, match="different bases"):
        PositionedModel(Net(), [VECTORS[0], TaskVector(TUNED[1], near(BASE, 9))])


def test_a_long_step_is_warned_of() -> None:
    start = nn.Linear(INPUTS, 1, bias=False).state_dict()
    specialists = [near(start, seed, 0.01) for seed in (1, 2)]
    x = torch.randn(20, INPUTS, generator=torch.Generator().manual_seed(0))
    far = start["weight"] + 400 * (specialists[0]["weight"] - start["weight"])
    batch = {"x": x, "y": F.linear(x, far)[:, 0]}
    with pytest.warns(UserWarning, match="far outside the specialists"):
        self_position(
            nn.Linear(INPUTS, 1, bias=False), start, specialists, SquaredError(), [batch], steps=40, learning_rate=0.3
        )
