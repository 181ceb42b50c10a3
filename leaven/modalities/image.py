"""Images: pixels to patch tokens.

Batch fields of images:
    pixel_values (batch, channels, height, width) float, as the image processor of the model normalises them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leaven.contracts import Tokens
from leaven.errors import ConfigError


class PatchEmbedding(nn.Module):
    """The pre-net of images: non-overlapping patches, a class token, learned positions (arXiv 2010.11929 section 3.1).

    Shapes: pixel_values (batch, channels, size, size) -> Tokens with x (batch, 1 + (size / patch)^2, dim).
    Raises: ConfigError when the image has another size.
    """

    def __init__(
        self, dim: int, *, size: int, patch: int, channels: int = 3, bias: bool = True, norm_eps: float | None = None
    ) -> None:
        super().__init__()
        if size % patch:
            raise ConfigError(f"image size {size} is not a multiple of the patch size {patch}")
        self.size, self.channels = size, channels
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch, bias=bias)
        self.class_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(1 + (size // patch) ** 2, dim) * 0.02)
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if norm_eps is not None else None

    def forward(self, pixel_values: Tensor) -> Tokens:
        """Embed."""
        if pixel_values.shape[1:] != (self.channels, self.size, self.size):
            raise ConfigError(
                f"images of shape {tuple(pixel_values.shape[1:])}: this model reads "
                f"({self.channels}, {self.size}, {self.size}); resize them first"
            )
        patches = self.proj(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(patches), 1, -1), patches], dim=1) + self.positions
        return Tokens(self.norm(x) if self.norm is not None else x)


def pixel_values(images: Tensor) -> Tensor:
    """Images (batch, channels, height, width) uint8, or float in [0, 1], as leaven's own models read them: [-1, 1]."""
    floating = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    return floating * 2 - 1
