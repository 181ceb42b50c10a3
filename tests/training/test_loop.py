import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training.toy import Corrupted, Model, loader

from leaven.contracts import Loss
from leaven.data.mixture import Mixture
from leaven.errors import CheckpointError, ConfigError
from leaven.training.checkpoint import listed
from leaven.training.config import GuardConfig, TrainingConfig
from leaven.training.guard import TrainingDivergedError
from leaven.training.loop import fit
from leaven.training.randomness import mix

QUIET = {"progress": False}


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_equals_a_loop_written_by_hand(accumulate: int) -> None:
    model, objective = Model(), Corrupted()
    config = TrainingConfig(
        learning_rate=0.01,
        weight_decay=0.1,
        warmup=4,
        schedule="cosine",
        clip=0.5,
        accumulate=accumulate,
        seed=3,
        **QUIET,
    )
    fit(model, objective, loader(), "20 steps", config)

    mine, head = Model(), Corrupted()
    decayed = [p for p in mine.parameters() if p.ndim >= 2]
    plain = [p for p in (*mine.parameters(), *head.parameters()) if p.ndim < 2]
    adam = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=0.01
    )
    stream = iter(loader())
    for step in range(20):
        factor = step / 4 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / 16))
        for group in adam.param_groups:
            group["lr"] = 0.01 * factor
        adam.zero_grad()
        batches = [
            head.prepare(next(stream), torch.Generator().manual_seed(mix(3, step, micro, 0)))
            for micro in range(accumulate)
        ]
        losses = [head(mine, batch) for batch in batches]
        terms = sum(int(loss.count) for loss in losses)
        (sum(loss.total * loss.count for loss in losses) / terms).backward()
        torch.nn.utils.clip_grad_norm_([*mine.parameters(), *head.parameters()], 0.5)
        adam.step()
    for name, tensor in weights(model).items():
        torch.testing.assert_close(tensor, mine.state_dict()[name], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(objective.scale, head.scale, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("budget", "unit", "used"),
    [
        ("7 steps", "steps", 7),
        ("30 examples", "examples", 32),
        ("500 tokens", "tokens", None),
        ("1e6 flops", "flops", None),
    ],
)
def test_budgets_end_the_run_at_their_limit(budget: str, unit: str, used: int | None) -> None:
    result = fit(Model(), Corrupted(), loader(), budget, TrainingConfig(**QUIET))
    limit = float(budget.split(maxsplit=1)[0])
    assert result.ended == unit
    last_step = getattr(result.used, unit) / result.used.steps
    assert limit <= getattr(result.used, unit) < limit + 2 * last_step
    if used is not None:
        assert getattr(result.used, unit) == used


def test_a_budget_in_seconds_ends() -> None:
    result = fit(Model(), Corrupted(), loader(), "0.3s", TrainingConfig(**QUIET))
    assert result.ended == "seconds" and result.used.steps > 1


def test_flops_of_matrix_products_are_counted() -> None:
    class Product(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(VOCAB_DIM := 16, 16, bias=False)
            self.size = VOCAB_DIM

    class Square:
        def prepare(self, batch, generator):
            return batch

        def __call__(self, model, batch):
            out = model.linear(torch.ones(len(batch["ids"]), 16))
            return Loss(out.square().mean(), torch.tensor(1), {"square": out.mean().detach()})

    result = fit(Product(), Square(), loader(), "1 flops", TrainingConfig(**QUIET))
    # Forward and the weight's gradient: 2 * rows * in * out each; the input needs no gradient.
    assert result.used.flops == 2 * 2 * 8 * 16 * 16


def test_resuming_is_bit_exact(tmp_path: Path) -> None:
    config = TrainingConfig(checkpoint_every=7, log_every=3, ema=0.9, seed=1, **QUIET)

    def run(out: Path, stop_at: int | None = None) -> tuple[dict, list]:
        class Stopped(Exception):
            pass

        class Objective(Corrupted):
            def prepare(self, batch, generator):
                if stop_at is not None and int(batch["step"]) == stop_at:
                    raise Stopped
                return super().prepare(batch, generator)

        model = Model(dropout=0.2)
        try:
            result = fit(model, Objective(), loader(), "40 steps", config, out=out, evaluate=lambda m: {"one": 1.0})
        except Stopped:
            return {}, []
        return weights(model), result.records

    undisturbed, records = run(tmp_path / "a")
    for stop in (5, 17, 36):
        run(tmp_path / "b", stop)
    resumed, resumed_records = run(tmp_path / "b")
    assert same(undisturbed, resumed)
    timeless = [[{k: v for k, v in r.items() if k != "seconds"} for r in rs] for rs in (records, resumed_records)]
    assert timeless[0] == timeless[1]
    lines = (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed_records
    again, _ = run(tmp_path / "b")
    assert same(undisturbed, again)
    assert len(listed(tmp_path / "b", "step")) == config.keep


def test_a_run_is_only_resumed_with_its_own_settings_model_and_budget(tmp_path: Path) -> None:
    fit(Model(), Corrupted(), loader(), "5 steps", TrainingConfig(**QUIET), out=tmp_path)
    with pytest.raises(CheckpointError, match=r"learning_rate=0.001, now it is 0.002"):
        fit(Model(), Corrupted(), loader(), "5 steps", TrainingConfig(learning_rate=0.002, **QUIET), out=tmp_path)
    with pytest.raises(CheckpointError, match="budget '5 steps', now it is '6 steps'"):
        fit(Model(), Corrupted(), loader(), "6 steps", TrainingConfig(**QUIET), out=tmp_path)
    with pytest.raises(CheckpointError, match="seed"):
        fit(Model(), Corrupted(), loader(seed=1), "5 steps", TrainingConfig(**QUIET), out=tmp_path)
    other = Model()
    other.extra = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"another model.*extra.* only in the model"):
        fit(other, Corrupted(), loader(), "5 steps", TrainingConfig(**QUIET), out=tmp_path)


class Poisoned(Corrupted):
    """NaN or a huge loss at some steps; `healing` of them are met, then it is over."""

    def __init__(self, at: set[int], value: float, healing: int = 10**9) -> None:
        super().__init__()
        self.at, self.value, self.left = at, value, healing

    def forward(self, model, batch):
        loss = super().forward(model, batch)
        if int(batch["step"]) in self.at and self.left > 0:
            self.left -= 1
            return loss._replace(total=loss.total * self.value)
        return loss


def test_the_guard_returns_to_the_last_good_state_and_says_why() -> None:
    config = TrainingConfig(guard=GuardConfig(snapshot_every=5), **QUIET)
    model = Model()
    result = fit(model, Poisoned({13}, math.nan, healing=1), loader(), "30 steps", config)
    events = [record for record in result.records if "event" in record]
    assert [(e["step"], e["to_step"]) for e in events] == [(13, 10)] and "nan" in events[0]["reason"]
    assert result.used.steps == 30 and all(torch.isfinite(p).all() for p in model.parameters())


def test_the_guard_notices_a_spike_of_several_steps_but_not_of_one() -> None:
    guard = GuardConfig(window=12, spike_steps=3, snapshot_every=5)
    config = TrainingConfig(guard=guard, learning_rate=1e-4, **QUIET)
    one = fit(Model(), Poisoned({20}, 1e4, healing=1), loader(), "30 steps", config)
    assert not [r for r in one.records if "event" in r]
    three = fit(Model(), Poisoned({20, 21, 22}, 1e4, healing=3), loader(), "30 steps", config)
    (event,) = [r for r in three.records if "event" in r]
    assert event["step"] == 22 and event["to_step"] == 20 and "3 steps in a row" in event["reason"]


class HardTask(Corrupted):
    """The loss of task 1 is a thousand times that of task 0."""

    def forward(self, model, batch):
        loss = super().forward(model, batch)
        return loss._replace(total=loss.total * (1000.0 if int(batch["task"]) else 1.0))


def test_a_rare_task_of_higher_loss_is_no_spike() -> None:
    guard = GuardConfig(window=12, spike_steps=3, snapshot_every=5)
    config = TrainingConfig(guard=guard, learning_rate=1e-4, **QUIET)
    mixture = Mixture({"easy": loader(), "hard": loader()}, [0.75, 0.25], seed=4)
    drawn = []
    for _ in range(200):
        next(mixture)
        drawn.append(mixture.last_task)
    assert any(drawn[at : at + 3] == ["hard"] * 3 for at in range(30, 198))
    mixture = Mixture({"easy": loader(), "hard": loader()}, [0.75, 0.25], seed=4)
    result = fit(Model(), HardTask(), mixture, "200 steps", config)
    assert not [r for r in result.records if "event" in r]


def test_the_guard_gives_up_on_a_run_that_stays_broken() -> None:
    config = TrainingConfig(guard=GuardConfig(max_returns=2), **QUIET)
    with pytest.raises(TrainingDivergedError, match=r"step 4: loss is nan; gave up after 2 returns.*learning rate"):
        fit(Model(), Poisoned({4}, math.nan), loader(), "30 steps", config)


def test_best_weights_early_stopping_and_patience(tmp_path: Path) -> None:
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.9])
    seen = []

    def evaluate(model):
        seen.append(weights(model))
        return {"score": next(scores)}

    config = TrainingConfig(metric="score", patience=2, restore_best=True, evaluate_every=5, **QUIET)
    for out in (None, tmp_path):
        scores, seen = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.9]), []
        model = Model()
        result = fit(model, Corrupted(), loader(), "60 steps", config, out=out, evaluate=evaluate)
        assert result.ended == "patience" and result.best == (0.5, 10) and result.used.steps == 20
        assert same(weights(model), seen[1])


