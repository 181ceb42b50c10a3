"""Where the standard data sets are at hand: `@needs_data` skips a test elsewhere."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("LEAVEN_DATA") or "/nonexistent")
needs_data = pytest.mark.skipif(
    not all((DATA / kind).is_dir() for kind in ("code", "text", "images")),
    reason="LEAVEN_DATA does not name a folder with the standard data sets",
)
