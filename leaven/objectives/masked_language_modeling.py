"""Masked language modelling: hide whole words, predict them from both sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from leaven.contracts import Batch, Loss
from leaven.errors import ConfigError
from leaven.modalities.text import IGNORE
from leaven.objectives.corruption import row_noise


class MaskedLanguageModeling:
    """Of a share of the words every token is hidden: mostly by the mask, else by a random token, else not at all.

    Each row hides at least one word.

    Args:
        mask_id: the mask token.
        plain_ids: tokens that a hidden one may be replaced by, all but the special ones.
        density: share of words to hide, in (0, 1).
        masked, random: shares of hidden tokens that become the mask, or a random token; the rest stay.

    Shapes: `input_ids`, `attention_mask`, `word_ids` (batch, tokens), word_ids -1 at tokens that are never hidden
    -> `input_ids`, `labels` (batch, tokens). Without `word_ids` every real token is a word, special ones too.
    Raises: ConfigError for shares out of range, or no tokens to replace by.
    Source: arXiv 1810.04805 section 3.1; whole words as in its released code of May 2019.
    """

    name = "mlm"

    def __init__(
        self,
        mask_id: int,
        plain_ids: Sequence[int],
        *,
        density: float = 0.15,
        masked: float = 0.8,
        random: float = 0.1,
    ) -> None:
        if not 0 < density < 1:
            raise ConfigError(f"density={density}: expected a share between 0 and 1")
        if min(masked, random) < 0 or masked + random > 1:
            raise ConfigError(f"masked={masked}, random={random}: expected shares whose sum is at most 1")
        if not len(plain_ids):
            raise ConfigError("plain_ids is empty: give the tokens that are not special")
        self.mask_id, self.plain_ids = mask_id, torch.tensor(plain_ids)
        self.density, self.masked, self.random = density, masked, random

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Choose words and hide them."""
        tokens, mask = batch["input_ids"], batch["attention_mask"].bool()
        word = batch.get("word_ids")
        if word is None:
            word = torch.where(mask, mask.long().cumsum(1) - 1, -1)
        word = torch.where(mask, word, -1)
        words = word.max(1).values + 1
        width = max(int(words.max()), 1)
        noise = row_noise(batch, width, generator)
        kind = row_noise(batch, tokens.shape[1], generator)
        drawn = (row_noise(batch, tokens.shape[1], generator) * len(self.plain_ids)).long()
        there = torch.arange(width) < words[:, None]
        least = noise.masked_fill(~there, 2.0).argmin(1, keepdim=True)
        chosen = (noise < self.density).scatter(1, least, True) & there
        hidden = (word >= 0) & chosen.gather(1, word.clamp(min=0))
        inputs = torch.where(hidden & (kind < self.masked), self.mask_id, tokens)
        swapped = hidden & (kind >= self.masked) & (kind < self.masked + self.random)
        inputs = torch.where(swapped, self.plain_ids[drawn], inputs)
        return {**batch, "input_ids": inputs, "labels": torch.where(hidden, tokens, IGNORE)}

    def __call__(self, model: Any, batch: Batch) -> Loss:
        """Mean cross-entropy per hidden token; scores are computed at these alone."""
        wanted = batch["labels"] != IGNORE
        states = model.encode(batch["input_ids"], batch["attention_mask"]).x
        scores = model.logits(states[wanted]).float()
        count = wanted.sum()
        total = F.cross_entropy(scores, batch["labels"][wanted], reduction="sum") / count.clamp(min=1)
        return Loss(total, count, {self.name: total.detach()})
