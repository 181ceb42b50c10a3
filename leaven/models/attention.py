"""Multi-head attention, over the tokens themselves or over a memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.models.cache import LayerCache
from leaven.models.positions import rotate


class Attention(nn.Module):
    """Multi-head attention on `scaled_dot_product_attention` (arXiv 1706.03762 section 3.2).

    `prefix` is a hook: a module that returns keys and values (heads, extra, head_dim) which every query also sees.

    Shapes: x (batch, tokens, dim) -> (batch, tokens, dim). With `memory` (rows, memory tokens, dim), batch may be a
    multiple of rows: consecutive entries of the batch (the beams of one source) share a row and its keys.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        *,
        bias: bool,
        scaled: bool = True,
        cross: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.head_dim, self.dropout = heads, head_dim, dropout
        self.scale = head_dim**-0.5 if scaled else 1.0
        inner = heads * head_dim
        if cross:
            self.q_proj = nn.Linear(dim, inner, bias=bias)
            self.kv_proj = nn.Linear(dim, 2 * inner, bias=bias)
        else:
            self.qkv_proj = nn.Linear(dim, 3 * inner, bias=bias)
        self.out_proj = nn.Linear(inner, dim, bias=bias)
        self.prefix: nn.Module | None = None

    def _split(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        batch, tokens, _ = projected.shape
        return projected.view(batch, tokens, parts, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        *,
        causal: bool = False,
        angles: tuple[Tensor, Tensor] | None = None,
        memory: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Attend. bias: additive, broadcastable to (batch, heads, queries, keys); causal: instead of a bias."""
        batch, tokens, _ = x.shape
        if memory is None:
            query, key, value = self._split(self.qkv_proj(x), 3)
            if angles is not None:
                query, key = rotate(query, angles), rotate(key, angles)
            if cache is not None:
                key, value = cache.append(key, value)
        else:
            if cache is not None and cache.memory is not None:
                key, value = cache.memory
            else:
                key, value = self._split(self.kv_proj(memory), 2)
                if cache is not None:
                    # Read at every step from here on, so worth one copy into the order in which they are read.
                    key, value = key.contiguous(), value.contiguous()
                    cache.memory = (key, value)
            rows = key.shape[0]
            query = self.q_proj(x).view(rows, -1, self.heads, self.head_dim).transpose(1, 2)
        if self.prefix is not None:
            extra_key, extra_value = self.prefix()
            key = torch.cat([extra_key.expand(len(key), -1, -1, -1), key], dim=2)
            value = torch.cat([extra_value.expand(len(value), -1, -1, -1), value], dim=2)
            bias, causal = _see_prefix(bias, causal, extra_key.shape[-2], query, key), False
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if bias is None else bias.to(query.dtype),
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=causal,
            scale=self.scale,
        )
        merged: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return merged


def _see_prefix(bias: Tensor | None, causal: bool, extra: int, query: Tensor, key: Tensor) -> Tensor | None:
    """Widen the bias by columns of zeros for the prefix, which everyone sees."""
    if bias is None and causal:
        queries, keys = query.shape[2], key.shape[2] - extra
        hidden = torch.ones(queries, keys, dtype=torch.bool, device=query.device).triu(1)
        bias = torch.zeros(1, 1, queries, keys, dtype=query.dtype, device=query.device)
        bias = bias.masked_fill(hidden, torch.finfo(query.dtype).min)
    return None if bias is None else F.pad(bias, (extra, 0))
