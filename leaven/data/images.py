"""Image files to pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from leaven.errors import ConfigError, DataError


def load_images(paths: Sequence[str | Path], size: int, *, channels: int = 3) -> Tensor:
    """Decoded images, turned as their metadata say, the shorter side scaled to `size` and the middle cut out.

    Args:
        size: side in pixels, >= 1.
        channels: 3 for colour, 1 for grey.

    Returns: (images, channels, size, size) uint8.
    Raises: DataError naming a file that cannot be read to its end; ConfigError for other sizes or channels.
    """
    if size < 1 or channels not in (1, 3):
        raise ConfigError(f"size={size}, channels={channels}: expected at least 1 pixel, and 1 or 3 channels")
    pixels = np.empty((len(paths), channels, size, size), dtype=np.uint8)
    for at, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                turned = ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: cannot be read as an image: {error}; repair or remove it") from error
        fitted = np.asarray(ImageOps.fit(turned, (size, size), Image.Resampling.BICUBIC))
        pixels[at] = fitted.transpose(2, 0, 1) if channels == 3 else fitted[None]
    return torch.from_numpy(pixels)
