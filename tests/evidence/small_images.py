"""A folder of coloured images and an image encoder, both small enough for a test."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from leaven.models.saved import save_model
from leaven.models.trunk import TrunkConfig
from leaven.models.vision import ImageEncoder, ImageEncoderConfig


def image_folder(place: Path, classes: int = 10, counts: tuple[int, int, int] = (8, 3, 4), size: int = 24) -> str:
    """Classes of one colour each, with noise."""
    rng = np.random.default_rng(0)
    for at in range(classes):
        colour = np.random.default_rng(at).integers(30, 226, 3)
        for split, count in zip(("train", "valid", "test"), counts, strict=True):
            folder = place / split / f"class-{at:02d}"
            folder.mkdir(parents=True)
            for image in range(count):
                pixels = np.clip(colour + rng.normal(0, 12, (size, size, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{image}.png")
    return f"imagefolder:{place}"


def encoder_folder(place: Path, *, depth: int = 2, size: int = 32, labels: int = 0, seed: int = 7) -> str:
    """A vision transformer of 16 dimensions with random weights."""
    torch.manual_seed(seed)
    trunk = TrunkConfig(dim=16, depth=depth, heads=2, positions="none")
    save_model(place, ImageEncoder(ImageEncoderConfig(trunk, size=size, patch=8, labels=labels)))
    return str(place)
