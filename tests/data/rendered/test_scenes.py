import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaven.data.rendered.captions import caption, relation
from leaven.data.rendered.scenes import Scene, SceneObject, SceneWorld, render
from leaven.data.rendered.shapes import COLOURS, SHAPES, SIZES, TEXTURES
from leaven.errors import ConfigError

WORLD = SceneWorld(seed=4)


def one(shape: str = "circle", colour: str = "red", texture: str = "plain", **more: float) -> SceneObject:
    values = {"x": 0.5, "y": 0.5, "radius": 0.4, "angle": 0.0, **more}
    return SceneObject(shape, colour, texture, "large", **values)


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", 0.9 * np.pi),
        ("square", 1.5**2),
        ("triangle", 1.7 * 1.6 / 2),
        ("cross", 2 * 0.6 * 1.8 - 0.6**2),
        ("ring", 0.6 * np.pi),
        ("diamond", 2 * 0.65 * 0.95),
        ("hexagon", 3 * np.sqrt(3) / 2),
        ("star", 10 * 0.5 * 0.42 * np.sin(np.pi / 5)),
    ],
)
def test_areas_of_shapes_are_those_of_geometry(shape: str, area: float) -> None:
    grid = np.linspace(-1.2, 1.2, 1201)
    assert SHAPES[shape](grid[None, :], grid[:, None]).mean() * 2.4**2 == pytest.approx(area, rel=0.01)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_the_unit_disc_holds_every_shape(shape: str) -> None:
    grid = np.linspace(-2, 2, 401)
    x, y = grid[None, :], grid[:, None]
    assert not (SHAPES[shape](x, y) & (x**2 + y**2 > 1.13**2)).any()
    assert SHAPES[shape](x, y).mean() * 16 > 0.8


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_masks_are_disjoint_and_boxes_tight(index: int) -> None:
    scene = WORLD.scene(index)
    drawn = render(scene, 32)
    assert drawn.image.shape == (32, 32, 3)
    assert drawn.masks.shape == (len(scene.objects), 32, 32)
    assert drawn.masks.sum(0).max(initial=0) <= 1
    for mask, (left, top, right, bottom) in zip(drawn.masks, drawn.boxes.astype(int), strict=True):
        inside = np.zeros_like(mask)
        inside[top:bottom, left:right] = True
        assert not (mask & ~inside).any()
        assert mask.any()
        assert mask[top].any() and mask[bottom - 1].any() and mask[:, left].any() and mask[:, right - 1].any()


def test_an_object_has_its_colour_and_hides_what_lies_behind() -> None:
    back, front = one("square", "blue"), one("square", "yellow", radius=0.2)
    drawn = render(Scene((back, front), "plain", (100, 100, 100), 0), 64)
    assert tuple(drawn.image[32, 32]) == COLOURS["yellow"]
    assert tuple(drawn.image[32, 15]) == COLOURS["blue"]
    assert tuple(drawn.image[0, 0]) == (100, 100, 100)
    assert drawn.masks[1, 32, 32]
    assert not drawn.masks[0, 32, 32]
    assert drawn.boxes[1] == pytest.approx([32 - 9.6, 32 - 9.6, 32 + 9.6, 32 + 9.6], abs=1)


@pytest.mark.parametrize("texture", [name for name in TEXTURES if name != "plain"])
def test_textures_have_two_shades(texture: str) -> None:
    drawn = render(Scene((one("square", "red", texture),), "plain", (100, 100, 100), 0), 96)
    shades, counts = np.unique(drawn.image[drawn.masks[0]], axis=0, return_counts=True)
    assert (counts > 0.1 * counts.sum()).sum() == 2
    assert COLOURS["red"] in {tuple(shade) for shade in shades}


def test_a_scene_is_decided_by_seed_and_index_alone() -> None:
    assert WORLD.scene(7) == SceneWorld(seed=4).scene(7)
    assert WORLD.scene(7) != SceneWorld(seed=5).scene(7)
    np.testing.assert_array_equal(render(WORLD.scene(7), 32).image, render(WORLD.scene(7), 32).image)


def test_excluded_pairs_never_occur_and_sizes_are_what_they_say() -> None:
    world = SceneWorld(excluded=frozenset({("circle", "red"), ("star", "blue")}), seed=1)
    objects = [found for index in range(300) for found in world.scene(index).objects]
    assert not {(found.shape, found.colour) for found in objects} & world.excluded
    assert all(SIZES[found.size][0] <= found.radius <= SIZES[found.size][1] for found in objects)
    assert {found.shape for found in objects} == set(SHAPES)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_every_attribute_in_a_caption_is_true(index: int, seed: int) -> None:
    scene = WORLD.scene(index)
    for complete in (False, True):
        words = caption(scene, seed, complete=complete).replace(",", "").split()
        for kind, names in (("shape", SHAPES), ("colour", COLOURS), ("texture", TEXTURES), ("size", SIZES)):
            said = [word for word in words if word in names]
            there = [getattr(found, kind) for found in scene.objects]
            assert all(word in there for word in said)
            if complete:
                assert sorted(said) == sorted(there)


def test_relations_are_true_in_both_orders() -> None:
    left, right = one("circle", "red", x=0.2), one("star", "blue", x=0.8)
    assert (relation(left, right), relation(right, left)) == ("left of", "right of")
    scene = Scene((left, right), "plain", (0, 0, 0), 0)
    seen = {caption(scene, seed) for seed in range(400)}
    stated = [text for text in seen if " of " in text.replace("picture of", "")]
    assert stated
    for text in stated:
        circle_first = text.index("circle") < text.index("star")
        about_second = " it " in text
        expected = "left of" if circle_first != about_second else "right of"
        assert expected in text, text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shapes": ("cube",)}, r"shapes=\('cube',\): expected some of circle"),
        ({"objects": (0, 2)}, "expected fewest and most objects"),
        ({"shapes": ("star",), "colours": ("red",), "excluded": frozenset({("star", "red")})}, "leaves no pair"),
    ],
)
def test_worlds_that_cannot_be(options: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SceneWorld(**options)
    with pytest.raises(ConfigError, match="at least 8 pixels"):
        render(WORLD.scene(0), 4)
