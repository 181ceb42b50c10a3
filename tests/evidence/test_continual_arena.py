import json
import re
from collections import Counter
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from evidence.small_images import encoder_folder, image_folder

from leaven.adapt.continual import NearestMean, SequentialFineTuning, accuracy_matrix
from leaven.errors import ConfigError, DataError
from leaven.evidence.arenas import continual_arena
from leaven.evidence.arenas.continual_arena import ContinualSystem, training_records
from leaven.evidence.arenas.continual_encoder import raw_pixels
from leaven.evidence.arenas.continual_options import ContinualConfig
from leaven.evidence.arenas.continual_search_data import SearchConfig, open_search_data
from leaven.evidence.arenas.continual_stream import (
    class_stream,
    figures_of,
    image_parts,
    scored,
    shifted_domains,
    task_sizes,
    teach,
)
from leaven.evidence.arenas.image_data import ImageData, ImageSet, class_groups, open_images
from leaven.evidence.arenas.merge_shifts import SHIFTS, shifted
from leaven.evidence.compare import compare
from leaven.evidence.report import write_report
from leaven.evidence.selection import ReadTwiceError, Sealed
from leaven.training.randomness import mix


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return encoder_folder(tmp_path_factory.mktemp("model") / "vit")


class Means(ContinualSystem[ContinualConfig]):
    slug = "means"
    Config = ContinualConfig
    seen: ClassVar[list[tuple]] = []

    def learner(self, encoder, training):
        weights = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        self.seen.append((training, encoder, weights))
        return NearestMean(encoder)


class Tuned(Means):
    slug = "tuned"

    def learner(self, encoder, training):
        super().learner(encoder, training)
        return SequentialFineTuning(encoder, training=training)


def opened(spec: str, seed: int = 0, tasks: int = 5):
    data = open_images(spec, size=32, classes=10, per_class=(8, 3, 4), gap=0.2, seed=seed)
    return class_stream(image_parts(data), task_sizes(len(data.classes), tasks), seed=seed, spec=spec)


@pytest.mark.parametrize("spec", ["glyphs", "folder"])
def test_a_stream_gives_every_image_once_in_tasks_of_their_own_classes(spec: str, folder: str) -> None:
    stream = opened(folder if spec == "folder" else spec)
    assert sorted(torch.cat([task.rows for task in stream.tasks]).tolist()) == list(range(80))
    assert [len(task.groups) for task in stream.tasks] == [2] * 5 and stream.classes == 10
    assert len({label for task in stream.tasks for label in task.groups}) == 10
    for task in stream.tasks:
        assert {stream.train.labels[row] for row in task.rows.tolist()} == set(task.groups)
    test = stream.test.read()
    assert stream.sizes(stream.valid) == [6] * 5 and stream.sizes(test) == [8] * 5
    assert torch.equal(test.inputs, stream.test_inputs)


def test_the_seed_decides_the_order_of_the_classes(folder: str) -> None:
    orders = [[task.groups for task in opened(folder, seed).tasks] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    ("asked", "sizes"), [((20, 5), [4] * 5), ((11, 4), [3, 3, 3, 2]), ((20, 5, 12), [12, 2, 2, 2, 2]), ((6, 1), [6])]
)
def test_task_sizes(asked: tuple[int, ...], sizes: list[int]) -> None:
    assert task_sizes(*asked) == sizes


@pytest.mark.parametrize("asked", [(4, 5), (6, 5), (20, 5, 13), (20, 1, 6)])
def test_tasks_that_do_not_fit_the_classes(asked: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=f"tasks={asked[1]}.*of {asked[0]} classes each task must get at least 2"):
        task_sizes(*asked)


def test_answers_kept_for_later_give_the_matrix_of_a_direct_test(folder: str) -> None:
    stream = opened(folder)
    taught = teach(NearestMean(raw_pixels()), stream)
    matrix, sizes = scored(taught, stream)
    fresh = opened(folder)
    test = fresh.test.read()
    train = (fresh.train.inputs, fresh.train.labels)
    expected = accuracy_matrix(NearestMean(raw_pixels()), fresh.tasks, train, (test.inputs, test.labels))
    assert torch.equal(matrix, expected) and sizes == [8] * 5
    valid = (fresh.valid.inputs, fresh.valid.labels)
    assert torch.equal(taught.matrix, accuracy_matrix(NearestMean(raw_pixels()), fresh.tasks, train, valid))
    with pytest.raises(ReadTwiceError):
        scored(taught, stream)


