"""What the merging systems promise of their comparisons: apart splits, equal budgets, arms that are what they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evidence.small_backbones import docstring_encoder
from scipy.spatial import geometric_slerp
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.evidence.arenas import (
    merge_images,
    merge_sweep,
    merge_task_fitting,
    merge_task_uses,
    merge_tasks,
    merge_text_ground,
)
from leaven.evidence.arenas.merge_embedders import SentenceEncoder, text_batch
from leaven.evidence.arenas.merge_ground import Judge, LogitEnsemble, Merged, judged
from leaven.evidence.arenas.merge_sweep import Sweep
from leaven.evidence.arenas.merge_task_images import TASKS, open_tasks
from leaven.merge import ComposedModel, best_blocks, open_weights, slerp_coefficients
from leaven.modalities.image import pixel_values
from leaven.models.saved import save_model
from leaven.models.trunk import TrunkConfig
from leaven.models.vision import ImageEncoder, ImageEncoderConfig
from leaven.systems.merge import self_positioning
from leaven.systems.merge.atlas import Atlas
from leaven.systems.merge.model_soups import ModelSoups
from leaven.systems.merge.self_positioning import SelfPositioning

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    trunk = TrunkConfig(dim=16, depth=1, heads=2, positions="none")
    encoder = ImageEncoder(ImageEncoderConfig(trunk, size=32, patch=8, labels=0))
    return str(save_model(tmp_path_factory.mktemp("images") / "encoder", encoder))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return docstring_encoder(tmp_path_factory.mktemp("texts") / "encoder")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what is trained for one test is found by the others."""
    return tmp_path_factory.mktemp("kept")


