"""Masked autoencoding: see a quarter of an image's patches, draw the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leaven.contracts import Batch, Loss, Tokens
from leaven.errors import ConfigError
from leaven.models.trunk import Trunk, TrunkConfig
from leaven.objectives.corruption import row_noise


def patchify(pixel_values: Tensor, patch: int) -> Tensor:
    """Images (batch, channels, height, width) as rows of pixels (batch, patches, patch * patch * channels).

    Patches run row by row; within one, pixels row by row with channels innermost.
    """
    batch, channels, height, width = pixel_values.shape
    cells = pixel_values.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


class MaskedAutoencoding(nn.Module):
    """The encoder reads the kept patches alone; a light decoder predicts the pixels of the others.

    Args:
        model: an image encoder of the trunk (`leaven.models.vision.ImageEncoder`); its size and patch decide the rest.
        ratio: share of patches that are hidden, in (0, 1).
        depth, dim, heads: of the decoder, which is thrown away after pre-training.
        normalize: predict pixels normalised within each patch.

    Shapes: `pixel_values` (batch, channels, size, size); `prepare` adds `kept` (batch, patches seen) int64.
    Loss: mean squared error over the hidden patches, counted in patches.
    Raises: ConfigError for a ratio that hides no patch or all.
    Source: arXiv 2111.06377 section 3.
    """

    name = "mae"

    def __init__(
        self,
        model: Any,
        *,
        ratio: float = 0.75,
        depth: int = 1,
        dim: int = 64,
        heads: int = 4,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        config = model.config
        self.patch, self.normalize = int(config.patch), normalize
        self.patches = (config.size // config.patch) ** 2
        self.seen = round(self.patches * (1 - ratio))
        if not 0 < self.seen < self.patches:
            raise ConfigError(
                f"ratio={ratio}: of {self.patches} patches {self.patches - self.seen} would be hidden; expected at "
                "least one hidden and one seen"
            )
        self.widen = nn.Linear(config.trunk.dim, dim)
        self.mask_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(1 + self.patches, dim) * 0.02)
        self.decoder = Trunk(TrunkConfig(dim=dim, depth=depth, heads=heads, positions="none"))
        self.pixels = nn.Linear(dim, self.patch**2 * config.channels)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Draw which patches each image shows, every set alike likely."""
        noise = row_noise(batch, self.patches, generator)
        return {**batch, "kept": noise.argsort(1)[:, : self.seen].sort(1).values}

    def reconstruct(self, model: Any, pixel_values: Tensor, kept: Tensor) -> Tensor:
        """Predicted pixels (batch, patches, patch * patch * channels) of every patch."""
        tokens = model.embed(pixel_values).x
        places = torch.cat([torch.zeros_like(kept[:, :1]), kept + 1], 1)
        seen = tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))
        states = self.widen(model.encoder(Tokens(seen, positions=places)))
        full = self.mask_token.to(states.dtype).expand(len(states), 1 + self.patches, -1)
        full = full.scatter(1, places[..., None].expand_as(states), states)
        predicted: Tensor = self.pixels(self.decoder(Tokens(full + self.positions)))[:, 1:]
        return predicted

    def forward(self, model: Any, batch: Batch) -> Loss:
        """Squared error on what was hidden."""
        kept = batch["kept"]
        predicted = self.reconstruct(model, batch["pixel_values"], kept).float()
        target = patchify(batch["pixel_values"], self.patch)
        if self.normalize:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        hidden = torch.ones(len(kept), self.patches, dtype=torch.bool, device=kept.device).scatter(1, kept, False)
        total = ((predicted - target) ** 2).mean(-1)[hidden].mean()
        return Loss(total, hidden.sum(), {self.name: total.detach()})
