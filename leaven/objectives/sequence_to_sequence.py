"""Cross-entropy of a decoder's next token, given a source."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from leaven.contracts import Batch, Loss
from leaven.modalities.text import IGNORE, shift_right


def sequence_loss(model: Any, inputs: Tensor, mask: Tensor, labels: Tensor, name: str) -> Loss:
    """Mean cross-entropy over the labels that are not IGNORE; logits are computed at those positions alone.

    model: `encode`, `decode`, `logits` and a `config` with start_id and pad_id (see `leaven.models.encoder_decoder`).
    """
    memory = model.encode(inputs, mask)
    states = model.decode(shift_right(labels, model.config.start_id, model.config.pad_id), memory)
    wanted = labels != IGNORE
    total = F.cross_entropy(model.logits(states[wanted]).float(), labels[wanted])
    return Loss(total, wanted.sum(), {name: total.detach()})


class SequenceToSequence:
    """Fine-tuning: predict `labels` from `input_ids`. Padding in the labels must be IGNORE: it costs nothing."""

    name = "seq2seq"

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Nothing to corrupt."""
        del generator
        return batch

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Loss:
        """Mean loss per target token."""
        return sequence_loss(model, batch["input_ids"], batch["attention_mask"], batch["labels"], self.name)
