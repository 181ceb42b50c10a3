import copy

import numpy as np
import pytest
import torch
from adapt.continual.toy import Encoder, classes, quick, same, weights
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from leaven.adapt.continual import SLCA, Alignment, ClassStatistics, LinearProbe, SequentialFineTuning, TaskTraining
from leaven.adapt.continual.alignment import GaussianReplay, align, normalised_logits
from leaven.adapt.continual.heads import TaskHeads
from leaven.errors import ConfigError, DataError, ModelError


def learn_in_tasks(learner: object, inputs: torch.Tensor, labels: list[str], sizes: tuple[int, ...]) -> None:
    start = 0
    for size in sizes:
        learner.learn(inputs[start : start + size], labels[start : start + size])
        start += size


def accuracy(learner: object, inputs: torch.Tensor, labels: list[str]) -> float:
    return sum(a == b for a, b in zip(learner.predict(inputs), labels, strict=True)) / len(labels)


def test_logits_are_divided_by_the_mean_of_their_tasks_norms() -> None:
    logits = torch.randn(4, 6)
    tasks = [torch.tensor([0]), torch.tensor([1, 2, 3]), torch.tensor([4, 5])]
    found = normalised_logits(logits, tasks, 0.1)
    for row, given in enumerate(logits.tolist()):
        norms = [abs(given[0]), np.linalg.norm(given[1:4]), np.linalg.norm(given[4:])]
        expected = np.array(given) / (np.mean(norms) + 1e-7) / 0.1
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["full", "diag", "shared"])
def test_replay_draws_the_stored_gaussians(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    statistics = ClassStatistics(kind)
    mixing = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [0.0, 0.3, 2.0]])
    for at in range(2):
        statistics.update(torch.randn(500, 3, generator=generator) @ mixing.t() * (at + 1) + 5 * at, [at] * 500)
    drawn: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    class Watched(GaussianReplay):
        def prepare(self, batch, generator):
            batch = super().prepare(batch, generator)
            for one, rows in drawn.items():
                rows.append(batch["inputs"][batch["target"] == one])
            return batch

    import leaven.adapt.continual.alignment as module

    heads = TaskHeads().with_task(1, 3, 0.1, generator).with_task(1, 3, 0.1, generator)
    options = Alignment(epochs=20, samples=1000, shrink=0.1, ridge=0.0)
    original, module.GaussianReplay = module.GaussianReplay, Watched
    try:
        align(heads, statistics, [[0], [1]], options, quick().config)
    finally:
        module.GaussianReplay = original
    for at, scale in ((0, 0.95), (1, 1.0)):
        rows = torch.cat(drawn[at]).double()
        assert len(rows) == 20 * 1000 and len(rows.unique(dim=0)) == len(rows)
        covariance = statistics.covariance(at)
        expected = torch.diag(covariance) if kind == "diag" else covariance
        spread = float(expected.diagonal().max())
        np.testing.assert_allclose(np.cov(rows.T.numpy()), expected.numpy(), atol=0.05 * spread)
        np.testing.assert_allclose(rows.mean(0).numpy(), scale * statistics.mean(at).numpy(), atol=0.05 * spread**0.5)


def test_with_a_shared_covariance_alignment_approaches_linear_discriminants() -> None:
    generator = torch.Generator().manual_seed(2)
    mixing = torch.tensor([[1.0, 0.0, 0.0], [1.2, 0.6, 0.0], [0.0, 0.5, 1.5]])
    centres = torch.tensor([[0.0, 0, 0], [2.0, 1, 0], [0.0, 2, 2], [-1.0, -2, 1]])
    labels = [at for at in range(4) for _ in range(400)]
    rows = centres[labels] + torch.randn(1600, 3, generator=generator) @ mixing.t()
    statistics = ClassStatistics("shared")
    statistics.update(rows, labels)
    heads = TaskHeads().with_task(1, 3, 0.02, generator).with_task(3, 3, 0.02, generator)
    options = Alignment(epochs=100, samples=1024, temperature=0, shrink=0)
    config = quick(rate=0.3, schedule="cosine", clip=None).config
    aligned, _ = align(heads, statistics, [[0], [1, 2, 3]], options, config)
    reference = LinearDiscriminantAnalysis(priors=[0.25] * 4).fit(rows.numpy(), labels)
    test = centres.repeat_interleave(500, 0) + torch.randn(2000, 3, generator=generator) @ mixing.t()
    mine, theirs = aligned(test).detach().numpy(), reference.decision_function(test.numpy())
    assert (mine.argmax(1) == theirs.argmax(1)).mean() > 0.99
    mine, theirs = mine - mine.mean(1, keepdims=True), theirs - theirs.mean(1, keepdims=True)
    assert np.abs(mine - theirs).mean() < 0.06 * np.abs(theirs).mean()


def test_without_rate_and_alignment_it_is_a_linear_probe() -> None:
    inputs, labels = classes(6, 20)
    learner = SLCA(Encoder(), slow=0, alignment=Alignment(epochs=0), training=quick())
    probe = LinearProbe(Encoder(), training=quick())
    for one in (learner, probe):
        learn_in_tasks(one, inputs, labels, (40, 80))
    assert torch.equal(learner.scores(inputs), probe.scores(inputs))
    full = SLCA(Encoder(), slow=1, alignment=Alignment(epochs=0), training=quick())
    sequential = SequentialFineTuning(Encoder(), training=quick())
    for one in (full, sequential):
        learn_in_tasks(one, inputs, labels, (40, 80))
    assert torch.equal(full.scores(inputs), sequential.scores(inputs))


