"""The fixed d-Simplex classifier: class directions that never move, as far apart as they can be."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.errors import ConfigError, ModelError


def simplex_vertices(slots: int) -> Tensor:
    """Unit vectors (slots, slots - 1) of which any two have the cosine -1 / (slots - 1).

    Raises: ConfigError for fewer than 2 slots.
    Source: arXiv 2405.02581; `dsimplex` of the official code.
    """
    if slots < 2:
        raise ConfigError(f"a simplex of {slots} slots; expected at least 2")
    dim = slots - 1
    last = torch.full((1, dim), (1 - math.sqrt(slots)) / dim, dtype=torch.float64)
    vertices = torch.cat([torch.eye(dim, dtype=torch.float64), last])
    return F.normalize(vertices - vertices.mean(0), dim=1).float()


class SimplexHead(nn.Module):
    """A classifier without parameters: the product of features and the vertices of a regular simplex.

    Every slot is there from the start and most stay unused, so that classes which come later find theirs where they
    were expected. Features are neither normalised nor scaled, and there is no bias.

    Args:
        slots: number of classes that can ever be, >= 2.

    Shapes: features (batch, slots - 1) -> logits (batch, slots).
    Raises: ConfigError for fewer than 2 slots; ModelError for features of another width.
    Source: arXiv 2405.02581.
    """

    vertices: Tensor

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots
        # Two numbers give it back: not worth a place in a checkpoint.
        self.register_buffer("vertices", simplex_vertices(slots), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Logits."""
        if features.shape[-1] != self.slots - 1:
            raise ModelError(
                f"features of {features.shape[-1]} dimensions for a simplex of {self.slots} slots; expected "
                f"{self.slots - 1}: put a linear layer without bias in between"
            )
        return features @ self.vertices.t()