def test_figures() -> None:
    matrix = torch.tensor([[80.0, 0.0, 0.0], [60.0, 90.0, 0.0], [50.0, 70.0, 100.0]])
    figures = figures_of(matrix, [10, 10, 20])
    assert figures["last_accuracy"] == pytest.approx((50 + 70 + 2 * 100) / 4)
    assert figures["average_accuracy"] == pytest.approx((80 + 75 + 80) / 3)
    assert figures["forgetting"] == pytest.approx((30 + 20) / 2)
    assert figures["backward_transfer"] == pytest.approx(-25)


class Biased:
    """Right about all images but those that it is told to get wrong."""

    def __init__(self, truth: dict[bytes, str], wrong: set[bytes]) -> None:
        self.truth, self.wrong, self.classes = truth, wrong, []

    def learn(self, inputs, labels) -> None:
        self.classes = sorted({*self.classes, *labels})

    def predict(self, inputs):
        keys = [image.numpy().tobytes() for image in inputs]
        return ["none" if key in self.wrong else self.truth[key] for key in keys]


def test_the_learning_rate_is_picked_on_the_validation_stream(folder: str, model: str, tmp_path: Path) -> None:
    stream = opened(folder)
    test = stream.test.read()
    keys = {
        part: {image.numpy().tobytes(): label for image, label in zip(split.inputs, split.labels, strict=True)}
        for part, split in (("valid", stream.valid), ("test", test))
    }
    truth = keys["valid"] | keys["test"]

    class Picky(Means):
        def learner(self, encoder, training):
            # The larger rate is better on the test split, the smaller on the validation split.
            wrong = keys["test"] if training.config.learning_rate < 2e-3 else keys["valid"]
            return Biased(truth, set(wrong))

    config = {"data": folder, "model": model, "train_images": 8, "valid_images": 3, "test_images": 4}
    found = Picky.configured(learning_rates=(4e-3, 1e-3), **config).measure(tmp_path)
    assert found.chosen == {"learning_rate": 1e-3}
    assert found.validation == {"last_accuracy": 100.0} and found.metrics["last_accuracy"] == 0.0


def test_learners_share_data_weights_and_budget_and_leave_the_encoder_alone(
    folder: str, model: str, tmp_path: Path
) -> None:
    Means.seen.clear()
    measured = [kind.configured(smoke=True, data=folder, model=model).measure(tmp_path) for kind in (Means, Tuned)]
    assert measured[0].equal == measured[1].equal == ("tasks", "epochs per task", "training images", "test images")
    assert all(measured[0].budget[name] == measured[1].budget[name] for name in measured[0].equal)
    assert measured[1].budget["steps"] == 3 + 3 + 3 and "steps" not in measured[0].budget
    (_, first, before), (training, second, again) = Means.seen
    assert all(torch.equal(before[name], again[name]) for name in before)
    for encoder in (first, second):
        assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert (training.budget, training.batch_size, training.config.learning_rate) == ("1 epochs", 8, 5e-3)
    twin = Tuned.configured(smoke=True, data=folder, model=model).measure(tmp_path)
    assert twin.metrics == measured[1].metrics
    losses = [[record["loss"] for record in found.curves["training"]] for found in (twin, measured[1])]
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_a_run_gives_a_table_the_accuracies_and_the_learner(folder: str, model: str, tmp_path: Path) -> None:
    outcome = Means.configured(smoke=True, data=folder, model=model, encoder="pixels").run(tmp_path / "run")
    outcome.save(tmp_path / "run")
    assert [row[0] for row in outcome.rows] == ["1", "2", "3", "all"]
    lines = (tmp_path / "run" / outcome.artefacts["accuracies"]).read_text().splitlines()
    matrix = np.array([[float(cell) for cell in line.split(",")[1:]] for line in lines[1:]])
    assert [row[2] for row in outcome.rows[:3]] == pytest.approx(np.diag(matrix).tolist(), abs=1e-3)
    assert [row[3] for row in outcome.rows[:3]] == pytest.approx(matrix[-1].tolist(), abs=1e-3)
    seen = [record["test/accuracy on classes seen"] for record in outcome.curves["after each task"]]
    assert [row[4] for row in outcome.rows[:3]] == seen
    assert outcome.rows[3][3] == seen[-1] and outcome.rows[3][4] == pytest.approx(np.mean(seen))
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    loaded = NearestMean.load(tmp_path / "run" / outcome.artefacts["prototypes"], raw_pixels())
    assert loaded.predict(images) == outcome.model.predict(images)
    page = write_report(tmp_path / "run", tmp_path / "page.html").read_text()
    assert "after each task: accuracy on classes seen" in page and "last accuracy" in page


