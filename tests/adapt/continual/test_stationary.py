from pathlib import Path

import pytest
import torch
from adapt.continual.toy import Encoder, classes, quick, same, weights
from torch import nn
from torch.nn import functional as F

from leaven.adapt.continual import CompatibleLearner, SimplexEncoder, TaskTraining, compatibility_matrix
from leaven.adapt.continual.simplex_encoder import Slots, require_on_simplex, simplex_agreement
from leaven.errors import ConfigError, DataError, ModelError
from leaven.objectives.backward_compatibility import higher_order_compatibility
from leaven.objectives.simplex import simplex_vertices

SLOTS = 12


def model(seed: int = 0) -> SimplexEncoder:
    return SimplexEncoder(Encoder(seed), 8, SLOTS, torch.Generator().manual_seed(seed)).eval()


def pretrained(seed: int, count: int = 4) -> SimplexEncoder:
    inputs, labels = classes(count, 30)
    learner = CompatibleLearner(
        model(seed), side="front", weight=1, exemplars_per_class=0, training=quick("12 epochs", rate=2e-2)
    )
    learner.learn(inputs, labels)
    return learner.version()


def test_slots_from_the_front_and_from_the_end() -> None:
    front = Slots(10, side="front").with_classes(["a", "b"]).with_classes(["c", "a"])
    end = Slots(10, reserved=3).with_classes(["x", "y"]).with_classes(["z"])
    assert front.of == {"a": 0, "b": 1, "c": 2} and end.of == {"x": 9, "y": 8, "z": 7}
    end.with_classes(range(4))
    with pytest.raises(ModelError, match="8 classes for 7 free slots"):
        end.with_classes(range(5))


