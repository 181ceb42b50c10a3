import numpy as np
import pytest
import torch
from adapt.continual.toy import Encoder
from torch import nn

from leaven.adapt.continual.features import joined, read_features, rows_in, take
from leaven.adapt.continual.learner import checked_labels
from leaven.errors import DataError, ModelError
from leaven.models.trunk import Trunk, TrunkConfig


def test_chunks_give_the_features_of_the_whole() -> None:
    encoder, inputs = Encoder(), torch.randn(23, 12)
    expected = encoder(inputs).detach()
    for chunk in (1, 5, 23, 100):
        torch.testing.assert_close(read_features(encoder, inputs, chunk=chunk), expected)
    assert not read_features(encoder, inputs).requires_grad


def test_any_form_of_inputs_and_any_callable() -> None:
    vectors = np.arange(8.0).reshape(4, 2)
    assert read_features(lambda texts: vectors[[int(t) for t in texts]], ["2", "0"]).tolist() == [[4, 5], [0, 1]]
    fields = {"a": torch.ones(3, 2), "b": torch.arange(3)}
    read = read_features(lambda batch: batch["a"] * batch["b"][:, None], fields, chunk=2)
    assert read.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert read_features(nn.Identity(), torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_taking_and_joining() -> None:
    assert take(["a", "b", "c"], torch.tensor([2, 0])) == ["c", "a"]
    assert joined([["a"], ["b"]]) == ["a", "b"]
    both = joined([{"x": torch.zeros(1)}, {"x": torch.ones(2)}])
    assert isinstance(both, dict) and both["x"].tolist() == [0, 1, 1]
    with pytest.raises(DataError, match="different kinds"):
        joined([torch.zeros(1), ["a"]])
    with pytest.raises(DataError, match="different lengths"):
        rows_in({"x": torch.zeros(1), "y": torch.zeros(2)})


@pytest.mark.parametrize(
    "part",
    [
        nn.Dropout(0.1),
        nn.BatchNorm1d(12),
        nn.MultiheadAttention(4, 2, dropout=0.2),
        Trunk(TrunkConfig(dim=8, depth=1, heads=2, dropout=0.1)),
    ],
)
def test_an_encoder_left_in_training_mode_is_refused(part: nn.Module) -> None:
    encoder = nn.Sequential(nn.Identity())
    encoder.append(nn.Identity())
    encoder[1].hidden = part
    encoder.train()
    with pytest.raises(ModelError, match=r"training mode.*encoder.eval\(\)"):
        read_features(encoder, torch.zeros(2, 12))
    read_features(encoder.eval(), torch.zeros(2, 12))


def test_the_order_of_a_norm_is_no_rate() -> None:
    pooling = nn.Identity()
    pooling.p = 3.0
    read_features(pooling.train(), torch.ones(2, 3))


def test_training_mode_without_chance_in_it_is_no_fault() -> None:
    read_features(nn.Sequential(nn.Linear(12, 3), nn.Dropout(0.0)).train(), torch.zeros(2, 12))


def test_bad_features_are_named_by_row() -> None:
    inputs = torch.ones(600, 3)
    inputs[[7, 300], 1] = torch.tensor([float("nan"), float("inf")])
    with pytest.raises(DataError, match="rows 7, 300 are not finite"):
        read_features(nn.Identity(), inputs)
    inputs[[7, 300], 1] = 1.0
    inputs[12] = 0.0
    read_features(nn.Identity(), inputs)
    with pytest.raises(DataError, match="row 12 are all zero"):
        read_features(nn.Identity(), inputs, nonzero=True)
    # Finite numbers whose squares are not.
    assert read_features(nn.Identity(), torch.full((1, 2), 1e30)).tolist() == [[pytest.approx(1e30)] * 2]


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda x: x[:, None], r"shape \(4, 1, 3\).*as_features"),
        (lambda x: {"states": x}, "gave a dict"),
        (lambda x: x[:1], "1 features for 4 inputs"),
        (lambda x: x[:, :2], "2 dimensions, those learnt before 3"),
        (nn.Linear(5, 3), r"fails on inputs of shape \(4, 3\): mat1 and mat2 .*are the inputs of the size"),
    ],
)
def test_what_is_no_features_is_refused(encoder: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_features(encoder, torch.ones(4, 3), width=3)


def test_labels_of_any_form_become_plain_values() -> None:
    assert checked_labels(torch.tensor([1, 2]), 2) == [1, 2]
    assert checked_labels(np.array(["a", "b"]), 2) == ["a", "b"]
    assert checked_labels([np.int64(3), torch.tensor(4)], 2, known=[7]) == [3, 4]
    assert checked_labels([("x", 1)], 1) == [("x", 1)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1], "1 labels for 2 inputs"),
        ("ab", "single string"),
        (torch.zeros(2, 1), "one dimension"),
        ([1, None], "row 1: the label is None"),
        ([0.5, float("nan")], "row 1: the label is nan"),
        ([1, True], "row 1: the label True is of type bool, in row 0 labels were int"),
        ([["a"], ["b"]], "row 0: a list cannot be a label"),
    ],
)
def test_bad_labels_are_refused(labels: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        checked_labels(labels, 2)


def test_a_type_that_changes_between_calls_is_refused() -> None:
    with pytest.raises(DataError, match="row 0: the label '1' is of type str, before labels were int"):
        checked_labels(["1", "2"], 2, known=[1])
