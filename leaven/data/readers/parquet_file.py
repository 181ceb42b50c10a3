"""Reader of `parquet:FILE`, with the optional library pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from leaven.data.ledger import Ledger
from leaven.data.readers.rows import Row
from leaven.data.schema import Fields
from leaven.errors import DataError


def read_parquet(path: Path, ledger: Ledger) -> Iterator[Row]:
    """Rows of the file, read in batches; `line` is the row number.

    Raises: DataError without pyarrow or for a damaged file.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"parquet:{path} needs pyarrow, which is not installed; pip install 'leaven[parquet]'"
        ) from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(str(path), number, Fields(values))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable parquet file (after {number} rows): {error}") from error
