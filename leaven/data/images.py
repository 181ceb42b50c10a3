"""Image files, lone or in zip archives, to pixels."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from leaven.errors import ConfigError, DataError

_IN_ARCHIVE = ".zip!/"


def archived(archive: Path, member: str) -> str:
    """How an image in a zip archive is named as a path: `DIR/NAME.zip!/MEMBER`."""
    return f"{archive}!/{member}"


def load_images(paths: Sequence[str | Path], size: int, *, channels: int = 3) -> Tensor:
    """Decoded images, turned as their metadata say, the shorter side scaled to `size` and the middle cut out.

    Args:
        paths: of files, or of members of zip archives, which are read in memory (`archived`).
        size: side in pixels, >= 1.
        channels: 3 for colour, 1 for grey.

    Returns: (images, channels, size, size) uint8.
    Raises: DataError naming a file that cannot be read to its end; ConfigError for other sizes or channels.
    """
    if size < 1 or channels not in (1, 3):
        raise ConfigError(f"size={size}, channels={channels}: expected at least 1 pixel, and 1 or 3 channels")
    pixels = np.empty((len(paths), channels, size, size), dtype=np.uint8)
    with _Files() as files:
        for at, path in enumerate(paths):
            try:
                with Image.open(files.open(str(path))) as image:
                    turned = ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise DataError(f"{path}: cannot be read as an image: {error}; repair or remove it") from error
            except (KeyError, zipfile.BadZipFile) as error:
                raise DataError(f"{path}: cannot be read from the archive: {error}; fetch the archive anew") from error
            fitted = np.asarray(ImageOps.fit(turned, (size, size), Image.Resampling.BICUBIC))
            pixels[at] = fitted.transpose(2, 0, 1) if channels == 3 else fitted[None]
    return torch.from_numpy(pixels)


class _Files(ExitStack):
    """Opens each archive once."""

    def __init__(self) -> None:
        super().__init__()
        self._archives: dict[str, zipfile.ZipFile] = {}

    def open(self, path: str) -> str | io.BytesIO:
        """What pillow can open."""
        archive, inside, member = path.partition(_IN_ARCHIVE)
        if not inside or Path(path).is_file():
            return path
        file = f"{archive}.zip"
        if file not in self._archives:
            self._archives[file] = self.enter_context(zipfile.ZipFile(file))
        return io.BytesIO(self._archives[file].read(member))
