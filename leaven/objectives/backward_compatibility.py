"""Higher-order compatibility: features of a new model tell classes apart among features of the old one."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from leaven.errors import ConfigError, DataError

SameClass = Literal["zero", "drop"]


def higher_order_compatibility(
    old: Tensor, new: Tensor, labels: Tensor, *, scale: float = 10.0, same_class: SameClass = "zero"
) -> Tensor:
    """Contrastive loss between the features of two models on the same inputs, a scalar.

    The mean over rows i of -scale cos(old_i, new_i) + log sum_j exp(s_ij), with s_ij = scale cos(old_i, new_j) where j
    is of another class.

    Args:
        old, new: (batch, dim) of equal width; gradients flow where these require them.
        labels: (batch,) int64.
        scale: inverse temperature, > 0.
        same_class: "zero" sets s_ij to 0 for j of i's class, i itself too, so that each still adds 1 to the sum: the
            official code. "drop" leaves other rows of the class out and keeps i with its own cosine.

    Raises: ConfigError for options that do not exist; DataError for shapes that do not fit.
    Source: arXiv 2405.02581 equation 4; `HocLoss` of the official code.
    """
    if same_class not in get_args(SameClass) or not scale > 0:
        raise ConfigError(f"same_class={same_class!r}, scale={scale}; expected 'zero' or 'drop', and more than 0")
    if old.ndim != 2 or old.shape != new.shape or labels.shape != old.shape[:1]:
        raise DataError(
            f"features of shapes {tuple(old.shape)} and {tuple(new.shape)} with labels {tuple(labels.shape)}; expected "
            "(batch, dim) twice and (batch,)"
        )
    similarity = scale * F.normalize(old, dim=1) @ F.normalize(new, dim=1).t()
    same = labels[:, None] == labels[None, :]
    if same_class == "zero":
        others = similarity.masked_fill(same, 0.0)
    else:
        own = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        others = similarity.masked_fill(same & ~own, float("-inf"))
    return (others.logsumexp(dim=1) - similarity.diagonal()).mean()
