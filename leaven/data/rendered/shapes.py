"""Filled shapes and surface textures as functions of coordinates, for drawing at any resolution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Coordinates = NDArray[np.float64]
Mask = NDArray[np.bool_]
Shape = Callable[[Coordinates, Coordinates], Mask]


def _polygon(corners: list[tuple[float, float]]) -> Shape:
    """Even-odd rule over the edges."""

    def inside(x: Coordinates, y: Coordinates) -> Mask:
        found = np.zeros(np.broadcast(x, y).shape, dtype=bool)
        for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], corners[0]], strict=True):
            if y1 != y2:
                found ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
        return found

    return inside


def _regular(count: int, inner: float | None = None) -> Shape:
    """A regular polygon, or with `inner` a star whose inner corners lie at that radius; one corner points up."""
    corners = []
    total = count if inner is None else 2 * count
    for index in range(total):
        radius = 1.0 if inner is None or index % 2 == 0 else inner
        angle = 2 * np.pi * index / total
        corners.append((radius * float(np.sin(angle)), -radius * float(np.cos(angle))))
    return _polygon(corners)


def _heart(x: Coordinates, y: Coordinates) -> Mask:
    u, v = 1.2 * x, 0.25 - 1.2 * y
    return np.asarray((u**2 + v**2 - 0.8) ** 3 - u**2 * v**3 * 1.6 < 0)


# The unit disc |(x, y)| <= 1 holds every shape; y points down.
SHAPES: dict[str, Shape] = {
    "circle": lambda x, y: x**2 + y**2 < 0.9,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.75,
    "triangle": _polygon([(0.0, -0.9), (0.85, 0.7), (-0.85, 0.7)]),
    "star": _regular(5, 0.42),
    "cross": lambda x, y: ((abs(x) < 0.3) & (abs(y) < 0.9)) | ((abs(y) < 0.3) & (abs(x) < 0.9)),
    "ring": lambda x, y: (x**2 + y**2 < 0.9) & (x**2 + y**2 > 0.3),
    "heart": _heart,
    "diamond": lambda x, y: abs(x) / 0.65 + abs(y) / 0.95 < 1,
    "hexagon": _regular(6),
    "crescent": lambda x, y: (x**2 + y**2 < 0.9) & ((x - 0.45) ** 2 + y**2 > 0.55),
}

# Share of the surface in the second shade; coordinates are in strokes of the texture, not in image pixels.
TEXTURES: dict[str, Callable[[Coordinates, Coordinates], Mask]] = {
    "plain": lambda x, y: np.zeros(np.broadcast(x, y).shape, dtype=bool),
    "striped": lambda x, y: np.mod(x + y, 1.0) < 0.5,
    "dotted": lambda x, y: (np.mod(x, 1.0) - 0.5) ** 2 + (np.mod(y, 1.0) - 0.5) ** 2 < 0.08,
    "checkered": lambda x, y: (np.mod(x, 1.0) < 0.5) ^ (np.mod(y, 1.0) < 0.5),
}

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 200),
    "yellow": (240, 220, 40),
    "orange": (255, 127, 14),
    "purple": (130, 60, 170),
    "pink": (245, 140, 195),
    "brown": (125, 75, 45),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}

# Radius as a share of the image's side.
SIZES: dict[str, tuple[float, float]] = {"small": (0.10, 0.13), "medium": (0.16, 0.20), "large": (0.24, 0.30)}
BACKGROUNDS: tuple[str, ...] = ("plain", "gradient", "grain", "tiles")
