"""Identifier-aware objectives of CodeT5: tag which tokens are names, recover names that are hidden."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from leaven.contracts import Batch, Loss
from leaven.modalities.code import PROGRAM
from leaven.modalities.text import IGNORE
from leaven.objectives.corruption import replace_by_sentinels
from leaven.objectives.sequence_to_sequence import sequence_loss


class IdentifierTagging(nn.Module):
    """Say of each token of the program whether it is part of an identifier, from the encoder's states alone.

    The input is not corrupted; the decoder is not used. The head is one linear layer with a sigmoid.

    Shapes: `input_ids`, `identifier_ids`, `segment_ids` (batch, tokens).
    Source: arXiv 2109.00859 section 3.2, eq. 2.
    """

    name = "it"

    def __init__(self, dim: int, *, max_inputs: int = 512) -> None:
        super().__init__()
        self.head = nn.Linear(dim, 1)
        self.max_inputs = max_inputs

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Cut to the model's length; nothing is corrupted."""
        del generator
        fields = ("input_ids", "attention_mask", "identifier_ids", "segment_ids")
        return {**batch, **{name: batch[name][:, : self.max_inputs] for name in fields}}

    def forward(self, model: Any, batch: Batch) -> Loss:
        """Mean binary cross-entropy over the tokens of the programs."""
        states = model.encode(batch["input_ids"], batch["attention_mask"]).x
        program = batch["segment_ids"] == PROGRAM
        scores = self.head(states[program]).squeeze(-1).float()
        total = F.binary_cross_entropy_with_logits(scores, (batch["identifier_ids"][program] >= 0).float())
        return Loss(total, program.sum(), {self.name: total.detach()})


class MaskedIdentifierPrediction:
    """Hide every identifier of the program, one sentinel per unique name; the target lists each name once.

    Names beyond the first `max_names` stay visible, as do names in the documentation. Cutting to `max_inputs` happens
    after masking, and names whose sentinel was cut away leave the target.

    Shapes: `input_ids`, `identifier_ids`, `occurrence_ids` (batch, tokens) -> `input_ids`, `attention_mask`, `labels`.
    Source: arXiv 2109.00859 section 3.2, eq. 3; the de-obfuscation of arXiv 2102.07492.
    """

    name = "mip"

    def __init__(
        self,
        sentinels: list[int],
        *,
        end_id: int,
        pad_id: int,
        max_names: int = 100,
        max_inputs: int = 512,
        max_labels: int = 256,
    ) -> None:
        self.sentinels = torch.tensor(sentinels[:max_names])
        self.end_id, self.pad_id = end_id, pad_id
        self.max_inputs, self.max_labels = max_inputs, max_labels

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Hide the names; there is nothing random in it."""
        del generator
        name = batch["identifier_ids"]
        inputs, labels = replace_by_sentinels(
            batch["input_ids"],
            batch["attention_mask"].bool(),
            torch.where(name < len(self.sentinels), name, -1),
            batch["occurrence_ids"],
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
