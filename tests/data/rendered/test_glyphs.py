import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from leaven.data.rendered.glyphs import CYRILLIC, FACES, GREEK, LETTERS, GlyphStyle, _face, render_glyphs
from leaven.errors import ConfigError


def test_without_jitter_a_glyph_is_the_typefaces_own_drawing() -> None:
    drawn = render_glyphs("k", 40, size=16, style=GlyphStyle(jitter=0))
    means = []
    for face in FACES:
        font = _face(face, 25)
        left, top, right, bottom = font.getbbox("k")
        canvas = Image.new("L", (32, 32))
        ImageDraw.Draw(canvas).text(((32 - right - left) / 2, (32 - bottom - top) / 2), "k", fill=255, font=font)
        means.append(np.asarray(canvas, dtype=np.float32).reshape(16, 2, 16, 2).mean((1, 3)).ravel())
    best = np.corrcoef(np.stack([*means, *drawn.images.flatten(1).numpy()]))[len(FACES) :, : len(FACES)].max(1)
    assert best.min() > 0.9
    assert np.median(best) > 0.97


def test_images_labels_and_repeatability() -> None:
    first, again = render_glyphs("abλ", 5, seed=2), render_glyphs("abλ", 5, seed=2)
    assert first.images.shape == (15, 1, 16, 16)
    assert first.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, render_glyphs("abλ", 5, seed=3).images)
    assert float(first.images.min()) >= 0 and float(first.images.max()) <= 1
    colour = first.rgb()
    assert colour.shape == (15, 3, 16, 16) and colour.dtype == torch.uint8
    assert (colour.float() / 255 - first.images).abs().max() < 0.002
    # A class is drawn the same whatever stands beside it.
    assert torch.equal(render_glyphs("λa", 5, seed=2).images[:5], first.images[10:])


def test_the_gap_lowers_contrast_and_adds_ground() -> None:
    spread = []
    for gap in (0.0, 0.5, 1.0):
        images = render_glyphs("abcdefgh", 20, style=GlyphStyle(gap)).images
        means = images.unflatten(0, (8, 20)).mean(1).flatten(1)
        spread.append(float(means.var(0).mean() / images.var(0).mean()))
    assert spread[0] > 1.5 * spread[1] > 1.5 * spread[2]


def test_alphabets_are_drawable_and_distinct() -> None:
    everything = LETTERS + GREEK + CYRILLIC
    assert len(set(everything)) == len(everything)
    plain = render_glyphs(everything, 1, style=GlyphStyle(jitter=0)).images.flatten(1)
    missing = render_glyphs("\ue000", 1, style=GlyphStyle(jitter=0)).images.flatten(1)
    assert (plain - missing).abs().mean(1).min() > 0.02


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="different visible characters"):
        render_glyphs("aa", 3)
    with pytest.raises(ConfigError, match="different visible characters"):
        render_glyphs("a ", 3)
    with pytest.raises(ConfigError, match="at least 8 pixels"):
        render_glyphs("ab", 3, size=4)
    with pytest.raises(ConfigError, match=r"gap=1.5: expected a number in \[0, 1\]"):
        GlyphStyle(1.5)