def test_a_misspelt_metric_is_named() -> None:
    with pytest.raises(ConfigError, match=r"metric is 'scor'.*did you mean 'score'"):
        fit(Model(), Corrupted(), loader(), 2, TrainingConfig(metric="scor", **QUIET), evaluate=lambda m: {"score": 1})
    with pytest.raises(ConfigError, match="needs an evaluation"):
        fit(Model(), Corrupted(), loader(), 2, TrainingConfig(metric="score", **QUIET))


def test_evaluation_does_not_disturb_the_training() -> None:
    def noisy(model):
        torch.rand(100)
        return {"x": 0.0}

    plain, evaluated = Model(dropout=0.3), Model(dropout=0.3)
    fit(plain, Corrupted(), loader(), "12 steps", TrainingConfig(**QUIET))
    fit(evaluated, Corrupted(), loader(), "12 steps", TrainingConfig(evaluate_every=0.25, **QUIET), evaluate=noisy)
    assert same(weights(plain), weights(evaluated))


def test_the_average_is_the_recursion_and_ends_in_the_model() -> None:
    class Recorder(Corrupted):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[torch.Tensor] = []

        def forward(self, model, batch):
            self.seen.append(model.spare.weight.detach().clone() + model.embed.weight.detach().mean())
            return super().forward(model, batch)

    model, recorder = Model(), Recorder()
    fit(model, recorder, loader(), "6 steps", TrainingConfig(ema=0.5, **QUIET))
    raw = Model()
    fit(raw, Corrupted(), loader(), "6 steps", TrainingConfig(**QUIET))
    trajectory = [*recorder.seen[1:], raw.spare.weight.detach() + raw.embed.weight.detach().mean()]
    average = recorder.seen[0]
    for value in trajectory:
        average = 0.5 * average + 0.5 * value
    torch.testing.assert_close(model.spare.weight + model.embed.weight.mean(), average)


