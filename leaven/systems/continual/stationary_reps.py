"""Stationary representations: all versions of a model on one fixed simplex (arXiv 2405.02581)."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import nn

from leaven.adapt.continual import Compatibility, CompatibleLearner, SequentialFineTuning, SimplexEncoder, TaskTraining
from leaven.adapt.continual.task_training import require_module
from leaven.errors import ModelError
from leaven.evidence.arenas.continual_search import Elsewhere, Replaceable, SearchSystem
from leaven.evidence.arenas.continual_search_data import SearchConfig
from leaven.evidence.arenas.image_data import ImageSet
from leaven.evidence.claims import Claim


class StationaryRepsConfig(SearchConfig):
    """Options of stationary representations."""

    method: Literal["hoc", "ce", "er", "er-distilled", "er-reindexed"] = Field(
        "hoc",
        description="fixed simplex with higher-order compatibility or cross-entropy alone; experience replay with "
        "classifiers that learn, alone or held near the features a task began with; or the gallery made anew by each "
        "version",
    )
    slots: int = Field(64, ge=4, le=100_000, description="classes that can ever be: vertices of the simplex")
    weight: float = Field(0.1, ge=0, le=1, description="of the cross-entropy; the rest is compatibility")
    scale: float = Field(10.0, gt=0, le=1000, description="inverse temperature of the compatibility")
    distillation: float = Field(1.0, gt=0, description="of the distance to earlier unit features in er-distilled")


class _OnSimplex(CompatibleLearner):
    """Classes from elsewhere have the vertices in front, in the order of their images."""

    def go_on_from(self, elsewhere: Elsewhere) -> None:
        place = {label: at for at, label in enumerate(dict.fromkeys(elsewhere.labels))}
        slots = [place[label] for label in elsewhere.labels]
        try:
            self.replace(cast(SimplexEncoder, elsewhere.model), elsewhere.images, slots)
        except ModelError as error:
            raise ModelError(f"{error}; a model that was trained too little needs more pretrain_epochs") from error


class _Replay(SequentialFineTuning):
    """Its classifier goes on with whatever encoder there is."""

    def version(self) -> nn.Module:
        return copy.deepcopy(require_module(self.encoder, "er"))

    def go_on_from(self, elsewhere: Elsewhere) -> None:
        self.encoder = copy.deepcopy(elsewhere.model).eval()


class StationaryReps(SearchSystem[StationaryRepsConfig]):
    """Every version is trained against the same simplex, so features of new versions search old galleries.

    Models from elsewhere take vertices from the front, the stream's classes from the end. Source: section 3.
    """

    slug = "stationary-reps"
    title = "Stationary representations: replace the model and keep the gallery"
    Config = StationaryRepsConfig
    arms: ClassVar[dict[str, dict[str, Any]]] = {
        "hoc": {"method": "hoc"},
        "ce-only": {"method": "ce"},
        "er": {"method": "er"},
        "er-distilled": {"method": "er-distilled"},
        "er-reindexed": {"method": "er-reindexed"},
    }
    tiers: ClassVar[dict[str, dict[str, Any]]] = {
        "embedded": {"train_images": 40, "learning_rates": (1e-3, 5e-3, 2.5e-2)},
        "standard": {
            "data": "omniglot",
            "train_images": 10,
            "valid_images": 5,
            "test_images": 5,
            "batch_size": 16,
            "search_classes": 64,
            "slots": 160,
            "learning_rates": (1e-3, 5e-3, 2.5e-2),
        },
    }
    seeds: ClassVar[dict[str, int]] = {"embedded": 5, "standard": 3}
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            says="On a fixed simplex, more newer models can search older galleries than with classifiers that learn",
            metric="compatibility",
            better="hoc",
            than="er",
            by=0.3,
            paper="AC 0.95 on 7 tasks with 3 replacements",
        ),
        Claim(
            says="Searches across versions find more",
            metric="search_accuracy",
            better="hoc",
            than="er",
            by=10.0,
            paper="AA 68.9 on 7 tasks with 3 replacements",
        ),
        Claim(
            says="The last model finds more in the first gallery",
            metric="newest_in_oldest",
            better="hoc",
            than="er",
            by=10.0,
            paper="63.1, where the first model finds 58.9",
        ),
        Claim(
            says="Searches across versions find more than with replay that holds features near the earlier ones",
            metric="search_accuracy",
            better="hoc",
            than="er-distilled",
            by=5.0,
            paper="no such arm",
        ),
        Claim("Higher-order compatibility adds to cross-entropy", "compatibility", "hoc", "ce-only", 0.0),
        Claim(
            says="It is within 10 points of making the gallery anew with every version",
            metric="search_accuracy",
            better="hoc",
            than="er-reindexed",
            by=-10.0,
        ),
    )

    @property
    def _replays(self) -> bool:
        return self.config.method.startswith("er")

    @property
    def pretraining_kind(self) -> dict[str, Any]:
        """With classifiers that learn, or on the simplex of so many slots."""
        return {"slots": 0 if self._replays else self.config.slots}

    def untrained(self, encoder: nn.Module, width: int, seed: int) -> nn.Module:
        """The encoder alone, or with a layer to the space of the simplex."""
        if self._replays:
            return encoder
        return SimplexEncoder(encoder, width, self.config.slots, torch.Generator().manual_seed(seed))

    def pretrained(self, model: nn.Module, images: ImageSet, training: TaskTraining) -> nn.Module:
        """Trained on the simplex, or with a linear head that is thrown away."""
        if self._replays:
            tuned = SequentialFineTuning(model, softmax="seen", training=training)
            tuned.learn(images.images, list(images.labels))
            return require_module(tuned.encoder, "er")
        learner = CompatibleLearner(
            cast(SimplexEncoder, model), side="front", weight=1, exemplars_per_class=0, training=training
        )
        learner.learn(images.images, list(images.labels))
        return learner.version()

    def learner(self, elsewhere: Elsewhere, training: TaskTraining) -> Replaceable:
        """A learner on the first model from elsewhere."""
        config = self.config
        if self._replays:
            return _Replay(
                elsewhere.model,
                softmax="seen",
                exemplars_per_class=config.memory,
                distillation=config.distillation if config.method == "er-distilled" else 0.0,
                training=training,
            )
        return _OnSimplex(
            cast(SimplexEncoder, elsewhere.model),
            side="end",
            reserved=max(config.pretrain_classes),
            exemplars_per_class=config.memory,
            weight=config.weight if config.method == "hoc" else 1.0,
            scale=config.scale,
            training=training,
        )

    def judged(self, found: Compatibility) -> Compatibility:
        """With galleries made anew, each version searches its own."""
        if self.config.method != "er-reindexed":
            return found
        own = found.matrix.diagonal()[:, None].expand_as(found.matrix)
        return Compatibility(torch.where(found.matrix.isnan(), found.matrix, own))
