"""Labelled images for the arenas of images: rendered glyphs, a standard set, or the user's folder."""

from __future__ import annotations

import os.path
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from leaven.data.examples import LabelledImage
from leaven.data.images import load_images
from leaven.data.registry import STANDARD_SETS
from leaven.data.rendered.glyphs import GlyphStyle, render_glyphs
from leaven.data.sources import open_source
from leaven.data.splits import Split, hash_share
from leaven.errors import ConfigError, DataError
from leaven.evidence.selection import Sealed

GLYPHS = "glyphs"
ALPHABET = "βγδζηθλμξπφψω" + "бджлфцщыэюя"
"""Characters that no model of the zoo has seen, and that no Latin letter looks like."""


@dataclass(frozen=True)
class ImageSet:
    """images (count, 3, size, size) uint8; labels, names of classes, one per image."""

    images: Tensor
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def targets(self, classes: list[str]) -> Tensor:
        """Indices (count,) int64 of the labels in a list of classes."""
        place = {name: at for at, name in enumerate(classes)}
        return torch.tensor([place[label] for label in self.labels])


@dataclass(frozen=True)
class ImageData:
    """The three splits; the test split can be read once. classes: names, sorted."""

    classes: list[str]
    train: ImageSet
    valid: ImageSet
    test: Sealed[ImageSet]


def has_images(spec: str) -> bool:
    """Whether a source is one of labelled images: glyphs, a standard set of them, or a folder."""
    standard = STANDARD_SETS.get(spec)
    return (
        spec == GLYPHS or spec.startswith("imagefolder:") or (standard is not None and LabelledImage in standard.kinds)
    )


def open_images(
    spec: str, *, size: int, classes: int, per_class: tuple[int, int, int], gap: float, seed: int
) -> ImageData:
    """Images of a source.

    Args:
        spec: "glyphs", characters that the zoo has not seen; a standard set, such as `cifar10`; or `imagefolder:DIR`.
        size: side in pixels.
        classes: how many of the glyphs' classes, drawn by the seed; other sources keep all of theirs.
        per_class: most images of a class in train, valid and test.
        gap: of the glyphs' style to plain print, in [0, 1].
        seed: of which glyphs and how they are drawn; of other sources, of which images where there are more.

    Raises: ConfigError for more classes than there are; DataError for what `open_source` refuses, or a class without
    an image in a split.
    """
    if spec == GLYPHS:
        return _glyphs(size, classes, per_class, gap, seed)
    splits: tuple[Split, ...] = ("train", "valid", "test")
    train, valid, test = (_chosen(spec, size, split, most, seed) for split, most in zip(splits, per_class, strict=True))
    names = sorted(set(train.labels))
    for split, found in (("valid", valid), ("test", test)):
        if unknown := sorted(set(found.labels) - set(names)):
            raise DataError(f"{spec}: class {unknown[0]!r} has images in the {split} split and none to train on")
        if missing := sorted(set(names) - set(found.labels)):
            raise DataError(
                f"{spec}: class {missing[0]!r} has no image in the {split} split: it needs about ten images or more"
            )
    return ImageData(names, train, valid, Sealed(test, spec))


def class_groups(classes: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Classes by what stands before the slash in their names, such as alphabets, in an order that the seed decides.

    Empty where not all names have one.
    """
    if not all("/" in name for name in classes):
        return {}
    names = sorted({name.partition("/")[0] for name in classes})
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    return {names[at]: [name for name in classes if name.partition("/")[0] == names[at]] for at in order}


def _glyphs(size: int, classes: int, per_class: tuple[int, int, int], gap: float, seed: int) -> ImageData:
    if not 2 <= classes <= len(ALPHABET):
        raise ConfigError(f"classes={classes}: glyphs have from 2 to {len(ALPHABET)}")
    order = torch.randperm(len(ALPHABET), generator=torch.Generator().manual_seed(seed))[:classes]
    characters = "".join(ALPHABET[at] for at in sorted(order.tolist()))
    train, valid, test = (_drawn(characters, size, count, gap, 3 * seed + part) for part, count in enumerate(per_class))
    return ImageData(sorted(characters), train, valid, Sealed(test, GLYPHS))


@cache
def _drawn(characters: str, size: int, per_class: int, gap: float, seed: int) -> ImageSet:
    """Once per process: arms of a seed share them."""
    drawn = render_glyphs(characters, per_class, size=size, style=GlyphStyle(gap), seed=seed)
    pixels = drawn.rgb()
    return ImageSet(pixels, tuple(characters[label] for label in drawn.labels.tolist()))


@cache
def _chosen(spec: str, size: int, split: Split, per_class: int, seed: int) -> ImageSet:
    """At most so many images of each class, drawn by seed and a hash of the path below what all have in common."""
    examples = open_source(spec, LabelledImage, split=split).examples
    # Where a folder lies on a machine must not decide which of its images are drawn.
    root = os.path.commonpath([Path(example.path).parents[1] for example in examples])
    by_class: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    for example in examples:
        below = example.path[len(root) :].replace(os.sep, "/")
        by_class[example.label].append((hash_share(below, seed), example.path))
    chosen = [
        (path, label)
        for label in sorted(by_class)
        for path in sorted(path for _, path in sorted(by_class[label])[:per_class])
    ]
    return ImageSet(load_images([path for path, _ in chosen], size), tuple(label for _, label in chosen))
