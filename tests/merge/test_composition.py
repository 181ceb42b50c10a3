"""Objectives without a target, gradients of weights, selection of blocks."""

from __future__ import annotations

import math

import pytest
import torch
from merge.nets import CrossEntropy, Net, batches, near
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.errors import ConfigError, DataError, ModelError
from leaven.merge import (
    AscentDescent,
    ComposedModel,
    MixedObjective,
    PredictionEntropy,
    TaskVector,
    UnsupervisedFixMatch,
    best_blocks,
    block_scores,
    composite_vectors,
    task_conflict,
    trusted_rows,
)
from leaven.merge.weight_gradients import best_vectors, random_blocks, weight_gradients

BASE = Net().state_dict()
TUNED = [near(BASE, seed) for seed in (1, 2, 3)]
VECTORS = [TaskVector(state, BASE) for state in TUNED]
DATA = batches()
G = torch.Generator()


def scores(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model.scores(batch["x"])


class Given(nn.Module):
    """A model whose logits are the input."""

    def scores(self, x: Tensor) -> Tensor:
        return x


def test_ascent_descent_raises_the_target_and_holds_the_control() -> None:
    target, control = DATA[:2]
    batch = {**{f"target/{n}": t for n, t in target.items()}, **{f"control/{n}": t for n, t in control.items()}}
    objective = AscentDescent(CrossEntropy())
    batch = objective.prepare(batch, G)
    net = Net()
    expected = CrossEntropy()(net, control).total - CrossEntropy()(net, target).total
    loss = objective(net, batch)
    assert torch.isclose(loss.total, expected) and set(loss.parts) == {"target", "control"}
    model = ComposedModel(net, BASE, VECTORS[:1])
    before = MixedObjective(objective)(model, batch)
    before.total.backward()
    with torch.no_grad():
        model.coefficient -= 0.05 * model.coefficient.grad.sign()
    after = MixedObjective(objective)(model, batch)
    assert after.total < before.total
    with pytest.raises(DataError, match=r"no field 'control/\.\.\.'"):
        objective.prepare({"target/x": target["x"]}, G)


def fixmatch_batch() -> dict[str, Tensor]:
    clean = torch.tensor([[9.0, 0, 0], [0, 9, 0], [1, 0, 0], [0, 0, 9]])
    augmented = torch.tensor([[1.0, 2, 0], [0, 1, 2], [0, 1, 0], [0, 0, 3]])
    return {
        "clean/x": clean,
        "augmented/x": augmented,
        "trusted": torch.tensor([False, True, False, False]),
        "zero_shot": torch.tensor([2, 2, 2, 0]),
    }


def test_fixmatch_by_hand() -> None:
    batch = fixmatch_batch()
    loss = UnsupervisedFixMatch(scores, 0.99)(Given(), batch)
    x = batch["augmented/x"]
    # Row 0: sure of class 0. Row 1: trusted, zero-shot label 2. Row 2: unsure. Row 3: sure of class 2.
    terms = [F.cross_entropy(x[[row]], torch.tensor([label])) for row, label in ((0, 0), (1, 2), (3, 2))]
    assert torch.isclose(loss.total, sum(terms) / 4) and float(loss.parts["used"]) == 0.75
    everywhere = UnsupervisedFixMatch(scores)(Given(), {**batch, "trusted": torch.ones(4, dtype=torch.bool)})
    assert torch.isclose(everywhere.total, F.cross_entropy(x, batch["zero_shot"]))


def test_the_teacher_has_no_gradient() -> None:
    batch = fixmatch_batch()
    clean, augmented = batch["clean/x"].requires_grad_(), batch["augmented/x"].requires_grad_()
    UnsupervisedFixMatch(scores)(Given(), batch).total.backward()
    assert clean.grad is None and augmented.grad is not None
    assert not augmented.grad[2].any()


def test_two_views_are_needed() -> None:
    batch = fixmatch_batch()
    with pytest.raises(DataError, match="augmented"):
        UnsupervisedFixMatch(scores)(Given(), {n: t for n, t in batch.items() if n != "augmented/x"})
    with pytest.raises(DataError, match="lacks the fields trusted, zero_shot"):
        UnsupervisedFixMatch(scores)(Given(), {n: t for n, t in batch.items() if "/" in n})
    with pytest.raises(ConfigError, match="threshold is 1"):
        UnsupervisedFixMatch(scores, 1.0)


def test_entropy_of_known_distributions() -> None:
    even, certain = torch.zeros(1, 4), torch.tensor([[80.0, 0, 0, 0]])
    found = PredictionEntropy(scores)(Given(), {"x": torch.cat([even, certain])})
    assert float(found.total) == pytest.approx(math.log(4) / 2, abs=1e-6)


def test_trusted_rows_are_the_surest_of_each_class() -> None:
    sure = torch.arange(60.0)
    logits = torch.zeros(60, 3)
    logits[torch.arange(60), torch.arange(60) % 2] = sure / 10 + 0.1
    rows, labels = trusted_rows(logits)
    # 60 rows, 3 classes: two of each class that is predicted; class 2 never is.
    assert rows.tolist() == [58, 56, 59, 57] and labels.tolist() == [0, 0, 1, 1]
    assert len(trusted_rows(logits, most=1)[0]) == 2
    assert trusted_rows(logits[:4])[0].tolist() == [2, 3]


def test_weight_gradients_are_those_of_autograd_even_of_frozen_weights() -> None:
    net = Net()
    net.train()
    net.head.requires_grad_(False)
    found = weight_gradients(net, CrossEntropy(), DATA, TUNED[0])
    free = Net()
    free.load_state_dict(TUNED[0])
    F.cross_entropy(free(torch.cat([b["x"] for b in DATA])), torch.cat([b["y"] for b in DATA])).backward()
    for name, parameter in free.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-6)
    assert net.training and all(torch.equal(t, BASE[n]) for n, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters()) and not net.head.weight.requires_grad
    assert net.first.weight.requires_grad
    with pytest.raises(ConfigError, match="at least one batch"):
        weight_gradients(net, CrossEntropy(), [])