def test_one_step_has_the_loss_of_the_paper() -> None:
    inputs, labels = classes(3, 8)
    start = model()
    training = TaskTraining("1 step", quick(rate=1e-3, clip=None, log_every=1).config, 24)
    learner = CompatibleLearner(model(), weight=0.1, training=training)
    learner.learn(inputs, labels)
    targets = torch.tensor([SLOTS - 1] * 8 + [SLOTS - 2] * 8 + [SLOTS - 3] * 8)
    features, old = start(inputs), start(inputs).detach()
    cross = F.cross_entropy(features @ simplex_vertices(SLOTS).t(), targets)
    loss = 0.1 * cross + 0.9 * higher_order_compatibility(old, features, targets)
    loss.backward()
    assert learner.fits[0].records[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    gradient = start.projection.weight.grad
    moved = start.projection.weight - 1e-3 * gradient.sign()
    certain = gradient.abs() > 1e-4 * gradient.abs().max()
    torch.testing.assert_close(learner.model.projection.weight[certain], moved[certain], atol=1e-5, rtol=0)
    assert not any("vertices" in name for name, _ in learner.model.named_parameters())


def test_the_old_model_is_the_tasks_start_and_does_not_move() -> None:
    inputs, labels = classes(4, 20)
    given = model()
    before = weights(given)
    learner = CompatibleLearner(given, training=quick())
    learner.learn(inputs[:40], labels[:40])
    first = learner.version()
    learner.learn(inputs[40:], labels[40:])
    assert same(before, weights(given)) and not same(before, weights(first))
    assert not same(weights(first), weights(learner.version()))
    assert learner.slots.of == {f"class {at}": SLOTS - 1 - at for at in range(4)}
    assert sorted(learner.exemplars.labels) == sorted(labels)


def test_classes_go_to_their_vertices_and_stay() -> None:
    inputs, labels = (part[120:] for part in classes(8, 30))
    learner = CompatibleLearner(pretrained(5), reserved=4, weight=1, training=quick("30 epochs", rate=5e-3))
    for start in (0, 60):
        learner.learn(inputs[start : start + 60], labels[start : start + 60])
    cosines = simplex_agreement(learner.version(), inputs, [learner.slots.of[label] for label in labels])
    assert set(cosines) == {11, 10, 9, 8} and min(cosines.values()) > 0.6
    hits = [a == b for a, b in zip(learner.predict(inputs), labels, strict=True)]
    assert sum(hits) / len(hits) > 0.9


def test_a_model_of_the_same_simplex_replaces_the_present_one() -> None:
    inputs, labels = classes(6, 30)
    elsewhere = pretrained(seed=5)
    proof = inputs[:120], [int(label[-1]) for label in labels[:120]]
    learner = CompatibleLearner(model(), training=quick())
    learner.learn(inputs[120:], labels[120:])
    learner.replace(elsewhere, *proof)
    assert same(weights(elsewhere), weights(learner.model)) and learner.model is not elsewhere
    assert learner.slots.reserved == 4 and len(learner.exemplars.labels) == 40
    before = weights(learner.model)
    for message, candidate, given in (
        ("mean cosine of", model(9), proof),
        ("mean cosine of", elsewhere, (proof[0], [(slot + 1) % 4 for slot in proof[1]])),
        ("simplex of 13 slots", SimplexEncoder(Encoder(), 8, 13).eval(), proof),
        ("slot 11 is a local class's", elsewhere, (proof[0], [11] * 120)),
        ("slot 40 is none of the simplex", elsewhere, (proof[0], [40] * 120)),
    ):
        with pytest.raises(ModelError, match=message):
            learner.replace(candidate, *given)
    assert same(before, weights(learner.model)) and learner.slots.reserved == 4
    require_on_simplex(elsewhere, *proof)


def test_features_of_models_trained_apart_meet_on_the_simplex_alone() -> None:
    query, gallery = classes(8, 30, seed=7), classes(8, 30, seed=8)
    shared = compatibility_matrix([pretrained(1, 8), pretrained(2, 8)], query, gallery)
    apart = compatibility_matrix([Encoder(1), Encoder(2)], query, gallery)
    assert shared.matrix[1, 0] > 85 and apart.matrix[1, 0] < 40
    assert apart.matrix[0, 0] > 70


def test_failures_leave_everything_as_it_was() -> None:
    inputs, labels = classes(6, 20)
    learner = CompatibleLearner(model(), reserved=8, training=quick())
    with pytest.raises(ModelError, match="no class has been learnt"):
        learner.predict(inputs)
    learner.learn(inputs[:60], labels[:60])
    before = learner.scores(inputs)
    broken = inputs[60:].clone()
    broken[1] = float("nan")
    for error, message, given in (
        (ModelError, "6 classes for 4 free slots", (inputs[60:], labels[60:])),
        (DataError, "row 1 are not finite", (broken, ["class 0"] * 60)),
        (DataError, "of type int", (inputs[60:], range(60))),
    ):
        with pytest.raises(error, match=message):
            learner.learn(*given)
    assert torch.equal(before, learner.scores(inputs)) and len(learner.classes) == 3
    with pytest.raises(ConfigError, match="weight=2"):
        CompatibleLearner(model(), weight=2)
    with pytest.raises(ModelError, match="8 dimensions, a simplex of 12 slots needs 11: give dim=8"):
        SimplexEncoder(Encoder(), None, SLOTS)(inputs)
    assert SimplexEncoder(nn.Identity(), None, 13)(inputs).shape == (120, 12)


def by_hand(models: list, query: tuple, gallery: tuple) -> list[list[float]]:
    rows = []
    for t, new in enumerate(models):
        asked, row = F.normalize(new(query[0]), dim=1), []
        for old in models[: t + 1]:
            found = F.normalize(old(gallery[0]), dim=1)
            names = sorted(set(gallery[1]))
            templates = [found[[label == name for label in gallery[1]]].mean(0) for name in names]
            hits = 0
            for one, label in zip(asked, query[1], strict=True):
                cosines = [float(torch.cosine_similarity(one, template, dim=0)) for template in templates]
                hits += names[cosines.index(max(cosines))] == label
            row.append(100 * hits / len(query[1]))
        rows.append(row)
    return rows


def test_the_matrix_equals_a_search_by_hand(tmp_path: Path) -> None:
    query, gallery = classes(5, 6, spread=1.5, seed=3), classes(5, 4, spread=1.5, seed=4)
    models = [Encoder(seed) for seed in range(3)]
    found = compatibility_matrix(models, query, gallery, chunk=7)
    with torch.no_grad():
        expected = by_hand(models, query, gallery)
    for at, row in enumerate(expected):
        assert found.matrix[at, : at + 1].tolist() == pytest.approx(row)
        assert found.matrix[at, at + 1 :].isnan().all()
    lower = [value for row in expected for value in row]
    assert found.accuracy == pytest.approx(sum(lower) / 6)
    pairs = [expected[t][s] > expected[s][s] for t in range(3) for s in range(t)]
    assert found.compatibility == pytest.approx(sum(pairs) / 3)
    assert found.gallery_may_be_kept(2, 0) == pairs[1]
    lines = found.save_csv(tmp_path / "m.csv").read_text().splitlines()
    assert lines[0] == "query model,gallery 0,gallery 1,gallery 2" and lines[1].endswith(",,") and len(lines) == 4


def test_equal_models_are_not_compatible_under_the_strict_rule() -> None:
    query, gallery = classes(5, 6, spread=1.5, seed=3), classes(5, 4, spread=1.5, seed=4)
    encoder = Encoder()
    found = compatibility_matrix([encoder] * 3, query, gallery)
    assert found.compatibility == 0 and not found.gallery_may_be_kept(1, 0)
    for column in range(3):
        assert len(set(found.matrix[column:, column].tolist())) == 1


def test_searches_that_cannot_be() -> None:
    query, gallery = classes(3, 2), classes(2, 2)
    with pytest.raises(DataError, match="class 'class 2', of which the gallery has no example"):
        compatibility_matrix([Encoder()], query, gallery)
    with pytest.raises(ModelError, match="model 1 gives 12 dimensions, model 0 8"):
        compatibility_matrix([Encoder(), nn.Identity()], gallery, gallery)
    with pytest.raises(ModelError, match="no models"):
        compatibility_matrix([], gallery, gallery)
