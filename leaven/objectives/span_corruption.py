"""Masked span prediction: replace random spans by sentinels, predict what was removed."""

from __future__ import annotations

import torch
from torch import Tensor

from leaven.contracts import Batch, Loss
from leaven.errors import ConfigError
from leaven.modalities.text import IGNORE
from leaven.objectives.corruption import replace_by_sentinels, row_noise
from leaven.objectives.sequence_to_sequence import sequence_loss


def sample_spans(words: Tensor, noise: Tensor, *, density: float, shortest: int, longest: int) -> Tensor:
    """Index of the span that each word is in, -1 for none: (batch, most words) int64.

    words: (batch,) number of words. noise: (batch, >= 1 + 2 * spans) uniform. Span lengths are uniform in
    [shortest, longest]; the number of spans is rounded at random so that the expected share is `density`; gaps of at
    least one word lie between spans and are placed uniformly.
    """
    width = max(int(words.max()), 1)
    mean = (shortest + longest) / 2
    most = max(int(width * density / mean) + 1, 1)
    count = (words * density / mean + noise[:, 0]).long().clamp(min=1)
    index = torch.arange(most, device=words.device)
    active = index < count[:, None]
    length = shortest + (noise[:, 1 : 1 + most] * (longest - shortest + 1)).long()
    length = torch.where(active, length, 0)
    # A row too short for its spans and the gaps between them gives up the last ones.
    active = active & (length.cumsum(1) + index <= words[:, None])
    length = torch.where(active, length, 0)
    count = active.sum(1)
    spare = (words - length.sum(1) - (count - 1).clamp(min=0)).clamp(min=0)
    cut = torch.where(active, noise[:, 1 + most : 1 + 2 * most], 2.0).sort(1).values
    before = (cut.clamp(max=1 - 1e-12) * (spare + 1)[:, None]).long()
    start = before + index + length.cumsum(1) - length
    steps = torch.zeros(len(words), width + 1, dtype=torch.long, device=words.device)
    steps.scatter_add_(1, torch.where(active, start, width), active.long())
    span = steps[:, :width].cumsum(1) - 1
    position = torch.arange(width, device=words.device)
    chosen = span.clamp(min=0)
    inside = (span >= 0) & (position < (start + length).gather(1, chosen))
    return torch.where(inside, span, -1)


class SpanCorruption:
    """Replace random spans of whole words by sentinels; the target lists what was removed.

    Args:
        sentinels: ids of the sentinels, in order.
        density: share of words to remove, in (0, 1).
        span: shortest and longest span, in words.
        max_inputs, max_labels: lengths in tokens to which input and target are cut, after corruption.

    Shapes: `input_ids`, `word_ids` (batch, tokens) -> `input_ids`, `attention_mask` (batch, tokens'), `labels`.
    Without `word_ids` every token counts as a word.
    Source: arXiv 1910.10683 section 3.1.4; arXiv 2109.00859 section 3.2 for whole words and spans of 1 to 5.
    """

    name = "msp"

    def __init__(
        self,
        sentinels: list[int],
        *,
        end_id: int,
        pad_id: int,
        density: float = 0.15,
        span: tuple[int, int] = (1, 5),
        max_inputs: int = 512,
        max_labels: int = 256,
    ) -> None:
        if not 0 < density < 1:
            raise ConfigError(f"density={density}: expected a share between 0 and 1")
        if not 1 <= span[0] <= span[1]:
            raise ConfigError(f"span={span}: expected 1 <= shortest <= longest")
        self.sentinels, self.end_id, self.pad_id = torch.tensor(sentinels), end_id, pad_id
        self.density, self.span = density, span
        self.max_inputs, self.max_labels = max_inputs, max_labels

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Sample spans and corrupt.

        Raises: ConfigError when a row has more spans than there are sentinels.
        """
        tokens, mask = batch["input_ids"], batch["attention_mask"].bool()
        word = batch.get("word_ids")
        if word is None:
            word = torch.where(mask, mask.long().cumsum(1) - 1, -1)
        words = word.max(1).values + 1
        # Lengths and places are drawn apart: a row's numbers must not move when a longer row widens the batch.
        most = max(int(int(words.max()) * self.density * 2 / sum(self.span)) + 1, 1)
        lengths_and_rounding = row_noise(batch, 1 + most, generator)
        places = row_noise(batch, most, generator)
        noise = torch.cat([lengths_and_rounding, places], 1)
        span_of_word = sample_spans(words, noise, density=self.density, shortest=self.span[0], longest=self.span[1])
        spans = int(span_of_word.max()) + 1
        if spans > len(self.sentinels):
            raise ConfigError(
                f"{spans} spans in one row, but the tokenizer has {len(self.sentinels)} sentinels: "
                "shorten the input, lower density or lengthen the spans"
            )
        group = torch.where(word >= 0, span_of_word.gather(1, word.clamp(min=0)), -1)
        # White space between two words of a span belongs to the span.
        group = _bridge_gaps(group, word)
        inputs, labels = replace_by_sentinels(
            tokens,
            mask,
            group,
            group,
            sentinels=self.sentinels,
            end_id=self.end_id,
            pad_id=self.pad_id,
            ignore=IGNORE,
            max_inputs=self.max_inputs,
            max_labels=self.max_labels,
        )
        return {**batch, "input_ids": inputs, "attention_mask": inputs != self.pad_id, "labels": labels}

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Loss:
        """Mean loss per target token."""
        return sequence_loss(model, batch["input_ids"], batch["attention_mask"], batch["labels"], self.name)


def _bridge_gaps(group: Tensor, word: Tensor) -> Tensor:
    """Give tokens that are part of no word the group on both of their sides, where these agree."""
    length = group.shape[1]
    position = torch.arange(length).expand_as(group)
    left = torch.where(word >= 0, position, 0).cummax(1).values
    right = length - 1 - torch.where(word >= 0, length - 1 - position, 0).flip(1).cummax(1).values.flip(1)
    same = group.gather(1, left) == group.gather(1, right)
    inside = same & (word.gather(1, left) >= 0) & (word.gather(1, right) >= 0)
    return torch.where((word < 0) & inside, group.gather(1, left), group)
