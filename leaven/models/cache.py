"""Keys and values that decoding need not compute again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from leaven.errors import ModelError
from leaven.models.masks import additive

_PRUNE_EVERY = 8
"""Steps between two prunings of a branched cache: often enough for short keys, rarely enough for few copies."""


class LayerCache:
    """Keys and values of one layer: its own past, and the memory it attends to."""

    def __init__(self) -> None:
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self.length = 0
        self.memory: tuple[Tensor, Tensor] | None = None

    @property
    def keys(self) -> Tensor:
        """Keys so far (batch, heads, length, head_dim)."""
        if self._keys is None:
            raise ModelError("the cache is empty: decode the start token or the prompt first")
        return self._keys[:, :, : self.length]

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

    def take(self, columns: Tensor) -> None:
        """Keep these columns of the past, (batch, kept) int64, and forget the others."""
        if self._keys is None or self._values is None:
            return
        batch, heads, room, head_dim = self._keys.shape
        first = torch.arange(batch * heads, device=columns.device) * room
        rows = (first.view(batch, heads, 1) + columns[:, None]).flatten()
        self.length = columns.shape[1]
        for buffer in (self._keys, self._values):
            kept = buffer.view(-1, head_dim).index_select(0, rows)
            buffer[:, :, : self.length] = kept.view(batch, heads, -1, head_dim)

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
    """One `LayerCache` per layer of a stack. `length` is the number of tokens already decoded.

    After `branch(beams)` the tokens handed to the stack, (batch, beams), are the next ones of the beams of each entry.
    Their keys are appended, and a change of beams copies none of them: `ancestry` (batch, beams, columns), bool, says
    which columns of keys are the past of a beam, and `positions` (batch, columns) where in the sequence they stand.
    """

    def __init__(self, depth: int) -> None:
        self.layers = [LayerCache() for _ in range(depth)]
        self.ancestry: Tensor | None = None
        self.positions: Tensor | None = None
        self._branched_length = 0
        self._prune_at = 0

    @property
    def length(self) -> int:
        """Tokens decoded so far; with beams, of each of them."""
        if self.ancestry is not None:
            return self._branched_length
        return self.layers[0].length if self.layers else 0

    def branch(self, beams: int, mask: Tensor | None = None) -> None:
        """Go on with several beams per entry of the batch; mask (batch, length) bool is False at padding."""
        keys = self.layers[0].keys
        batch, length, device = len(keys), keys.shape[2], keys.device
        if mask is None:
            mask = torch.ones(batch, length, dtype=torch.bool, device=device)
        self.ancestry = mask[:, None].repeat(1, beams, 1)
        self.positions = torch.arange(length, device=device).repeat(batch, 1)
        self._branched_length = length
        self._prune_at = length + _PRUNE_EVERY * beams

    def follow(self, parents: Tensor) -> None:
        """Let beam i of each entry go on from what beam parents[i] has read; parents (batch, beams) int64."""
        past, positions = self._columns()
        self.ancestry, self.positions = past.gather(1, parents[:, :, None].expand_as(past)), positions
        self._branched_length += 1
        if positions.shape[1] >= self._prune_at:
            self._prune()

    def _columns(self) -> tuple[Tensor, Tensor]:
        """Which columns each beam sees, its own new token among them, and where they stand."""
        if self.ancestry is None or self.positions is None:
            raise ModelError("the cache has one hypothesis per entry: call branch(beams) before beams are followed")
        batch, beams, _ = self.ancestry.shape
        own = torch.eye(beams, dtype=torch.bool, device=self.ancestry.device).expand(batch, -1, -1)
        here = self.positions.new_full((batch, beams), self._branched_length)
        return torch.cat([self.ancestry, own], dim=2), torch.cat([self.positions, here], dim=1)

    def _prune(self) -> None:
        """Drop the columns that no beam descends from: nearly all, as the beams of an entry soon share their past."""
        if self.ancestry is None or self.positions is None:
            return
        beams, total = self.ancestry.shape[1:]
        alive = self.ancestry.any(1)
        width = int(alive.sum(1).max())
        self._prune_at = total + _PRUNE_EVERY * beams
        if 3 * width > 2 * total:
            return
        columns = alive.int().argsort(dim=1, descending=True, stable=True)[:, :width]
        self.ancestry = self.ancestry.gather(2, columns[:, None].expand(-1, beams, -1))
        self.positions = self.positions.gather(1, columns)
        for layer in self.layers:
            layer.take(columns)
        self._prune_at = width + _PRUNE_EVERY * beams

    def beam_bias(self, relative: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Attention bias (batch, heads or 1, beams, columns) of the next tokens of the beams.

        relative: bias (1, heads, 1, length + 1) of keys by their position.
        """
        visible, positions = self._columns()
        if relative is not None:
            by_position = relative[0, :, 0].t().contiguous()
            relative = F.embedding(positions, by_position).transpose(1, 2)[:, :, None]
        return additive(visible[:, None], relative, dtype)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; the memory of an encoder is not touched."""
        for layer in self.layers:
            layer.select(rows)
        if self.ancestry is not None and self.positions is not None:
            self.ancestry, self.positions = self.ancestry.index_select(0, rows), self.positions.index_select(0, rows)

    def select_memory(self, rows: Tensor) -> None:
        """Keep these rows of the memory: batch entries that are done drop out."""
        for layer in self.layers:
            if layer.memory is not None:
                layer.memory = (layer.memory[0].index_select(0, rows), layer.memory[1].index_select(0, rows))


def rows_of(keep: Tensor, beams: int) -> Tensor:
    """Rows (batch * beams) that belong to the kept entries of a batch."""
    return (keep[:, None] * beams + torch.arange(beams, device=keep.device)).flatten()
