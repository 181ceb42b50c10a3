"""Changed images: the mild shifts that a classifier is tested under, and the augmentation it is trained with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from leaven.errors import ConfigError

Pixels = NDArray[np.float32]


def _blur(image: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    del rng
    sigma = severity * image.shape[-1] / 32
    return ndimage.gaussian_filter(image, (0, sigma, sigma))  # type: ignore[no-any-return]


def _noise(image: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    return image + rng.normal(0, 32 * severity, image.shape).astype(np.float32)


def _contrast(image: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    del rng
    middle = image.mean()
    return middle + (image - middle) / np.float32(1 + 1.5 * severity)  # type: ignore[no-any-return]


def _rotation(image: Pixels, severity: float, rng: np.random.Generator) -> Pixels:
    angle = 25 * severity * float(rng.choice([-1.0, 1.0]))
    return ndimage.rotate(image, angle, (1, 2), reshape=False, order=1, mode="nearest")  # type: ignore[no-any-return]


SHIFTS: dict[str, Callable[[Pixels, float, np.random.Generator], Pixels]] = {
    "blur": _blur,
    "noise": _noise,
    "contrast": _contrast,
    "rotation": _rotation,
}
"""By name. At severity 1: a blur of 1/32 of the side, noise of 1/8 of the range, contrast divided by 2.5, 25 degrees
to either side."""


def shifted(images: Tensor, name: str, *, severity: float = 1.0, seed: int = 0) -> Tensor:
    """Every image under one of the shifts; what happens to an image depends on the seed and its place alone.

    Args:
        images: (count, channels, size, size) uint8.
        name: one of `SHIFTS`.
        severity: >= 0; 0 changes nothing.

    Returns: images of the same shape and type.
    Raises: ConfigError for an unknown shift or a negative severity.
    """
    if name not in SHIFTS or not severity >= 0:
        raise ConfigError(f"shift={name!r}, severity={severity}: expected one of {', '.join(SHIFTS)}, and 0 or more")
    changed = np.empty(images.shape, dtype=np.uint8)
    for place, image in enumerate(images.numpy()):
        rng = np.random.default_rng([seed, place])
        changed[place] = np.clip(np.rint(SHIFTS[name](image.astype(np.float32), severity, rng)), 0, 255)
    return torch.from_numpy(changed)


def augmented(pixel_values: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Each image turned, scaled, moved, and changed in contrast and brightness at random.

    Args:
        pixel_values: (batch, channels, size, size).
        strength: in [0, 1]; at 1 up to 25 degrees, 20% of scale, 12% of the side, half of the contrast and 0.3 of
            brightness. 0 changes nothing.
    """
    if not strength:
        return pixel_values
    rows = len(pixel_values)
    drawn = torch.rand(6, rows, generator=generator).mul(2).sub(1) * strength
    angle, scale = drawn[0] * (25 * torch.pi / 180), 1 + 0.2 * drawn[1]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    # The grid counts from -1 to 1, so a move by 12% of the side is 0.24.
    move = 0.24 * drawn[2:4]
    matrix = torch.stack([torch.stack([cos, -sin, move[0]], 1), torch.stack([sin, cos, move[1]], 1)], 1)
    grid = F.affine_grid(matrix.to(pixel_values), list(pixel_values.shape), align_corners=False)
    turned = F.grid_sample(pixel_values, grid, padding_mode="border", align_corners=False)
    contrast, brightness = 1 + 0.5 * drawn[4], 0.3 * drawn[5]
    return turned * contrast.to(turned)[:, None, None, None] + brightness.to(turned)[:, None, None, None]
