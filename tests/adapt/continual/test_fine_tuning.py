import copy

import pytest
import torch
from adapt.continual.toy import Encoder, classes, quick, same, weights
from torch import nn
from torch.nn import functional as F

from leaven.adapt.continual import JointTraining, LinearProbe, SequentialFineTuning, TaskTraining, fine_tuning
from leaven.adapt.continual.heads import EncoderWithHead, TaskHeads
from leaven.adapt.continual.task_training import ClassCrossEntropy
from leaven.errors import ConfigError, DataError, ModelError
from leaven.training.budgets import Budget


def accuracy(learner: object, inputs: torch.Tensor, labels: list[str]) -> float:
    return sum(a == b for a, b in zip(learner.predict(inputs), labels, strict=True)) / len(labels)


def learn_in_tasks(learner: object, inputs: torch.Tensor, labels: list[str], size: int = 60) -> None:
    for start in range(0, len(inputs), size):
        learner.learn(inputs[start : start + size], labels[start : start + size])


def test_one_step_is_the_gradient_of_the_local_softmax() -> None:
    inputs, labels = classes(4, 8)
    learner = SequentialFineTuning(Encoder(), training=quick("1 step", rate=1e-3, clip=None))
    learner.learn(inputs[:16], labels[:16])
    encoder, heads = copy.deepcopy(learner.encoder), copy.deepcopy(learner.heads)
    learner.learn(inputs[16:], labels[16:])

    new = copy.deepcopy(learner.heads.tasks[1])
    # The head before its step: AdamW's first step is -rate * sign(gradient), which the same batch gives again.
    fresh = TaskHeads(heads.tasks).with_task(2, 8, 0.02, _generator(learner))
    logits = fresh(encoder(inputs[16:]))
    local = torch.tensor([0] * 8 + [1] * 8)
    F.cross_entropy(logits[:, 2:], local).backward()
    stepped = fresh.tasks[1].weight - 1e-3 * fresh.tasks[1].weight.grad.sign()
    torch.testing.assert_close(new.weight, stepped, atol=1e-6, rtol=0)
    moved = encoder.last.weight - 1e-3 * encoder.last.weight.grad.sign()
    torch.testing.assert_close(learner.encoder.last.weight, moved, atol=1e-6, rtol=0)
    assert same(weights(heads.tasks[0]), weights(learner.heads.tasks[0]))


def _generator(learner: SequentialFineTuning) -> torch.Generator:
    from leaven.training.randomness import mix

    return torch.Generator().manual_seed(mix(learner.training.config.seed, 1, 1))


def test_distillation_is_twice_one_minus_the_cosine_and_holds_the_features() -> None:
    inputs, labels = classes(4, 8)
    teacher, student = Encoder(0), Encoder(1)
    head = nn.Linear(8, 4)
    objective = fine_tuning._DistilledCrossEntropy(teacher, 0.7, [0, 1, 2, 3])
    batch = {"inputs": inputs, "target": torch.arange(4).repeat_interleave(8)}
    found = objective(EncoderWithHead(student, head), batch)
    cosine = F.cosine_similarity(student(inputs), teacher(inputs), dim=1)
    expected = F.cross_entropy(head(student(inputs)), batch["target"]) + 0.7 * (2 - 2 * cosine).mean()
    torch.testing.assert_close(found.total, expected, atol=1e-6, rtol=1e-6)

    drifts = []
    for weight in (0.0, 100.0):
        learner = SequentialFineTuning(Encoder(), softmax="seen", distillation=weight, training=quick())
        learner.learn(inputs, labels)
        similar = F.cosine_similarity(learner.encoder(inputs), Encoder()(inputs), dim=1)
        drifts.append(float(1 - similar.mean().detach()))
    assert drifts[1] < 0.2 * drifts[0]
    for wrong in ({"distillation": -1.0}, {"distillation": 1.0, "slow": 0}):
        with pytest.raises(ConfigError, match="distillation"):
            SequentialFineTuning(Encoder(), **wrong)


def test_the_loss_sees_the_given_columns_alone() -> None:
    logits = torch.randn(5, 6, requires_grad=True)
    batch = {"inputs": torch.zeros(5, 1), "target": torch.tensor([0, 1, 1, 0, 1])}
    ClassCrossEntropy([4, 2])(lambda _: logits, batch).total.backward()
    assert logits.grad[:, [0, 1, 3, 5]].abs().max() == 0
    torch.testing.assert_close(
        ClassCrossEntropy([4, 2])(lambda _: logits, batch).total, F.cross_entropy(logits[:, [4, 2]], batch["target"])
    )


