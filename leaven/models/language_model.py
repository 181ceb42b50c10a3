"""Decoder-only language models: causal and prefix."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from leaven.modalities.text import IGNORE, TokenEmbedding, VocabularyHead
from leaven.models.cache import Cache
from leaven.models.encoder_decoder import ModelOutput
from leaven.models.masks import MaskMode
from leaven.models.trunk import Trunk, TrunkConfig


@dataclass(frozen=True)
class LanguageModelConfig:
    """A trunk and its vocabulary. embedding_positions > 0: positions are added by the embedding, as in GPT-2."""

    vocab: int
    trunk: TrunkConfig
    tied: bool = True
    embedding_positions: int = 0
    pad_id: int = 0
    eos_id: int = 2
    architecture: str = "language-model"

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for json."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> LanguageModelConfig:
        """The inverse of `to_dict`."""
        return LanguageModelConfig(**{**values, "trunk": TrunkConfig(**values["trunk"])})


class LanguageModel(nn.Module):
    """A decoder-only model on the trunk; `mode="prefix"` reads the first tokens in both directions."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        trunk = config.trunk
        self.embed = TokenEmbedding(
            config.vocab, trunk.dim, max_positions=config.embedding_positions, dropout=trunk.dropout
        )
        self.trunk = Trunk(trunk)
        self.head = VocabularyHead(trunk.dim, config.vocab, tied=self.embed.tokens if config.tied else None)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        mode: MaskMode = "causal",
        prefix_length: Tensor | None = None,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states (batch, tokens, dim). With a cache, `input_ids` holds the new tokens alone."""
        past = cache.length if cache is not None else 0
        tokens = self.embed(input_ids, attention_mask, positions, past=past)
        states: Tensor = self.trunk(tokens, mode, prefix_length=prefix_length, segments=segments, cache=cache)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Scores (..., vocab)."""
        scores: Tensor = self.head(states)
        return scores

    def make_cache(self) -> Cache:
        """An empty cache for `states`."""
        return self.trunk.make_cache()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        prefix_length: Tensor | None = None,
    ) -> ModelOutput:
        """Loss of the next token and logits, as Hugging Face's causal models give them."""
        mode: MaskMode = "causal" if prefix_length is None else "prefix"
        logits = self.logits(self.states(input_ids, attention_mask, mode=mode, prefix_length=prefix_length))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE)
        return ModelOutput(loss, logits)
