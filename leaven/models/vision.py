"""Encoder-only models of images (ViT), and image and text encoders side by side (CLIP)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.contracts import Tokens
from leaven.modalities.image import PatchEmbedding
from leaven.modalities.text import TokenEmbedding
from leaven.models.trunk import Trunk, TrunkConfig


@dataclass(frozen=True)
class ImageEncoderConfig:
    """A bidirectional trunk over patches.

    embedding_norm: a norm before the blocks (CLIP). labels: classes of the head, 0 for none. pooler: a dense layer over
    the class token (a headless ViT of Hugging Face).
    """

    trunk: TrunkConfig
    size: int = 224
    patch: int = 16
    channels: int = 3
    patch_bias: bool = True
    embedding_norm: bool = False
    labels: int = 0
    pooler: bool = False
    architecture: str = "image-encoder"

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for json."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ImageEncoderConfig:
        """The inverse of `to_dict`."""
        return ImageEncoderConfig(**{**values, "trunk": TrunkConfig(**values["trunk"])})


class ImageEncoder(nn.Module):
    """A vision transformer (arXiv 2010.11929): patches, class token, trunk, and a linear head on the class token."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        trunk = config.trunk
        self.embed = PatchEmbedding(
            trunk.dim,
            size=config.size,
            patch=config.patch,
            channels=config.channels,
            bias=config.patch_bias,
            norm_eps=trunk.norm_eps if config.embedding_norm else None,
        )
        self.encoder = Trunk(trunk)
        self.head = nn.Linear(trunk.dim, config.labels) if config.labels else None
        self.pooler = nn.Linear(trunk.dim, trunk.dim) if config.pooler else None

    def encode(self, pixel_values: Tensor) -> Tokens:
        """States (batch, 1 + patches, dim)."""
        return Tokens(self.encoder(self.embed(pixel_values)))

    def features(self, pixel_values: Tensor) -> Tensor:
        """The class token's final state (batch, dim)."""
        return self.encode(pixel_values).x[:, 0]

    def pooled(self, states: Tensor) -> Tensor:
        """The first state through a dense layer and tanh (batch, dim), or the state itself where there is no pooler."""
        first = states[:, 0]
        return first if self.pooler is None else self.pooler(first).tanh()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Class logits (batch, labels), or features where there is no head."""
        features = self.features(pixel_values)
        return features if self.head is None else self.head(features)


@dataclass(frozen=True)
class DualEncoderConfig:
    """Two trunks and the width in which they meet.

    eos_id: the text token whose first state is the text's feature; None takes the token with the highest id, which is
    the end of text in the vocabulary of the first CLIP checkpoints.
    """

    image: ImageEncoderConfig
    text: TrunkConfig
    vocab: int
    embedding_positions: int = 77
    projection: int = 512
    eos_id: int | None = 2
    architecture: str = "dual-encoder"

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for json."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> DualEncoderConfig:
        """The inverse of `to_dict`."""
        image, text = ImageEncoderConfig.from_dict(values["image"]), TrunkConfig(**values["text"])
        return DualEncoderConfig(**{**values, "image": image, "text": text})


class DualEncoder(nn.Module):
    """Images and texts in one space (arXiv 2103.00020): two encoders, two projections, one learned temperature."""

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.image = ImageEncoder(config.image)
        self.embed = TokenEmbedding(config.vocab, config.text.dim, max_positions=config.embedding_positions)
        self.text = Trunk(config.text)
        self.image_proj = nn.Linear(config.image.trunk.dim, config.projection, bias=False)
        self.text_proj = nn.Linear(config.text.dim, config.projection, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Projected image features (batch, projection), not normalised."""
        features: Tensor = self.image_proj(self.image.features(pixel_values))
        return features

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Projected text features (batch, projection) at the end of text, not normalised."""
        states = self.text(self.embed(input_ids, attention_mask), "causal")
        eos = self.config.eos_id
        end = (input_ids if eos is None else (input_ids == eos).int()).argmax(-1)
        features: Tensor = self.text_proj(states[torch.arange(len(states), device=states.device), end])
        return features

    def forward(self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Scaled cosines (images, texts)."""
        images = F.normalize(self.image_features(pixel_values), dim=-1)
        texts = F.normalize(self.text_features(input_ids, attention_mask), dim=-1)
        return self.logit_scale.exp() * images @ texts.t()
