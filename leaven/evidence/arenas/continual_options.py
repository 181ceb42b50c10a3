"""Options of the arenas of continual learning, and their tiers."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, field_validator

from leaven.adapt.continual import TaskTraining
from leaven.errors import ConfigError
from leaven.evidence.arenas.image_data import GLYPHS, has_images
from leaven.evidence.arenas.peft_data import has_texts
from leaven.evidence.system import SystemConfig
from leaven.training.config import TrainingConfig

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
    """Options of a stream of labelled inputs and of the training on its tasks."""

    reads_texts: ClassVar[bool] = False

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
    def _known_data(cls, spec: str) -> str:
        if not (has_images(spec) or (cls.reads_texts and has_texts(spec))):
            texts = "; or of texts, such as agnews or jsonl:FILE" if cls.reads_texts else ""
            raise ConfigError(
                f"data={spec}: expected {GLYPHS}, a standard set of images such as cifar10, or imagefolder:DIR with a "
                f"folder for each class{texts}"
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

    reads_texts = True

    data: str = Field(
        "glyphs",
        description="labelled images: glyphs, cifar10, omniglot, or imagefolder:DIR with a folder for each class; or "
        "labelled texts: docstring-packages, docstring-topics, agnews, sst2, or rows of {text, label} such as "
        "jsonl:FILE",
    )
    model: str = Field(
        "", description="the encoder: zoo:NAME, hf:ID, minilm or a folder; empty: zoo:mini-vit, or minilm for texts"
    )
    encoder: Literal["model", "random", "pixels"] = Field(
        "model",
        description="what is read: the model; as controls, its architecture with random weights, or the pixels (counts "
        "of tokens for texts)",
    )
    first: int = Field(0, ge=0, description="classes of the first task; 0: as many as of the others")
    longest: int = Field(48, ge=4, le=8192, description="most tokens of a text")
