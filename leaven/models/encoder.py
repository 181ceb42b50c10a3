"""Encoder-only models of text: BERT, RoBERTa and their kind."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from leaven.contracts import Tokens
from leaven.errors import ConfigError
from leaven.modalities.text import IGNORE, TokenEmbedding, VocabularyHead
from leaven.models.encoder_decoder import ModelOutput
from leaven.models.feed_forward import ACTIVATIONS
from leaven.models.trunk import Trunk, TrunkConfig


@dataclass(frozen=True)
class TextEncoderConfig:
    """A bidirectional trunk, its embedding (positions, segment types, norm) and, where it has them, its heads.

    pooler: a dense layer over the first state (BERT's sentence vector). head: the masked-token head.
    """

    vocab: int
    trunk: TrunkConfig
    embedding_positions: int = 512
    position_offset: int = 0
    types: int = 2
    pad_id: int = 0
    pooler: bool = True
    head: bool = True
    architecture: str = "text-encoder"

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for json."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TextEncoderConfig:
        """The inverse of `to_dict`."""
        return TextEncoderConfig(**{**values, "trunk": TrunkConfig(**values["trunk"])})


class _MaskedTokenTransform(nn.Module):
    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.dim, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.norm(self.activation(self.dense(states)))
        return out


class TextEncoder(nn.Module):
    """A bidirectional encoder with a masked-token head (arXiv 1810.04805)."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        trunk = config.trunk
        self.embed = TokenEmbedding(
            config.vocab,
            trunk.dim,
            pad_id=config.pad_id,
            max_positions=config.embedding_positions,
            position_offset=config.position_offset,
            types=config.types,
            norm_eps=trunk.norm_eps,
            dropout=trunk.dropout,
        )
        self.encoder = Trunk(trunk)
        self.head = (
            VocabularyHead(
                trunk.dim, config.vocab, tied=self.embed.tokens, bias=True, transform=_MaskedTokenTransform(trunk)
            )
            if config.head
            else None
        )
        self.pooler = nn.Linear(trunk.dim, trunk.dim) if config.pooler else None
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_types: Tensor | None = None
    ) -> Tokens:
        """States (batch, tokens, dim) and their mask."""
        tokens: Tokens = self.embed(input_ids, attention_mask, token_types=token_types)
        return Tokens(self.encoder(tokens), tokens.mask)

    def pooled(self, states: Tensor) -> Tensor:
        """BERT's sentence vector (batch, dim): the first state through a dense layer and tanh, or the state itself."""
        first = states[:, 0]
        return first if self.pooler is None else self.pooler(first).tanh()

    def logits(self, states: Tensor) -> Tensor:
        """Masked-token scores (..., vocab). Raises: ConfigError when the model has no masked-token head."""
        if self.head is None:
            raise ConfigError("this text encoder has no masked-token head: build it with head=True, or use its states")
        scores: Tensor = self.head(states)
        return scores

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> ModelOutput:
        """Masked-token loss and logits, as Hugging Face's masked models give them."""
        logits = self.logits(self.encode(input_ids, attention_mask, token_type_ids).x)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE)
        return ModelOutput(loss, logits)
