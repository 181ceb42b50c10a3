"""What a recipe of the zoo hands over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Made:
    """A model and what its card says of it.

    extra: kept with the model. data: what it was made of. results: figures of its training. seconds: by stage.
    """

    model: nn.Module
    tokenizer: Any
    extra: dict[str, Any]
    data: dict[str, Any]
    results: list[dict[str, Any]]
    seconds: dict[str, float]
