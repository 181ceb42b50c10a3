"""Captions of rendered scenes, from a grammar that leaves attributes out as captions of the web do."""

from __future__ import annotations

import numpy as np

from leaven.data.rendered.scenes import Scene, SceneObject

_OPENINGS = ("", "a picture of ", "there is ", "we see ", "an image with ", "this shows ")
_TWO = ("{a} and {b}", "{a} next to {b}", "{b} beside {a}", "{a} {relation} {b}", "{a}, and {relation} it {b}")


def caption(scene: Scene, seed: int, *, complete: bool = False) -> str:
    """A sentence about one or two of the scene's objects.

    Args:
        seed: decides wording and what is left out.
        complete: name every object with all its attributes, in reading order.

    Every word is true of the scene; an empty scene is "an empty picture".
    """
    if not scene.objects:
        return "an empty picture"
    rng = np.random.default_rng(seed)
    if complete:
        ordered = sorted(scene.objects, key=lambda one: (round(one.y * 3), one.x))
        return " and ".join(_noun_phrase(one, rng, complete=True) for one in ordered)
    opening = _OPENINGS[int(rng.integers(len(_OPENINGS)))]
    chosen = [scene.objects[int(index)] for index in rng.permutation(len(scene.objects))[:2]]
    phrases = [_noun_phrase(one, rng) for one in chosen]
    if len(chosen) == 1 or rng.random() < 0.3:
        place = f" {position(chosen[0])}" if rng.random() < 0.4 else ""
        return opening + phrases[0] + place
    pattern = _TWO[int(rng.integers(len(_TWO)))]
    return opening + pattern.format(a=phrases[0], b=phrases[1], relation=_stated(pattern, chosen))


def _stated(pattern: str, chosen: list[SceneObject]) -> str:
    """Where the first object lies seen from the second, or the other way about when the pattern says so."""
    return relation(chosen[1], chosen[0]) if " it " in pattern else relation(chosen[0], chosen[1])


def relation(one: SceneObject, other: SceneObject) -> str:
    """How `one` lies to `other`: "left of", "right of", "above" or "below", by the larger distance."""
    across, down = one.x - other.x, one.y - other.y
    if abs(across) >= abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"


def position(one: SceneObject) -> str:
    """The third of the picture in which the object lies: on the left, in the middle, on the right."""
    return ("on the left", "in the middle", "on the right")[min(int(one.x * 3), 2)]


def _noun_phrase(one: SceneObject, rng: np.random.Generator, *, complete: bool = False) -> str:
    words = []
    if complete or rng.random() < 0.4:
        words.append(one.size)
    if complete or rng.random() < 0.4:
        words.append(one.texture)
    if complete or rng.random() < 0.85:
        words.append(one.colour)
    words.append(one.shape)
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])