def test_fine_tuning_trains_a_copy_and_forgets() -> None:
    inputs, labels = classes(6, 30)
    encoder = Encoder()
    before = weights(encoder)
    learner = SequentialFineTuning(encoder, training=quick("6 epochs"))
    learn_in_tasks(learner, inputs, labels)
    assert same(before, weights(encoder)) and not same(before, weights(learner.encoder))
    assert learner.heads.sizes == [2, 2, 2] and len(learner.fits) == 3
    joint = JointTraining(encoder, training=quick("6 epochs"))
    learn_in_tasks(joint, inputs, labels)
    assert accuracy(joint, inputs, labels) > accuracy(learner, inputs, labels) + 0.2
    assert accuracy(joint, inputs, labels) > 0.9 and same(before, weights(encoder))
    assert not learner.encoder.training and not joint.learner.encoder.training


def test_joint_training_equals_one_task_with_everything() -> None:
    inputs, labels = classes(4, 20)
    joint, once = JointTraining(Encoder(), training=quick()), SequentialFineTuning(Encoder(), training=quick())
    learn_in_tasks(joint, inputs, labels, 40)
    once.learn(inputs, labels)
    assert torch.equal(joint.scores(inputs), once.scores(inputs)) and joint.classes == once.classes
    # It starts anew with all that it was shown, and says what that took: 40 rows, then 80, in batches of 16.
    assert [fit.used.steps for fit in joint.fits] == [4 * 3, 4 * 5]


def test_slow_zero_is_a_linear_probe_on_any_callable() -> None:
    inputs, labels = classes(4, 20)
    encoder = Encoder(batch_norm=True)
    before = weights(encoder)
    frozen = SequentialFineTuning(encoder, slow=0, training=quick())
    probe = LinearProbe(encoder.forward, training=quick())
    vectors = SequentialFineTuning(nn.Identity(), slow=0, training=quick())
    features = encoder(inputs).detach()
    for learner, given in ((frozen, inputs), (probe, inputs), (vectors, features)):
        learn_in_tasks(learner, given, labels, 40)
    assert torch.equal(frozen.scores(inputs), probe.scores(inputs))
    torch.testing.assert_close(frozen.scores(inputs), vectors.scores(features))
    assert same(before, weights(encoder))


def test_the_slow_factor_scales_the_steps_of_the_encoder_alone() -> None:
    inputs, labels = classes(2, 16)
    fast, slow = (
        SequentialFineTuning(Encoder(), slow=factor, training=quick("1 step", clip=None)) for factor in (1.0, 0.01)
    )
    start = Encoder().last.weight
    for learner in (fast, slow):
        learner.learn(inputs, labels)
    torch.testing.assert_close(
        slow.encoder.last.weight - start, 0.01 * (fast.encoder.last.weight - start), atol=1e-7, rtol=0
    )
    assert torch.equal(slow.heads.tasks[0].weight, fast.heads.tasks[0].weight)


def test_exemplars_keep_earlier_classes() -> None:
    inputs, labels = classes(6, 30)
    replay = SequentialFineTuning(Encoder(), softmax="seen", exemplars_per_class=5, training=quick("6 epochs"))
    without = SequentialFineTuning(Encoder(), softmax="seen", training=quick("6 epochs"))
    for learner in (replay, without):
        learn_in_tasks(learner, inputs, labels)
    assert accuracy(replay, inputs, labels) > accuracy(without, inputs, labels) + 0.2
    assert sorted(replay.exemplars.labels) == sorted(f"class {at}" for at in range(6) for _ in range(5))
    assert without.exemplars.inputs is None


def test_classes_that_come_back_go_on_with_their_head() -> None:
    inputs, labels = classes(3, 20)
    learner = SequentialFineTuning(Encoder(), training=quick("15 epochs"))
    learner.learn(inputs, labels)
    learner.learn(-inputs, labels)
    assert learner.heads.sizes == [3] and learner.tasks == 2
    assert accuracy(learner, -inputs, labels) > 0.8


def test_runs_repeat_and_leave_the_global_random_state_alone() -> None:
    inputs, labels = classes(4, 20)
    state = torch.get_rng_state()
    first, second, other = (SequentialFineTuning(Encoder(dropout=0.2), training=quick(seed=seed)) for seed in (1, 1, 2))
    for learner in (first, second, other):
        learn_in_tasks(learner, inputs, labels, 40)
    assert torch.equal(first.scores(inputs), second.scores(inputs))
    assert not torch.equal(first.scores(inputs), other.scores(inputs))
    assert torch.equal(state, torch.get_rng_state())


def test_named_fields_and_augmentation() -> None:
    inputs, labels = classes(3, 20)

    class Pair(Encoder):
        def forward(self, batch: dict) -> torch.Tensor:
            return super().forward(batch["left"] + batch["right"])

    seen: list[torch.Tensor] = []

    def augment(batch: dict, generator: torch.Generator) -> dict:
        seen.append(batch["left"])
        return {**batch, "right": batch["right"] + 0.1 * torch.randn(batch["right"].shape, generator=generator)}

    plain = quick()
    training = TaskTraining(plain.budget, plain.config, plain.batch_size, augment)
    learner = SequentialFineTuning(Pair(), training=training)
    fields = {"left": inputs / 2, "right": inputs / 2}
    learner.learn(fields, labels)
    assert accuracy(learner, fields, labels) > 0.9 and len(seen) == 4 * 4


