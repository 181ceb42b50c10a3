"""A model in the middle of decoding, the same for encoder-decoders and decoder-only models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from leaven.contracts import Tokens
from leaven.errors import ConfigError, DataError
from leaven.models.cache import Cache, rows_of


@contextmanager
def decoding(model: nn.Module) -> Iterator[None]:
    """Without gradients and dropout; the model's mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def check_lengths(max_length: int, min_length: int) -> None:
    """Raises: ConfigError when no sequence can have these lengths."""
    if max_length < 1:
        raise ConfigError(f"max_length={max_length}: expected at least 1 new token")
    if min_length >= max_length:
        raise ConfigError(f"min_length={min_length} leaves no room below max_length={max_length}")


class DecoderState:
    """Memory, cache and positions of a batch that is being decoded one token at a time.

    Args:
        model: an encoder-decoder (`encode`, `decode`, `logits`, `make_cache`) or a decoder-only model (`states`,
            `logits`, `make_cache`), with `config.eos_id`, `config.pad_id` and, for the former, `config.start_id`.
        input_ids: (batch, tokens) int64, the source or the prompt. An encoder of another kind takes its own floats.
        attention_mask: (batch, tokens), 0 or False at padding, which may stand on either side.
        prefix: (prefix,) or (batch, prefix) ids that every decoded sequence begins with; in a decoder-only model
            they follow the prompt.

    Raises: ConfigError for an empty batch or shapes that do not fit; DataError for a source without a token.
    """

    def __init__(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        prefix: Tensor | Sequence[int] | None = None,
    ) -> None:
        self.encoder_decoder = hasattr(model, "encode")
        # The source of a foreign encoder may be other than text; its mask is then that model's own affair.
        text = not self.encoder_decoder or not input_ids.is_floating_point()
        if input_ids.dim() < 2 or (text and input_ids.dim() != 2) or 0 in input_ids.shape:
            raise ConfigError(f"input_ids have shape {tuple(input_ids.shape)}: expected (batch, tokens), neither empty")
        if attention_mask is not None and text:
            if attention_mask.shape != input_ids.shape:
                raise ConfigError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}: "
                    "expected the same"
                )
            attention_mask = attention_mask.bool()
            if not attention_mask.any(1).all():
                row = int((~attention_mask.any(1)).nonzero()[0])
                raise DataError(f"row {row} of the batch is padding alone: drop it before decoding")
            if attention_mask.all():
                attention_mask = None
        self.model = cast(Any, model)
        self.cache: Cache = self.model.make_cache()
        self._mask: Tensor | None = None
        self._memory: Tokens | None = None
        self._prompt = self._forced(prefix, input_ids)
        if self.encoder_decoder:
            self._memory = self.model.encode(input_ids, attention_mask)
            start = self._prompt.new_full((len(input_ids), 1), self.model.config.start_id)
            self._prompt = torch.cat([start, self._prompt], dim=1)
        else:
            if attention_mask is not None:
                # Real tokens to the right end, so that the next token of every row stands beside its prompt.
                order = attention_mask.long().argsort(dim=1, stable=True)
                input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
                self._mask = torch.cat([attention_mask, torch.ones_like(self._prompt, dtype=torch.bool)], dim=1)
            self._prompt = torch.cat([input_ids, self._prompt], dim=1)
            lengths = self._prompt.shape[1] if self._mask is None else self._mask.sum(1, keepdim=True)
            self._next_position: Tensor = self._prompt.new_zeros(len(input_ids), 1) + lengths

    @staticmethod
    def _forced(prefix: Tensor | Sequence[int] | None, input_ids: Tensor) -> Tensor:
        batch = len(input_ids)
        forced = torch.as_tensor([] if prefix is None else prefix, dtype=torch.long, device=input_ids.device)
        if forced.dim() == 1:
            forced = forced.expand(batch, -1)
        if forced.dim() != 2 or len(forced) != batch:
            raise ConfigError(
                f"prefix has shape {tuple(forced.shape)}: expected (prefix,) or ({batch}, prefix) for this batch"
            )
        return forced

    def begin(self) -> Tensor:
        """Read the prompt; scores (batch, 1, vocab) of the first new token. To be called once, before all else."""
        if self.encoder_decoder:
            states = self.model.decode(self._prompt, self._memory, self.cache)
        else:
            positions = None
            if self._mask is not None:
                positions = (self._mask.long().cumsum(1) - 1).clamp(min=0)
            states = self.model.states(self._prompt, self._mask, positions=positions, cache=self.cache)
        return self._logits(states[:, -1:])

    def step(self, tokens: Tensor) -> Tensor:
        """Read one token more of each row, (rows, columns); scores (rows, columns, vocab) of the next.

        There is one column, or after `branch` one for each beam.
        """
        if self.encoder_decoder:
            return self._logits(self.model.decode(tokens, self._memory, self.cache))
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        positions = self._next_position.expand_as(tokens)
        states = self.model.states(tokens, self._mask, positions=positions, cache=self.cache)
        self._next_position = self._next_position + 1
        return self._logits(states)

    def _logits(self, states: Tensor) -> Tensor:
        scores: Tensor = self.model.logits(states).float()
        return scores

    def branch(self, beams: int) -> None:
        """Go on with several beams per entry; they are then changed by `cache.follow`."""
        self.cache.branch(beams, self._mask)
        self._mask = None

    def repeat(self, samples: int) -> None:
        """Go on with several independent rows per entry; consecutive rows belong together."""
        rows = torch.arange(len(self._prompt), device=self._prompt.device).repeat_interleave(samples)
        self.cache.select(rows)
        self._select_own(rows)

    def keep(self, entries: Tensor, rows_per_entry: int = 1) -> None:
        """Go on with these entries of the batch alone, in this order; `rows_per_entry` as given to `repeat`."""
        rows = rows_of(entries, rows_per_entry)
        self.cache.select(rows)
        self._select_own(rows)
        if self._memory is not None:
            self.cache.select_memory(entries)
            x, mask, _ = self._memory
            self._memory = Tokens(x.index_select(0, entries), None if mask is None else mask.index_select(0, entries))

    def _select_own(self, rows: Tensor) -> None:
        if self._mask is not None:
            self._mask = self._mask.index_select(0, rows)
        if not self.encoder_decoder:
            self._next_position = self._next_position.index_select(0, rows)
