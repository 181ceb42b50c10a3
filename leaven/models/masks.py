"""Which token may look at which: the mask modes of the trunk."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from leaven.errors import ConfigError

MaskMode = Literal["bidirectional", "causal", "prefix"]


def visibility(
    mode: MaskMode,
    queries: int,
    keys: int,
    *,
    key_mask: Tensor | None = None,
    offset: int = 0,
    prefix_length: Tensor | None = None,
    segments: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor | None:
    """Who sees whom: bool, broadcastable to (batch, heads, queries, keys), or None where everyone sees everyone.

    key_mask: (batch, keys) bool, False at padding. offset: position of the first query among the keys.
    prefix_length: (batch,) int64, for mode "prefix": the first tokens see one another in both directions.
    segments: (batch, keys) int64 of packed sequences; tokens see only their own segment.
    """
    visible: Tensor | None = None
    if mode != "bidirectional":
        query = torch.arange(offset, offset + queries, device=device)[:, None]
        key = torch.arange(keys, device=device)[None, :]
        visible = (key <= query)[None, None]
        if mode == "prefix":
            if prefix_length is None:
                raise ConfigError(
                    "mask mode 'prefix' needs prefix_length (batch,): the length of each prefix in tokens"
                )
            visible = visible | (key < prefix_length[:, None, None])[:, None]
        elif mode != "causal":
            raise ConfigError(f"unknown mask mode {mode!r}: expected bidirectional, causal or prefix")
    if key_mask is not None:
        padding = key_mask[:, None, None, :]
        visible = padding if visible is None else visible & padding
    if segments is not None:
        same = segments[:, None, offset : offset + queries, None] == segments[:, None, None, :]
        visible = same if visible is None else visible & same
    return visible


def additive(visible: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Attention bias to add to the scores: the bias where visible, the lowest finite number elsewhere.

    A row that sees nothing (padding alone) attends evenly rather than turning to NaN.
    """
    if visible is None:
        return bias
    lowest = torch.finfo(dtype).min
    if bias is None:
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, lowest)
    return bias.to(dtype).masked_fill(~visible, lowest)
