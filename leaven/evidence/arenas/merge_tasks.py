"""Several tasks for one image encoder: disjoint characters in different styles, each with a frozen head."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.errors import ConfigError
from leaven.evidence.arenas.kept_weights import KeptWeights
from leaven.evidence.arenas.merge_classifiers import (
    ImageModel,
    accuracy,
    image_batches,
    image_loader,
    in_batches,
    open_image_model,
)
from leaven.evidence.arenas.merge_ground import Ground, Judge
from leaven.evidence.arenas.merge_sweep import AugmentedClassification
from leaven.evidence.arenas.merge_task_images import TASKS, TaskImages, first_of_each, open_tasks
from leaven.evidence.selection import Sealed
from leaven.evidence.system import Figures
from leaven.merge import Weights, open_weights
from leaven.models.saved import save_model
from leaven.models.vision import ImageEncoder
from leaven.objectives.classification import Classification
from leaven.training.budgets import Budget
from leaven.training.config import TrainingConfig
from leaven.training.loop import fit
from leaven.training.randomness import mix

FIELDS = ("pixel_values", "task")
SCALE = 20.0
"""What cosines with the heads are multiplied by."""


class HeadedEncoder(nn.Module):
    """An encoder with a frozen head per task: scaled cosines of centred features with the classes' mean features.

    The heads are what zero-shot text embeddings are for CLIP: made before any fine-tuning, and never trained. They are
    buffers, so that only the encoder has parameters.

    heads: (tasks, classes, dim), rows of length 1. centre: (dim,).
    """

    heads: Tensor
    centre: Tensor

    def __init__(self, encoder: nn.Module, heads: Tensor, centre: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("heads", heads)
        self.register_buffer("centre", centre)

    def forward(self, pixel_values: Tensor, task: Tensor) -> Tensor:
        """Logits (batch, classes); task: (batch,) int64."""
        features = F.normalize(self.encoder(pixel_values) - self.centre, dim=-1)
        return SCALE * torch.einsum("bd,bcd->bc", features, self.heads[task])


class FeatureEncoder(nn.Module):
    """The features of an image model, as a module."""

    def __init__(self, image_model: ImageModel) -> None:
        super().__init__()
        self.model: Any = image_model.with_head(1).model
        self.model.head = None

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features (batch, dim)."""
        features: Tensor = self.model.features(pixel_values)
        return features


def class_means(features: Tensor, data: TaskImages, centre: Tensor) -> Tensor:
    """Unit vectors (tasks, classes, dim) of the classes' mean centred features."""
    tasks, classes = (int(data.fields[name].max()) + 1 for name in ("task", "label"))
    place = data.fields["task"] * classes + data.fields["label"]
    sums = torch.zeros(tasks * classes, features.shape[1]).index_add(0, place, features - centre)
    return F.normalize(sums.view(tasks, classes, -1), dim=-1)


@dataclass(frozen=True, kw_only=True)
class TaskTraining:
    """How the specialists are made. epochs, learning_rate: of each; data, per_class, classes: see `open_tasks`."""

    data: str
    model: str
    classes: int
    per_class: tuple[int, int, int]
    epochs: int
    learning_rate: float
    batch_size: int
    seed: int