class Reader(Encoder):
    def forward(self, inputs: object) -> torch.Tensor:
        rows = inputs["row"] if isinstance(inputs, dict) else torch.stack([torch.full((12,), len(i)) for i in inputs])
        return super().forward(rows.float())


def test_inputs_that_the_loop_cannot_carry() -> None:
    learner = SequentialFineTuning(Reader(), training=quick())
    with pytest.raises(DataError, match="field 'row'"):
        learner.learn({"row": torch.ones(2, 12)}, ["a", "b"])
    with pytest.raises(DataError, match="got a list: tokenise or stack"):
        learner.learn(["one", "three"], ["a", "b"])
    assert learner.classes == [] and learner.heads.sizes == []
    probe = LinearProbe(Reader(), training=quick())
    probe.learn(["one", "three"], ["a", "b"])
    assert probe.classes == ["a", "b"]


def test_failures_leave_weights_heads_and_classes_as_they_were() -> None:
    inputs, labels = classes(6, 20)
    learner = SequentialFineTuning(Encoder(), training=quick())
    learner.learn(inputs[:60], labels[:60])
    before, state = learner.scores(inputs), weights(learner.encoder)

    class Interrupted(Exception):
        pass

    calls = iter(range(100))

    def broken(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if next(calls) == 3:
            raise Interrupted
        return batch

    plain = learner.training
    learner.training = TaskTraining(plain.budget, plain.config, plain.batch_size, broken)
    with pytest.raises(Interrupted):
        learner.learn(inputs[60:], labels[60:])
    learner.training = plain
    for error, message, given in (
        (DataError, "single class 'class 4'", (inputs[80:100], labels[80:100])),
        (DataError, "single class", (inputs[80:81], labels[80:81])),
        (DataError, "row 2 are not finite", (_with_nan(inputs[60:], 2), labels[60:])),
        (DataError, "59 labels for 60", (inputs[60:], labels[61:])),
    ):
        with pytest.raises(error, match=message):
            learner.learn(*given)
    assert torch.equal(before, learner.scores(inputs)) and same(state, weights(learner.encoder))
    assert learner.classes == ["class 0", "class 1", "class 2"] and learner.tasks == 1
    learner.learn(inputs[60:], labels[60:])
    assert len(learner.classes) == 6


def _with_nan(inputs: torch.Tensor, row: int) -> torch.Tensor:
    broken = inputs.clone()
    broken[row, 0] = float("nan")
    return broken


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ConfigError, "slow is 1.5", {"slow": 1.5}),
        (ConfigError, "softmax='local'", {"softmax": "local"}),
        (ConfigError, "needs softmax='seen'", {"exemplars_per_class": 5}),
        (ConfigError, "leave augment out", {"slow": 0, "training": TaskTraining(augment=lambda x, _: x)}),
    ],
)
def test_options_that_do_not_fit(error: type, message: str, options: dict) -> None:
    with pytest.raises(error, match=message):
        SequentialFineTuning(Encoder(), **options)


def test_only_modules_can_be_trained() -> None:
    with pytest.raises(ModelError, match="SequentialFineTuning: a function cannot be trained"):
        SequentialFineTuning(lambda x: x)
    with pytest.raises(DataError, match="one input, which batch normalisation"):
        learner = SequentialFineTuning(Encoder(batch_norm=True), softmax="seen", training=quick())
        learner.columns = {"other": 0}
        learner.heads = learner.heads.with_task(1, 8, 0.1, torch.Generator())
        learner.learn(torch.ones(1, 12), ["new"])


@pytest.mark.parametrize(
    ("budget", "rows", "steps"),
    [
        ("5 epochs", 33, 15),
        ("1 epoch", 5, 1),
        ("0.5 epochs", 64, 2),
        ("0 epochs", 64, 0),
        (7, 64, 7),
        ("40 examples", 64, 3),
    ],
)
def test_budgets_in_epochs_and_in_the_loops_units(budget: object, rows: int, steps: int) -> None:
    training = TaskTraining(budget, batch_size=16)
    assert training.steps_for(rows) == steps
    assert TaskTraining("30s").steps_for(64) is None and training.batch_size == 16
    assert TaskTraining("2 epochs", batch_size=16).budget_for(33) == Budget(examples=2 * 48)


def test_budgets_that_cannot_be_read() -> None:
    with pytest.raises(ConfigError, match="epoch"):
        TaskTraining("many epochs")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        TaskTraining(batch_size=0)


def test_zero_epochs_leave_the_encoder_alone() -> None:
    inputs, labels = classes(2, 8)
    learner = SequentialFineTuning(Encoder(), training=quick("0 epochs"))
    learner.learn(inputs, labels)
    assert same(weights(Encoder()), weights(learner.encoder)) and learner.fits == ()
