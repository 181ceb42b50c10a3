"""Text: token ids to `Tokens`, and states to logits over a vocabulary.

Batch fields of text, and of code, which is text with a parse:
    input_ids (batch, tokens) int64 in [0, vocab): what the encoder, or a decoder-only model, reads.
    attention_mask (batch, tokens) bool or 0/1: False at padding.
    labels (batch, tokens) int64 in [0, vocab), or IGNORE where no prediction is asked.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leaven.contracts import Tokens

IGNORE = -100
"""Label of positions that are not predicted, as in Hugging Face."""


class TokenEmbedding(nn.Module):
    """The pre-net of text: token vectors, with optional positions, segment types and norm (BERT, GPT-2).

    Shapes: input_ids (batch, tokens) int64 -> Tokens with x (batch, tokens, dim).
    """

    def __init__(
        self,
        vocab: int,
        dim: int,
        *,
        pad_id: int | None = None,
        max_positions: int = 0,
        position_offset: int = 0,
        types: int = 0,
        norm_eps: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, dim)
        self.pad_id, self.position_offset = pad_id, position_offset
        self.positions = nn.Embedding(max_positions, dim) if max_positions else None
        self.types = nn.Embedding(types, dim) if types else None
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if norm_eps is not None else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        token_types: Tensor | None = None,
        past: int = 0,
    ) -> Tokens:
        """Embed; `past` tokens are decoded already. With `position_offset`, positions count real tokens (RoBERTa)."""
        x = self.tokens(input_ids)
        mask = attention_mask.bool() if attention_mask is not None else None
        if self.positions is not None:
            if positions is None and self.position_offset:
                real = torch.ne(input_ids, -1 if self.pad_id is None else self.pad_id).long()
                positions = real.cumsum(1) * real + self.position_offset - 1
            elif positions is None:
                positions = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)
            x = x + self.positions(positions)
        if self.types is not None:
            x = x + (self.types.weight[0] if token_types is None else self.types(token_types))
        if self.norm is not None:
            x = self.norm(x)
        return Tokens(self.dropout(x), mask, positions)


class VocabularyHead(nn.Module):
    """The post-net of text: states (..., dim) to logits (..., vocab).

    tied: the embedding whose weights serve as output matrix; None gives the head its own. scale multiplies the states.
    transform: a dense layer, activation and norm before, as in BERT's masked-token head.
    """

    def __init__(
        self,
        dim: int,
        vocab: int,
        *,
        tied: nn.Embedding | None = None,
        bias: bool = False,
        scale: float = 1.0,
        transform: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, vocab, bias=bias)
        if tied is not None:
            self.proj.weight = tied.weight
        self.scale = scale
        self.transform = transform

    def forward(self, states: Tensor) -> Tensor:
        """Logits."""
        if self.transform is not None:
            states = self.transform(states)
        if self.scale != 1.0:
            states = states * self.scale
        logits: Tensor = self.proj(states)
        return logits


def shift_right(labels: Tensor, start_id: int, pad_id: int) -> Tensor:
    """What a decoder reads to predict the labels: the start token, then all labels but the last; IGNORE is padding."""
    shifted = torch.cat([labels.new_full((len(labels), 1), start_id), labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORE, pad_id)