def test_task_conflict_of_opposed_equal_and_orthogonal_tasks() -> None:
    class Direction(CrossEntropy):
        def __call__(self, model: nn.Module, batch: dict[str, Tensor]):  # type: ignore[no-untyped-def]
            from leaven.contracts import Loss

            return Loss((model.weight[0] * batch["d"][0]).sum(), torch.tensor(1.0), {})

    tasks = {"a": [1.0, 0.0], "b": [-2.0, 0.0], "c": [0.0, 1.0], "d": [3.0, 0.0]}
    found = task_conflict(
        nn.Linear(2, 1, bias=False), Direction(), {n: [{"d": torch.tensor([d])}] for n, d in tasks.items()}
    )
    assert found.tasks == ("a", "b", "c", "d")
    expected = torch.tensor([[1, -1, 0, 1], [-1, 1, 0, -1], [0, 0, 1, 0], [1, -1, 0, 1]], dtype=torch.float64)
    assert torch.allclose(found.cosines, expected)
    assert found.negative == pytest.approx(2 / 6)


def test_block_scores_are_the_gradients_of_the_coefficients_at_zero() -> None:
    found = block_scores(Net(7), BASE, VECTORS, CrossEntropy(), DATA)
    model = ComposedModel(Net(), BASE, VECTORS)
    sum(model.run(CrossEntropy(), batch).total / len(DATA) for batch in DATA).backward()
    assert found.shape == (3, 6)
    assert torch.allclose(found, model.coefficient.grad.abs().double(), atol=1e-6)


def test_selection_by_block_by_vector_and_at_random() -> None:
    table = torch.tensor([[1.0, 5.0, 0.0], [2.0, 0.0, 9.0], [3.0, 1.0, 1.0]])
    assert best_blocks(table, 2).tolist() == [[2, 0, 1], [1, 2, 2]]
    assert best_vectors(table, 2).tolist() == [[1, 1, 1], [0, 0, 0]]
    drawn = random_blocks(3, 500, 2, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 500) and (drawn[0] != drawn[1]).all()
    assert torch.bincount(drawn.flatten()).min() > 270
    with pytest.raises(ConfigError, match="1 to 3"):
        best_blocks(table, 4)


def test_composites_take_each_block_from_its_vector() -> None:
    chosen = best_blocks(block_scores(Net(), BASE, VECTORS, CrossEntropy(), DATA), 2)
    made = composite_vectors(Net(), VECTORS, chosen)
    model = ComposedModel(Net(), BASE, made)
    for place, name in enumerate(model.blocks):
        for j in range(2):
            assert torch.equal(made[j].tensor(name), VECTORS[chosen[j, place]].tensor(name))
    assert model.coefficient.shape == (2, 6)
    with pytest.raises(ModelError, match="missing from"):
        composite_vectors(nn.Linear(2, 2), VECTORS, chosen)
