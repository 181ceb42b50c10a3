"""What the bridge knows of one family of transformers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from leaven.models.bridge.names import InexpressibleError, Row


@dataclass(frozen=True)
class Family:
    """One `model_type` of transformers and its counterpart among leaven's models.

    architectures: the classes of transformers it covers; `bare` is the one whose weights have no `prefix`.
    read_config: their configuration and the weights, by canonical names, to ours; raises InexpressibleError.
    write_config: ours to the values of a config.json; raises ModelError.
    rows: the table of names for a configuration of ours.
    finish: a last change of their weights before they are written.
    output: the output matrix, which the table leaves out where it is tied.
    renames: patterns of names from other versions of transformers, and the canonical form.
    ignored: patterns of names that carry nothing the model computes with.
    aliases: where a missing weight may be found instead.
    duplicates: weights that must equal another when they are there, as transformers ties them.
    """

    model_type: str
    architecture: str
    architectures: tuple[str, ...]
    read_config: Callable[[Any, Mapping[str, Tensor]], Any]
    write_config: Callable[[Any], dict[str, Any]]
    rows: Callable[[Any], list[Row]]
    finish: Callable[[Any, dict[str, Tensor]], dict[str, Tensor]] | None = None
    output: str = ""
    prefix: str = ""
    heads: tuple[str, ...] = ()
    bare: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    duplicates: Mapping[str, str] = field(default_factory=dict)

    def canonical(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights by canonical names, without what is ignored and without duplicates.

        Raises: InexpressibleError when a weight that should be tied to another differs from it.
        """
        named: dict[str, Tensor] = {}
        for name, tensor in state.items():
            short = name.removeprefix(self.prefix) if self.prefix else name
            for pattern, form in self.renames:
                short = re.sub(pattern, form, short)
            if not any(re.search(pattern, short) for pattern in self.ignored):
                named[short] = tensor
        for name, others in self.aliases.items():
            for other in others:
                if name not in named and other in named:
                    named[name] = named[other]
        for name, original in self.duplicates.items():
            if name in named and original in named and not torch.equal(named[name], named[original]):
                raise InexpressibleError(f"{name} differs from {original}, to which the trunk ties it")
            if original in named:
                named.pop(name, None)
        return named

    def dress(self, state: Mapping[str, Tensor], architecture: str) -> dict[str, Tensor]:
        """Canonical names as the class `architecture` of transformers has them."""
        if not self.prefix or architecture == self.bare:
            return dict(state)
        return {n if n.startswith(self.heads) else self.prefix + n: tensor for n, tensor in state.items()}


def is_tied(state: Mapping[str, Tensor], head: str, embedding: str) -> bool:
    """Whether an output matrix is the embedding: it is not stored, or stored with the same values."""
    return head not in state or (embedding in state and torch.equal(state[head], state[embedding]))
