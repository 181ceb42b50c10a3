"""Learned coefficients: aTLAS and learned soups."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from merge.nets import INPUTS, CrossEntropy, Net, SquaredError, Tied, batches, finite_difference, near
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from leaven.errors import ConfigError, ModelError
from leaven.merge import ComposedModel, LearnedSoup, MixedObjective, TaskVector, learned_soup, uniform_soup
from leaven.merge.mixed_model import RepeatedBatches
from leaven.merge.weights import open_weights
from leaven.models.saved import tied_names
from leaven.training.config import TrainingConfig
from leaven.training.loop import fit

# Vectors of random models differ from them by more than a fine-tuning would.
pytestmark = pytest.mark.filterwarnings("ignore:no common ancestor")
BASE = Net().state_dict()
TUNED = [near(BASE, seed) for seed in (1, 2, 3)]
VECTORS = [TaskVector(state, BASE) for state in TUNED]
DATA = batches()
X = DATA[0]["x"]


def composed(**options: object) -> ComposedModel:
    return ComposedModel(Net(), BASE, VECTORS, **options)  # type: ignore[arg-type]


def test_only_coefficients_are_parameters_and_every_tensor_is_a_block() -> None:
    model = composed()
    assert [name for name, _ in model.named_parameters()] == ["coefficient"]
    assert model.coefficient.shape == (3, 6) and not model.coefficient.any()
    assert set(model.blocks) == set(BASE)
    assert torch.allclose(model(X), functional_call(Net(), BASE, (X,)))


@pytest.mark.parametrize("one", [0, 1, 2])
def test_a_unit_coefficient_gives_the_specialist(one: int) -> None:
    model = composed()
    with torch.no_grad():
        model.coefficient[one] = 1
    for name, tensor in model.baked().state().items():
        assert torch.allclose(tensor, TUNED[one][name], atol=1e-6)
    assert torch.allclose(model(X), functional_call(Net(), TUNED[one], (X,)), atol=1e-5)


def test_tied_blocks_are_task_arithmetic() -> None:
    model, tied = composed(), composed(per="vector")
    amounts = torch.tensor([0.3, -0.2, 0.7])
    with torch.no_grad():
        model.coefficient.copy_(amounts[:, None].expand(3, 6))
        tied.coefficient.copy_(amounts[:, None])
    assert tied.coefficient.shape == (3, 1)
    expected = sum(a * v for a, v in zip(amounts.tolist(), VECTORS, strict=True)).apply().state()  # type: ignore[union-attr]
    for found in (model, tied):
        assert all(torch.allclose(t, expected[n], atol=1e-6) for n, t in found.baked().state().items())


def test_blocks_are_scaled_one_by_one() -> None:
    model = composed()
    place = model.blocks.index("norm.bias")
    with torch.no_grad():
        model.coefficient[1, place] = 2.0
    for name, tensor in model.baked().state().items():
        expected = BASE[name] + (2.0 * (TUNED[1][name] - BASE[name]) if name == "norm.bias" else 0)
        assert torch.allclose(tensor, expected, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 3])
def test_gradients_are_finite_differences_and_inner_products(groups: int) -> None:
    generator = torch.Generator().manual_seed(0) if groups > 1 else None
    model = composed(groups=groups, generator=generator).double()
    batch = {"x": X.double(), "y": DATA[0]["y"]}
    with torch.no_grad():
        model.coefficient.copy_(torch.rand(model.coefficient.shape, generator=torch.Generator().manual_seed(1)))

    def loss() -> Tensor:
        return model.run(CrossEntropy(), batch).total

    loss().backward()
    for place in range(6):
        index = (1, place) if groups == 1 else (1, place, 2)
        expected = finite_difference(loss, model.coefficient, index, 1e-4)
        assert float(model.coefficient.grad[index]) == pytest.approx(expected, abs=1e-8)
    state = {n: t.detach().requires_grad_() for n, t in model.weights().items()}
    F.cross_entropy(functional_call(model.model, state, (batch["x"],)), batch["y"]).backward()
    for place, name in enumerate(model.blocks):
        product = state[name].grad * VECTORS[1].tensor(name)
        found = model.coefficient.grad[1, place]
        assert float(found.sum()) == pytest.approx(float(product.sum()), abs=1e-12)


def test_the_linearised_model_is_the_tangent_at_the_base() -> None:
    model = composed().double()
    x = X.double()
    with torch.no_grad():
        model.coefficient.copy_(torch.rand(3, 6, generator=torch.Generator().manual_seed(1)))
    step = {n: t.detach() - BASE[n] for n, t in model.weights().items()}

    def at(t: float) -> Tensor:
        return functional_call(Net().double(), {n: BASE[n] + t * step[n] for n in step}, (x,))

    expected = at(0) + (at(1e-4) - at(-1e-4)) / 2e-4
    assert torch.allclose(model.linearised(x), expected, atol=1e-7)

    def loss() -> Tensor:
        return F.cross_entropy(model.linearised(x), DATA[0]["y"])

    loss().backward()
    for index in ((0, 0), (2, 3)):
        assert model.coefficient.grad[index].item() == pytest.approx(
            finite_difference(loss, model.coefficient, index, 1e-4), abs=1e-8
        )


def test_groups_split_every_tensor_and_are_shared_by_shape() -> None:
    model = composed(groups=4, generator=torch.Generator().manual_seed(0))
    assert model.coefficient.shape == (3, 6, 4)
    with torch.no_grad():
        model.coefficient[0] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    shares = {}
    for name, tensor in model.baked().state().items():
        moved = ~torch.isclose(tensor, BASE[name], atol=1e-7)
        assert torch.allclose(tensor[moved], TUNED[0][name][moved], atol=1e-6)
        shares[name] = moved
    assert 0 < shares["first.weight"].float().mean() < 0.6 and not shares["norm.bias"].all()
    assert torch.equal(shares["norm.bias"], shares["norm.weight"])
    again = composed(groups=4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        again.coefficient.copy_(model.coefficient)
    assert all(torch.equal(t, again.weights()[n]) for n, t in model.weights().items())
    with torch.no_grad():
        model.coefficient.fill_(1.0)
    ungrouped = composed()
    with torch.no_grad():
        ungrouped.coefficient.fill_(1.0)
    assert all(torch.allclose(t, ungrouped.weights()[n], atol=1e-6) for n, t in model.weights().items())


def test_training_finds_the_least_squares_solution() -> None:
    # Weight and bias of a linear model, as two blocks; the optimum over the coefficients is a least-squares problem.
    start = nn.Linear(INPUTS, 1).state_dict()
    vectors = [TaskVector(near(start, seed, 1.0), start) for seed in (1, 2)]
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(60, INPUTS, generator=generator), torch.randn(60, generator=generator)
    columns = [x @ v.tensor("weight")[0] for v in vectors] + [v.tensor("bias").expand(60) for v in vectors]
    target = y - F.linear(x, start["weight"], start["bias"])[:, 0]
    expected = torch.linalg.lstsq(torch.stack(columns, 1).double(), target.double()[:, None], driver="gelsd").solution

    model = ComposedModel(nn.Linear(INPUTS, 1), start, vectors)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = SquaredError()(model, {"x": x, "y": y}).total
        loss.backward()
        return loss

    optimizer.step(closure)
    found = model.coefficient.detach().double()
    # Two biases span one direction: only their product with the vectors is determined.
    assert torch.allclose(found[:, 0], expected[:2, 0], atol=1e-3)
    biases = torch.stack([v.tensor("bias") for v in vectors]).double()[:, 0]
    assert float(found[:, 1] @ biases) == pytest.approx(float(expected[2:, 0] @ biases), abs=1e-3)


def test_the_loop_of_the_house_trains_coefficients_alone() -> None:
    net = Net()
    model = ComposedModel(net, BASE, VECTORS)
    before = {n: t.clone() for n, t in net.state_dict().items()}

    def loss() -> float:
        return sum(model.run(CrossEntropy(), batch).total.item() for batch in DATA)

    first = loss()
    config = TrainingConfig(learning_rate=0.05, weight_decay=0, warmup=0, progress=False)
    fit(model, MixedObjective(CrossEntropy()), RepeatedBatches(DATA), 30, config)
    assert loss() < first - 0.02
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    assert model.coefficient.abs().min() > 0


def test_the_model_stays_in_eval_mode() -> None:
    net = nn.Sequential(nn.Linear(INPUTS, 2), nn.Dropout(0.9), nn.BatchNorm1d(2))
    state = {n: t.clone() for n, t in net.state_dict().items()}
    model = ComposedModel(net, state, [TaskVector(near(state, 1), state)]).train()
    assert torch.equal(model(X), model(X))
    assert torch.equal(net[2].running_mean, state["2.running_mean"])
    assert set(model.baked().specs) == set(state)


def test_half_precision_storage() -> None:
    model, half = composed(), composed(store=torch.float16)
    with torch.no_grad():
        for one in (model, half):
            one.coefficient.fill_(0.3)
    for one in (model, half):
        one.run(CrossEntropy(), DATA[0]).total.backward()
    assert torch.allclose(model.coefficient.grad, half.coefficient.grad, atol=1e-3)
    huge = TaskVector({n: t + 1e5 for n, t in BASE.items()}, BASE)
    with pytest.raises(ModelError, match="values beyond 65504"):
        ComposedModel(Net(), BASE, [huge], store=torch.float16)


def test_regulariser_by_hand() -> None:
    model = composed()
    with torch.no_grad():
        model.coefficient[0, 0], model.coefficient[1, 0] = 3.0, -4.0
    assert model.regulariser(1).item() == pytest.approx(0.5 * 7 / 6)
    assert model.regulariser(2).item() == pytest.approx(0.5 * 5 / 6)


def test_the_table_of_coefficients(tmp_path: Path) -> None:
    model = composed()
    with torch.no_grad():
        model.coefficient[2, 4] = 0.5
    model.write_coefficients(tmp_path / "table.csv")
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert len(rows) == 18
    assert rows[16] == {"vector": VECTORS[2].label, "block": model.blocks[4], "group": "0", "coefficient": "0.5"}


def test_tied_parameters_are_one_block_under_either_name() -> None:
    net = Tied()
    state = {"embed.weight": net.embed.weight.detach().clone()}
    tuned = {"out.weight": state["embed.weight"] + 1.0}
    model = ComposedModel(net, state, [open_weights({"out.weight": tuned["out.weight"] - state["embed.weight"]})])
    assert model.blocks == ("embed.weight",) and tied_names(net)
    with torch.no_grad():
        model.coefficient.fill_(1.0)
    ids = torch.tensor([0, 3])
    expected = tuned["out.weight"][ids] @ tuned["out.weight"].T
    assert torch.allclose(model(ids), expected, atol=1e-5)
    assert list(model.baked().specs) == ["embed.weight"]


def test_vectors_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match="different bases"):
        ComposedModel(Net(), BASE, [VECTORS[0], TaskVector(TUNED[1], near(BASE, 77))])
    with pytest.raises(ModelError, match=r"norm\.bias: missing from source"):
        ComposedModel(Net(), BASE, [open_weights({n: t for n, t in BASE.items() if n != "norm.bias"}, "source")])
    with pytest.raises(ModelError, match=r"head\.bias: shape \(4,\)"):
        ComposedModel(Net(), BASE, [open_weights({**BASE, "head.bias": torch.zeros(4)})])
    with pytest.raises(ModelError, match="NaN or infinite"):
        ComposedModel(Net(), BASE, [open_weights({**BASE, "head.bias": torch.full((3,), float("nan"))})])
    net = Net().train()
    with pytest.raises(ModelError):
        ComposedModel(net, BASE, [open_weights({**BASE, "head.bias": torch.zeros(4)})])
    assert net.training
    with pytest.raises(ModelError, match="no floating-point parameters"):
        ComposedModel(nn.Flatten(), BASE, VECTORS)
    with pytest.raises(ConfigError, match="at least one"):
        ComposedModel(Net(), BASE, [])
    with pytest.raises(ConfigError, match="a generator exactly when"):
        composed(groups=2)


def test_a_learned_soup_starts_as_the_uniform_one_and_stays_convex() -> None:
    soup = LearnedSoup(Net(), TUNED)
    assert {n: tuple(p.shape) for n, p in soup.named_parameters()} == {"raw": (3, 6), "scale": ()}
    uniform = uniform_soup(TUNED).state()
    assert all(torch.allclose(t, uniform[n], atol=1e-6) for n, t in soup.baked().state().items())
    with torch.no_grad():
        soup.raw.normal_(0, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(soup.coefficients().sum(0), torch.ones(6)) and (soup.coefficients() > 0).all()
    assert LearnedSoup(Net(), TUNED, per="model").raw.shape == (3, 1)


def test_a_learned_soup_finds_the_model_that_fits() -> None:
    good = TUNED[1]
    data = [{**batch, "y": functional_call(Net(), good, (batch["x"],)).argmax(-1)} for batch in batches(4, 64)]
    far = [near(BASE, 10, 0.2), good, near(BASE, 11, 0.2)]

    def error(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(logits, batch["y"])

    soup = learned_soup(Net(), far, data, lambda m, b: m.scores(b["x"]), error, per="model", epochs=15)
    shares = soup.coefficients()[:, 0]
    assert shares.argmax() == 1 and shares[1] > 0.5
    assert soup.scale > 1.05
    with pytest.raises(ConfigError, match="no batches"):
        learned_soup(Net(), far, [], lambda m, b: m.scores(b["x"]), error)
    with pytest.raises(ConfigError, match="'tensor' or 'model'"):
        LearnedSoup(Net(), far, per="layer")  # type: ignore[arg-type]


def test_the_scale_multiplies_logits() -> None:
    soup = LearnedSoup(Net(), TUNED)
    plain = soup(X)
    with torch.no_grad():
        soup.scale.fill_(2.5)
    assert torch.allclose(soup(X), 2.5 * plain)
    assert torch.allclose(soup.logits(lambda m, b: m.scores(b["x"]), {"x": X}), 2.5 * plain)