def test_auto_precision_is_recorded_and_leaves_the_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaven.training.loop.faster_precision", lambda step, device: (step("fp32"), "fp32")[1])
    measured, plain = Model(dropout=0.1), Model(dropout=0.1)
    assert (
        fit(measured, Corrupted(), loader(), "8 steps", TrainingConfig(precision="auto", **QUIET)).precision == "fp32"
    )
    fit(plain, Corrupted(), loader(), "8 steps", TrainingConfig(**QUIET))
    assert same(weights(measured), weights(plain))


def test_bf16_trains_float32_weights() -> None:
    model = Model()
    result = fit(model, Corrupted(), loader(), "8 steps", TrainingConfig(precision="bf16", **QUIET))
    assert model.embed.weight.dtype == torch.float32 and result.precision == "bf16"
    reference = Model()
    fit(reference, Corrupted(), loader(), "8 steps", TrainingConfig(**QUIET))
    torch.testing.assert_close(model.embed.weight, reference.embed.weight, atol=0.02, rtol=0.1)


class Casts(TorchDispatchMode):
    """Counts the casts to bf16 of tensors of one shape."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") is torch.bfloat16:
            self.count += args[0].shape == self.shape
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_groups_of_like_length_train_as_the_whole_batch_and_share_the_casts_of_weights(precision: str) -> None:
    whole, grouped, casts = Model(), Model(), []
    for model, groups in ((whole, 1), (grouped, 4)):
        config = TrainingConfig(precision=precision, length_groups=groups, log_every=1, **QUIET)
        with Casts(model.trunk.blocks[0].ffn.up_proj.weight.shape) as counted:
            result = fit(model, Corrupted(), loader(), "3 steps", config)
        casts.append(counted.count)
        assert [record["loss"] for record in result.records] == pytest.approx(
            [record["lm"] for record in result.records], rel=1e-6
        )
    assert casts[0] == casts[1] and (casts[0] > 0) == (precision == "bf16")
    for mine, theirs in zip(grouped.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5 if precision == "fp32" else 1e-2, rtol=1e-3)


class SomeParts(Corrupted):
    """Names a part only of batches that have a long row."""

    def forward(self, model, batch):
        loss = super().forward(model, batch)
        long = {"long": loss.total.detach()} if batch["ids"].shape[1] > 10 else {}
        return Loss(loss.total, loss.count, {**loss.parts, **long})


def test_a_part_of_some_groups_is_the_mean_over_those() -> None:
    result = fit(Model(), SomeParts(), loader(), "3 steps", TrainingConfig(length_groups=4, log_every=1, **QUIET))
    assert all(record["lm"] == pytest.approx(record["loss"], rel=1e-6) for record in result.records)
    assert any(record["long"] != pytest.approx(record["loss"], rel=1e-4) for record in result.records)


def test_frozen_and_unused_parameters_stay() -> None:
    model = Model()
    model.trunk.requires_grad_(False)
    before = weights(model)
    fit(model, Corrupted(), loader(), "5 steps", TrainingConfig(**QUIET))
    after = weights(model)
    assert all(torch.equal(before[n], after[n]) == (not n.startswith(("embed", "head"))) for n in before)
    model.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(model, Corrupted(), loader(), "2 steps", TrainingConfig(**QUIET))
