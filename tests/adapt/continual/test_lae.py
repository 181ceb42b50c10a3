import math
from pathlib import Path

import pytest
import torch
from adapt.continual.toy import Encoder, classes, quick, same, weights
from torch import nn

from leaven.adapt.continual import LAE, TaskTraining
from leaven.errors import ConfigError, DataError, ModelError
from leaven.training.budgets import Budget


class LowRank(nn.Module):
    """A stand-in for any parameter-efficient module: zero at first, with a buffer of its own."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        generator = torch.Generator().manual_seed(0)
        self.down = nn.Parameter(torch.randn(rank, base.in_features, generator=generator) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1
        return self.base(inputs) + inputs @ self.down.t() @ self.up.t()


def attach(encoder: nn.Module) -> nn.Module:
    encoder.first = LowRank(encoder.first)
    return encoder


PET = ["first.down", "first.up", "first.seen"]


def pet(learner: LAE) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in learner.encoder.state_dict().items() if name in PET}


def learn_in_tasks(learner: LAE, inputs: torch.Tensor, labels: list[str], size: int = 40) -> None:
    for start in range(0, len(inputs), size):
        learner.learn(inputs[start : start + size], labels[start : start + size])


def test_attached_modules_start_as_the_identity_and_only_they_learn() -> None:
    inputs, labels = classes(4, 20)
    encoder = Encoder()
    before = weights(encoder)
    learner = LAE(encoder, attach, training=quick())
    torch.testing.assert_close(learner.features(inputs), encoder(inputs).detach())
    learn_in_tasks(learner, inputs, labels)
    frozen = {name.replace(".base", ""): t for name, t in weights(learner.encoder).items() if name not in PET}
    assert same(before, frozen) and same(before, weights(encoder))
    assert pet(learner)["first.up"].abs().max() > 0


class Recorder:
    """Online modules after every step of a task, as the next batch is asked for."""

    def __init__(self, learner: LAE) -> None:
        self.learner, self.states = learner, []

    def __call__(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        self.states.append(pet(self.learner))
        return inputs


def test_the_offline_module_is_an_average_over_every_step() -> None:
    inputs, labels = classes(6, 20)
    learner = LAE(Encoder(), attach, decay=0.7, freeze=0.4)
    plain = quick("10 steps")
    recorder = Recorder(learner)
    learner.training = TaskTraining(plain.budget, plain.config, plain.batch_size, recorder)
    learner.learn(inputs[:40], labels[:40])
    assert learner.offline is None and len(recorder.states) == 10
    expected = pet(learner)
    for start in (40, 80):
        recorder.states.clear()
        learner.learn(inputs[start : start + 40], labels[start : start + 40])
        for state in (*recorder.states[1:], pet(learner)):
            expected = {name: 0.7 * expected[name] + 0.3 * state[name] for name in PET}
        for name in PET:
            torch.testing.assert_close(learner.offline.average[name], expected[name], atol=1e-6, rtol=1e-5)
        # Frozen in the first 4 of 10 steps, while the average goes on.
        moved = [
            not torch.equal(a["first.up"], b["first.up"])
            for a, b in zip(recorder.states, recorder.states[1:], strict=False)
        ]
        assert moved == [False] * 4 + [True] * 5
    assert set(learner.offline.average) == set(PET)


def test_the_online_module_is_never_reset() -> None:
    inputs, labels = classes(4, 20)
    learner = LAE(Encoder(), attach, freeze=1.0, training=quick())
    learner.learn(inputs[:40], labels[:40])
    after = pet(learner)
    learner.learn(inputs[40:], labels[40:])
    assert torch.equal(after["first.up"], pet(learner)["first.up"])
    torch.testing.assert_close(learner.offline.average["first.up"], after["first.up"])


def test_a_frozen_encoder_keeps_the_statistics_of_its_batches() -> None:
    inputs, labels = classes(4, 20)
    learner = LAE(Encoder(batch_norm=True), attach, training=quick())
    before = {name: tensor for name, tensor in weights(learner.encoder).items() if "norm" in name}
    assert "norm.running_mean" in {name.removeprefix("inner.") for name in before}
    learn_in_tasks(learner, inputs, labels)
    after = weights(learner.encoder)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_decay_zero_makes_all_experts_one() -> None:
    inputs, labels = classes(4, 20)
    learner = LAE(Encoder(), attach, decay=0, freeze=0, training=quick())
    learn_in_tasks(learner, inputs, labels)
    online, offline, ensemble = (learner.scores(inputs, expert) for expert in ("online", "offline", "ensemble"))
    assert torch.equal(online, offline) and torch.equal(online, ensemble)


def test_automatic_decay_moves_a_tenth_of_the_way_per_task() -> None:
    inputs, labels = classes(4, 20)
    learner = LAE(Encoder(), attach, training=quick("3 epochs"))
    learn_in_tasks(learner, inputs, labels)
    steps = 3 * math.ceil(40 / 16)
    assert learner.offline.decay == pytest.approx(0.9 ** (1 / steps))
    # The paper's 0.9999 at its 1040 steps per task is the same rule.
    assert pytest.approx(0.9999, abs=2e-6) == 0.9 ** (1 / 1040)


def test_the_vote_is_the_larger_probability_over_all_classes() -> None:
    inputs, labels = classes(6, 20)
    learner = LAE(Encoder(), attach, decay=0.99, training=quick(rate=0.05))
    learner.learn(inputs[:40], labels[:40])
    assert torch.equal(learner.scores(inputs), learner.scores(inputs, "online"))
    learn_in_tasks(learner, inputs[40:], labels[40:])
    state = weights(learner.encoder)
    online, offline, ensemble = (learner.scores(inputs, expert) for expert in ("online", "offline", "ensemble"))
    assert same(state, weights(learner.encoder))
    torch.testing.assert_close(ensemble, torch.maximum(online, offline))
    for one in (online, offline):
        torch.testing.assert_close(one.sum(1), torch.ones(len(inputs)))
    assert not torch.allclose(online, offline, atol=1e-3)
    logits = learner.heads(learner.encoder(inputs)).detach()
    torch.testing.assert_close(online, logits.softmax(1))
    learner.vote = "mean"
    torch.testing.assert_close(learner.scores(inputs), (online + offline) / 2)


def test_heads_are_shared_local_and_small_at_first() -> None:
    inputs, labels = classes(4, 20)
    learner = LAE(Encoder(), attach, training=TaskTraining("0 epochs"))
    learn_in_tasks(learner, inputs, labels)
    assert learner.heads.sizes == [2, 2]
    assert learner.heads.tasks[0].weight.std() < 3e-3 and learner.heads.tasks[0].bias.abs().max() == 0
    trained = LAE(Encoder(), attach, training=quick())
    trained.learn(inputs[:40], labels[:40])
    first = weights(trained.heads.tasks[0])
    trained.learn(inputs[40:], labels[40:])
    assert same(first, weights(trained.heads.tasks[0]))


def test_the_loss_is_over_the_new_classes_alone() -> None:
    inputs, labels = classes(5, 20)
    learner = LAE(Encoder(), attach, freeze=0, training=quick("40 steps", rate=0.02))
    learner.learn(inputs[:60], labels[:60])
    learner.training = quick("1 step", log_every=1)
    learner.learn(inputs[60:], labels[60:])
    # Small new heads beside large old ones: over all five classes it would be far more.
    assert learner.fits[-1].records[0]["loss"] == pytest.approx(math.log(2), abs=0.01)
    assert learner.heads(learner.features(inputs))[:, :3].abs().max() > 2


def test_experts_are_two_small_files(tmp_path: Path) -> None:
    inputs, labels = classes(6, 20)
    learner = LAE(Encoder(), attach, training=quick())
    with pytest.raises(ModelError, match="no class has been learnt"):
        learner.save(tmp_path)
    learner.learn(inputs[:40], labels[:40])
    assert sorted(path.name for path in learner.save(tmp_path / "one").iterdir()) == ["online.safetensors"]
    learn_in_tasks(learner, inputs[40:], labels[40:])
    folder = learner.save(tmp_path / "all")
    assert sorted(path.name for path in folder.iterdir()) == ["offline.safetensors", "online.safetensors"]
    assert all(path.stat().st_size < 5000 for path in folder.iterdir())
    again = LAE(Encoder(), attach, training=quick())
    again.restore(folder)
    assert again.classes == learner.classes and again.tasks == 3
    for expert in ("online", "offline", "ensemble"):
        torch.testing.assert_close(again.scores(inputs, expert), learner.scores(inputs, expert))
    # It goes on as the one that was saved does.
    more, names = classes(8, 20)
    for one in (learner, again):
        one.learn(more[120:], names[120:])
    torch.testing.assert_close(again.scores(inputs), learner.scores(inputs), atol=1e-6, rtol=1e-5)
    (folder / "offline.safetensors").unlink()
    kept = again.scores(inputs)
    with pytest.raises(ModelError, match=r"offline\.safetensors"):
        again.restore(folder)
    other = LAE(Encoder(), lambda e: setattr(e, "first", LowRank(e.first, 3)) or e)
    with pytest.raises(ModelError, match="not those that attach puts"):
        other.restore(tmp_path / "one")
    assert torch.equal(kept, again.scores(inputs)) and other.classes == []


def test_failures_leave_everything_as_it_was() -> None:
    inputs, labels = classes(6, 20)
    learner = LAE(Encoder(), attach, decay=0.9, freeze=0.0, training=quick())
    learn_in_tasks(learner, inputs[:80], labels[:80])
    before = {expert: learner.scores(inputs, expert) for expert in ("online", "offline", "ensemble")}

    class Interrupted(Exception):
        pass

    calls = iter(range(100))

    def broken(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if next(calls) == 4:
            raise Interrupted
        return batch

    plain = learner.training
    learner.training = TaskTraining(plain.budget, plain.config, plain.batch_size, broken)
    with pytest.raises(Interrupted):
        learner.learn(inputs[80:], labels[80:])
    learner.training = plain
    for message, given in (
        ("'class 3' was learnt in an earlier task", (inputs[60:100], labels[60:100])),
        ("single class 'class 4'", (inputs[80:100], labels[80:100])),
        ("39 labels for 40", (inputs[80:], labels[81:])),
    ):
        with pytest.raises(DataError, match=message):
            learner.learn(*given)
    for expert, scores in before.items():
        assert torch.equal(scores, learner.scores(inputs, expert))
    assert learner.tasks == 2


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("decay is 1", {"decay": 1}),
        ("freeze is 1.5", {"freeze": 1.5}),
        ("vote='sum'", {"vote": "sum"}),
        ("leaves open", {"training": TaskTraining("30s")}),
        ("leaves open", {"training": TaskTraining(Budget(tokens=100))}),
    ],
)
def test_options_that_do_not_fit(message: str, options: dict) -> None:
    with pytest.raises(ConfigError, match=message):
        LAE(Encoder(), attach, **options)


def test_experts_and_modules_that_are_not_there() -> None:
    with pytest.raises(ModelError, match="attach left nothing to train"):
        LAE(Encoder(), lambda encoder: encoder)
    inputs, labels = classes(2, 20)
    learner = LAE(Encoder(), attach, training=quick())
    learner.learn(inputs, labels)
    with pytest.raises(ModelError, match="no offline expert before the second task"):
        learner.scores(inputs, "offline")
    with pytest.raises(ConfigError, match="expert='best'"):
        learner.scores(inputs, "best")
