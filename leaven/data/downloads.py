"""Fetching a public file with its checksum."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

from leaven.data.cache import write_atomically
from leaven.errors import DataError

_TIMEOUT_SECONDS = 60


def offline() -> bool:
    """Whether `LEAVEN_OFFLINE` or `HF_HUB_OFFLINE` forbids the network."""
    return any(
        os.environ.get(name, "").lower() not in ("", "0", "false", "no")
        for name in ("LEAVEN_OFFLINE", "HF_HUB_OFFLINE")
    )


def sha256_of(path: Path) -> str:
    """Checksum of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, path: Path, sha256: str) -> None:
    """Put a public file at `path`, whole and with this checksum, or not at all.

    Raises: DataError when it cannot be fetched or its checksum differs.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
            content: bytes = answer.read()
    except (OSError, ValueError) as error:
        raise DataError(f"{url} cannot be downloaded: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(f"{url} has changed: its sha256 is {found}, expected {sha256}; it was not kept")
    write_atomically(path, content)
