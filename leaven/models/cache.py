"""Keys and values that decoding need not compute again."""

from __future__ import annotations

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one layer: its own past, and the memory it attends to."""

    def __init__(self) -> None:
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self.length = 0
        self.memory: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (batch, heads, new, head_dim); return all so far. Room grows by doubling."""
        end = self.length + keys.shape[2]
        if self._keys is None or self._values is None or end > self._keys.shape[2]:
            self._keys = self._grown(self._keys, keys, end)
            self._values = self._grown(self._values, values, end)
        self._keys[:, :, self.length : end] = keys
        self._values[:, :, self.length : end] = values
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def _grown(self, old: Tensor | None, new: Tensor, end: int) -> Tensor:
        batch, heads, _, head_dim = new.shape
        room = new.new_empty(batch, heads, max(16, 2 * end), head_dim)
        if old is not None:
            room[:, :, : self.length] = old[:, :, : self.length]
        return room

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order (beam search)."""
        if self._keys is not None and self._values is not None:
            used = slice(0, self.length)
            keys, values = self._keys[:, :, used], self._values[:, :, used]
            if len(rows) == len(self._keys):
                self._keys[:, :, used] = keys.index_select(0, rows)
                self._values[:, :, used] = values.index_select(0, rows)
            else:
                self._keys, self._values = keys.index_select(0, rows), values.index_select(0, rows)


class Cache:
    """One `LayerCache` per layer of a stack. `length` is the number of tokens already decoded."""

    def __init__(self, depth: int) -> None:
        self.layers = [LayerCache() for _ in range(depth)]

    @property
    def length(self) -> int:
        """Tokens decoded so far."""
        return self.layers[0].length if self.layers else 0

    def select(self, rows: Tensor) -> None:
        """Reorder the rows of every layer; the memory of an encoder is not touched (its rows are never reordered)."""
        for layer in self.layers:
            layer.select(rows)

    def select_memory(self, rows: Tensor) -> None:
        """Keep these rows of the memory: batch entries that are done drop out."""
        for layer in self.layers:
            if layer.memory is not None:
                layer.memory = (layer.memory[0].index_select(0, rows), layer.memory[1].index_select(0, rows))


def rows_of(keep: Tensor, beams: int) -> Tensor:
    """Rows (batch * beams) that belong to the kept entries of a batch."""
    return (keep[:, None] * beams + torch.arange(beams, device=keep.device)).flatten()
