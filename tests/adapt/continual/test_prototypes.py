from pathlib import Path

import numpy as np
import pytest
import torch
from adapt.continual.toy import Encoder, classes, same, weights
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from torch import nn

from leaven.adapt.continual import LinearProbe, NearestMean, SimpleCIL, class_increments, task_free
from leaven.errors import ConfigError, DataError, ModelError

LEARNERS = [NearestMean, SimpleCIL]


def features_of(inputs: torch.Tensor) -> np.ndarray:
    return Encoder()(inputs).detach().double().numpy()


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_nearest_mean_predicts_as_nearest_centroid_on_unit_vectors() -> None:
    train, labels = classes(10, 20, spread=1.5)
    test, _ = classes(10, 60, spread=1.5, seed=5)
    learner = NearestMean(Encoder())
    for rows in task_free(len(train), 7, seed=3):
        learner.learn(train[rows], [labels[row] for row in rows.tolist()])
    expected = NearestCentroid().fit(unit(features_of(train)), labels).predict(unit(features_of(test)))
    assert learner.predict(test) == expected.tolist()


def test_simple_cil_is_the_largest_cosine_to_raw_means() -> None:
    train, labels = classes(10, 20, spread=1.5)
    test, _ = classes(10, 20, spread=1.5, seed=5)
    learner = SimpleCIL(Encoder())
    learner.learn(train, labels)
    raw = features_of(train)
    means = np.stack([raw[[label == name for label in labels]].mean(0) for name in learner.classes])
    np.testing.assert_allclose(learner.scores(test).numpy(), unit(features_of(test)) @ unit(means).T, atol=1e-6)


def test_the_two_rules_differ_where_means_differ_in_length() -> None:
    wide = torch.tensor([[1.0, 0.0], [-0.9, 0.5], [0.0, 1.0], [0.1, 1.0]])
    inputs, labels = torch.cat([wide, torch.tensor([[1.0, -0.2], [1.0, -0.3]])]), ["wide"] * 4 + ["narrow"] * 2
    query = torch.tensor([[1.0, -1.6]])
    nearest, cosine = NearestMean(nn.Identity()), SimpleCIL(nn.Identity())
    nearest.learn(inputs, labels)
    cosine.learn(inputs, labels)
    assert cosine.predict(query) == ["narrow"]
    lengths = nearest.statistics.means().norm(dim=1)
    assert float(lengths[0]) < 0.8 < float(lengths[1]) < 1.0
    with pytest.raises(ConfigError, match="cannot join"):
        nearest.merge(cosine)


def test_one_sample_per_class_is_the_nearest_neighbour() -> None:
    train, _ = classes(8, 1)
    test, _ = classes(8, 20, spread=2.0, seed=2)
    learner = NearestMean(Encoder())
    learner.learn(train, list(range(8)))
    neighbours = KNeighborsClassifier(1).fit(unit(features_of(train)), range(8))
    assert learner.predict(test) == neighbours.predict(unit(features_of(test))).tolist()
    # Means of one unit vector have equal length: then the cosine rule agrees.
    cosine = SimpleCIL(Encoder())
    cosine.learn(train, list(range(8)))
    assert cosine.predict(test) == learner.predict(test)


@pytest.mark.parametrize("make", LEARNERS)
@pytest.mark.parametrize("batch", [1, 13, 512])
def test_order_and_batch_size_do_not_matter(make: type, batch: int) -> None:
    train, labels = classes(5, 20)
    test, _ = classes(5, 20, seed=1)
    whole = make(Encoder())
    whole.learn(train, labels)
    for seed in range(5):
        learner = make(Encoder(), chunk=4)
        for rows in task_free(len(train), batch, seed=seed):
            learner.learn(train[rows], [labels[row] for row in rows.tolist()])
        columns = [learner.classes.index(label) for label in whole.classes]
        torch.testing.assert_close(learner.scores(test)[:, columns], whole.scores(test), atol=1e-5, rtol=0)
        assert learner.predict(test) == whole.predict(test)


@pytest.mark.parametrize("make", LEARNERS)
def test_a_class_that_comes_back_moves_its_mean(make: type) -> None:
    inputs, labels = classes(3, 20)
    other = inputs @ torch.randn(12, 12, generator=torch.Generator().manual_seed(3)) * 0.3
    recurring, joint = make(Encoder()), make(Encoder())
    recurring.learn(inputs, labels)
    first = recurring.scores(other)
    recurring.learn(other, labels)
    joint.learn(torch.cat([inputs, other]), labels + labels)
    torch.testing.assert_close(recurring.scores(other), joint.scores(other), atol=1e-5, rtol=0)
    assert not torch.allclose(first, recurring.scores(other), atol=1e-2)


