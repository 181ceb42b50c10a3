"""One process at a time in a run's folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leaven.errors import ConfigError

_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes, and other callers of this one, out of a folder for the time of the block.

    The lock lies on the folder itself, leaves no file, and ends with its process, however that ends. Where the system
    or the file system knows no such lock (Windows, some network drives) nobody is kept out.

    Raises: ConfigError when another one is in the folder.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                raise ConfigError(
                    f"{folder}: another process is at work in this folder; wait for it, stop it, or choose another one"
                ) from None
        yield
    finally:
        os.close(handle)
