"""Negation, adaptation without labels and aTLAS x K on small tasks."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from leaven.errors import ConfigError
from leaven.evidence.arenas.merge_classifiers import open_image_model
from leaven.evidence.arenas.merge_ground import Judge
from leaven.evidence.arenas.merge_task_images import TASKS, open_tasks
from leaven.evidence.arenas.merge_task_options import NEGATION, TEST_TIME
from leaven.evidence.arenas.merge_task_uses import TwoViews
from leaven.merge import ComposedModel, MixedObjective, PredictionEntropy
from leaven.modalities.image import pixel_values
from leaven.models.saved import save_model
from leaven.models.trunk import TrunkConfig
from leaven.models.vision import ImageEncoder, ImageEncoderConfig
from leaven.systems.merge.atlas import Atlas
from leaven.systems.running import run_in


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    trunk = TrunkConfig(dim=16, depth=2, heads=2, positions="none")
    encoder = ImageEncoder(ImageEncoderConfig(trunk, size=32, patch=8, labels=0))
    return str(save_model(tmp_path_factory.mktemp("images") / "encoder", encoder))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the specialists of all tests are kept."""
    return tmp_path_factory.mktemp("kept")


def system(images: str, recipe: str, **rest: Any) -> Atlas:
    made = Atlas.configured(smoke=True, model=images, recipe=recipe, **rest)
    assert isinstance(made, Atlas)
    return made


def test_what_is_forgotten_and_what_is_kept_are_apart(images: str, place: Path) -> None:
    ground = system(images, "negation", forget=2).ground(place)
    assert len(ground.ingredients) == 1
    specialist = system(images, "atlas").ground(place).ingredients[2]
    assert ground.ingredients[0].identity == specialist.identity
    targets, controls = (torch.cat([b[f"{name}/task"] for b in ground.batches]) for name in ("target", "control"))
    assert set(targets.tolist()) == {2} and set(controls.tolist()) == {0, 1, 3, 4, 5}
    # Every control row once; the target's rows come round again beside them.
    assert len(controls) == 5 * 2 * 4
    base = ground.filled(ground.base())
    for batch in ground.batches:
        target, control = (
            F.cross_entropy(base(batch[f"{name}/pixel_values"], batch[f"{name}/task"]), batch[f"{name}/label"])
            for name in ("target", "control")
        )
        torch.testing.assert_close(ground.objective(base, batch).total, control - target)


def test_the_control_decides_what_may_be_forgotten(images: str, place: Path) -> None:
    ground = system(images, "negation").ground(place)
    judge = ground.valid
    at_base = judge.figures(ground.filled(ground.base()))
    assert at_base["control kept"] == 100 and at_base["forgetting"] == 100 - at_base["target accuracy"]
    control = at_base["control accuracy"]
    kept = judge.summary({"target": 30.0, "control": 0.96 * control})
    lost = judge.summary({"target": 0.0, "control": 0.94 * control})
    assert kept["forgetting"] == 70 and lost["forgetting"] == pytest.approx(-1)


def test_negation_of_a_length_is_the_base_minus_the_vector(images: str, place: Path) -> None:
    made = system(images, "negated-arithmetic", forget_lengths=(0.5,))
    ground = made.ground(place)
    base, tuned = ground.base().state(), ground.ingredients[0].state()
    for name, tensor in made.merged(ground, "negated-arithmetic").weights[0].state().items():
        torch.testing.assert_close(tensor, base[name] - 0.5 * (tuned[name] - base[name]), atol=1e-6, rtol=0)
    # Learned: a number for each tensor, some of which go with the vector rather than against it.
    learned = made.merged(ground, "negation")
    factors = {
        round(float(((t - base[n]).flatten() @ d) / (d @ d)), 4)
        for n, t in learned.weights[0].state().items()
        if float((d := (tuned[n] - base[n]).flatten()).norm()) > 1e-4
    }
    assert min(factors) < 0 < max(factors)


def test_recipes_that_forget_share_their_ground(images: str, place: Path, tmp_path: Path) -> None:
    measured = {name: system(images, name).measure(place / name) for name in NEGATION}
    for one in measured.values():
        assert set(one.metrics) == {"target accuracy", "control accuracy", "control kept", "forgetting"}
    assert len({one.budget["training steps"] for one in measured.values()}) == 1
    assert measured["negation"].budget["trained numbers"] == len(list(encoder_of(images).parameters()))
    outcome = run_in(system(images, "negation"), tmp_path / "run")
    assert [row[0] for row in outcome.rows] == list(NEGATION)


def encoder_of(images: str) -> nn.Module:
    model = open_image_model(images).encoder
    assert isinstance(model, nn.Module)
    return model


