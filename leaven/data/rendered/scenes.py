"""Rendered scenes: coloured, textured shapes on a ground, with exact boxes and masks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leaven.data.rendered.shapes import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES
from leaven.errors import ConfigError

_SUPERSAMPLE = 3


class SceneObject(NamedTuple):
    """One object. x, y: centre, and radius, all as shares of the image's side; angle in radians."""

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects from back to front on a ground; `noise` is the seed of the ground's grain."""

    objects: tuple[SceneObject, ...]
    ground: str
    shade: tuple[int, int, int]
    noise: int


class Rendered(NamedTuple):
    """A picture of a scene.

    image (height, width, 3) uint8; masks (objects, height, width) bool, what is visible of each object; boxes
    (objects, 4) float32, left, top, right, bottom of the visible part in pixels, all zero for a hidden object.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    boxes: NDArray[np.float32]


@dataclass(frozen=True)
class SceneWorld:
    """What scenes are made of.

    Args:
        objects: fewest and most objects of a scene.
        shapes, colours, textures, sizes, grounds: names to draw from, by default all.
        excluded: (shape, colour) pairs that never occur, kept for a test of unseen combinations.
        overlap: largest share of the two radii by which objects may overlap, in [0, 1].
        seed: together with its index it decides a scene.

    Raises: ConfigError for an unknown name or a world without any object.

    Example:
        >>> world = SceneWorld(objects=(1, 2), seed=3)
        >>> render(world.scene(0), 32).image.shape
        (32, 32, 3)
    """

    objects: tuple[int, int] = (1, 3)
    shapes: tuple[str, ...] = tuple(SHAPES)
    colours: tuple[str, ...] = tuple(COLOURS)
    textures: tuple[str, ...] = tuple(TEXTURES)
    sizes: tuple[str, ...] = tuple(SIZES)
    grounds: tuple[str, ...] = BACKGROUNDS
    excluded: frozenset[tuple[str, str]] = field(default_factory=frozenset)
    overlap: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        known: dict[str, Collection[str]] = {
            "shapes": SHAPES,
            "colours": COLOURS,
            "textures": TEXTURES,
            "sizes": SIZES,
            "grounds": BACKGROUNDS,
        }
        for option, names in known.items():
            chosen = getattr(self, option)
            unknown = [name for name in chosen if name not in names]
            if unknown or not chosen:
                raise ConfigError(f"{option}={chosen!r}: expected some of {', '.join(names)}")
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise ConfigError(f"objects={self.objects}: expected fewest and most objects, at least 1")
        if not self._pairs():
            raise ConfigError("excluded leaves no pair of shape and colour")

    def _pairs(self) -> list[tuple[str, str]]:
        pairs = [(shape, colour) for shape in self.shapes for colour in self.colours]
        return [pair for pair in pairs if pair not in self.excluded]

    def scene(self, index: int) -> Scene:
        """The scene of an index."""
        rng = np.random.default_rng([self.seed, index])
        pairs = self._pairs()
        shade = tuple(int(v) for v in rng.integers(60, 200, 3))
        # An object as bright as the ground would be there in the caption and not in the picture.
        visible = [pair for pair in pairs if _distance(COLOURS[pair[1]], shade) > 70] or pairs
        objects: list[SceneObject] = []
        for _ in range(int(rng.integers(self.objects[0], self.objects[1] + 1))):
            shape, colour = visible[int(rng.integers(len(visible)))]
            size = self.sizes[int(rng.integers(len(self.sizes)))]
            radius = float(rng.uniform(*SIZES[size]))
            place = self._place(rng, radius, objects)
            if place is None:
                continue
            texture = self.textures[int(rng.integers(len(self.textures)))]
            objects.append(SceneObject(shape, colour, texture, size, *place, radius, float(rng.uniform(-0.3, 0.3))))
        ground = self.grounds[int(rng.integers(len(self.grounds)))]
        return Scene(tuple(objects), ground, (shade[0], shade[1], shade[2]), int(rng.integers(2**31)))

    def _place(self, rng: np.random.Generator, radius: float, others: list[SceneObject]) -> tuple[float, float] | None:
        for _ in range(30):
            x, y = rng.uniform(radius, 1 - radius, 2)
            if all(np.hypot(x - o.x, y - o.y) >= (radius + o.radius) * (1 - self.overlap) for o in others):
                return float(x), float(y)
        return None


def _distance(a: tuple[int, int, int], b: tuple[int, ...]) -> float:
    return float(np.linalg.norm(np.subtract(a, b)))


def render(scene: Scene, size: int) -> Rendered:
    """Draw a scene with antialiased edges.

    Args:
        size: side of the square picture in pixels, at least 8.

    Raises: ConfigError for a smaller size.
    """
    if size < 8:
        raise ConfigError(f"size={size}: a scene needs at least 8 pixels")
    fine = size * _SUPERSAMPLE
    canvas = _ground(scene, fine)
    owner = np.full((fine, fine), -1, dtype=np.int16)
    for index, one in enumerate(scene.objects):
        low = np.maximum(np.floor((np.array([one.x, one.y]) - one.radius) * fine), 0).astype(int)
        high = np.minimum(np.ceil((np.array([one.x, one.y]) + one.radius) * fine), fine).astype(int)
        x = ((np.arange(low[0], high[0]) + 0.5) / fine - one.x)[None, :] / one.radius
        y = ((np.arange(low[1], high[1]) + 0.5) / fine - one.y)[:, None] / one.radius
        cos, sin = np.cos(one.angle), np.sin(one.angle)
        u, v = cos * x + sin * y, cos * y - sin * x
        inside = SHAPES[one.shape](u, v)
        window = np.s_[low[1] : high[1], low[0] : high[0]]
        owner[window][inside] = index
        colour = np.array(COLOURS[one.colour], dtype=np.float32)
        second = colour * 0.45 if colour.mean() > 90 else colour + 0.55 * (255 - colour)
        strokes = TEXTURES[one.texture](u * 2.2, v * 2.2)
        canvas[window][inside] = colour
        canvas[window][inside & strokes] = second
    image = canvas.reshape(size, _SUPERSAMPLE, size, _SUPERSAMPLE, 3).mean((1, 3))
    blocks = owner.reshape(size, _SUPERSAMPLE, size, _SUPERSAMPLE)
    masks = np.stack(
        [(blocks == index).mean((1, 3)) >= 0.5 for index in range(len(scene.objects))]
        or [np.zeros((size, size), dtype=bool)]
    )[: len(scene.objects)]
    return Rendered(np.clip(image + 0.5, 0, 255).astype(np.uint8), masks, _boxes(masks))


def _ground(scene: Scene, fine: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(scene.noise)
    canvas = np.empty((fine, fine, 3), dtype=np.float32)
    canvas[:] = scene.shade
    if scene.ground == "gradient":
        slope = np.linspace(-35, 35, fine, dtype=np.float32)
        canvas += (slope[:, None] if rng.random() < 0.5 else slope[None, :])[..., None]
    elif scene.ground == "grain":
        grain = rng.normal(0, 22, (fine // _SUPERSAMPLE, fine // _SUPERSAMPLE, 1)).astype(np.float32)
        canvas += grain.repeat(_SUPERSAMPLE, 0).repeat(_SUPERSAMPLE, 1)
    elif scene.ground == "tiles":
        place = np.arange(fine) // max(fine // 6, 1)
        canvas += np.where((place[:, None] + place[None, :]) % 2, 14, -14)[..., None].astype(np.float32)
    return canvas


def _boxes(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for index, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            boxes[index] = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return boxes
