"""Rendered characters in many typefaces, with a style gap that can be opened at will."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor

from leaven.errors import ConfigError

# Typefaces that ship with matplotlib, so that every machine draws the same.
FACES: tuple[str, ...] = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
)
LETTERS = "abcdefghijklmnopqrstuvwxyzABDEFGHJKLMNQRTY"
GREEK = "αβγδεζηθλμξπρσφψωΓΔΘΛΞΠΣΦΨΩ"
CYRILLIC = "бвгджзилпфцчшщыэюя"
DIGITS = "0123456789"


@dataclass(frozen=True)
class GlyphStyle:
    """How glyphs are drawn.

    gap: distance from plain print, in [0, 1]: textured ground, lower contrast and noise grow with it, and half of the
        glyphs become light on dark.
    jitter: share of full rotation (25 degrees), shift and scaling.
    """

    gap: float = 0.0
    jitter: float = 1.0

    def __post_init__(self) -> None:
        for name in ("gap", "jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected a number in [0, 1]")


class Glyphs(NamedTuple):
    """images (count, 1, size, size) float32 in [0, 1]; labels (count,) int64, index of the character."""

    images: Tensor
    labels: Tensor

    def rgb(self) -> Tensor:
        """The images as colour (count, 3, size, size) uint8, all channels alike."""
        return (self.images * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def render_glyphs(
    characters: Sequence[str], per_class: int, *, size: int = 16, style: GlyphStyle | None = None, seed: int = 0
) -> Glyphs:
    """Draw every character so many times, each time in another face, place and ground.

    Args:
        characters: the classes; a label is the index here.
        per_class: images of each.
        size: side in pixels, at least 8.

    Raises: ConfigError for an empty or doubled character or a smaller size.
    """
    if size < 8 or per_class < 1:
        raise ConfigError(f"size={size}, per_class={per_class}: expected at least 8 pixels and one image")
    doubled = {character for character in characters if list(characters).count(character) > 1 or not character.strip()}
    if doubled or not characters:
        raise ConfigError(f"characters={list(characters)}: expected different visible characters, {doubled or 'none'}")
    style = style or GlyphStyle()
    images = np.empty((len(characters) * per_class, 1, size, size), dtype=np.float32)
    for label, character in enumerate(characters):
        for index in range(per_class):
            rng = np.random.default_rng([seed, ord(character[0]), index])
            images[label * per_class + index, 0] = _draw(character, size, style, rng)
    labels = torch.arange(len(characters)).repeat_interleave(per_class)
    return Glyphs(torch.from_numpy(images), labels)


@cache
def _face(name: str, pixels: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), pixels)


@cache
def _ink(character: str, face: str, pixels: int) -> NDArray[np.float32]:
    """The character, ink 1 on 0, in the middle of a square of twice `pixels`."""
    font = _face(face, pixels)
    left, top, right, bottom = font.getbbox(character)
    side = 2 * pixels
    canvas = Image.new("L", (side, side), 0)
    corner = ((side - (right - left)) / 2 - left, (side - (bottom - top)) / 2 - top)
    ImageDraw.Draw(canvas).text(corner, character, fill=255, font=font)
    return np.asarray(canvas, dtype=np.float32) / np.float32(255)


def _draw(character: str, size: int, style: GlyphStyle, rng: np.random.Generator) -> NDArray[np.float32]:
    fine = 2 * size
    face = FACES[int(rng.integers(len(FACES)))]
    ink = _ink(character, face, int(fine * 0.8))
    angle = np.deg2rad(rng.uniform(-25, 25)) * style.jitter
    scale = 1 + rng.uniform(-0.2, 0.2) * style.jitter
    shift = rng.uniform(-0.12, 0.12, 2) * fine * style.jitter
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    matrix = np.array([[cos, sin], [-sin, cos]])
    # Output pixel -> input pixel, both counted from the centre.
    offset = (np.array(ink.shape) - 1) / 2 - matrix @ ((fine - 1) / 2 + shift)
    drawn = ndimage.affine_transform(ink, matrix, offset=offset, output_shape=(fine, fine), order=1)
    glyph = drawn.reshape(size, 2, size, 2).mean((1, 3))
    contrast = 1 - 0.45 * style.gap * rng.random()
    ground = 0.9 * style.gap * _texture(size, rng)
    image = ground + (contrast - ground) * glyph
    if style.gap and rng.random() < 0.5 * style.gap:
        image = 1 - image
    image = image + rng.normal(0, 0.02 + 0.08 * style.gap, image.shape)
    clipped: NDArray[np.float32] = np.clip(image, 0, 1).astype(np.float32)
    return clipped


def _texture(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Smooth noise or waves in [0, 1]."""
    if rng.random() < 0.5:
        noise = ndimage.gaussian_filter(rng.normal(size=(size, size)), rng.uniform(0.8, 2.0), mode="wrap")
    else:
        angle, period = rng.uniform(0, np.pi), rng.uniform(3, 7)
        y, x = np.mgrid[:size, :size]
        noise = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + rng.uniform(0, 6))
    low, high = noise.min(), noise.max()
    return np.asarray(0.65 * (noise - low) / max(high - low, 1e-9))
