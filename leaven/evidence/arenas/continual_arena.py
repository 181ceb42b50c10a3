"""The arena of continual learning: one encoder, a stream of tasks, and accuracies on every task after each."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, PositiveFloat, field_validator
from torch import Tensor

from leaven.adapt.continual import Learner, TaskTraining
from leaven.errors import ConfigError
from leaven.evidence.arenas.continual_encoder import PixelEncoder, open_encoder, random_twin, raw_pixels
from leaven.evidence.arenas.continual_files import save_accuracies, save_learner
from leaven.evidence.arenas.continual_kept import KeptTasks, SharedFineTuning, SharedLAE
from leaven.evidence.arenas.continual_stream import (
    ImageStream,
    Taught,
    class_stream,
    figures_of,
    scored,
    task_sizes,
    teach,
)
from leaven.evidence.arenas.image_data import GLYPHS, class_groups, has_images, open_images
from leaven.evidence.selection import best_of_grid
from leaven.evidence.system import Figures, Measurement, Outcome, System, SystemConfig, timed
from leaven.metrics.continual import last_accuracy, seen_accuracy
from leaven.training.config import TrainingConfig

Curves = dict[str, list[dict[str, Any]]]

EMBEDDED: dict[str, Any] = {"train_images": 25, "test_images": 30, "epochs": 10}
"""The embedded tier: few images, so that all arms of a seed take minutes."""
STANDARD: dict[str, Any] = {
    "data": "omniglot",
    "train_images": 10,
    "valid_images": 5,
    "test_images": 5,
    "epochs": 5,
}
"""The standard tier: five alphabets of handwriting as tasks, 136 characters in all.

