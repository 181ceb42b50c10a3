import pytest
import torch
from adapt.continual.toy import Encoder, classes, quick, same, weights
from torch import nn

from leaven.adapt.continual import APER, BatchNormReestimation, CosineTuning, SimpleCIL, TaskTraining
from leaven.adapt.continual.heads import CosineHead
from leaven.errors import ConfigError, DataError, ModelError


def test_zero_epochs_equal_simple_cil() -> None:
    inputs, labels = classes(6, 10)
    test, _ = classes(6, 20, spread=2.0, seed=4)
    plain, merged = SimpleCIL(Encoder()), APER(Encoder(), CosineTuning(training=quick("0 epochs")))
    for start in (0, 30):
        for learner in (plain, merged):
            learner.learn(inputs[start : start + 30], labels[start : start + 30])
    torch.testing.assert_close(merged.scores(test), plain.scores(test), atol=1e-7, rtol=0)
    assert merged.predict(test) == plain.predict(test) and merged.classes == plain.classes


def test_the_embedding_is_both_joined_and_only_the_first_task_adapts() -> None:
    inputs, labels = classes(6, 20)
    encoder = Encoder()
    before = weights(encoder)
    learner = APER(encoder, CosineTuning(training=quick()))
    learner.learn(inputs[:60], labels[:60])
    assert learner.adapted is not None
    adapted = weights(learner.adapted)
    learner.learn(inputs[60:], labels[60:])
    assert same(before, weights(encoder)) and same(adapted, weights(learner.adapted)) and not same(before, adapted)
    assert not any(parameter.requires_grad for parameter in learner.adapted.parameters())
    joined = torch.cat([encoder(inputs), learner.adapted(inputs)], dim=1).detach()
    assert learner.prototypes.statistics.dim == 2 * 8
    # No normalisation per branch: a raw mean over the joined features.
    torch.testing.assert_close(learner.prototypes.statistics.mean("class 5").float(), joined[-20:].mean(0))
    reference = SimpleCIL(nn.Identity())
    reference.learn(joined, labels)
    torch.testing.assert_close(learner.scores(inputs), reference.scores(joined), atol=1e-6, rtol=0)


def test_the_adapted_branch_alone() -> None:
    inputs, labels = classes(4, 20)
    both, alone = (APER(Encoder(), CosineTuning(training=quick()), merge=merge) for merge in (True, False))
    for learner in (both, alone):
        learner.learn(inputs, labels)
    assert alone.prototypes.statistics.dim == 8
    assert same(weights(both.adapted), weights(alone.adapted))


def test_any_modules_can_be_attached_and_the_frozen_branch_has_none() -> None:
    inputs, labels = classes(4, 20)

    class Scaled(nn.Module):
        def __init__(self, encoder: nn.Module) -> None:
            super().__init__()
            self.encoder, self.scale = encoder.requires_grad_(False), nn.Parameter(torch.ones(8))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.scale * self.encoder(inputs)

    encoder = Encoder()
    before = weights(encoder)
    learner = APER(encoder, CosineTuning(attach=Scaled, training=quick()))
    learner.learn(inputs, labels)
    assert isinstance(learner.adapted, Scaled) and not isinstance(learner.encoder, Scaled)
    assert same(before, weights(learner.adapted.encoder)) and (learner.adapted.scale != 1).all()


def test_prototypes_are_of_inputs_that_are_not_augmented() -> None:
    inputs, labels = classes(4, 20)
    plain = quick()
    noisy = TaskTraining(
        plain.budget, plain.config, plain.batch_size, lambda x, g: x + torch.randn(x.shape, generator=g)
    )
    learner = APER(Encoder(), CosineTuning(training=noisy))
    learner.learn(inputs, labels)
    joined = torch.cat([Encoder()(inputs), learner.adapted(inputs)], dim=1).detach()
    torch.testing.assert_close(learner.prototypes.statistics.mean("class 0").float(), joined[:20].mean(0))


def test_batch_statistics_become_those_of_the_first_task() -> None:
    inputs, labels = classes(4, 20)
    encoder = Encoder(batch_norm=True, dropout=0.5)
    before = weights(encoder)
    learner = APER(encoder, BatchNormReestimation(passes=3, batch_size=len(inputs)))
    learner.learn(inputs, labels)
    hidden = encoder.first(inputs).detach()
    torch.testing.assert_close(learner.adapted.norm.running_mean, hidden.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(learner.adapted.norm.running_var, hidden.var(0), atol=1e-5, rtol=1e-5)
    assert same(before, weights(encoder)) and learner.adapted.norm.momentum == 0.1
    assert torch.equal(learner.adapted.first.weight, encoder.first.weight)
    odd = BatchNormReestimation(batch_size=79)(Encoder(batch_norm=True), inputs, labels)
    torch.testing.assert_close(odd.norm.running_mean, hidden.mean(0), atol=1e-4, rtol=1e-4)


def test_the_cosine_head() -> None:
    head = CosineHead(5, 3, torch.Generator().manual_seed(0))
    features = torch.randn(4, 5)
    with torch.no_grad():
        head.scale.fill_(2.5)
    expected = torch.stack([torch.cosine_similarity(features, row[None], dim=1) for row in head.weight], dim=1)
    torch.testing.assert_close(head(features), 2.5 * expected)


def test_classes_may_come_back() -> None:
    inputs, labels = classes(4, 20)
    learner = APER(Encoder(), CosineTuning(training=quick("1 epoch")))
    learner.learn(inputs, labels)
    learner.learn(inputs + 1, labels)
    assert learner.prototypes.statistics.count("class 0") == 40


def test_failures() -> None:
    inputs, labels = classes(4, 20)
    learner = APER(Encoder(), CosineTuning(training=quick("1 epoch")))
    with pytest.raises(ModelError, match="no class has been learnt"):
        learner.scores(inputs)
    with pytest.raises(DataError, match="single class 'class 0'"):
        learner.learn(inputs[:20], labels[:20])
    with pytest.raises(DataError, match=r"rows 0, 1, .* are not finite"):
        learner.learn(torch.full_like(inputs, float("nan")), labels)
    assert learner.adapted is None and learner.classes == []
    with pytest.raises(ModelError, match="no batch normalisation"):
        APER(Encoder(), BatchNormReestimation()).learn(inputs, labels)
    with pytest.raises(DataError, match="one input"):
        APER(Encoder(batch_norm=True), BatchNormReestimation()).learn(inputs[:1], labels[:1])
    with pytest.raises(ConfigError, match="passes 0"):
        BatchNormReestimation(passes=0)
    with pytest.raises(ModelError, match="APER: a function cannot be trained"):
        APER(lambda x: x)
    with pytest.raises(ModelError, match="training mode"):
        APER(Encoder(dropout=0.1).train()).learn(inputs, labels)
    frozen = CosineTuning(attach=lambda encoder: encoder.requires_grad_(False))
    with pytest.raises(ModelError, match="nothing of the encoder can be trained"):
        APER(Encoder(), frozen).learn(inputs, labels)
    with pytest.raises(ModelError, match="adapt: a function cannot be trained"):
        APER(Encoder(), lambda encoder, inputs, labels: lambda x: x).learn(inputs, labels)
    broken = APER(Encoder(), lambda encoder, inputs, labels: nn.Sequential(encoder, nn.Threshold(1e9, float("nan"))))
    with pytest.raises(DataError, match="not finite"):
        broken.learn(inputs, labels)
    assert broken.adapted is None and broken.classes == []
