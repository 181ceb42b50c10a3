"""The arena of model replacement: a stream with models from elsewhere, and searches across all versions."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from leaven.adapt.continual import Compatibility, TaskTraining, compatibility_matrix
from leaven.adapt.continual.features import take
from leaven.adapt.continual.learner import Labels
from leaven.evidence.arenas.continual_arena import Curves, training_records
from leaven.evidence.arenas.continual_encoder import PixelEncoder, features_width, open_encoder, random_twin
from leaven.evidence.arenas.continual_search_data import SearchConfig, SearchData, open_search_data
from leaven.evidence.arenas.image_data import ImageSet
from leaven.evidence.arenas.kept_weights import KeptWeights, Records
from leaven.evidence.selection import best_of_grid
from leaven.evidence.system import Figures, Measurement, Outcome, System, timed
from leaven.training.randomness import mix, preserved_rng


@dataclass(frozen=True)
class Elsewhere:
    """A model that was trained elsewhere, and images of its classes: rows of the same class behind one another."""

    model: nn.Module
    images: Tensor
    labels: list[str]


class Replaceable(Protocol):
    """A learner that hands out versions of its model, and goes on from a model from elsewhere."""

    fits: tuple[Any, ...]

    def learn(self, inputs: Any, labels: Labels) -> None:
        """Take in a task."""
        ...

    def version(self) -> nn.Module:
        """A copy of the model as it is now: images -> features."""
        ...

    def go_on_from(self, elsewhere: Elsewhere) -> None:
        """Put a model from elsewhere in the place of the present one."""
        ...


class SmallConvNet(nn.Module):
    """Three convolutions with batch norm: pixel values (rows, 3, size, size) -> features (rows, 64).

    Models from elsewhere are trained from fresh weights on a few thousand images; a transformer needs far more of them.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        # What is positive for every image points all classes the same way, and none at its vertex.
        self.centre = nn.BatchNorm1d(64, affine=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features, the mean over places."""
        features: Tensor = self.centre(self.layers(pixel_values).mean((2, 3)))
        return features


_OF_PRETRAINING = {
    "data", "size", "model", "classes", "search_classes", "pretrain_classes", "pretrain_epochs", "pretrain_rate",
    "train_images", "valid_images", "test_images", "gap", "batch_size", "seed", "tasks",
}  # fmt: skip


class _Versions(NamedTuple):
    models: list[nn.Module]
    fits: tuple[Any, ...]


C = TypeVar("C", bound=SearchConfig)


class SearchSystem(System[C]):
    """The learner by the system; the stream, the replacements and the searches by the arena."""

    title: ClassVar[str] = ""
    smoke: ClassVar[dict[str, Any]] = {
        "classes": 6,
        "tasks": 3,
        "search_classes": 3,
        "pretrain_classes": (2, 3),
        "replace_at": (0, 2),
        "pretrain_epochs": 20,
        "train_images": 8,
        "valid_images": 2,
        "test_images": 3,
        "epochs": 1,
        "batch_size": 8,
        "memory": 2,
        "learning_rates": (1e-3,),
    }

    @abstractmethod
    def untrained(self, encoder: nn.Module, width: int, seed: int) -> nn.Module:
        """What is trained elsewhere, around an encoder with fresh weights and features of this width; the seed, one for
        each model, is of all weights that it adds."""

    @abstractmethod
    def pretrained(self, model: nn.Module, images: ImageSet, training: TaskTraining) -> nn.Module:
        """A trained copy of such a model."""

    @property
    @abstractmethod
    def pretraining_kind(self) -> dict[str, Any]:
        """What decides the pre-training beside data, architecture, seed and budget: arms that agree share it."""

    @abstractmethod
    def learner(self, elsewhere: Elsewhere, training: TaskTraining) -> Replaceable:
        """A learner that goes on from a model from elsewhere."""

    def judged(self, found: Compatibility) -> Compatibility:
        """The searches that count."""
        return found

    def run(self, out: Path) -> Outcome:
        """Learn the stream, and show what queries of each version find in the galleries of all before."""
        timings: dict[str, float] = {}
        with timed(timings, "images"):
            data = open_search_data(self.config)
        with timed(timings, "models from elsewhere"):
            elsewhere = self._elsewhere(data, out)
        with timed(timings, "stream"):
            found, measurement, versions = self._find(data, elsewhere)
        out.mkdir(parents=True, exist_ok=True)
        rows = []
        for new, row in enumerate(found.matrix.tolist()):
            kept = [str(old + 1) for old in range(new) if found.gallery_may_be_kept(new, old)]
            shown = [one if old <= new else None for old, one in enumerate(row)]
            rows.append([f"version {new + 1}", *shown, " ".join(kept) or None])
        return Outcome(
            system=self.slug,
            title=self.title,
            config=self.config.model_dump(mode="json"),
            columns=["queries by", *(f"gallery {at + 1}" for at in range(len(rows))), "may be kept"],
            rows=rows,
            curves=measurement.curves,
            timings=timings,
            artefacts={"searches": found.save_csv(out / "searches.csv").name},
            notes=[f"{name.replace('_', ' ')} {value:.4g}" for name, value in measurement.metrics.items()],
            model=versions[-1],
        )

    def measure(self, out: Path) -> Measurement:
        """One arm: the learning rate picked on the validation queries, the test queries read once."""
        started = time.perf_counter()
        data = open_search_data(self.config)
        measurement = self._find(data, self._elsewhere(data, out.parent))[1]
        return replace(measurement, seconds=time.perf_counter() - started)

    def _elsewhere(self, data: SearchData, place: Path) -> list[Elsewhere]:
        """The models, kept under a place where those of an earlier arm or of an interrupted run are found again."""
        c = self.config
        base = open_encoder(c.model, c.size) if c.model else None
        training = TaskTraining(f"{c.pretrain_epochs} epochs", c.training(c.pretrain_rate).config, c.batch_size)
        values = c.model_dump(mode="json", include=_OF_PRETRAINING)
        kept = KeptWeights(place, "elsewhere", {**values, **self.pretraining_kind})
        found = []
        for at, images in enumerate(data.pretraining):
            # Initial weights of their own: a replacement that shares them with the model it replaces is none.
            encoder = random_twin(base, mix(c.seed, at)) if base is not None else _convnet(mix(c.seed, at))
            model = self.untrained(encoder, features_width(encoder, c.size), mix(c.seed, at, 3)).eval()

            def train(model: nn.Module = model, images: ImageSet = images) -> Records:
                model.load_state_dict(self.pretrained(model, images, training).state_dict())
                return []

            kept.get(f"model-{at}", model, train, {"classes": len(set(images.labels))}).weights.into(model)
            found.append(Elsewhere(model, images.images, list(images.labels)))
        return found

    def _find(
        self, data: SearchData, elsewhere: Sequence[Elsewhere]
    ) -> tuple[Compatibility, Measurement, list[nn.Module]]:
        c = self.config

        def attempt(rate: float) -> tuple[float, _Versions]:
            versions = self._stream(data, elsewhere, c.training(rate))
            return self._search(versions.models, data, data.valid).accuracy, versions

        best = best_of_grid(c.learning_rates, attempt)
        test = data.test.read()
        found = self._search(best.result.models, data, test)
        matrix = found.matrix
        metrics: Figures = {
            "compatibility": found.compatibility,
            "search_accuracy": found.accuracy,
            "newest_in_oldest": float(matrix[-1, 0]),
            "newest_in_own": float(matrix[-1, -1]),
        }
        curves: Curves = {
            "after each task": [
                {
                    "step": at + 1,
                    "test/search in the first gallery": float(row[0]),
                    "test/search in its own": float(row[at]),
                }
                for at, row in enumerate(matrix)
            ],
            "training": training_records(best.result.fits),
        }
        budget: Figures = {
            "tasks": len(data.tasks),
            "epochs per task": c.epochs,
            "training images": len(data.train),
            "test images": len(test),
            "steps": sum(fit.used.steps for fit in best.result.fits),
        }
        measurement = Measurement(
            metrics=metrics,
            validation={"search_accuracy": best.score},
            budget=budget,
            equal=tuple(budget),
            chosen={"learning_rate": best.value},
            curves=curves,
        )
        return found, measurement, best.result.models

    def _stream(self, data: SearchData, elsewhere: Sequence[Elsewhere], training: TaskTraining) -> _Versions:
        learner = self.learner(elsewhere[0], training)
        versions = []
        for at, task in enumerate(data.tasks):
            if at in self.config.replace_at[1:]:
                learner.go_on_from(elsewhere[self.config.replace_at.index(at)])
            learner.learn(take(data.train.images, task.rows), [data.train.labels[row] for row in task.rows.tolist()])
            versions.append(learner.version())
        return _Versions(versions, learner.fits)

    def _search(self, models: Sequence[nn.Module], data: SearchData, queries: ImageSet) -> Compatibility:
        gallery = data.gallery
        return self.judged(
            compatibility_matrix(models, (queries.images, list(queries.labels)), (gallery.images, list(gallery.labels)))
        )


def _convnet(seed: int) -> PixelEncoder:
    with preserved_rng():
        torch.manual_seed(seed)
        return PixelEncoder(SmallConvNet()).eval()
