"""Any module that turns a batch into features."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from leaven.contracts import Batch, Tokens
from leaven.errors import ModelError

_FIELDS = ("image_embeds", "text_embeds", "pooler_output", "last_hidden_state", "logits")


class Features(nn.Module):
    """A module behind `features(batch) -> (batch, dim)`; made by `as_features`."""

    def __init__(self, module: nn.Module, take: Callable[[Any], Tensor] | None, pool: Literal["mean", "first"]) -> None:
        super().__init__()
        self.module, self.take, self.pool = module, take, pool
        self.training = module.training
        parameters = inspect.signature(module.forward).parameters.values()
        self._names = {p.name for p in parameters}
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def forward(self, batch: Batch | Tensor) -> Tensor:
        """Features (batch, dim). A tensor is handed to the module as it is, of a batch the fields that it knows.

        Raises: ModelError when the module knows none of the fields or gives nothing that is features.
        """
        if isinstance(batch, Tensor):
            out, mask = self.module(batch), None
        else:
            known = {name: field for name, field in batch.items() if self._takes_all or name in self._names}
            if not known:
                raise ModelError(
                    f"{type(self.module).__name__} takes {', '.join(sorted(self._names))}, "
                    f"but the batch has {', '.join(batch)}"
                )
            out, mask = self.module(**known), batch.get("attention_mask")
        if isinstance(out, Tokens):
            mask, out = out.mask if out.mask is not None else mask, out.x
        states = self.take(out) if self.take is not None else _tensor_of(out, self.module)
        return self._pooled(states, mask)

    def _pooled(self, states: Tensor, mask: Tensor | None) -> Tensor:
        if states.dim() == 4:
            return states.mean(dim=(2, 3))
        if states.dim() == 3:
            if self.pool == "first":
                return states[:, 0]
            if mask is None or mask.shape != states.shape[:2]:
                return states.mean(dim=1)
            weight = mask.to(states.dtype)[..., None]
            return (states * weight).sum(1) / weight.sum(1).clamp(min=1)
        if states.dim() != 2:
            raise ModelError(f"features must be (batch, dim), (batch, tokens, dim) or a map; got {tuple(states.shape)}")
        return states


def _tensor_of(out: Any, module: nn.Module) -> Tensor:
    if isinstance(out, Tensor):
        return out
    for name in _FIELDS:
        if isinstance(found := getattr(out, name, None), Tensor):
            return found
    if isinstance(out, tuple) and out and isinstance(out[0], Tensor):
        return out[0]
    raise ModelError(
        f"{type(module).__name__} gives a {type(out).__name__}: say what to take with take=lambda out: ..."
    )


def as_features(
    module: nn.Module, *, take: Callable[[Any], Tensor] | None = None, pool: Literal["mean", "first"] = "mean"
) -> Features:
    """Any module as something that turns a batch into features (batch, dim).

    Args:
        module: called with the fields of the batch that its `forward` names.
        take: picks the tensor from what the module returns; by default a pooled output, else the states, else logits.
        pool: how states (batch, tokens, dim) become one vector: their mean over real tokens, or the first.

    Example:
        >>> features = as_features(torch.nn.Linear(4, 3))
        >>> features(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """
    if pool not in ("mean", "first"):
        raise ModelError(f"pool={pool!r}: expected 'mean' or 'first'")
    return Features(module, take, pool)
