"""A standard data set: its files, their checksums, and where they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from leaven.data.cache import cache_dir
from leaven.data.downloads import download, offline, sha256_of
from leaven.data.examples import Example, ExampleKind
from leaven.data.splits import Split, SplitName
from leaven.errors import DataError


@dataclass(frozen=True, slots=True)
class StandardFile:
    """A file of a set: place under `LEAVEN_DATA` (or the cache), public address, checksum.

    selection: the address is that of a collection of which the file holds a part, so that it cannot be downloaded.
    """

    path: str
    url: str
    sha256: str
    selection: bool = False


@dataclass(frozen=True, slots=True)
class StandardSet:
    """A public data set.

    files: by part of the set as it was published.
    parts: which parts a split is read from; a part that serves several splits is divided by `read`.
    read: (paths of one part's files by the order of `files`, part, split, kind) -> examples.
    """

    name: str
    what: str
    licence: str
    origin: str
    kinds: tuple[ExampleKind, ...]
    files: Mapping[str, tuple[StandardFile, ...]]
    parts: Mapping[SplitName, str]
    read: Callable[[tuple[Path, ...], str, SplitName, ExampleKind], list[Example]]

    def load(self, split: Split, kind: ExampleKind) -> list[Example]:
        """Examples of a split. Raises: DataError when a file is neither at hand nor to be had, or is altered."""
        if split == "all":
            return [example for name in self.parts for example in self.load(name, kind)]
        part = self.parts[split]
        return self.read(tuple(locate(self, file) for file in self.files[part]), part, split, kind)

    def missing(self) -> list[StandardFile]:
        """Files that are neither under `LEAVEN_DATA` nor in the cache."""
        return [file for files in self.files.values() for file in files if _at_hand(file) is None]


def data_dir() -> Path | None:
    """The folder that `LEAVEN_DATA` names, None when it is not set."""
    named = os.environ.get("LEAVEN_DATA")
    return Path(named).expanduser() if named else None


def _cached(file: StandardFile) -> Path:
    return cache_dir() / "standard" / file.path


def _at_hand(file: StandardFile) -> Path | None:
    folder = data_dir()
    places = [folder / file.path] if folder is not None else []
    return next((place for place in [*places, _cached(file)] if place.is_file()), None)


def locate(dataset: StandardSet, file: StandardFile) -> Path:
    """Path of a file with the right checksum: from `LEAVEN_DATA`, else the cache, else downloaded into it.

    Raises: DataError saying what to put where, or which file is altered.
    """
    path = _at_hand(file)
    if path is None:
        path = _cached(file)
        advice = (
            f"Put the file from {file.url} at {file.path} in a folder and set LEAVEN_DATA to that folder, "
            f"or put it at {path}."
        )
        if file.selection:
            raise DataError(
                f"{dataset.name}: the file {file.path} is not at hand and nothing to download: it is a selection of "
                f"{file.url}. Put it at that place in a folder and set LEAVEN_DATA to the folder, or put it at {path}"
            )
        if offline():
            raise DataError(
                f"{dataset.name}: the file {file.path} is not at hand and the network is off "
                f"(LEAVEN_OFFLINE or HF_HUB_OFFLINE). {advice}"
            )
        try:
            download(file.url, path, file.sha256)
        except DataError as error:
            raise DataError(f"{dataset.name}: {error}. {advice}") from error
        return path
    found = sha256_of(path)
    if found != file.sha256:
        raise DataError(
            f"{dataset.name}: {path} is altered or cut off (sha256 {found}, expected {file.sha256}); "
            f"remove it or replace it by {file.url}"
        )
    return path
