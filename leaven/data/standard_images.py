"""How the published archives of images are read, without unpacking them, and divided."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from leaven.data.examples import Example, ExampleKind, LabelledImage
from leaven.data.images import archived
from leaven.data.splits import SplitName, hash_share
from leaven.errors import DataError

Paths = tuple[Path, ...]

_LAST_TRAINS, _LAST_VALIDATES = 10, 15


def cifar10(paths: Paths, part: str, split: SplitName, kind: ExampleKind) -> list[Example]:
    """`LabelledImage` of cifar10/PART/CLASS/image; a tenth of the training images, by a hash of the path, validates.

    An unpacked archive, read as `imagefolder:`, is divided in the same way.
    """
    del part, kind
    found: list[Example] = []
    for member in _images(paths[0]):
        place, _, rest = member.partition("/")[2].partition("/")
        wanted = "test" if place == "test" else "train" if hash_share(f"{place}/{rest}") < 0.9 else "valid"
        if wanted == split:
            found.append(LabelledImage(archived(paths[0], member), rest.partition("/")[0]))
    return found


def omniglot(paths: Paths, part: str, split: SplitName, kind: ExampleKind) -> list[Example]:
    """`LabelledImage` of FOLDER/ALPHABET/CHARACTER/CODE_DRAWER.png, of the class ALPHABET/CHARACTER.

    Each character is drawn once by each of 20 people: those of drawers 1 to 10 train, 11 to 15 validate, 16 to 20 test.
    """
    del part, kind
    found: list[Example] = []
    for member in _images(paths[0]):
        _, alphabet, character, name = member.split("/")
        drawer = int(name.removesuffix(".png").partition("_")[2])
        wanted = "train" if drawer <= _LAST_TRAINS else "valid" if drawer <= _LAST_VALIDATES else "test"
        if wanted == split:
            found.append(LabelledImage(archived(paths[0], member), f"{alphabet}/{character}"))
    return found


def _images(archive: Path) -> Iterator[str]:
    """Members that are files, in the order of their names."""
    try:
        with zipfile.ZipFile(archive) as opened:
            names = sorted(opened.namelist())
    except zipfile.BadZipFile as error:
        raise DataError(f"{archive}: no zip archive that can be read: {error}; fetch it anew") from error
    return (name for name in names if not name.endswith("/"))