def test_the_encoder_learns_slowly_and_the_heads_are_restored() -> None:
    inputs, labels = classes(6, 20)
    learner = SLCA(Encoder(), slow=0.05, training=quick())
    learner.learn(inputs[:40], labels[:40])
    assert learner.aligned is learner.heads
    first, encoder = weights(learner.heads.tasks[0]), weights(learner.encoder)
    assert not same(encoder, weights(Encoder()))
    learner.learn(inputs[40:80], labels[40:80])
    second = weights(learner.heads)
    assert same(first, weights(learner.heads.tasks[0])) and not same(encoder, weights(learner.encoder))
    assert not same(second, weights(learner.aligned)) and not same(first, weights(learner.aligned.tasks[0]))
    # All heads are aligned, the encoder is not touched.
    assert not torch.equal(learner.aligned.tasks[1].weight, learner.heads.tasks[1].weight)
    features = learner.features(inputs)
    torch.testing.assert_close(learner.scores(inputs), learner.aligned(features).detach())
    aligned_then = weights(learner.aligned)
    learner.learn(inputs[80:], labels[80:])
    assert {n: t for n, t in weights(learner.heads).items() if "tasks.2" not in n}.keys() == second.keys()
    assert all(torch.equal(weights(learner.heads)[name], tensor) for name, tensor in second.items())
    assert learner.heads.sizes == [2, 2, 2]

    cumulative = SLCA(Encoder(), slow=0.05, cumulative=True, training=quick())
    learn_in_tasks(cumulative, inputs, labels, (40, 40, 40))
    assert all(torch.equal(weights(cumulative.heads)[name], tensor) for name, tensor in aligned_then.items())


def test_statistics_are_of_test_time_features_and_never_refreshed() -> None:
    inputs, labels = classes(4, 20)
    plain = quick()
    noisy = TaskTraining(
        plain.budget, plain.config, plain.batch_size, lambda x, g: x + torch.randn(x.shape, generator=g)
    )
    learner = SLCA(Encoder(dropout=0.3), slow=0.5, training=noisy)
    learner.learn(inputs[:40], labels[:40])
    features = learner.features(inputs[:20]).double()
    torch.testing.assert_close(learner.statistics.mean("class 0"), features.mean(0))
    torch.testing.assert_close(learner.statistics.covariance("class 0"), torch.cov(features.t()))
    stored = learner.statistics.mean("class 0").clone()
    learner.learn(inputs[40:], labels[40:])
    assert torch.equal(stored, learner.statistics.mean("class 0"))
    drift = learner.drift(inputs[:20], labels[:20])
    moved = learner.features(inputs[:20]).double().mean(0)
    assert drift == {"class 0": pytest.approx(float(torch.cosine_similarity(stored, moved, dim=0)))}
    assert drift["class 0"] < 1 - 1e-6
    # Nothing but moments is kept.
    assert learner.exemplars.inputs is None


@pytest.mark.parametrize("kind", ["full", "diag", "shared"])
def test_alignment_repairs_what_local_losses_leave_apart(kind: str) -> None:
    inputs, labels = classes(8, 40)
    test, _ = classes(8, 40, seed=3)
    aligned = SLCA(Encoder(), slow=0.01, covariance=kind, training=quick(rate=0.02))
    plain = SLCA(Encoder(), slow=0.01, alignment=Alignment(epochs=0), training=quick(rate=0.02))
    for learner in (aligned, plain):
        learn_in_tasks(learner, inputs, labels, (80, 160, 80))
    assert aligned.task_classes == (
        ("class 0", "class 1"),
        tuple(f"class {at}" for at in range(2, 6)),
        ("class 6", "class 7"),
    )
    assert accuracy(aligned, test, labels) > accuracy(plain, test, labels) + 0.1


def test_failures_leave_everything_as_it_was() -> None:
    inputs, labels = classes(6, 20)
    learner = SLCA(Encoder(), slow=0.1, training=quick())
    with pytest.raises(ModelError, match="no class has been learnt"):
        learner.predict(inputs)
    learner.learn(inputs[:40], labels[:40])
    before, state = learner.scores(inputs), weights(learner.encoder)
    for message, given in (
        ("'class 1' was learnt in an earlier task.*NearestMean", (inputs[20:60], labels[20:60])),
        ("'class 2' has 1 input", (inputs[59:80], ["class 2", *labels[60:80]])),
        ("single class 'class 2'", (inputs[40:60], labels[40:60])),
    ):
        with pytest.raises(DataError, match=message):
            learner.learn(*given)
    # The task trains, then its covariance turns out singular.
    learner.alignment = Alignment(ridge=0.0)
    few = torch.cat([inputs[40:43], inputs[60:63]])
    with pytest.raises(DataError, match="covariance of class 'class 2' is not positive definite with a ridge of 0"):
        learner.learn(few, ["class 2"] * 3 + ["class 3"] * 3)
    assert torch.equal(before, learner.scores(inputs)) and same(state, weights(learner.encoder))
    assert learner.classes == ["class 0", "class 1"] and learner.statistics.classes == ["class 0", "class 1"]
    learner.alignment = Alignment()
    learner.learn(few, ["class 2"] * 3 + ["class 3"] * 3)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("epochs is -1", {"epochs": -1}),
        ("samples is 0", {"samples": 0}),
        ("temperature is -0.1", {"temperature": -0.1}),
        ("shrink is 2", {"shrink": 2}),
        ("ridge is nan", {"ridge": float("nan")}),
    ],
)
def test_alignment_options(message: str, options: dict) -> None:
    with pytest.raises(ConfigError, match=message):
        Alignment(**options)


def test_the_encoder_given_stays_as_it_is() -> None:
    encoder, (inputs, labels) = Encoder(), classes(2, 20)
    before = copy.deepcopy(weights(encoder))
    SLCA(encoder, training=quick()).learn(inputs, labels)
    assert same(before, weights(encoder))
