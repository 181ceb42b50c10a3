"""Positions: learned and sinusoidal vectors, T5's relative bias, rotary angles."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LearnedPositions(nn.Embedding):
    """A vector per position, added to the tokens. Shapes: positions (batch, tokens) int64 -> (batch, tokens, dim)."""


class SinusoidalPositions(nn.Module):
    """Fixed sines and cosines (arXiv 1706.03762 section 3.5): even columns sine, odd columns cosine.

    Shapes: positions (batch, tokens) int64 -> (batch, tokens, dim); dim must be even.
    """

    frequency: Tensor

    def __init__(self, dim: int, base: float = 10000.0) -> None:
        super().__init__()
        self.register_buffer("frequency", base ** (-torch.arange(0, dim, 2) / dim), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        """Vectors of the given positions."""
        angles = positions[..., None] * self.frequency
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def relative_bucket(distance: Tensor, *, bidirectional: bool, buckets: int, max_distance: int) -> Tensor:
    """Bucket of a signed distance (key minus query): exact when near, logarithmic when far.

    Source: arXiv 1910.10683 section 2.1; half of the buckets serve either direction when bidirectional.
    """
    offset = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    far = torch.log(distance.float().clamp(min=1) / exact) / math.log(max_distance / exact) * (buckets - exact)
    far = (exact + far.long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


class RelativeBias(nn.Module):
    """T5's attention bias, one learned number per head and bucket of distance, shared by all layers of a stack.

    The bias is a Toeplitz matrix per head, so it is looked up once per distance and unrolled.

    Source: arXiv 1910.10683 section 2.1.
    """

    def __init__(self, heads: int, *, bidirectional: bool, buckets: int = 32, max_distance: int = 128) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(buckets, heads) * 0.1)
        self.bidirectional, self.buckets, self.max_distance = bidirectional, buckets, max_distance

    def forward(self, queries: int, keys: int, offset: int = 0) -> Tensor:
        """Bias (1, heads, queries, keys) where query i stands at position i + offset and key j at position j."""
        first = -(queries - 1 + offset)
        distance = torch.arange(first, first + queries + keys - 1, device=self.weight.device)
        bucket = relative_bucket(
            distance, bidirectional=self.bidirectional, buckets=self.buckets, max_distance=self.max_distance
        )
        by_distance = F.embedding(bucket, self.weight).t()
        return by_distance.unfold(-1, keys, 1).flip(1)[None]


class Rotary(nn.Module):
    """Rotary angles (arXiv 2104.09864 eq. 34): pair (i, i + head_dim/2) turns by position * base^(-2i/head_dim)."""

    frequency: Tensor

    def __init__(self, head_dim: int, base: float = 10000.0) -> None:
        super().__init__()
        self.register_buffer("frequency", base ** (-torch.arange(0, head_dim, 2) / head_dim), persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each (batch, 1, tokens, head_dim), of positions (batch, tokens)."""
        angles = positions[:, None, :, None] * self.frequency
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Turn queries or keys (batch, heads, tokens, head_dim) by their angles."""
    left, right = x.chunk(2, dim=-1)
    return (x * angles[0] + torch.cat([-right, left], dim=-1) * angles[1]).to(x.dtype)