def copied(model: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def looking(seen: list[tuple[Tensor, Tensor]]) -> Callable[..., float]:
    """In the place of `accuracy`: notes images and targets."""

    def accuracy(model: nn.Module, pixels: Any, images: Tensor, targets: Tensor, **fields: Tensor) -> float:
        seen.append((images, targets))
        return 0.0

    return accuracy


def pixels_of(batches: Any) -> set[bytes]:
    return {image.numpy().tobytes() for batch in batches for image in batch["pixel_values"]}


def keys(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in pixel_values(images)}


@pytest.mark.parametrize(
    ("system", "pairs"),
    [
        (ModelSoups, {"greedy>best-single", "uniform>ensemble", "greedy>one-long-run", "uniform>different-starts"}),
        (SelfPositioning, {f"self-positioning>{than}" for than in ("joint", "joint-uniform", "task-arithmetic")}),
        (Atlas, {"atlas>isotropic", "atlas>task-arithmetic", "few-shot>lora", "negation>negated-arithmetic"}),
    ],
)
def test_claims_are_against_the_strong_rivals_and_arms_change_no_budget(system: Any, pairs: set[str]) -> None:
    assert pairs <= {f"{claim.better}>{claim.than}" for claim in system.claims}
    changed = {name for arm in system.arms.values() for name in arm}
    assert changed <= {"recipe", "two_starts", "probe", "penalty", "shots"}
    for claim in system.claims:
        better, than = (system.arms[arm] for arm in (claim.better, claim.than))
        assert better.get("shots") == than.get("shots")


def test_every_run_is_trained_by_its_own_settings(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(ModelSoups.configured(smoke=True, model=images, runs=5).config, tmp_path)
    base = sweep.base.state()
    looked: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(merge_sweep, "accuracy", looking(looked))
    seen: list[Any] = []

    def fit(model: nn.Module, objective: Any, data: Any, budget: Any, config: Any, **rest: Any) -> Any:
        assert same(copied(model), base)
        seen.append(SimpleNamespace(objective=objective, steps=budget.steps, config=config, seed=data.seed, **rest))
        return SimpleNamespace(records=[])

    monkeypatch.setattr(merge_sweep, "fit", fit)
    for at in range(5):
        sweep.ingredient(at)
    sweep.long_run(3)
    long = seen.pop()
    for plan, run in zip(sweep.plans, seen, strict=True):
        used = (run.config.learning_rate, run.config.weight_decay, run.config.seed, run.seed)
        assert used == (plan.learning_rate, plan.weight_decay, plan.seed, plan.seed)
        assert (run.objective.strength, run.objective.smoothing) == (plan.augment, plan.smoothing)
        # 3 classes of 12 images, 12 a step.
        assert run.evaluate is None and run.steps == 3 * plan.epochs
    # The long run: settings of its run, steps of all, and the best of as many evaluations on the validation split.
    assert long.steps == sum(run.steps for run in seen) and long.config.learning_rate == sweep.plans[3].learning_rate
    assert long.config.restore_best and long.config.evaluate_every == pytest.approx(1 / 5)
    long.evaluate(sweep.classifier.model)
    assert len(looked) == 1 and torch.equal(looked[0][0], sweep.data.valid.images)


def test_soups_are_picked_on_validation_images_and_reported_on_test_images(
    images: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = ModelSoups.configured(smoke=True, model=images)
    ground = system.ground(place)
    data = Sweep(system.config, place).data
    test = data.test.read()
    looked: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(merge_images, "accuracy", looking(looked))
    for recipe in system.recipes:
        system.merged(ground, recipe)
    ground.valid.figures(ground.model)
    assert len(looked) > 2 * len(ground.ingredients)
    for shown, targets in looked:
        assert torch.equal(shown, data.valid.images) and torch.equal(targets, data.valid.targets(data.classes))
    looked.clear()
    ground.test.read().score(ground.model, "clean")
    assert torch.equal(looked[0][0], test.images) and torch.equal(looked[0][1], test.targets(data.classes))
    assert not keys(test.images) & (keys(data.valid.images) | keys(data.train.images))


def test_recipes_of_soups_as_worked_by_hand(images: str, place: Path) -> None:
    system = ModelSoups.configured(smoke=True, model=images)
    ground = system.ground(place)
    start = ground.ingredients[0].state()
    biases = [4.0, 0.0, 10.0, 20.0]
    runs = [open_weights({**start, "head.bias": torch.full_like(start["head.bias"], bias)}) for bias in biases]
    near_8 = Judge(("clean",), lambda m, task: -abs(m.get_parameter("head.bias")[0].item() - 8), dict)  # type: ignore[arg-type]
    ground = dataclasses.replace(ground, ingredients=runs, valid=near_8, figure="clean")
    # Alone -4, -8, -2, -12; then {10, 4} -1 is better, {10, 4, 0} and {10, 4, 20} are not.
    expected = {"greedy": [7.0], "uniform": [8.5], "best-single": [10.0], "average-single": biases, "ensemble": biases}
    for recipe, values in expected.items():
        weights = system.merged(ground, recipe).weights
        assert [float(one.tensor("head.bias")[0]) for one in weights] == values
        assert all(torch.equal(one.tensor("head.weight"), start["head.weight"]) for one in weights)
    assert system.merged(ground, "greedy").chosen["accepted"] == [2, 0]
    # The average run is the mean of the runs' figures, the ensemble that of their logits.
    assert judged(ground, Merged(tuple(runs)), near_8) == {"clean": -6.5}
    models = [nn.Linear(4, 3) for _ in range(3)]
    ensemble = LogitEnsemble([Named(model) for model in models])
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ensemble(x=x), sum(model(x) for model in models) / 3)


class Named(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_two_vectors_are_interpolated_as_scipy_does(t: float) -> None:
    u, v = F.normalize(torch.randn(2, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64), dim=1)
    oracle = geometric_slerp(u.numpy(), v.numpy(), t)
    vectors = torch.stack([3 * u, 0.5 * v])
    first, second = slerp_coefficients(torch.tensor([1 - t, t], dtype=torch.float64), vectors @ vectors.T)
    np.testing.assert_allclose((first * u + second * v).numpy(), oracle, atol=1e-14)


def test_joint_training_draws_by_size_or_uniformly_with_the_steps_of_all(
    texts: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = SelfPositioning.configured(smoke=True, model=texts)
    ground = system.ground(place)
    seen: list[Any] = []

    def fit(model: nn.Module, objective: Any, data: Any, budget: int, config: Any, **rest: Any) -> Any:
        assert same(copied(model), ground.base().state())
        seen.append((data.rates.tolist(), budget, config, [len(loader.items) for loader in data.loaders.values()]))
        return SimpleNamespace(records=[], evaluation=None)

    monkeypatch.setattr(merge_text_ground, "fit", fit)
    for recipe in ("joint", "joint-uniform"):
        system.merged(ground, recipe)
    (by_size, steps, config, sizes), uniform = seen
    assert by_size == pytest.approx([8 / 24, 16 / 24]) and uniform[0] == [0.5, 0.5]
    assert sizes == [8, 16] and uniform[1:] == (steps, config, sizes)
    assert steps == 2 * system.config.task_steps + system.config.search_steps


def test_conflict_is_the_cosine_of_the_tasks_gradients(texts: str, place: Path) -> None:
    system = SelfPositioning.configured(smoke=True, model=texts)
    system.ground(place)
    ground, gradients = system.texts, []
    for rows in ground.probe.values():
        ground.model.zero_grad()
        ground.objective(ground.model, text_batch(rows[:4], ground.store)).total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in ground.model.parameters() if p.grad is not None]))
    cosine = float(F.cosine_similarity(*gradients, dim=0))
    found = ground.conflict(ground.model)
    assert found["gradient cosine"] == pytest.approx(cosine, abs=1e-5)
    assert found["negative gradient cosines"] == float(cosine < 0)


def test_the_search_is_on_the_probe_and_gives_weights(texts: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = SelfPositioning.configured(smoke=True, model=texts, lengths=(0.7,))
    ground = system.ground(place)
    searched, given = self_positioning.self_position, []

    def watched(*rest: Any, **options: Any) -> Any:
        given.append(rest)
        return searched(*rest, **options)

    monkeypatch.setattr(self_positioning, "self_position", watched)
    merged = system.merged(ground, "self-positioning")
    held_out, store = system.texts.probe, system.texts.store
    parts = [rows[at : at + 4] for rows in held_out.values() for at in (0, 4)]
    rows = {store.fields([row.positive for row in part])[0].numpy().tobytes() for part in parts}
    assert {batch["positive"].numpy().tobytes() for batch in given[0][4]} == rows and len(rows) == 4
    base, (one, two) = ground.base().state(), [weights.state() for weights in ground.ingredients]
    first, second = merged.chosen["factor of each task vector"]
    assert len(merged.weights) == 1 and isinstance(ground.model, SentenceEncoder)
    for name, tensor in merged.weights[0].state().items():
        expected = base[name] + first * (one[name] - base[name]) + second * (two[name] - base[name])
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=0)
    # Equal proportions: half-way on the arc between the two vectors, each seen as one, at the best of the lengths.
    u, v = (torch.cat([(s[n] - base[n]).flatten() for n in base]).double() for s in (one, two))
    angle = torch.acos(F.cosine_similarity(u, v, dim=0))
    arc = 0.7 * (angle / 2).sin() / angle.sin() * (u + v)
    equal = system.merged(ground, "slerp-equal").weights[0].state()
    moved = torch.cat([(equal[n] - base[n]).flatten() for n in base]).double()
    torch.testing.assert_close(moved, arc, atol=1e-6, rtol=0)


def atlas(images: str, recipe: str) -> Atlas:
    made = Atlas.configured(smoke=True, model=images, recipe=recipe)
    assert isinstance(made, Atlas)
    return made


def test_coefficients_see_no_test_image(images: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = open_tasks(classes=2, per_class=(12, 4, 6), size=32, seed=0)
    test = set().union(*(keys(task.test.read().images) for task in tasks))
    grounds = {recipe: atlas(images, recipe).ground(place) for recipe in ("atlas", "few-shot", "negation", "test-time")}
    added, shots, forgotten, unlabelled = (
        pixels_of(
            [{"pixel_values": value} for b in ground.batches for name, value in b.items() if "pixel_values" in name]
        )
        for ground in grounds.values()
    )
    of_six = set().union(*(keys(task.valid.images) for task in tasks[:TASKS]))
    assert added == forgotten == of_six and not added & test
    train = [keys(task.train.images) for task in tasks]
    assert shots < train[TASKS] and len(shots) == 4 and unlabelled == train[TASKS + 1]
    assert not test & set().union(*train, *(keys(task.valid.images) for task in tasks))
    # What is picked, is picked on the validation images; what is reported is not.
    looked: list[tuple[Tensor, Tensor]] = []
    for module in (merge_tasks, merge_task_uses):
        monkeypatch.setattr(module, "accuracy", looking(looked))
    for recipe, part in (("atlas", range(TASKS)), ("few-shot", [TASKS]), ("negation", range(TASKS))):
        valid = set().union(*(keys(tasks[at].valid.images) for at in part))
        for split, right in ((grounds[recipe].valid, valid), (grounds[recipe].test.read(), test)):
            looked.clear()
            split.figures(grounds[recipe].model)
            assert looked and set().union(*(keys(shown) for shown, _ in looked)) <= right


def test_vectors_are_what_training_on_each_task_leaves(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, starts, ends, data = merge_tasks.fit, [], [], []

    def fit(model: nn.Module, objective: Any, loader: Any, *rest: Any, **options: Any) -> Any:
        starts.append(copied(model))
        data.append(next(iter(loader)))
        found = trained(model, objective, loader, *rest, **options)
        ends.append(copied(model))
        return found

    monkeypatch.setattr(merge_tasks, "fit", fit)
    ground = atlas(images, "atlas").ground(tmp_path)
    tasks = open_tasks(classes=2, per_class=(12, 4, 6), size=32, seed=0)
    assert len(ends) == TASKS and all(same(start, ground.base().state()) for start in starts)
    for task, (batch, end, weights) in enumerate(zip(data, ends, ground.ingredients, strict=True)):
        assert set(batch["task"].tolist()) == {task} and pixels_of([batch]) <= keys(tasks[task].train.images)
        assert same(end, weights.state())


def test_one_number_for_each_vector_gets_the_same_steps_rates_and_images(
    images: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, seen = atlas(images, "atlas"), []
    ground = system.ground(place)
    trained = merge_task_fitting.fit

    def fit(model: Any, objective: Any, stream: Any, steps: int, config: Any, **rest: Any) -> Any:
        seen.append((stream.batches, steps, config))
        assert not model.coefficient.any()
        return trained(model, objective, stream, steps, config, **rest)

    monkeypatch.setattr(merge_task_fitting, "fit", fit)
    merged = {recipe: system.merged(ground, recipe) for recipe in ("atlas", "isotropic")}
    assert seen[0] == seen[1] and len(seen) == 2
    blocks = len(list(ground.model.parameters()))
    assert [one.used["trained numbers"] for one in merged.values()] == [TASKS * blocks, TASKS]
    base, total = ground.base().state(), merged["isotropic"].weights[0].state()
    means = merged["isotropic"].chosen["mean coefficients"]
    for name, tensor in total.items():
        steps = [weights.state()[name] - base[name] for weights in ground.ingredients]
        expected = base[name] + sum(c * step for c, step in zip(means, steps, strict=True))
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=0)


def test_adaptations_start_as_one_model_and_blocks_are_chosen_by_their_gradient(
    images: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, vectors, logits = atlas(images, "few-shot"), [], []
    ground = system.ground(place)
    (batch,) = ground.batches
    inputs = {name: batch[name] for name in ("pixel_values", "task")}

    def composed(model: nn.Module, base: Any, chosen: Any, **options: Any) -> ComposedModel:
        vectors.append(chosen)
        return ComposedModel(model, base, chosen, **options)

    def fit(model: nn.Module, objective: Any, stream: Any, steps: int, *_: Any, **__: Any) -> Any:
        assert stream.batches is ground.batches and steps == system.config.few_shot_steps
        logits.append(model(**inputs).detach())
        return SimpleNamespace(best=(0.0, 0), records=[])

    monkeypatch.setattr(merge_task_fitting, "ComposedModel", composed)
    monkeypatch.setattr(merge_task_fitting, "fit", fit)
    for recipe in ("few-shot", "few-shot-gradient-blocks", "few-shot-random-blocks", "lora", "linear-probe"):
        system.merged(ground, recipe)
        # As judging does: what was judged last stays in the model.
        with torch.no_grad():
            for name, parameter in ground.model.named_parameters():
                parameter.add_(0.0 if "head" in name else 0.1)
    assert len(logits) == 5 and all(torch.allclose(one, logits[0], atol=1e-5) for one in logits)
    every, by_gradient, at_random = vectors[:3]
    assert [len(one) for one in vectors[:3]] == [TASKS, 2, 2]
    model = ComposedModel(ground.model, ground.base(), every)
    model.run(ground.objective, batch).total.backward()
    best = best_blocks(model.coefficient.grad.abs(), 2)
    found = [
        [torch.equal(chosen[j].tensor(name), every[best[j, at]].tensor(name)) for j in (0, 1)]
        for chosen in (by_gradient, at_random)
        for at, name in enumerate(model.blocks)
    ]
    blocks = len(model.blocks)
    assert all(map(all, found[:blocks])) and not all(map(all, found[blocks:]))