def test_adaptation_without_labels_sees_none(images: str, place: Path) -> None:
    made = system(images, "test-time")
    ground = made.ground(place)
    assert len(ground.ingredients) == TASKS
    base = made.merged(ground, "zero-shot").weights[0].into(ground.model)
    for batch in ground.batches:
        assert set(batch) == {"pixel_values", "task", "trusted", "zero_shot"}
        rows = batch["trusted"]
        assert int(rows.sum()) == 3
        said = base(pixel_values=batch["pixel_values"][rows], task=batch["task"][rows]).argmax(1)
        assert torch.equal(said, batch["zero_shot"][rows])

    def unread(*_: object) -> Any:
        raise AssertionError("a label was read")

    blind = dataclasses.replace(ground, valid=Judge(("unlabelled",), unread, unread))
    for recipe in TEST_TIME:
        merged = made.merged(blind, recipe)
        assert not merged.chosen and len(merged.weights) == 1


def test_zero_shot_is_the_base_with_a_head_of_plain_print(images: str, place: Path) -> None:
    made = system(images, "zero-shot")
    ground = made.ground(place)
    state, base = made.merged(ground, "zero-shot").weights[0].state(), ground.base().state()
    for name, tensor in state.items():
        if name != "heads":
            torch.testing.assert_close(tensor, base[name], atol=0, rtol=0)
    task = open_tasks(classes=2, per_class=(12, 4, 6), size=32, seed=0)[TASKS + 1]
    assert not torch.equal(task.plain.images, task.valid.images)
    features = encoder_of(images)(pixel_values(task.plain.images)) - base["centre"]
    expected = torch.stack([features[task.plain.fields["label"] == label].mean(0) for label in (0, 1)])
    torch.testing.assert_close(state["heads"][0], F.normalize(expected, dim=1), atol=1e-5, rtol=1e-4)
    # The model that was adapted is another, under the same head.
    adapted = made.merged(ground, "test-time").weights[0].state()
    assert torch.equal(adapted["heads"], state["heads"])
    assert any(not torch.equal(adapted[name], state[name]) for name in state)


def test_views_are_of_the_same_rows_and_carry_no_label() -> None:
    seen = []

    def predict(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        del model
        seen.append(batch)
        return torch.zeros(len(batch["clean/task"]), 4)

    batch = {"pixel_values": torch.rand(3, 3, 8, 8), "task": torch.zeros(3, dtype=torch.int64)}
    extra = {"label": torch.arange(3), "trusted": torch.ones(3, dtype=torch.bool)}
    objective = TwoViews(PredictionEntropy(predict), 0.5)
    prepared = objective.prepare({**batch, **extra}, torch.Generator().manual_seed(0))
    views = {f"{view}/{name}" for view in ("clean", "augmented") for name in batch}
    assert set(prepared) == {*views, "trusted"}
    assert torch.equal(prepared["clean/pixel_values"], batch["pixel_values"])
    assert not torch.equal(prepared["augmented/pixel_values"], batch["pixel_values"])
    still = TwoViews(PredictionEntropy(predict), 0.0).prepare(batch, torch.Generator())
    assert torch.equal(still["augmented/pixel_values"], batch["pixel_values"])
    assert float(objective(nn.Identity(), prepared).total) == pytest.approx(float(torch.tensor(4.0).log()))


def test_groups_have_coefficients_of_their_own(images: str, place: Path, tmp_path: Path) -> None:
    made = system(images, "few-shot-groups", groups=3)
    blocks = len(list(encoder_of(images).parameters()))
    ground = made.ground(place)
    merged = made.merged(ground, "few-shot-groups")
    assert merged.used["trained numbers"] == TASKS * blocks * 3
    assert len(merged.chosen["mean coefficients"]) == TASKS
    merged.files["coefficients.csv"](tmp_path / "coefficients.csv")
    with (tmp_path / "coefficients.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == TASKS * blocks * 3 and {row["group"] for row in table} == {"0", "1", "2"}


def test_forgetting_goes_down_the_gradient(images: str, place: Path) -> None:
    ground = system(images, "negation").ground(place)
    model = ComposedModel(ground.model, ground.base(), ground.vectors())
    objective, batch = MixedObjective(ground.objective), ground.batches[0]
    before = objective(model, batch)
    before.total.backward()
    with torch.no_grad():
        gradient = model.coefficient.grad
        assert gradient is not None
        model.coefficient.sub_(1e-2 * gradient.sign())
    after = objective(model, batch)
    assert bool(after.total < before.total)
    assert float(after.parts["target"]) > float(before.parts["target"])


@pytest.mark.parametrize("recipe", ["negation", "negated-arithmetic", "test-time", "zero-shot", "few-shot-groups"])
def test_uses_that_need_several_tasks_say_so(recipe: str, images: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"recipe={recipe} needs several tasks: leave data=glyph-tasks"):
        system(images, recipe, data="glyphs").ground(tmp_path)
    with pytest.raises(ValidationError, match="forget"):
        system(images, recipe, forget=TASKS)
