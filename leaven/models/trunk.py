"""The trunk: one Transformer stack whose switches express every architecture of the house."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.contracts import Tokens
from leaven.errors import ConfigError
from leaven.models.attention import Attention
from leaven.models.cache import Cache, LayerCache
from leaven.models.feed_forward import ACTIVATIONS, Activation, ExpertFeedForward, FeedForward, NormKind, make_norm
from leaven.models.masks import MaskMode, additive, visibility
from leaven.models.positions import LearnedPositions, RelativeBias, Rotary, SinusoidalPositions

PositionKind = Literal["none", "learned", "sinusoidal", "t5", "rotary"]
FeedForwardKind = Literal["dense", "gated", "experts"]


@dataclass(frozen=True)
class TrunkConfig:
    """The switches of a trunk.

    dim: width. depth: blocks. heads: attention heads of head_dim (dim / heads when 0). ffn_dim: 4 * dim when 0.
    pre_norm: norm before each part (True) or after its residual (False, BERT). final_norm: norm after the last block.
    scaled_attention: scores divided by sqrt(head_dim); T5 does without. cross_attention: blocks also read a memory.
    """

    dim: int
    depth: int
    heads: int
    head_dim: int = 0
    ffn_dim: int = 0
    positions: PositionKind = "rotary"
    max_positions: int = 512
    norm: NormKind = "rms"
    norm_eps: float = 1e-6
    pre_norm: bool = True
    final_norm: bool = True
    feed_forward: FeedForwardKind = "dense"
    activation: Activation = "gelu"
    bias: bool = False
    scaled_attention: bool = True
    cross_attention: bool = False
    bidirectional_bias: bool = True
    relative_buckets: int = 32
    relative_distance: int = 128
    rotary_base: float = 10000.0
    experts: int = 8
    experts_per_token: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, kinds in (("positions", PositionKind), ("norm", NormKind), ("feed_forward", FeedForwardKind)):
            if getattr(self, name) not in get_args(kinds):
                raise ConfigError(f"trunk {name}={getattr(self, name)!r}: expected one of {', '.join(get_args(kinds))}")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"trunk activation={self.activation!r}: expected one of {', '.join(ACTIVATIONS)}")
        if min(self.dim, self.heads) < 1 or self.depth < 0:
            raise ConfigError(f"trunk dim={self.dim}, heads={self.heads}, depth={self.depth}: sizes must be positive")
        if not self.head_dim:
            if self.dim % self.heads:
                raise ConfigError(f"trunk dim={self.dim} is not a multiple of heads={self.heads}: set head_dim")
            object.__setattr__(self, "head_dim", self.dim // self.heads)
        if not self.ffn_dim:
            object.__setattr__(self, "ffn_dim", 4 * self.dim)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for json."""
        return asdict(self)


