from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leaven.data.rendered.glyphs import CYRILLIC, GREEK, LETTERS
from leaven.errors import ConfigError, DataError
from leaven.evidence.arenas.image_data import ALPHABET, has_images, open_images

SIZES = {"size": 16, "classes": 4, "per_class": (6, 2, 3), "gap": 0.3}


def test_glyphs_are_unseen_characters_drawn_anew_in_each_split() -> None:
    assert len(set(ALPHABET)) == len(ALPHABET)
    assert set(ALPHABET) <= set(GREEK + CYRILLIC) - set(LETTERS)
    data = open_images("glyphs", seed=1, **SIZES)
    assert len(data.classes) == 4
    assert [len(data.train), len(data.valid)] == [24, 8]
    test = data.test.read()
    assert test.images.shape == (12, 3, 16, 16) and test.images.dtype == torch.uint8
    assert sorted(test.targets(data.classes).tolist()) == sorted([0, 1, 2, 3] * 3)
    images = {tuple(image.flatten().tolist()) for part in (data.train, data.valid, test) for image in part.images}
    assert len(images) == 44
    assert open_images("glyphs", seed=2, **SIZES).classes != data.classes
    with pytest.raises(ConfigError, match="classes=99"):
        open_images("glyphs", seed=0, **{**SIZES, "classes": 99})


def folder(place: Path, counts: dict[str, int]) -> str:
    for label, count in counts.items():
        (place / label).mkdir()
        for at in range(count):
            Image.fromarray(np.full((9, 9, 3), at, dtype=np.uint8)).save(place / label / f"{at:03d}.png")
    return f"imagefolder:{place}"


def test_a_folder_keeps_its_classes_and_at_most_so_many_images(tmp_path: Path) -> None:
    spec = folder(tmp_path, {"a": 80, "b": 60})
    data = open_images(spec, seed=0, **SIZES)
    assert data.classes == ["a", "b"]
    assert data.train.labels == ("a",) * 6 + ("b",) * 6
    # The pixels are those of the file: here its number.
    assert all(len(image.unique()) == 1 for image in data.train.images)
    assert len(data.test.read()) <= 6


def test_a_class_that_is_missing_from_a_split_is_named(tmp_path: Path) -> None:
    spec = folder(tmp_path, {"a": 80, "rare": 1})
    with pytest.raises(DataError, match="class 'rare' has"):
        open_images(spec, seed=0, **SIZES)


def test_where_a_folder_lies_does_not_decide_which_images_are_drawn(tmp_path: Path) -> None:
    found = []
    for name in ("here", "some/where/else"):
        place = tmp_path / name
        place.mkdir(parents=True)
        found.append(open_images(folder(place, {"a": 80, "b": 60}), seed=0, **SIZES))
    one, other = found
    assert torch.equal(one.train.images, other.train.images) and torch.equal(one.valid.images, other.valid.images)
    # Not the first ones by name.
    assert one.train.images[:6, 0, 0, 0].tolist() != sorted(one.train.images[:, 0, 0, 0].tolist())[:6]


def test_the_seed_draws_other_images_of_the_same_split(tmp_path: Path) -> None:
    spec = folder(tmp_path, {"a": 80, "b": 60})
    everything = open_images(spec, seed=0, **{**SIZES, "per_class": (1000, 1000, 1000)})
    first, second = (open_images(spec, seed=seed, **SIZES) for seed in (0, 1))
    assert not torch.equal(first.train.images, second.train.images)
    for one in (first, second):
        assert {image.numpy().tobytes() for image in one.train.images} <= {
            image.numpy().tobytes() for image in everything.train.images
        }


@pytest.mark.parametrize(
    ("spec", "images"),
    [
        ("glyphs", True),
        ("cifar10", True),
        ("omniglot", True),
        ("imagefolder:x", True),
        ("java2cs", False),
        ("x", False),
    ],
)
def test_sources_of_images(spec: str, images: bool) -> None:
    assert has_images(spec) == images
