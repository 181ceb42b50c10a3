"""Bimodal dual generation: documentation from program and program from documentation, trained together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from leaven.contracts import Batch, Loss
from leaven.errors import DataError, ModelError
from leaven.modalities.code import NATURAL, PROGRAM
from leaven.modalities.text import IGNORE
from leaven.objectives.corruption import compact
from leaven.objectives.sequence_to_sequence import sequence_loss


class DualGeneration:
    """Each pair of documentation and program gives two instances, one in each direction.

    The target begins with the tag of its language (`<en>`, `<python>`, ...), which says what to write.

    Args:
        natural_tag: id of the tag of the documentation's language.

    Shapes: `input_ids`, `segment_ids` (batch, tokens), `language` (batch,) -> `input_ids`, `attention_mask`, `labels`
    (2 * pairs, tokens'): first all documentation -> program, then all program -> documentation.
    Raises: DataError when no row of the batch has documentation; ModelError when the vocabulary lacks language tags.
    Source: arXiv 2109.00859 section 3.2.
    """

    name = "bdg"

    def __init__(
        self, *, start_id: int, end_id: int, pad_id: int, natural_tag: int, max_inputs: int = 512, max_labels: int = 256
    ) -> None:
        self.start_id, self.end_id, self.pad_id, self.natural_tag = start_id, end_id, pad_id, natural_tag
        self.max_inputs, self.max_labels = max_inputs, max_labels

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Take the pairs apart; there is nothing random in it."""
        del generator
        segment = batch["segment_ids"]
        paired = (segment == NATURAL).any(1) & (segment == PROGRAM).any(1)
        if not bool(paired.any()):
            raise DataError(
                f"no bimodal pairs: none of the {len(segment)} functions of this batch has documentation, which dual "
                "generation needs; read functions that have some, or leave this objective out"
            )
        tokens, segment = batch["input_ids"][paired], segment[paired]
        program_tag = batch["language"][paired]
        if bool((program_tag < 0).any()):
            raise ModelError(
                "the tokenizer has no tag for the language of some functions (<python>, <java>, ...), which dual "
                "generation writes first: add the tags to it, or leave this objective out"
            )
        natural_tag = torch.full_like(program_tag, self.natural_tag)
        inputs = [self._source(tokens, segment == part) for part in (NATURAL, PROGRAM)]
        labels = [
            self._target(tokens, segment == PROGRAM, program_tag),
            self._target(tokens, segment == NATURAL, natural_tag),
        ]
        joined = _stack(inputs, self.pad_id)
        return {"input_ids": joined, "attention_mask": joined != self.pad_id, "labels": _stack(labels, IGNORE)}

    def _source(self, tokens: Tensor, keep: Tensor) -> Tensor:
        return self._framed(tokens, keep, torch.full((len(tokens),), self.start_id), self.pad_id, self.max_inputs)

    def _target(self, tokens: Tensor, keep: Tensor, tag: Tensor) -> Tensor:
        return self._framed(tokens, keep, tag, IGNORE, self.max_labels)

    def _framed(self, tokens: Tensor, keep: Tensor, first: Tensor, pad: int, longest: int) -> Tensor:
        """First token, kept tokens, end token; what does not fit in `longest` is cut before the end token."""
        keep = keep & (keep.long().cumsum(1) <= longest - 2)
        tokens = torch.cat([first[:, None], tokens, torch.full_like(first, self.end_id)[:, None]], 1)
        return compact(tokens, F.pad(keep, (1, 1), value=True), pad)

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Loss:
        """Mean loss per target token, over both directions."""
        return sequence_loss(model, batch["input_ids"], batch["attention_mask"], batch["labels"], self.name)


def _stack(rows: list[Tensor], pad: int) -> Tensor:
    width = max(row.shape[1] for row in rows)
    return torch.cat([F.pad(row, (0, width - row.shape[1]), value=pad) for row in rows])
