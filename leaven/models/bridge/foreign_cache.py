"""The cache of a model that is used as it is: transformers' own, behind the protocol of leaven's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from leaven.errors import ModelError
from leaven.models.cache import rows_of


class ForeignCache(ABC):
    """What a decoder has read so far, one row per hypothesis.

    With `branch(beams)` the tokens handed to the model are (batch, beams), the next ones of the beams of each entry, as
    in leaven's own cache; here every beam has a row of its own, so that a change of beams copies its past.
    """

    def __init__(self) -> None:
        self.beams: int | None = None
        self._shared_mask: Tensor | None = None

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens decoded so far; with beams, of each of them."""

    @abstractmethod
    def _repeat(self, times: int) -> None: ...

    @abstractmethod
    def _take(self, rows: Tensor) -> None: ...

    def branch(self, beams: int, mask: Tensor | None = None) -> None:
        """Go on with several beams per entry; mask (batch, length) bool is False at padding of the past."""
        if not self.length:
            raise ModelError("the cache is empty: decode the start token or the prompt first")
        self._repeat(beams)
        self.beams, self._shared_mask = beams, mask

    def follow(self, parents: Tensor) -> None:
        """Let beam i of each entry go on from what beam parents[i] has read; parents (batch, beams) int64."""
        batch, beams = parents.shape
        self._take((torch.arange(batch, device=parents.device)[:, None] * beams + parents).flatten())

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; the memory of an encoder is not touched."""
        if self.beams is not None:
            if self._shared_mask is not None:
                self._shared_mask = self._shared_mask.index_select(0, rows)
            rows = rows_of(rows, self.beams)
        self._take(rows)

    @abstractmethod
    def select_memory(self, rows: Tensor) -> None:
        """Keep these rows of the memory: batch entries that are done drop out."""

    def beam_mask(self) -> Tensor | None:
        """Which keys the next token of each beam sees, (batch * beams, length + 1) bool; None when it sees all."""
        if self._shared_mask is None or self.beams is None:
            return None
        batch, shared = self._shared_mask.shape
        own = self._shared_mask.new_ones(batch, self.length + 1 - shared)
        return torch.cat([self._shared_mask, own], dim=1).repeat_interleave(self.beams, 0)


class KeptCache(ForeignCache):
    """Keys and values that transformers keeps, of the past and of the memory, in which each hypothesis has a row."""

    def __init__(self, config: Any, *, memory: bool) -> None:
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        super().__init__()
        self.past: Any = DynamicCache(config=config)
        self.memory: Any = DynamicCache(config=config) if memory else None
        self.theirs: Any = EncoderDecoderCache(self.past, self.memory) if memory else self.past
        self._memory_rows = 0
        self._sources = 0

    @property
    def length(self) -> int:
        """Tokens decoded so far; with beams, of each of them."""
        return int(self.past.get_seq_length())

    def _repeat(self, times: int) -> None:
        self.past.batch_repeat_interleave(times)

    def _take(self, rows: Tensor) -> None:
        self.past.batch_select_indices(rows)

    def select_memory(self, rows: Tensor) -> None:
        """Keep these rows of the memory: batch entries that are done drop out."""
        if self._sources:
            self._take_memory(rows * (self._memory_rows // self._sources))
            self._sources = len(rows)

    def align_memory(self, batch: int, sources: int, device: torch.device) -> None:
        """Before a call with `batch` hypotheses of `sources` memory rows: one row of keys per hypothesis."""
        if self._sources and batch != self._memory_rows:
            step, each = self._memory_rows // self._sources, batch // self._sources
            self._take_memory((torch.arange(self._sources, device=device) * step).repeat_interleave(each))
        self._memory_rows, self._sources = batch, sources

    def _take_memory(self, rows: Tensor) -> None:
        self.memory.batch_select_indices(rows)
        self._memory_rows = len(rows)


class RecomputedCache(ForeignCache):
    """The ids read so far, of which everything is computed again at each step.

    It stands in where transformers' own cache does not give a model the numbers of uncached decoding, or where its
    states cannot be reordered (state-space models): slow, and right.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ids: Tensor | None = None
        self._positions: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens decoded so far; with beams, of each of them."""
        return 0 if self._ids is None else self._ids.shape[1]

    def select_memory(self, rows: Tensor) -> None:
        """Nothing to do: of the memory nothing is kept."""

    def extend(self, ids: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Add new tokens (rows, new), and their positions where any are given; all so far."""
        self._ids = ids if self._ids is None else torch.cat([self._ids, ids], dim=1)
        if positions is not None:
            self._positions = positions if self._positions is None else torch.cat([self._positions, positions], dim=1)
        return self._ids, self._positions

    def _repeat(self, times: int) -> None:
        if self._ids is not None:
            self._take(torch.arange(len(self._ids), device=self._ids.device).repeat_interleave(times))

    def _take(self, rows: Tensor) -> None:
        if self._ids is not None:
            self._ids = self._ids.index_select(0, rows)
        if self._positions is not None:
            self._positions = self._positions.index_select(0, rows)
