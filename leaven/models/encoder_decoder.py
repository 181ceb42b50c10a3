"""The encoder-decoder: T5, CodeT5 and their kind."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.contracts import Tokens
from leaven.modalities.text import IGNORE, TokenEmbedding, VocabularyHead, shift_right
from leaven.models.cache import Cache
from leaven.models.feed_forward import FeedForward
from leaven.models.trunk import Trunk, TrunkConfig


class ModelOutput(NamedTuple):
    """Loss (None without labels) and logits (batch, tokens, vocab), named as in Hugging Face."""

    loss: Tensor | None
    logits: Tensor


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """An encoder trunk, a decoder trunk, and the vocabulary between them.

    tied: the output matrix is the embedding. scaled_logits: states are divided by sqrt(dim) before it (T5 v1.0).
    """

    vocab: int
    encoder: TrunkConfig
    decoder: TrunkConfig
    tied: bool = True
    scaled_logits: bool = True
    pad_id: int = 0
    eos_id: int = 2
    start_id: int = 0
    architecture: str = "encoder-decoder"

    @staticmethod
    def t5(
        vocab: int,
        dim: int,
        depth: int,
        heads: int,
        *,
        decoder_depth: int | None = None,
        ffn_dim: int = 0,
        head_dim: int = 0,
        gated: bool = False,
        dropout: float = 0.0,
        **rest: Any,
    ) -> EncoderDecoderConfig:
        """The T5 form (arXiv 1910.10683 section 2.1): pre-norm RMS, no biases, relative positions."""

        def trunk(layers: int, decoder: bool) -> TrunkConfig:
            return TrunkConfig(
                dim=dim,
                depth=layers,
                heads=heads,
                head_dim=head_dim,
                ffn_dim=ffn_dim,
                positions="t5",
                norm="rms",
                feed_forward="gated" if gated else "dense",
                activation="gelu_tanh" if gated else "relu",
                scaled_attention=False,
                cross_attention=decoder,
                bidirectional_bias=not decoder,
                dropout=dropout,
            )

        decoder = trunk(depth if decoder_depth is None else decoder_depth, True)
        return EncoderDecoderConfig(vocab, trunk(depth, False), decoder, **rest)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for json."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> EncoderDecoderConfig:
        """The inverse of `to_dict`."""
        trunks = {name: TrunkConfig(**values[name]) for name in ("encoder", "decoder")}
        return EncoderDecoderConfig(**{**values, **trunks})


class EncoderDecoder(nn.Module):
    """A sequence-to-sequence model on two trunks.

    Objectives and decoders use `encode`, `decode` and `logits`; `forward` has the signature of Hugging Face.

    Example:
        >>> model = EncoderDecoder(EncoderDecoderConfig.t5(vocab=100, dim=32, depth=2, heads=4))
        >>> model(torch.tensor([[5, 6, 2]]), labels=torch.tensor([[7, 2]])).logits.shape
        torch.Size([1, 2, 100])
    """

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.encoder.dim
        self.embed = TokenEmbedding(config.vocab, dim, pad_id=config.pad_id, dropout=config.encoder.dropout)
        self.encoder = Trunk(config.encoder)
        self.decoder = Trunk(config.decoder)
        self.head = VocabularyHead(
            dim,
            config.vocab,
            tied=self.embed.tokens if config.tied else None,
            scale=dim**-0.5 if config.scaled_logits else 1.0,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """T5's: embeddings 1, projections by fan-in, queries also by head size as scores are not scaled."""
        for trunk in (self.encoder, self.decoder):
            c = trunk.config
            inner = c.heads * c.head_dim
            for module in trunk.modules():
                if isinstance(module, FeedForward):
                    nn.init.normal_(module.up_proj.weight, std=c.dim**-0.5)
                    nn.init.normal_(module.down_proj.weight, std=c.ffn_dim**-0.5)
                    if module.gate_proj is not None:
                        nn.init.normal_(module.gate_proj.weight, std=c.dim**-0.5)
            for name, weight in trunk.named_parameters():
                if name.endswith("qkv_proj.weight"):
                    nn.init.normal_(weight[:inner], std=(c.dim * c.head_dim) ** -0.5)
                    nn.init.normal_(weight[inner:], std=c.dim**-0.5)
                elif name.endswith(".q_proj.weight"):
                    nn.init.normal_(weight, std=(c.dim * c.head_dim) ** -0.5)
                elif name.endswith("kv_proj.weight"):
                    nn.init.normal_(weight, std=c.dim**-0.5)
                elif name.endswith("out_proj.weight"):
                    nn.init.normal_(weight, std=inner**-0.5)
                elif name.endswith("relative_bias.weight"):
                    nn.init.normal_(weight, std=c.dim**-0.5)
        nn.init.normal_(self.embed.tokens.weight, std=1.0)
        if not self.config.tied:
            nn.init.normal_(self.head.proj.weight, std=self.config.encoder.dim**-0.5)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tokens:
        """Encoder states (batch, tokens, dim) and their mask, to be handed to `decode` as memory."""
        tokens: Tokens = self.embed(input_ids, attention_mask)
        return Tokens(self.encoder(tokens), tokens.mask)

    def decode(self, decoder_input_ids: Tensor, memory: Tokens, cache: Cache | None = None) -> Tensor:
        """Decoder states (batch, tokens, dim). With a cache, `decoder_input_ids` holds the new tokens alone.

        The batch may be a multiple of the memory's: consecutive entries then share a source, as beams do.
        """
        states: Tensor = self.decoder(self.embed(decoder_input_ids), "causal", memory=memory, cache=cache)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Scores (..., vocab) of decoder states (..., dim)."""
        scores: Tensor = self.head(states)
        return scores

    def make_cache(self) -> Cache:
        """An empty cache for `decode`."""
        return self.decoder.make_cache()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> ModelOutput:
        """Loss and logits, as Hugging Face's sequence-to-sequence models give them."""
        if decoder_input_ids is None:
            if labels is None:
                decoder_input_ids = input_ids.new_full((len(input_ids), 1), self.config.start_id)
            else:
                decoder_input_ids = shift_right(labels, self.config.start_id, self.config.pad_id)
        logits = self.logits(self.decode(decoder_input_ids, self.encode(input_ids, attention_mask)))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE)
        return ModelOutput(loss, logits)


@torch.no_grad()
def width_of(model: Any) -> int:
    """Width of the encoder's states of any model with `encode`, in the trunk or used as it is."""
    return int(model.encode(torch.tensor([[model.config.eos_id]], device=next(model.parameters()).device)).x.shape[-1])