def test_records_of_several_trainings_are_counted_on() -> None:
    class Fit:
        def __init__(self, steps: int) -> None:
            self.records = [{"step": step, "loss": 1.0} for step in range(1, steps + 1)]
            self.used = type("Used", (), {"steps": steps})

    assert [one["step"] for one in training_records([Fit(2), Fit(3)])] == [1, 2, 3, 4, 5]


def test_data_that_cannot_be_used_is_named(folder: str, model: str, tmp_path: Path) -> None:
    few = image_folder(tmp_path / "few", classes=4, counts=(1, 1, 1))
    with pytest.raises(DataError, match="class 'class-00' has 1 image to train on; a task needs at least 2"):
        Means.configured(smoke=True, data=few, model=model, tasks=2).measure(tmp_path)
    with pytest.raises(ConfigError, match="tasks=11: of 10 classes"):
        Means.configured(smoke=True, data=folder, model=model, tasks=11).measure(tmp_path)
    with pytest.raises(
        ConfigError, match="data=glyph: expected glyphs, a standard set of images such as cifar10, or im"
    ):
        Means.configured(smoke=True, data="glyph", model=model)
    with pytest.raises(DataError, match="nowhere"):
        Means.configured(smoke=True, data="imagefolder:nowhere", model=model).measure(tmp_path)


def test_a_comparison_draws_what_is_kept_of_the_classes_seen(folder: str, model: str, tmp_path: Path) -> None:
    found = compare({"means": Means, "tuned": Tuned}, seeds=2, smoke=True, out=tmp_path, data=folder, model=model)
    (file,) = found.pictures
    assert file == str(tmp_path / "after-each-task-accuracy-on-classes-seen.svg") and f"{file} written" in found.table()
    assert json.loads((tmp_path / "comparison.json").read_text())["pictures"] == found.pictures
    root = ElementTree.parse(file).getroot()
    name = "{http://www.w3.org/2000/svg}"
    assert [text.text for text in root.findall(f"{name}text")] == [
        "after each task: accuracy on classes seen", "means", "tuned",
    ]  # fmt: skip
    lines = [path.get("class") for path in root.iter(f"{name}path")]
    assert Counter(lines) == {"c0 thin": 2, "c0 thick": 1, "c1 thin": 2, "c1 thick": 1}
    # The thick line is the mean over the seeds: in the picture it lies between them.
    drawn = {
        kind: [
            [float(place.split()[1]) for place in re.sub("M", "", path.get("d")).split("L")]
            for path in root.iter(f"{name}path")
            if path.get("class") == f"c1 {kind}"
        ]
        for kind in ("thin", "thick")
    }
    np.testing.assert_allclose(np.mean(drawn["thin"], axis=0), drawn["thick"][0], atol=0.11)
    page = write_report(tmp_path, tmp_path / "page.html").read_text()
    assert "after each task: accuracy on classes seen" in page and "training: loss" in page


