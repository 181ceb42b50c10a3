"""Images of several tasks: disjoint characters, rendered or handwritten, each task in a style of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from leaven.data.rendered.glyphs import DIGITS, GlyphStyle, render_glyphs
from leaven.errors import ConfigError
from leaven.evidence.arenas.image_data import ALPHABET, ImageSet, class_groups, open_images
from leaven.evidence.selection import Sealed

GLYPH_TASKS, OMNIGLOT_TASKS = "glyph-tasks", "omniglot-tasks"
STYLES: tuple[tuple[str, float], ...] = (
    ("as drawn", 0.2),
    ("inverted", 0.4),
    ("turned", 0.2),
    ("mirrored", 0.6),
    ("as drawn", 0.8),
    ("tinted", 0.4),
    ("upside down", 0.5),
    ("as drawn", 0.6),
)
"""How the images of each task look: what is done to them, and the distance of glyphs from plain print. The last two are
kept for adaptation to a task that no model has seen, with a few labels and with none."""

PLAIN = ("as drawn", 0.0)
"""Print in no style: what the class of a character looks like by its name alone."""

TASKS = len(STYLES) - 2
_CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "as drawn": lambda images: images,
    "inverted": lambda images: 255 - images,
    "turned": lambda images: torch.rot90(images, 1, (2, 3)),
    "mirrored": lambda images: images.flip(3),
    "upside down": lambda images: images.flip(2),
    "tinted": lambda images: torch.cat([images[:, :1], 255 - images[:, 1:]], 1),
}


@dataclass(frozen=True)
class TaskImages:
    """Images (count, 3, size, size) uint8 and the fields `task` and `label`, (count,) int64 each."""

    images: Tensor
    fields: dict[str, Tensor]

    def of(self, task: int) -> TaskImages:
        """Those of one task."""
        rows = self.fields["task"] == task
        return TaskImages(self.images[rows], {name: value[rows] for name, value in self.fields.items()})

    @staticmethod
    def joined(parts: Sequence[TaskImages]) -> TaskImages:
        """Several parts as one."""
        fields = {name: torch.cat([part.fields[name] for part in parts]) for name in ("task", "label")}
        return TaskImages(torch.cat([part.images for part in parts]), fields)


@dataclass(frozen=True)
class TaskSplits:
    """The images of one task, by what they are for. name: characters and style. plain: its characters in no style."""

    name: str
    plain: TaskImages
    train: TaskImages
    valid: TaskImages
    test: Sealed[TaskImages]


@cache
def _images(
    characters: str, *, style: tuple[str, float], per_class: int, size: int, seed: int, task: int
) -> TaskImages:
    change, gap = style
    drawn = render_glyphs(characters, per_class, size=size, style=GlyphStyle(gap), seed=seed)
    images = drawn.rgb()
    return TaskImages(
        _CHANGES[change](images).contiguous(), {"task": torch.full_like(drawn.labels, task), "label": drawn.labels}
    )


def open_tasks(
    data: str = GLYPH_TASKS, *, classes: int, per_class: tuple[int, int, int], size: int, seed: int
) -> list[TaskSplits]:
    """One task for each of `STYLES`; no character is in two of them. In the last two, the field `task` is 0.

    Args:
        data: "glyph-tasks", rendered characters; or "omniglot-tasks", handwritten ones, those of a task being of one
            alphabet.
        classes: characters of a task, from 2; to 4 of glyphs, to 13 of omniglot.
        per_class: most images of a character to train, choose and test on; omniglot has 10, 5 and 5.
        size: side in pixels. seed: of the images, and of which characters each task gets.

    Raises: ConfigError for other data or more classes; DataError when the files of omniglot are not to be had.
    """
    if data == OMNIGLOT_TASKS:
        return _handwritten(classes, per_class, size, seed)
    characters = ALPHABET + DIGITS
    if data != GLYPH_TASKS or classes > len(characters) // len(STYLES):
        raise ConfigError(
            f"data={data}, task_classes={classes}: expected {GLYPH_TASKS} with at most "
            f"{len(characters) // len(STYLES)} classes, or {OMNIGLOT_TASKS}"
        )
    order = torch.randperm(len(characters), generator=torch.Generator().manual_seed(seed)).tolist()
    tasks = []
    for place, style in enumerate(STYLES):
        chosen = "".join(sorted(characters[at] for at in order[place * classes : (place + 1) * classes]))
        number = place if place < TASKS else 0
        train, valid, test = (
            _images(chosen, style=style, per_class=count, size=size, seed=3 * seed + part, task=number)
            for part, count in enumerate(per_class)
        )
        plain = _images(chosen, style=PLAIN, per_class=per_class[1], size=size, seed=3 * seed + 1, task=number)
        name = f"{chosen} {style[0]}, gap {style[1]:g}"
        tasks.append(TaskSplits(name, plain, train, valid, Sealed(test, name)))
    return tasks


def _handwritten(classes: int, per_class: tuple[int, int, int], size: int, seed: int) -> list[TaskSplits]:
    data = open_images("omniglot", size=size, classes=classes, per_class=per_class, gap=0.0, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for alphabet, names in class_groups(data.classes, seed).items():
        order = torch.randperm(len(names), generator=generator)[: len(names) // classes * classes]
        groups += [(alphabet, sorted(names[at] for at in part)) for part in order.view(-1, classes).tolist()]
    if len(groups) < len(STYLES):
        raise ConfigError(
            f"task_classes={classes}: the alphabets of omniglot make {len(groups)} tasks of so many characters, fewer "
            f"than {len(STYLES)}: take fewer classes"
        )
    chosen = torch.randperm(len(groups), generator=generator)[: len(STYLES)].tolist()
    test, tasks = data.test.read(), []
    for style, (alphabet, names) in enumerate(groups[at] for at in chosen):
        name = f"{alphabet} {STYLES[style][0]}"
        train, valid, tested = (_of(part, names, style) for part in (data.train, data.valid, test))
        # Other drawings than those of the training split, which may be adapted to without their labels.
        plain = _of(data.valid, names, style, change="as drawn")
        tasks.append(TaskSplits(name, plain, train, valid, Sealed(tested, name)))
    return tasks


def _of(images: ImageSet, classes: Sequence[str], style: int, change: str = "") -> TaskImages:
    """The images of some classes in a style, or changed otherwise, class by class."""
    rows = [row for name in classes for row, label in enumerate(images.labels) if label == name]
    labels = torch.tensor([classes.index(images.labels[row]) for row in rows])
    task = torch.full_like(labels, style if style < TASKS else 0)
    return TaskImages(
        _CHANGES[change or STYLES[style][0]](images.images[rows]).contiguous(), {"task": task, "label": labels}
    )


def first_of_each(data: TaskImages, shots: int) -> TaskImages:
    """The first so many images of each class."""
    labels = data.fields["label"]
    rows = torch.cat([(labels == label).nonzero()[:shots, 0] for label in range(int(labels.max()) + 1)])
    return TaskImages(data.images[rows], {name: value[rows] for name, value in data.fields.items()})
