import math

import pytest
import torch
from torch.nn import functional as F

from leaven.errors import ConfigError, DataError, ModelError
from leaven.objectives.backward_compatibility import higher_order_compatibility
from leaven.objectives.simplex import SimplexHead, simplex_vertices


@pytest.mark.parametrize("slots", [2, 3, 10, 64, 1024])
def test_the_gram_matrix_is_that_of_a_regular_simplex(slots: int) -> None:
    vertices = simplex_vertices(slots).double()
    assert vertices.shape == (slots, slots - 1)
    expected = (slots * torch.eye(slots) - torch.ones(slots, slots)) / (slots - 1)
    torch.testing.assert_close(vertices @ vertices.t(), expected.double(), atol=2e-6, rtol=0)
    torch.testing.assert_close(vertices.sum(0), torch.zeros(slots - 1, dtype=torch.float64), atol=1e-4, rtol=0)


def test_the_two_forms_of_the_last_vertex_are_one() -> None:
    for slots in (3, 64):
        dim = slots - 1
        rows = torch.cat([torch.eye(dim), torch.full((1, dim), (1 - math.sqrt(dim + 1)) / dim)])
        rows = rows - rows.mean(0)
        torch.testing.assert_close(simplex_vertices(slots), F.normalize(rows, dim=1), atol=1e-6, rtol=1e-5)


def test_the_head_has_nothing_to_train_and_nothing_to_save() -> None:
    head = SimplexHead(5)
    assert list(head.parameters()) == [] and head.state_dict() == {}
    features = torch.randn(3, 4)
    torch.testing.assert_close(head(features), features @ simplex_vertices(5).t())
    # A feature on a vertex is told from all others by the same margin.
    logits = head(simplex_vertices(5))
    torch.testing.assert_close(logits.diagonal(), torch.ones(5))
    assert (logits.argmax(1) == torch.arange(5)).all()
    with pytest.raises(ModelError, match="8 dimensions for a simplex of 5 slots; expected 4"):
        head(torch.zeros(2, 8))
    with pytest.raises(ConfigError, match="1 slots"):
        SimplexHead(1)


def loop(old: torch.Tensor, new: torch.Tensor, labels: list[int], scale: float, same_class: str) -> float:
    total = 0.0
    for i in range(len(labels)):
        terms = []
        for j in range(len(labels)):
            cosine = float(torch.cosine_similarity(old[i], new[j], dim=0))
            if labels[j] != labels[i] or (same_class == "drop" and i == j):
                terms.append(math.exp(scale * cosine))
            elif same_class == "zero":
                terms.append(1.0)
        total += -scale * float(torch.cosine_similarity(old[i], new[i], dim=0)) + math.log(sum(terms))
    return total / len(labels)


@pytest.mark.parametrize("same_class", ["zero", "drop"])
@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1, 1], [3] * 6, list(range(6))])
def test_compatibility_equals_a_loop(same_class: str, labels: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.randn(6, 7, generator=generator).double() for _ in range(2))
    for scale in (1.0, 10.0):
        found = higher_order_compatibility(old, new, torch.tensor(labels), scale=scale, same_class=same_class)
        assert float(found) == pytest.approx(loop(old, new, labels, scale, same_class), abs=1e-9)


def test_zeros_are_kept_in_the_sum() -> None:
    # Two rows of one class with equal features: only zeros are left, and each adds one to the sum.
    features = torch.ones(2, 3)
    loss = higher_order_compatibility(features, features, torch.tensor([0, 0]))
    assert float(loss) == pytest.approx(-10 + math.log(2), abs=1e-5)


def test_lengths_do_not_matter_and_old_features_need_no_gradient() -> None:
    old, new = torch.randn(4, 5), torch.randn(4, 5, requires_grad=True)
    labels = torch.tensor([0, 1, 0, 2])
    loss = higher_order_compatibility(old, new, labels)
    torch.testing.assert_close(higher_order_compatibility(3 * old, 0.1 * new, labels), loss)
    loss.backward()
    assert new.grad is not None and torch.isfinite(new.grad).all()


def test_bad_input() -> None:
    good = torch.zeros(3, 4)
    with pytest.raises(DataError, match=r"\(3, 4\) and \(3, 5\)"):
        higher_order_compatibility(good, torch.zeros(3, 5), torch.zeros(3))
    with pytest.raises(DataError, match="labels"):
        higher_order_compatibility(good, good, torch.zeros(2))
    with pytest.raises(ConfigError, match="same_class='mask'"):
        higher_order_compatibility(good, good, torch.zeros(3), same_class="mask")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="scale=0"):
        higher_order_compatibility(good, good, torch.zeros(3), scale=0)
