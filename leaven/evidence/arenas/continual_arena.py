"""The arena of continual learning: one encoder, a stream of tasks, and accuracies on every task after each."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from leaven.adapt.continual import Learner, TaskTraining
from leaven.evidence.arenas.continual_encoder import fresh_model, open_encoder, random_twin, raw_pixels
from leaven.evidence.arenas.continual_files import save_accuracies, save_learner
from leaven.evidence.arenas.continual_kept import KeptTasks, SharedFineTuning, SharedLAE
from leaven.evidence.arenas.continual_options import ContinualConfig
from leaven.evidence.arenas.continual_stream import (
    Parts,
    Stream,
    Taught,
    class_stream,
    figures_of,
    image_parts,
    scored,
    task_sizes,
    teach,
)
from leaven.evidence.arenas.continual_texts import TokenEncoder, WordCounts, text_parts
from leaven.evidence.arenas.image_data import class_groups, has_images, open_images
from leaven.evidence.arenas.peft_model import DEFAULT_IMAGE, open_backbone, without_heads
from leaven.evidence.selection import best_of_grid
from leaven.evidence.system import Figures, Measurement, Outcome, System, timed
from leaven.metrics.continual import last_accuracy, seen_accuracy
from leaven.models.loading import MINILM

Curves = dict[str, list[dict[str, Any]]]


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
    def learner(self, encoder: nn.Module, training: TaskTraining) -> Learner:
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

    def open_parts(self) -> Parts:
        """The splits, images or texts; the seed decides which, where there are more than are asked for.

        Raises: ConfigError for a source of neither; DataError for a class with too few inputs.
        """
        c = self.config
        if has_images(c.data):
            data = open_images(c.data, size=c.size, classes=c.classes, per_class=c.per_class, gap=c.gap, seed=c.seed)
            return image_parts(data)
        backbone = open_backbone(c.model or MINILM, images=False)
        return text_parts(c.data, backbone, per_class=c.per_class, longest=c.longest, seed=c.seed)

    def open_stream(self) -> Stream:
        """The tasks; the seed decides the glyphs and the order of the classes. With as many tasks as there are groups
        of classes, such as alphabets, a task is a group.

        Raises: ConfigError for tasks that do not fit the classes; DataError for a class with too few inputs.
        """
        c, parts = self.config, self.open_parts()
        groups = [len(group) for group in class_groups(parts.classes, c.seed).values()]
        whole = len(groups) == c.tasks and not c.first and min(groups) > 1
        sizes = groups if whole else task_sizes(len(parts.classes), c.tasks, c.first)
        return class_stream(parts, sizes, seed=c.seed, spec=c.data)

    def open_encoder(self) -> nn.Module:
        """The encoder, or the control in its place.

        Raises: what `open_encoder`, `open_backbone` and `fresh_model` raise.
        """
        c = self.config
        if not has_images(c.data):
            if c.encoder == "pixels":
                return WordCounts()
            model: nn.Module = open_backbone(c.model or MINILM, images=False).encoder
            return TokenEncoder(model if c.encoder == "model" else without_heads(fresh_model(model, c.seed))).eval()
        if c.encoder == "pixels":
            return raw_pixels()
        encoder = open_encoder(c.model or DEFAULT_IMAGE, c.size)
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

    def _find(self, encoder: nn.Module, stream: Stream, *, shared: Path | None = None) -> Found:
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
            f"training {stream.what}": len(stream.train.labels),
            f"test {stream.what}": sum(sizes),
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


def _rows(found: Found, stream: Stream) -> list[list[Any]]:
    matrix, figures = found.matrix.tolist(), found.figures
    seen = [record["test/accuracy on classes seen"] for record in found.curves["after each task"]]
    rows: list[list[Any]] = [
        [str(at + 1), " ".join(map(str, task.groups)), matrix[at][at], matrix[-1][at], seen[at]]
        for at, task in enumerate(stream.tasks)
    ]
    learnt = float(found.matrix.diagonal().mean())
    return [*rows, ["all", f"{stream.classes} classes", learnt, figures["last_accuracy"], figures["average_accuracy"]]]
