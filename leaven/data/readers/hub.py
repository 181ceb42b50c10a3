"""Reader of `hf:NAME`: a dataset of the Hugging Face hub, with the optional library datasets."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from leaven.data.downloads import offline
from leaven.data.readers.rows import Row
from leaven.data.schema import Fields
from leaven.data.splits import Split
from leaven.errors import DataError

_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("validation", "valid", "dev", "val"),
    "test": ("test",),
}


def load_hub(argument: str) -> dict[str, Any]:
    """Splits of `NAME` or `NAME:CONFIGURATION` by their names on the hub.

    Raises: DataError without the library, without the network, or when there is no such data set or configuration.
    """
    name, _, configuration = argument.partition(":")
    if not name:
        raise DataError("'hf:' names no data set; write it after the colon, for example hf:owner/name")
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"hf:{argument} needs the library datasets, which is not installed; pip install 'leaven[hub]'"
        ) from error
    try:
        return dict(datasets.load_dataset(name, configuration or None))
    except (OSError, ValueError) as error:
        why = (
            "the machine is set offline (LEAVEN_OFFLINE or HF_HUB_OFFLINE) and the set is not in the hub's cache"
            if offline()
            else "check the name and the network, or download it elsewhere and use jsonl:FILE or parquet:FILE"
        )
        raise DataError(f"hf:{argument} cannot be loaded: {why}. The library says: {error}") from error


def hub_split(spec: str, splits: dict[str, Any], split: Split) -> tuple[Any, bool]:
    """The data of one split, and whether it still has to be split by content (a set that has one split alone).

    Raises: DataError when the set has several splits but not this one.
    """
    if split == "all" or len(splits) == 1:
        return [row for rows in splits.values() for row in rows], True
    for name in _NAMES[split]:
        if name in splits:
            return splits[name], False
    near = difflib.get_close_matches(split, splits, n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(f"{spec} has no {split!r} split: it has {', '.join(splits)}{hint}")


def hub_rows(spec: str, rows: Any) -> Iterator[Row]:
    """The rows of a split, numbered from 1."""
    for number, values in enumerate(rows, start=1):
        yield Row(spec, number, Fields(dict(values)))