def test_learners_on_parts_of_the_data_merge_and_forget() -> None:
    inputs, labels = classes(4, 20)
    whole, left, right = (NearestMean(Encoder()) for _ in range(3))
    whole.learn(inputs, labels)
    left.learn(inputs[:50], labels[:50])
    right.learn(inputs[50:], labels[50:])
    left.merge(right)
    torch.testing.assert_close(left.scores(inputs), whole.scores(inputs), atol=1e-5, rtol=0)
    left.forget("class 1")
    assert left.classes == ["class 0", "class 2", "class 3"] and "class 1" not in left.predict(inputs)


def test_partial_fit_chains_and_files_come_back(tmp_path: Path) -> None:
    inputs, labels = classes(4, 10)
    learner = NearestMean(Encoder()).partial_fit(inputs[:20], labels[:20]).partial_fit(inputs[20:], labels[20:])
    path = learner.save(tmp_path / "birds.safetensors")
    again = NearestMean.load(path, Encoder())
    assert again.classes == learner.classes and torch.equal(again.scores(inputs), learner.scores(inputs))
    with pytest.raises(ModelError, match="nearest mean of unit features"):
        SimpleCIL.load(path, Encoder())


def test_the_encoder_is_never_changed_and_nothing_of_the_data_is_kept() -> None:
    encoder, (inputs, labels) = Encoder(), classes(3, 10)
    before = weights(encoder)
    learner = NearestMean(encoder)
    learner.learn(inputs, labels)
    assert same(before, weights(encoder))
    kept = [tensor for one in learner.statistics._classes.values() for tensor in (one.total,)]
    assert sum(tensor.numel() for tensor in kept) == 3 * 8


@pytest.mark.parametrize("make", LEARNERS)
def test_failed_calls_change_nothing_and_say_why(make: type) -> None:
    inputs, labels = classes(3, 10)
    learner = make(Encoder())
    with pytest.raises(ModelError, match="no class has been learnt yet"):
        learner.predict(inputs)
    learner.learn(inputs, labels)
    before = learner.scores(inputs)
    broken = inputs.clone()
    broken[4] = float("nan")
    for error, message, call in (
        (DataError, "row 4 are not finite", lambda: learner.learn(broken, labels)),
        (DataError, "29 labels for 30", lambda: learner.learn(inputs, labels[:-1])),
        (DataError, "of type int, before labels were str", lambda: learner.learn(inputs, range(30))),
        (DataError, "no inputs", lambda: learner.learn(inputs[:0], [])),
        (DataError, "no class 'bird'", lambda: learner.forget("bird")),
    ):
        with pytest.raises(error, match=message):
            call()
    learner.encoder.drop.p = 0.5
    learner.encoder.train()
    with pytest.raises(ModelError, match=r"drop .*drops units with probability 0\.5"):
        learner.learn(inputs, labels)
    learner.encoder.eval()
    assert torch.equal(before, learner.scores(inputs))
    learner.encoder = nn.Identity()
    with pytest.raises(ModelError, match="12 dimensions, those learnt before 8"):
        learner.learn(inputs, labels)
    learner.encoder = nn.Sequential(Encoder(), nn.Threshold(100.0, 0.0))
    with pytest.raises(DataError, match="all zero"):
        learner.predict(inputs)
    with pytest.raises(ConfigError, match="chunk is 0"):
        make(Encoder(), chunk=0)


def test_a_single_sample_is_enough() -> None:
    learner = SimpleCIL(Encoder())
    learner.learn(torch.ones(1, 12), ["only"])
    assert learner.predict(torch.randn(3, 12)) == ["only"] * 3


def test_prototypes_do_not_forget_where_a_sequential_probe_does() -> None:
    inputs, labels = classes(8, 20)
    stream = class_increments(labels, 4)
    nearest, probe = NearestMean(Encoder()), LinearProbe(Encoder())
    for task in stream:
        nearest.learn(inputs[task.rows], [labels[row] for row in task.rows.tolist()])
        probe.learn(inputs[task.rows], [labels[row] for row in task.rows.tolist()])
    score = [sum(a == b for a, b in zip(one.predict(inputs), labels, strict=True)) for one in (nearest, probe)]
    assert score[0] > score[1] + 10
