"""Reader of `imagefolder:DIR`: one folder of images per class, with or without folders for the splits above them."""

from __future__ import annotations

from pathlib import Path

from leaven.data.examples import LabelledImage
from leaven.data.ledger import Ledger
from leaven.data.readers.paths import files_below
from leaven.data.splits import Split, hash_share
from leaven.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_SPLIT_FOLDERS = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "test": "test"}


def read_image_folder(
    spec: str, folder: Path, split: Split, ledger: Ledger
) -> tuple[list[tuple[str, LabelledImage]], bool]:
    """Images of a split, each with its path in the folder, and whether they still have to be divided into splits.

    DIR/CLASS/image is not divided yet; DIR/train/CLASS/image is, and where there is no folder for validation a tenth of
    each class's training images (by a hash of the path), or one, takes its place. Files that are no images or cannot be
    opened, and classes without an image, go to the ledger.

    Raises: DataError for a path that is no folder, one without class folders, or a split that has no folder.
    """
    if not folder.is_dir():
        raise DataError(f"{spec}: {str(folder)!r} is a file; expected a folder with one folder of images per class")
    given = {_SPLIT_FOLDERS[entry.name]: entry for entry in _folders(folder) if entry.name in _SPLIT_FOLDERS}
    if "train" not in given:
        return _classes(spec, folder, folder, ledger), True
    if split == "all":
        return [row for part in given.values() for row in _classes(spec, part, folder, ledger)], False
    if split == "test" and "test" not in given:
        raise DataError(f"{spec}: there is a folder for training and none for testing; add {str(folder / 'test')!r}")
    rows = _classes(spec, given.get(split, given["train"]), folder, ledger)
    if split != "test" and "valid" not in given:
        held = _held_out(rows)
        rows = [row for row in rows if (row[0] in held) == (split == "valid")]
    return rows, False


def _held_out(rows: list[tuple[str, LabelledImage]]) -> set[str]:
    """Paths of a tenth of each class, of one at least where the class has two."""
    of_class: dict[str, list[str]] = {}
    for path, image in rows:
        of_class.setdefault(image.label, []).append(path)
    held: set[str] = set()
    for paths in of_class.values():
        tenth = {path for path in paths if hash_share(path) >= 0.9}
        if not tenth and len(paths) > 1:
            tenth = {max(paths, key=hash_share)}
        if len(tenth) == len(paths):
            tenth -= {min(paths, key=hash_share)}
        held |= tenth
    return held


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _classes(spec: str, folder: Path, root: Path, ledger: Ledger) -> list[tuple[str, LabelledImage]]:
    from PIL import Image

    classes = _folders(folder)
    if not classes:
        raise DataError(
            f"{spec}: {str(folder)!r} has no class folders; expected DIR/CLASS/image.png, the folder's name being the "
            "class"
        )
    for stray in sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith(".")):
        ledger.bad(str(stray), 0, "lies in no class folder")
    rows: list[tuple[str, LabelledImage]] = []
    for place in classes:
        before = len(rows)
        for file in files_below(place):
            if file.suffix.lower() not in IMAGE_SUFFIXES:
                ledger.bad(str(file), 0, f"no image by its name; expected {', '.join(IMAGE_SUFFIXES)}")
                continue
            try:
                with Image.open(file) as image:
                    image.verify()
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                ledger.bad(str(file), 0, f"cannot be opened as an image: {error}")
                continue
            rows.append((file.relative_to(root).as_posix(), LabelledImage(str(file), place.name)))
        if len(rows) == before:
            ledger.bad(str(place), 0, "no image in this class folder")
    return rows