def search(**options) -> SearchConfig:
    small = {
        "classes": 8, "search_classes": 3, "pretrain_classes": (2, 3), "replace_at": (0, 2), "tasks": 4,
        "train_images": 4, "valid_images": 2, "test_images": 2,
    }  # fmt: skip
    return SearchConfig(**{**small, **options})


def test_searched_classes_are_in_no_training(tmp_path: Path) -> None:
    spec = image_folder(tmp_path / "images", classes=14)
    for data in (open_search_data(search()), open_search_data(search(data=spec))):
        searched = set(data.gallery.labels)
        assert len(searched) == 3 and searched == set(data.valid.labels) == set(data.test.read().labels)
        known = [list(dict.fromkeys(images.labels)) for images in data.pretraining]
        # One class has one vertex, whichever model from elsewhere it is.
        assert [len(labels) for labels in known] == [2, 3] and known[1][:2] == known[0]
        stream = {label for task in data.tasks for label in task.groups}
        assert len(stream) == 8 and not searched & stream and not set(known[1]) & (stream | searched)
        assert set(data.train.labels) == stream


def test_replacements_that_do_not_fit_are_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="has 10 classes, too few for 3 to pre-train on elsewhere, 2 for each of 4"):
        open_search_data(search(data=folder))
    for places in ((0, 4), (1, 2), (0, 0), (0,)):
        with pytest.raises(ConfigError, match="replace_at="):
            open_search_data(search(replace_at=places))
    with pytest.raises(ConfigError, match="there are 42 letters"):
        open_search_data(search(pretrain_classes=(2, 60)))


def labelled(classes: list[str], each: int) -> ImageData:
    def part(seed: int) -> ImageSet:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (len(classes) * each, 3, 8, 8), dtype=torch.uint8, generator=generator)
        return ImageSet(images, tuple(name for name in classes for _ in range(each)))

    return ImageData(classes, part(0), part(1), Sealed(part(2), "x"))


def test_classes_of_a_group_come_together_and_a_task_is_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = [f"{group}/{at}" for group, count in (("a", 2), ("b", 3), ("c", 4)) for at in range(count)]
    data = labelled(classes, 2)
    orders = {tuple(class_groups(classes, seed)) for seed in range(20)}
    assert len(orders) == 6 and all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert class_groups(["a/1", "b"], 0) == {}
    monkeypatch.setattr(continual_arena, "open_images", lambda *_, **__: labelled(classes, 2))

    def tasks(**options):
        system = Means.configured(data="omniglot", seed=3, **options)
        return [list(map(str, task.groups)) for task in system.open_stream().tasks]

    assert tasks(tasks=3) == list(class_groups(classes, 3).values())
    flat = [name for group in class_groups(classes, 3).values() for name in group]
    assert tasks(tasks=4) == [flat[:3], flat[3:5], flat[5:7], flat[7:]]
    assert tasks(tasks=3, first=5) == [flat[:5], flat[5:7], flat[7:]]
    assert len(class_stream(image_parts(data), [9], seed=0, spec="x").tasks) == 1


def test_domains_are_shares_of_the_images_each_under_a_shift_of_its_own() -> None:
    data = labelled(["cat", "ship"], 5)
    found = shifted_domains(data, 5, seed=4, spec="x")
    assert list(found) == ["as they are", *SHIFTS]
    whole = labelled(["cat", "ship"], 5)
    for place, (part, original) in enumerate(
        [("train", whole.train), ("valid", whole.valid), ("test", whole.test.read())]
    ):
        for at, (name, domain) in enumerate(found.items()):
            images = getattr(domain, part) if part != "test" else domain.test.read()
            own = original.images[[at, 5 + at]]
            expected = own if at == 0 else shifted(own, name, seed=mix(4, at, place))
            assert images.labels == ("cat", "ship") and torch.equal(images.images, expected)
    with pytest.raises(ConfigError, match=r"tasks=6: expected at most 5, .*as they are, blur, noise"):
        shifted_domains(whole, 6, seed=0, spec="x")
    with pytest.raises(DataError, match=r"x: class 'cat' has 2 images in a split, fewer than the 3 domains"):
        shifted_domains(labelled(["cat", "ship"], 2), 3, seed=0, spec="x")
