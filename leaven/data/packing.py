"""Packing documents of different length into rows of one length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike

from leaven.contracts import Batch
from leaven.errors import ConfigError, DataError


class _RoomTree:
    """Free room of bins 0, 1, ... in a tree of maxima: the first bin with enough room in logarithmic time."""

    def __init__(self, bins: int, capacity: int) -> None:
        self._leaves = 1 << max(bins - 1, 0).bit_length()
        self._room = [capacity] * (2 * self._leaves)

    def take(self, length: int) -> int:
        """Put `length` into the first bin that has room for it; returns the bin."""
        node = 1
        while node < self._leaves:
            node = 2 * node if self._room[2 * node] >= length else 2 * node + 1
        self._room[node] -= length
        found = node - self._leaves
        while node > 1:
            node //= 2
            self._room[node] = max(self._room[2 * node], self._room[2 * node + 1])
        return found


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which documents share a row: first-fit decreasing, so at most 11/9 of the fewest rows possible plus one.

    Args:
        lengths: tokens of each document, each from 1 to `capacity`.
        capacity: tokens of a row, >= 1.

    Returns: for each row the indices of its documents, every index once.
    Raises: ConfigError for a capacity below 1; DataError for a document that is empty or longer than a row.
    """
    if capacity < 1:
        raise ConfigError(f"pack: capacity is {capacity}, expected at least 1 token")
    for index, length in enumerate(lengths):
        if not 1 <= length <= capacity:
            raise DataError(
                f"pack: document {index} has {length} tokens, expected 1 to {capacity}; drop or cut it first"
            )
    tree = _RoomTree(len(lengths), capacity)
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        row = tree.take(lengths[index])
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
    return rows


def pack_tokens(documents: Sequence[ArrayLike], capacity: int, pad: int = 0) -> Batch:
    """Documents packed into rows.

    Args:
        documents: token ids of each, one dimension.
        capacity: tokens of a row; no document may be longer.
        pad: token id of the unused rest.

    Returns: `tokens`, `segment_ids` (1, 2, ... per document of a row, 0 where unused) and `positions` (from 0 in each
    document, 0 where unused), each (rows, capacity) int64. Attention is to stay within equal `segment_ids`.
    Raises: as `pack`.
    """
    arrays = [np.asarray(document, dtype=np.int64).reshape(-1) for document in documents]
    rows = pack([len(array) for array in arrays], capacity)
    tokens = np.full((len(rows), capacity), pad, dtype=np.int64)
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for at, row in enumerate(rows):
        start = 0
        for segment, index in enumerate(row, start=1):
            end = start + len(arrays[index])
            tokens[at, start:end] = arrays[index]
            segments[at, start:end] = segment
            positions[at, start:end] = np.arange(end - start)
            start = end
    return {
        "tokens": torch.from_numpy(tokens),
        "segment_ids": torch.from_numpy(segments),
        "positions": torch.from_numpy(positions),
    }