class Block(nn.Module):
    """One layer: self-attention, cross-attention where there is a memory, feed-forward; each with norm and residual.

    `attention_adapter` and `ffn_adapter` are hooks: modules applied to what a part adds to the residual stream.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        c = config
        self.pre_norm, self.dropout = c.pre_norm, c.dropout

        def attention(cross: bool) -> Attention:
            return Attention(
                c.dim, c.heads, c.head_dim, bias=c.bias, scaled=c.scaled_attention, cross=cross, dropout=c.dropout
            )

        self.attn = attention(cross=False)
        self.attn_norm = make_norm(c.norm, c.dim, c.norm_eps)
        self.cross_attn = attention(cross=True) if c.cross_attention else None
        self.cross_norm = make_norm(c.norm, c.dim, c.norm_eps) if c.cross_attention else None
        self.ffn: nn.Module
        if c.feed_forward == "experts":
            self.ffn = ExpertFeedForward(
                c.dim,
                c.ffn_dim,
                experts=c.experts,
                experts_per_token=c.experts_per_token,
                activation=c.activation,
                bias=c.bias,
                dropout=c.dropout,
            )
        else:
            self.ffn = FeedForward(
                c.dim,
                c.ffn_dim,
                activation=c.activation,
                bias=c.bias,
                gated=c.feed_forward == "gated",
                dropout=c.dropout,
            )
        self.ffn_norm = make_norm(c.norm, c.dim, c.norm_eps)
        self.attention_adapter: nn.Module | None = None
        self.ffn_adapter: nn.Module | None = None

    def _add(self, x: Tensor, update: Tensor, norm: nn.Module, adapter: nn.Module | None = None) -> Tensor:
        if adapter is not None:
            update = adapter(update)
        if self.dropout:
            update = F.dropout(update, self.dropout, self.training)
        x = x + update
        return x if self.pre_norm else norm(x)

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None,
        *,
        causal: bool,
        angles: tuple[Tensor, Tensor] | None,
        memory: Tensor | None,
        memory_bias: Tensor | None,
        cache: LayerCache | None,
    ) -> Tensor:
        """Hidden states (batch, tokens, dim) after this layer."""
        h = self.attn_norm(x) if self.pre_norm else x
        x = self._add(
            x, self.attn(h, bias, causal=causal, angles=angles, cache=cache), self.attn_norm, self.attention_adapter
        )
        if self.cross_attn is not None and self.cross_norm is not None and memory is not None:
            h = self.cross_norm(x) if self.pre_norm else x
            x = self._add(x, self.cross_attn(h, memory_bias, memory=memory, cache=cache), self.cross_norm)
        h = self.ffn_norm(x) if self.pre_norm else x
        return self._add(x, self.ffn(h), self.ffn_norm, self.ffn_adapter)


class Trunk(nn.Module):
    """A stack of blocks over `Tokens`, with the mask mode chosen at each call.

    Example:
        >>> trunk = Trunk(TrunkConfig(dim=64, depth=2, heads=4))
        >>> trunk(Tokens(torch.randn(1, 5, 64)), mode="causal").shape
        torch.Size([1, 5, 64])
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.positions: nn.Module | None = None
        self.relative_bias: RelativeBias | None = None
        self.rotary: Rotary | None = None
        if c.positions == "learned":
            self.positions = LearnedPositions(c.max_positions, c.dim)
        elif c.positions == "sinusoidal":
            self.positions = SinusoidalPositions(c.dim)
        elif c.positions == "t5":
            self.relative_bias = RelativeBias(
                c.heads,
                bidirectional=c.bidirectional_bias,
                buckets=c.relative_buckets,
                max_distance=c.relative_distance,
            )
        elif c.positions == "rotary":
            self.rotary = Rotary(c.head_dim, c.rotary_base)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.norm = make_norm(c.norm, c.dim, c.norm_eps) if c.final_norm else None

    def make_cache(self) -> Cache:
        """An empty cache for this stack."""
        return Cache(self.config.depth)

    def forward(
        self,
        tokens: Tokens,
        mode: MaskMode = "bidirectional",
        *,
        prefix_length: Tensor | None = None,
        segments: Tensor | None = None,
        memory: Tokens | None = None,
        cache: Cache | None = None,
        collect: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states (batch, tokens, dim).

        With a cache, `tokens.x` holds the new tokens alone and `tokens.mask`, when given, covers the past as well.
        With a cache that has branched, they are the next tokens of the beams, and the mask is that given to `branch`.
        `collect` receives the input of the first block, the state after each block but the last, and the final state.

        Raises: ConfigError when there are more tokens than learned positions.
        """
        x = tokens.x
        past = cache.length if cache is not None else 0
        branched = cache is not None and cache.ancestry is not None
        queries = 1 if branched else x.shape[1]
        keys = queries + past
        positions = tokens.positions
        if positions is None and (self.positions is not None or self.rotary is not None):
            positions = torch.arange(past, keys, device=x.device).expand(x.shape[0], -1 if not branched else x.shape[1])
        if self.positions is not None and positions is not None:
            if self.config.positions == "learned" and keys > self.config.max_positions:
                raise ConfigError(
                    f"{keys} tokens, but the trunk has learned positions for {self.config.max_positions}: "
                    "shorten the input or raise max_positions"
                )
            x = x + self.positions(positions)
        angles = self.rotary(positions) if self.rotary is not None and positions is not None else None
        plain_causal = (
            mode == "causal" and tokens.mask is None and segments is None and self.relative_bias is None and past == 0
        )
        bias = None
        if cache is not None and cache.ancestry is not None:
            relative = self.relative_bias(1, keys, past) if self.relative_bias is not None else None
            bias, plain_causal = cache.beam_bias(relative, x.dtype), False
        elif not plain_causal and not (queries == 1 and mode == "causal" and tokens.mask is None):
            visible = visibility(
                mode,
                queries,
                keys,
                key_mask=tokens.mask,
                offset=past,
                prefix_length=prefix_length,
                segments=segments,
                device=x.device,
            )
            relative = self.relative_bias(queries, keys, past) if self.relative_bias is not None else None
            bias = additive(visible, relative, x.dtype)
        elif self.relative_bias is not None:
            bias = self.relative_bias(queries, keys, past)
        memory_bias = None
        if memory is not None and memory.mask is not None:
            memory_bias = additive(memory.mask[:, None, None, :], None, x.dtype)
        for index, block in enumerate(self.blocks):
            if collect is not None:
                collect.append(x)
            layer = cache.layers[index] if cache is not None else None
            x = block(
                x,
                bias,
                causal=plain_causal,
                angles=angles,
                memory=None if memory is None else memory.x,
                memory_bias=memory_bias,
                cache=layer,
            )
        x = self.norm(x) if self.norm is not None else x
        if collect is not None:
            collect.append(x)
        return x