Photographs (`data=cifar10`) do not discriminate on the zoo's encoder, which has never seen one: prototypes find no more
than those of random weights (20.0 and 21.7 of 100)."""


class StreamConfig(SystemConfig):
    """Options of a stream of labelled images and of the training on its tasks."""

    data: str = Field(
        "glyphs",
        description="labelled images: glyphs, cifar10, omniglot, or imagefolder:DIR with a folder for each class",
    )
    size: int = Field(32, ge=8, le=1024, description="side of the images in pixels, as the model reads them")
    tasks: int = Field(5, ge=1, le=1000, description="tasks of the stream")
    classes: int = Field(20, ge=2, le=24, description="classes of the glyphs; a folder keeps all of its own")
    train_images: int = Field(60, ge=2, le=1_000_000, description="most images of a class to train on")
    valid_images: int = Field(10, ge=1, le=1_000_000, description="most images of a class to choose by")
    test_images: int = Field(40, ge=1, le=1_000_000, description="most images of a class to test on")
    gap: float = Field(0.5, ge=0, le=1, description="distance of the glyphs' style from plain print")
    epochs: int = Field(10, ge=0, le=10_000, description="budget of a task: passes over its images")
    batch_size: int = Field(32, ge=2, le=65_536, description="images per step and process")
    learning_rates: tuple[PositiveFloat, ...] = Field(
        (4e-5, 2e-4, 1e-3, 5e-3, 2.5e-2), min_length=1, description="peak rates; the validation stream picks one"
    )

    @field_validator("data")
    @classmethod
    def _of_images(cls, spec: str) -> str:
        if not has_images(spec):
            raise ConfigError(
                f"data={spec}: expected {GLYPHS}, a standard set of images such as cifar10, or imagefolder:DIR with a "
                "folder for each class"
            )
        return spec

    @property
    def per_class(self) -> tuple[int, int, int]:
        """Most images of a class in train, valid and test."""
        return self.train_images, self.valid_images, self.test_images

    def training(self, rate: float) -> TaskTraining:
        """Settings for each task."""
        config = TrainingConfig(
            learning_rate=rate, weight_decay=5e-4, schedule="cosine", warmup=0, seed=self.seed, checkpoint_every=None
        )
        return TaskTraining(f"{self.epochs} epochs", config, self.batch_size)


class ContinualConfig(StreamConfig):
    """Options that the systems of the arena share."""

    model: str = Field("zoo:mini-vit", description="the image encoder: zoo:NAME, hf:ID or a folder")
    encoder: Literal["model", "random", "pixels"] = Field(
        "model", description="what is read: the model; as controls, its architecture with random weights, or the pixels"
    )
    first: int = Field(0, ge=0, description="classes of the first task; 0: as many as of the others")


@dataclass(frozen=True)
class Found:
    """The chosen learner with its figures.

    matrix: accuracies (tasks, tasks) on the test split; figures: of it, and of the training at the largest rate.
    """

    taught: Taught
    matrix: Tensor
    figures: Figures
    validation: float
    chosen: dict[str, float]
    budget: Figures
    curves: Curves


C = TypeVar("C", bound=ContinualConfig)


class ContinualSystem(System[C]):
    """The learner by the system, everything else by the arena."""

    title: ClassVar[str] = ""
    smoke: ClassVar[dict[str, Any]] = {
        "classes": 16,
        "tasks": 3,
        "train_images": 6,
        "valid_images": 3,
        "test_images": 3,
        "epochs": 1,
        "batch_size": 8,
        "learning_rates": (5e-3,),
    }

    @abstractmethod
    def learner(self, encoder: PixelEncoder, training: TaskTraining) -> Learner:
        """A learner on the encoder, which stays as it is, with settings for each task; before the first task."""

    @property
    def trains(self) -> bool:
        """Whether there is anything to train, so that the choice of learning rate and options makes a difference."""
        return True

    def variants(self) -> list[dict[str, float]]:
        """Values of options to choose among on the validation stream, beside the learning rates."""
        return [{}]

    def untrained(self) -> frozenset[str]:
        """Options that change nothing in training, only what comes after it: arms that differ in these alone share
        their trainings, if the learner can."""
        return frozenset()

    def training_figures(self, learner: Learner) -> Figures:
        """What is reported of the training at the largest learning rate, which arms share whichever each chooses."""
        return {}

    def figures(self, matrix: Tensor, sizes: Sequence[int]) -> Figures:
        """What is reported of the accuracies (tasks, tasks) on the test split."""
        return figures_of(matrix, sizes)

    def open_stream(self) -> ImageStream:
        """The tasks; the seed decides the glyphs and the order of the classes. With as many tasks as there are groups
        of classes, such as alphabets, a task is a group.

        Raises: ConfigError for tasks that do not fit the classes; DataError for a class with too few images.
        """
        c = self.config
        data = open_images(c.data, size=c.size, classes=c.classes, per_class=c.per_class, gap=c.gap, seed=c.seed)
        groups = [len(group) for group in class_groups(data.classes, c.seed).values()]
        whole = len(groups) == c.tasks and not c.first and min(groups) > 1
        sizes = groups if whole else task_sizes(len(data.classes), c.tasks, c.first)
        return class_stream(data, sizes, seed=c.seed, spec=c.data)

    def open_encoder(self) -> PixelEncoder:
        """The encoder, or the control in its place. Raises: what `open_encoder` and `random_twin` raise."""
        c = self.config
        if c.encoder == "pixels":
            return raw_pixels()
        encoder = open_encoder(c.model, c.size)
        return encoder if c.encoder == "model" else random_twin(encoder, c.seed)

    def run(self, out: Path) -> Outcome:
        """Learn the stream, and show what is known of each task when it was learnt and at the end."""
        timings: dict[str, float] = {}
        with timed(timings, "model and images"):
            encoder, stream = self.open_encoder(), self.open_stream()
        with timed(timings, "stream"):
            found = self._find(encoder, stream)
        learner = found.taught.learner
        notes = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in found.figures.items()]
        if found.chosen:
            notes += [f"chosen on the validation stream: {name} {value:g}" for name, value in found.chosen.items()]
        return Outcome(
            system=self.slug,
            title=self.title,
            config=self.config.model_dump(mode="json"),
            columns=["task", "learnt", "accuracy when learnt", "at the end", "on all so far"],
            rows=_rows(found, stream),
            curves=found.curves,
            timings=timings,
            artefacts={**save_learner(learner, out), "accuracies": save_accuracies(found.matrix, out)},
            notes=notes,
            model=learner,
        )

    def measure(self, out: Path) -> Measurement:
        """One arm: the learning rate picked on the validation stream, the test split read once.

        What was trained stays beside `out`, for the arms that share it; their budget is what each would have used.
        """
        started = time.perf_counter()
        encoder, stream = self.open_encoder(), self.open_stream()
        found = self._find(encoder, stream, shared=out.parent)
        return Measurement(
            metrics=found.figures,
            validation={"last_accuracy": found.validation},
            budget=found.budget,
            equal=tuple(name for name in found.budget if name != "steps"),
            chosen=found.chosen,
            curves=found.curves,
            seconds=time.perf_counter() - started,
        )

    def _shared(self, learner: Learner, place: Path, rate: float) -> None:
        """Let a learner share its trainings with the arms that have the place."""
        if isinstance(learner, SharedFineTuning | SharedLAE) and (untrained := self.untrained()):
            values = self.config.model_dump(mode="json", exclude={*untrained, "learning_rates"})
            learner.kept = KeptTasks.at(place, self.slug, {**values, "learning_rate": rate})

    def _find(self, encoder: PixelEncoder, stream: ImageStream, *, shared: Path | None = None) -> Found:
        config = self.config
        grid = list(product(self.variants(), config.learning_rates))
        if not self.trains:
            grid = grid[:1]
        fastest = max(range(len(grid)), key=lambda at: grid[at][1])
        of_training: Figures = {}

        def attempt(at: float) -> tuple[float, Taught]:
            variant, rate = grid[int(at)]
            system = type(self)(config.model_copy(update=variant))
            learner = system.learner(encoder, config.training(rate))
            if shared is not None:
                system._shared(learner, shared, rate)
            taught = teach(learner, stream)
            if at == fastest:
                of_training.update(system.training_figures(learner))
            return last_accuracy(taught.matrix.numpy(), stream.sizes(stream.valid)), taught

        best = best_of_grid(range(len(grid)), attempt)
        matrix, sizes = scored(best.result, stream)
        variant, rate = grid[int(best.value)]
        chosen = {**variant, "learning_rate": rate} if self.trains else {}
        fits = getattr(best.result.learner, "fits", None)
        budget: Figures = {
            "tasks": len(stream.tasks),
            "epochs per task": config.epochs,
            "training images": len(stream.train.labels),
            "test images": sum(sizes),
        }
        if fits is not None:
            budget["steps"] = sum(fit.used.steps for fit in fits)
        seen = seen_accuracy(matrix.numpy(), sizes)
        curves: Curves = {
            "after each task": [{"step": at, "test/accuracy on classes seen": one} for at, one in enumerate(seen, 1)]
        }
        if fits:
            curves["training"] = training_records(fits)
        figures = {**self.figures(matrix, sizes), **of_training}
        return Found(best.result, matrix, figures, best.score, chosen, budget, curves)


def training_records(fits: Sequence[Any]) -> list[dict[str, Any]]:
    """Records of trainings behind one another, their steps counted on."""
    records: list[dict[str, Any]] = []
    before = 0
    for fit in fits:
        records += [{**one, "step": one["step"] + before} for one in fit.records]
        before += fit.used.steps
    return records


def _rows(found: Found, stream: ImageStream) -> list[list[Any]]:
    matrix, figures = found.matrix.tolist(), found.figures
    seen = [record["test/accuracy on classes seen"] for record in found.curves["after each task"]]
    rows: list[list[Any]] = [
        [str(at + 1), " ".join(map(str, task.groups)), matrix[at][at], matrix[-1][at], seen[at]]
        for at, task in enumerate(stream.tasks)
    ]
    learnt = float(found.matrix.diagonal().mean())
    return [*rows, ["all", f"{stream.classes} classes", learnt, figures["last_accuracy"], figures["average_accuracy"]]]
