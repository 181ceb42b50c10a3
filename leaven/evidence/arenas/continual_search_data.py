"""Data of the arena of model replacement: what models from elsewhere know, the stream, and what is searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from leaven.adapt.continual import Increment, class_increments
from leaven.data.rendered.glyphs import LETTERS, GlyphStyle, render_glyphs
from leaven.errors import ConfigError
from leaven.evidence.arenas.continual_options import StreamConfig
from leaven.evidence.arenas.continual_stream import task_sizes
from leaven.evidence.arenas.image_data import GLYPHS, ImageSet, open_images
from leaven.evidence.selection import Sealed
from leaven.training.randomness import mix


class SearchConfig(StreamConfig):
    """Options of a stream in which the model is replaced."""

    model: str = Field(
        "",
        description="architecture of all models, whose weights start afresh; empty: a small CNN",
    )
    classes: int = Field(15, ge=2, le=24, description="classes of the stream of glyphs; a folder's are what is left")
    search_classes: int = Field(9, ge=2, le=1000, description="classes that are searched and never trained on")
    pretrain_classes: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (8, 16, 32), min_length=1, description="classes that the models from elsewhere were trained on, one number each"
    )
    replace_at: tuple[int, ...] = Field(
        (0, 2, 4), min_length=1, description="tasks, counted from 0, before which the model is replaced; begins with 0"
    )
    pretrain_epochs: int = Field(20, ge=1, le=10_000, description="passes of the pre-training elsewhere")
    pretrain_rate: float = Field(1e-2, gt=0, le=1, description="learning rate of the pre-training elsewhere")
    memory: int = Field(5, ge=1, le=10_000, description="training images kept per class and rehearsed")


@dataclass(frozen=True)
class SearchData:
    """Images to pre-train each model on, the tasks with their rows in `train`, and what is searched.

    The classes of gallery and queries (`valid`, `test`) are never trained on.
    """

    pretraining: list[ImageSet]
    tasks: list[Increment]
    train: ImageSet
    gallery: ImageSet
    valid: ImageSet
    test: Sealed[ImageSet]


def open_search_data(config: SearchConfig) -> SearchData:
    """Stream and searched classes; the seed decides which is which.

    Of glyphs, models from elsewhere know Latin letters; of a folder, the first classes in the seed's order.

    Raises: ConfigError for a folder with too few classes, or replacements that do not fit the tasks.
    """
    c = config
    places, counts = c.replace_at, c.pretrain_classes
    if list(places) != sorted({0, *places}) or places[-1] >= c.tasks or len(places) != len(counts):
        raise ConfigError(
            f"replace_at={places}, pretrain_classes={counts}: expected as many of both, and the former to rise from 0 "
            f"to at most {c.tasks - 1}, the last task"
        )
    glyphs = c.data == GLYPHS
    data = open_images(
        c.data, size=c.size, classes=c.classes + c.search_classes, per_class=c.per_class, gap=c.gap, seed=c.seed
    )
    shuffled = torch.randperm(len(data.classes), generator=torch.Generator().manual_seed(mix(c.seed, 1))).tolist()
    order = [data.classes[at] for at in shuffled]
    elsewhere = 0 if glyphs else max(counts)
    stream, searched = order[elsewhere : -c.search_classes], order[-c.search_classes :]
    if len(stream) < 2 * c.tasks:
        raise ConfigError(
            f"{c.data} has {len(order)} classes, too few for {elsewhere} to pre-train on elsewhere, 2 for each of "
            f"{c.tasks} tasks and {c.search_classes} to search: lower pretrain_classes, tasks or search_classes"
        )
    train = _of(data.train, stream)
    pretraining = [
        _letters(count, c, at) if glyphs else _of(data.train, order[:count]) for at, count in enumerate(counts)
    ]
    tasks = class_increments(train.labels, task_sizes(len(stream), c.tasks), order=stream)
    test = Sealed(_of(data.test.read(), searched), c.data)
    return SearchData(pretraining, tasks, train, _of(data.train, searched), _of(data.valid, searched), test)


def _of(images: ImageSet, classes: Sequence[str]) -> ImageSet:
    """Those of some classes, class by class in their order here."""
    rows = [row for name in classes for row, label in enumerate(images.labels) if label == name]
    return ImageSet(images.images[rows], tuple(images.labels[row] for row in rows))


def _letters(count: int, config: SearchConfig, part: int) -> ImageSet:
    if count > len(LETTERS):
        raise ConfigError(f"pretrain_classes={config.pretrain_classes}: there are {len(LETTERS)} letters")
    drawn = render_glyphs(
        LETTERS[:count], config.train_images, size=config.size, style=GlyphStyle(config.gap),
        seed=mix(config.seed, part, 2),
    )  # fmt: skip
    pixels = drawn.rgb()
    return ImageSet(pixels, tuple(LETTERS[label] for label in drawn.labels.tolist()))
