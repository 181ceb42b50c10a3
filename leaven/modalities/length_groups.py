"""A batch in groups of rows of like length, so that less of it is padding."""

from __future__ import annotations

import torch
from torch import Tensor

from leaven.contracts import Batch
from leaven.modalities.text import IGNORE


def groups_of_like_length(batch: Batch, groups: int) -> list[Batch]:
    """The rows of a batch in `groups` parts, each cut to its longest row; losses weighted by count add up to the same.

    Rows are sorted by the number of real tokens of `attention_mask`. Fields as wide as the mask are cut with it, and
    `labels` after the last that is not IGNORE; fields without rows stay as they are. A batch without `attention_mask`,
    or with fewer rows than groups, comes back whole.

    Shapes: (batch, tokens) fields -> about (batch / groups, tokens' <= tokens) each; every row is in one group.
    """
    mask = batch.get("attention_mask")
    if groups <= 1 or mask is None or len(mask) < groups:
        return [batch]
    rows, width = mask.shape
    lengths = _lengths(mask.bool())
    cost = lengths + (_lengths(batch["labels"] != IGNORE) if "labels" in batch else 0)
    made = []
    for chosen in cost.argsort(stable=True).tensor_split(groups):
        longest = max(int(lengths[chosen].max()), 1)
        group: Batch = {}
        for name, field in batch.items():
            if not field.ndim or len(field) != rows:
                group[name] = field
                continue
            part = field.index_select(0, chosen)
            if name == "labels" and field.ndim == 2:
                part = part[:, : max(int(_lengths(part != IGNORE).max()), 1)]
            elif field.ndim >= 2 and field.shape[1] == width:
                part = part[:, :longest]
            group[name] = part
        made.append(group)
    return made


def _lengths(real: Tensor) -> Tensor:
    """Index after the last real position of each row (batch,)."""
    place = torch.arange(1, real.shape[1] + 1, device=real.device)
    return (real * place).amax(1)
