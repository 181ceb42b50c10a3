"""Are two programs the same: a classifier on the decoder's vectors of both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.contracts import Batch, Loss
from leaven.modalities.text import shift_right


def program_vectors(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """One vector per program: encoder and decoder read it, the decoder's state at its last end token is the vector.

    Shapes: (batch, tokens) int64 with at least one end token in each row -> (batch, dim).
    Source: the recipe of BART (arXiv 1910.13461 section 3.1); `get_t5_vec` of CodeT5's `models.py`.
    """
    memory = model.encode(input_ids, attention_mask)
    states = model.decode(shift_right(input_ids, model.config.start_id, model.config.pad_id), memory)
    place = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
    last = ((input_ids == model.config.eos_id) * place).argmax(1)
    vectors: Tensor = states[torch.arange(len(states), device=states.device), last]
    return vectors


class CloneDetection(nn.Module):
    """Two-way classification of a pair of programs.

    Shapes: `first_ids`, `second_ids` and their `first_attention_mask`, `second_attention_mask` (batch, tokens);
    `label` (batch,) int64, 1 for clones.
    Source: arXiv 2109.00859 section 4.2 (clone detection); `RobertaClassificationHead` of CodeT5's `models.py`.
    """

    name = "clone"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(2 * dim, dim)
        self.out = nn.Linear(dim, 2)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Nothing to corrupt."""
        del generator
        return batch

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """Scores (batch, 2) of "different" and "the same"."""
        first = program_vectors(model, batch["first_ids"], batch["first_attention_mask"])
        second = program_vectors(model, batch["second_ids"], batch["second_attention_mask"])
        scores: Tensor = self.out(torch.tanh(self.dense(torch.cat([first, second], dim=1))))
        return scores

    def forward(self, model: Any, batch: Batch) -> Loss:
        """Mean cross-entropy per pair."""
        scores = self.logits(model, batch).float()
        total = F.cross_entropy(scores, batch["label"])
        return Loss(total, torch.tensor(len(scores), device=scores.device), {self.name: total.detach()})
