"""Which weight of ours is which of theirs: one table per family, read in both directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from leaven.errors import LeavenError, ModelError
from leaven.models.trunk import TrunkConfig

Layout = Literal["same", "transposed", "batched"]


class InexpressibleError(LeavenError):
    """A checkpoint has a part that the trunk does not; it can still be used as it is."""


@dataclass(frozen=True)
class Row:
    """One weight.

    theirs: its name there, or several that are one fused weight here, concatenated along the first dimension.
    layout: "transposed" where theirs is the transpose (GPT-2), "batched" where theirs has leading ones (ViT).
    """

    ours: str
    theirs: tuple[str, ...]
    layout: Layout = "same"

    def read(self, state: Mapping[str, Tensor]) -> Tensor:
        """Our weight of their state."""
        parts = [state[name] for name in self.theirs]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self.layout == "transposed":
            tensor = tensor.t()
        elif self.layout == "batched":
            tensor = tensor.reshape(tensor.shape[-1:] if tensor.shape[:2] == (1, 1) else tensor.shape[1:])
        return tensor

    def write(self, tensor: Tensor) -> dict[str, Tensor]:
        """Their weights of ours."""
        if self.layout == "transposed":
            tensor = tensor.t()
        elif self.layout == "batched":
            tensor = tensor.reshape((1, 1, -1) if tensor.dim() == 1 else (1, *tensor.shape))
        parts = tensor.chunk(len(self.theirs)) if len(self.theirs) > 1 else (tensor,)
        return {name: part.contiguous() for name, part in zip(self.theirs, parts, strict=True)}


def affine(ours: str, *theirs: str, bias: bool = True, layout: Layout = "same") -> list[Row]:
    """The rows of a linear map or a norm: its weight and, with bias, its bias."""
    rows = [Row(f"{ours}.weight", tuple(f"{name}.weight" for name in theirs), layout)]
    if bias:
        rows.append(Row(f"{ours}.bias", tuple(f"{name}.bias" for name in theirs)))
    return rows


def read_rows(rows: Iterable[Row], state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Our state of theirs. Raises: ModelError naming what `source` lacks."""
    rows = list(rows)
    missing = [name for row in rows for name in row.theirs if name not in state]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelError(f"{source} lacks the weights {', '.join(missing[:3])}{more}, which its config.json calls for")
    return {row.ours: row.read(state) for row in rows}


def write_rows(rows: Iterable[Row], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state of ours."""
    return {name: tensor for row in rows for name, tensor in row.write(state[row.ours]).items()}


_TO_OURS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "quick_gelu": "quick_gelu",
}
_TO_THEIRS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "silu", "quick_gelu": "quick_gelu"}


def our_activation(name: str) -> Any:
    """The trunk's name of an activation. Raises: InexpressibleError when the trunk does not have it."""
    if name not in _TO_OURS:
        raise InexpressibleError(f"the trunk has no activation {name!r} (it has {', '.join(_TO_OURS)})")
    return _TO_OURS[name]


def their_activation(name: str) -> str:
    """transformers' name of an activation of the trunk."""
    return _TO_THEIRS[name]


def require_config(config: Any, family: str, **expected: Any) -> None:
    """Raises: InexpressibleError when a switch of a Hugging Face configuration has another value than expected."""
    for name, value in expected.items():
        found = getattr(config, name, value)
        if found != value:
            raise InexpressibleError(f"a {family} with {name}={found!r} is not one the trunk expresses")


def require_trunk(trunk: TrunkConfig, family: str, **expected: Any) -> None:
    """Raises: ModelError when a switch of a trunk has no counterpart in a family of transformers."""
    for name, value in expected.items():
        if (found := getattr(trunk, name)) != value:
            raise ModelError(
                f"a trunk with {name}={found!r} cannot be written as {family} of transformers, which has {name}="
                f"{value!r}: save it as a leaven model with save_model"
            )


def first_id(value: Any, otherwise: int) -> int:
    """A token id of a configuration, which may be absent or a list of several."""
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    return otherwise if value is None else int(value)


PLAIN: dict[str, Any] = {
    "positions": "none",
    "norm": "layer",
    "pre_norm": True,
    "final_norm": True,
    "feed_forward": "dense",
    "bias": True,
    "scaled_attention": True,
    "cross_attention": False,
}
"""Switches of the plain pre-norm stack that GPT-2, ViT and CLIP share; their positions belong to the embedding."""


def plain_trunk(
    dim: int, depth: int, heads: int, *, ffn_dim: int, activation: str, eps: float, dropout: float
) -> TrunkConfig:
    """The trunk of GPT-2, ViT and CLIP. Raises: InexpressibleError for an activation it does not have."""
    if dim % heads:
        raise InexpressibleError(f"width {dim} is not a multiple of {heads} heads")
    return TrunkConfig(
        dim=dim,
        depth=depth,
        heads=heads,
        ffn_dim=ffn_dim,
        activation=our_activation(activation),
        norm_eps=float(eps),
        dropout=float(dropout),
        **PLAIN,
    )


def require_whole_heads(trunk: TrunkConfig, family: str) -> None:
    """Raises: ModelError when the heads do not fill the width, as they do in every family but T5."""
    if trunk.head_dim * trunk.heads != trunk.dim:
        raise ModelError(
            f"a trunk with heads={trunk.heads} of head_dim={trunk.head_dim} in dim={trunk.dim} cannot be written as "
            f"{family} of transformers, whose heads fill the width: save it as a leaven model with save_model"
        )