class TaskGrounds:
    """Specialists of the six tasks, and the seventh task; the specialists are kept under `place`."""

    def __init__(self, training: TaskTraining, place: Path) -> None:
        self.training = training
        image_model = open_image_model(training.model)
        self.pixels = image_model.pixels
        self.tasks = open_tasks(
            training.data,
            classes=training.classes,
            per_class=training.per_class,
            size=image_model.size,
            seed=training.seed,
        )
        encoder = FeatureEncoder(image_model).eval()
        self.train = TaskImages.joined([task.train for task in self.tasks[:TASKS]])
        features = in_batches(encoder, encoder, self.pixels, self.train.images)
        self.model = HeadedEncoder(
            encoder, class_means(features, self.train, features.mean(0)), features.mean(0)
        ).eval()
        state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.base: Weights = open_weights(state, training.model)
        self.kept = KeptWeights(place, "specialists", vars(training))
        self.specialists = [self._specialist(task) for task in range(TASKS)]

    def _specialist(self, task: int) -> Weights:
        training, data = self.training, self.train.of(task)
        loader = image_loader(data.images, data.fields, self.pixels, training.batch_size, training.seed)
        config = TrainingConfig(
            learning_rate=training.learning_rate, schedule="cosine", warmup=0.1, seed=mix(training.seed, task)
        )
        budget = Budget(steps=training.epochs * loader.batches_per_epoch)

        def train() -> list[dict[str, Any]]:
            self.base.into(self.model)
            objective = AugmentedClassification(0.5, fields=FIELDS)
            return fit(self.model, objective, loader, budget, config, label=f"specialist {task}").records

        return self.kept.get(f"task-{task}", self.model, train, {"task": self.tasks[task].name}).weights

    @property
    def steps(self) -> float:
        """Steps of all specialists."""
        data, training = self.train.of(0), self.training
        loader = image_loader(data.images, data.fields, self.pixels, training.batch_size, training.seed)
        return float(TASKS * training.epochs * loader.batches_per_epoch)

    def addition(self) -> Ground:
        """One encoder for all six tasks. Each held-out batch has as many rows of each.

        Figures: `accuracy`, the mean over tasks; `normalised accuracy`, the mean of its share of the specialist's.
        """
        names = tuple(f"task {task}" for task in range(TASKS))
        valid = TaskImages.joined([task.valid for task in self.tasks[:TASKS]])
        per_task = len(valid.images) // TASKS
        generator = torch.Generator().manual_seed(self.training.seed)
        rows = torch.stack([torch.randperm(per_task, generator=generator) + t * per_task for t in range(TASKS)])
        each = max(1, self.training.batch_size // TASKS) * TASKS

        def judge(data: TaskImages) -> Judge:
            def score(model: nn.Module, name: str) -> float:
                part = data.of(names.index(name))
                task = part.fields["task"]
                return accuracy(model, self.pixels, part.images, part.fields["label"], task=task)

            @cache
            def reference() -> tuple[float, ...]:
                # Of its own, for the ground's model may be the one that is being judged.
                model = copy.deepcopy(self.model)
                return tuple(score(own.into(model), name) for own, name in zip(self.specialists, names, strict=True))

            def summary(scores: dict[str, float]) -> Figures:
                shares = [scores[name] / max(of, 1e-9) for name, of in zip(names, reference(), strict=True)]
                means = {"accuracy": sum(scores.values()) / TASKS, "normalised accuracy": 100 * sum(shares) / TASKS}
                return {**means, **scores}

            return Judge(names, score, summary)

        return Ground(
            model=self.model,
            base=lambda: self.base,
            ingredients=self.specialists,
            objective=Classification(FIELDS),
            batches=image_batches(valid.images, valid.fields, self.pixels, each, rows.T.flatten()),
            valid=judge(valid),
            test=Sealed(judge(TaskImages.joined([task.test.read() for task in self.tasks[:TASKS]])), "the tasks"),
            figure="normalised accuracy",
            budget={"training steps": self.steps},
            save=save_encoder,
        )

    def adaptation(self, shots: int) -> Ground:
        """The task that no specialist was trained for, with `shots` images of each class to fit on.

        Its head is the mean features of the shots. Figure: `few-shot accuracy`.

        Raises: ConfigError for more shots than there are images to train on.
        """
        if shots > self.training.per_class[0]:
            raise ConfigError(f"shots={shots}: per_class={self.training.per_class} gives {self.training.per_class[0]}")
        task = self.tasks[TASKS]
        data = TaskImages.joined([first_of_each(task.train, shots)])
        self.base.into(self.model)
        model = copy.deepcopy(self.model)
        features = in_batches(model, model.encoder, self.pixels, data.images)
        model.heads = class_means(features, data, model.centre.cpu()).to(model.centre)

        def judge(data: TaskImages) -> Judge:
            def score(model: nn.Module, name: str) -> float:
                task = data.fields["task"]
                return accuracy(model, self.pixels, data.images, data.fields["label"], task=task)

            return Judge(("few-shot",), score, lambda scores: {"few-shot accuracy": scores["few-shot"]})

        order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(self.training.seed))
        return Ground(
            model=model,
            base=lambda: self.base,
            ingredients=self.specialists,
            objective=AugmentedClassification(0.5, fields=FIELDS),
            batches=image_batches(data.images, data.fields, self.pixels, self.training.batch_size, order),
            valid=judge(task.valid),
            test=Sealed(judge(task.test.read()), "the unseen task"),
            figure="few-shot accuracy",
            budget={"training steps": self.steps},
            save=save_encoder,
        )


def save_encoder(path: Path, model: nn.Module) -> Path:
    """Write the encoder of a `HeadedEncoder` as a model folder, heads as notes; another library's as weights."""
    assert isinstance(model, HeadedEncoder)
    inner = model.encoder.get_submodule("model")
    if not isinstance(inner, ImageEncoder):
        return open_weights(model, type(model).__name__).save(path.with_suffix(".safetensors"))
    encoder = ImageEncoder(replace(inner.config, labels=0))
    encoder.load_state_dict(inner.state_dict())
    return save_model(path, encoder, extra={"heads": model.heads.tolist(), "centre": model.centre.tolist()})
