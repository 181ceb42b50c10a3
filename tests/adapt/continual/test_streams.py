import numpy as np
import pytest
import torch
from torch import nn

from leaven.adapt.continual import NearestMean, accuracy_matrix, class_increments, domain_increments, task_free
from leaven.errors import ConfigError, DataError

LABELS = [3, 1, 2, 0, 1, 4, 3, 0, 6, 5]


@pytest.mark.parametrize(("tasks", "sizes"), [(3, [3, 2, 2]), (7, [1] * 7), (1, [7]), ([1, 4, 2], [1, 4, 2])])
def test_tasks_share_out_all_rows_and_no_class_twice(tasks: object, sizes: list[int]) -> None:
    stream = class_increments(LABELS, tasks, seed=4)
    assert [len(task.groups) for task in stream] == sizes
    assert sorted(label for task in stream for label in task.groups) == list(range(7))
    assert sorted(row for task in stream for row in task.rows.tolist()) == list(range(10))
    for task in stream:
        assert {LABELS[row] for row in task.rows.tolist()} == set(task.groups)
        assert task.rows.tolist() == sorted(task.rows.tolist())


def test_the_order_of_classes() -> None:
    assert [task.groups[0] for task in class_increments(LABELS, 7)] == list(range(7))
    state = np.random.get_state()[1].copy()
    hundred = class_increments(range(100), 20, seed=1993)
    assert (np.random.get_state()[1] == state).all()
    # The order that the published runs with seed 1993 use on 100 classes starts so.
    assert [label for task in hundred for label in task.groups][:10] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]
    named = class_increments(["b", "a", "c"], 2, order=["c", "a", "b"])
    assert [task.groups for task in named] == [("c", "a"), ("b",)]


def test_rows_of_another_set() -> None:
    task = class_increments(["b", "a", "c"], 2)[0]
    assert task.groups == ("a", "b") and task.of(["c", "b", "b", "a"]).tolist() == [1, 2, 3]
    with pytest.raises(DataError, match="no row has one of"):
        task.of(["c"])


def test_domains_bring_the_same_classes_back() -> None:
    stream = domain_increments(["sun", "rain", "sun", "fog"], order=["rain", "sun", "fog"])
    assert [(task.groups, task.rows.tolist()) for task in stream] == [
        (("rain",), [1]),
        (("sun",), [0, 2]),
        (("fog",), [3]),
    ]


def test_batches_without_tasks() -> None:
    assert [batch.tolist() for batch in task_free(5, 2)] == [[0, 1], [2, 3], [4]]
    shuffled = [batch.tolist() for batch in task_free(50, 8, seed=1)]
    assert sorted(row for batch in shuffled for row in batch) == list(range(50)) and shuffled != [
        b.tolist() for b in task_free(50, 8, seed=2)
    ]


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ConfigError, "tasks is 8; expected from 1 to the 7 classes", {"tasks": 8}),
        (ConfigError, "7 in all", {"tasks": [3, 3]}),
        (ConfigError, "at least 1 each", {"tasks": [7, 0]}),
        (ConfigError, "not both", {"seed": 1, "order": range(7)}),
        (DataError, "class 9 of the order has no row", {"order": [*range(7), 9]}),
        (DataError, "class 6 is not in the order", {"order": range(6)}),
        (DataError, "names a class twice: 2", {"order": [2, *range(7)]}),
    ],
)
def test_streams_that_cannot_be(error: type, message: str, options: dict) -> None:
    with pytest.raises(error, match=message):
        class_increments(LABELS, **options)


def test_labels_without_an_order() -> None:
    with pytest.raises(DataError, match="no natural order"):
        class_increments([("a", 1), ("a", "b")], 2)
    with pytest.raises(ConfigError, match="rows 0"):
        task_free(0)


def test_the_matrix_is_accuracy_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 3, generator=generator) + torch.eye(4, 3).repeat_interleave(10, 0) * 2
    labels = [at // 10 for at in range(40)]
    stream = class_increments(labels, [1, 3])
    matrix = accuracy_matrix(NearestMean(nn.Identity()), stream, (inputs, labels), (inputs, labels))
    alone, both = NearestMean(nn.Identity()), NearestMean(nn.Identity())
    alone.learn(inputs[:10], labels[:10])
    both.learn(inputs, labels)
    guesses = both.predict(inputs)
    hits = [guess == label for guess, label in zip(guesses, labels, strict=True)]
    expected = [[100.0, 0.0], [10.0 * sum(hits[:10]), 100 * sum(hits[10:]) / 30]]
    assert matrix.tolist() == [pytest.approx(row) for row in expected]
    domains = ["x", "y"] * 20
    by_domain = accuracy_matrix(
        NearestMean(nn.Identity()),
        domain_increments(domains),
        (inputs, labels),
        (inputs, labels),
        groups=domains,
    )
    assert by_domain[1].mean() == pytest.approx(100 * sum(hits) / 40)
