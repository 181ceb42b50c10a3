"""Named cells of the space that `Delta` spans, and the methods that are made of them: adapters, prefixes, MAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from leaven.adapt.peft.bottleneck import Init, Norm
from leaven.adapt.peft.delta import Delta, Form, Insertion
from leaven.adapt.peft.method import Method
from leaven.adapt.peft.patches import Patch
from leaven.adapt.peft.prefix import Composition
from leaven.errors import ConfigError

_REPARAMETERISED = 800
_CELLS: dict[str, tuple[Form, Insertion, str, Composition]] = {
    "prefix": ("softmax", "parallel", "heads", "gated"),
    "adapter": ("relu", "sequential", "ffn", "add"),
    "lora": ("linear", "parallel", "q,v", "scaled"),
    "parallel-adapter": ("relu", "parallel", "ffn", "add"),
    "multi-head-parallel-adapter": ("relu", "parallel", "heads", "add"),
    "scaled-parallel-adapter": ("relu", "parallel", "ffn", "scaled"),
}


def cell(name: str, bottleneck: int, **options: Any) -> Delta:
    """A named cell of the space (arXiv 2110.04366 table 1), with other options of `Delta` or other choices on top.

    Raises: ConfigError for an unknown name.
    """
    if name not in _CELLS:
        raise ConfigError(f"there is no cell {name!r}: expected one of {', '.join(_CELLS)}")
    axes = dict(zip(("form", "insertion", "place", "composition"), _CELLS[name], strict=True))
    return Delta(bottleneck=bottleneck, **{**axes, **options})


@dataclass(frozen=True)
class Adapter(Method):
    """A bottleneck adapter at the output of sub-layers.

    The default is Pfeiffer's: sequential, after the feed-forward part; `places=("attention", "ffn")` is Houlsby's, and
    `insertion="parallel", scale=0.1` AdaptFormer's (which reads the state before the norm, this one the normed).

    Args:
        bottleneck: width. insertion: "sequential" or "parallel". places: any of "attention", "ffn", "heads".
        scale: factor of the change. learn_scale: train it. form: activation. norm: "in" puts a layer norm before the
            bottleneck, "out" after it. The rest is as in `Delta`.

    Source: arXiv 1902.00751, 2005.00247, 2205.13535 section 3.2.
    """

    bottleneck: int = 64
    insertion: Insertion = "sequential"
    places: tuple[str, ...] = ("ffn",)
    scale: float = 1.0
    learn_scale: bool = False
    form: Form = "relu"
    init: Init = "lora"
    dropout: float = 0.0
    norm: Norm = "none"
    within: str = "*"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._deltas()

    def _deltas(self) -> list[Delta]:
        options = {k: v for k, v in self.__dict__.items() if k not in ("places", "train")}
        composition: Composition = "scaled" if self.scale != 1.0 or self.learn_scale else "add"
        return [Delta(place=place, composition=composition, **options) for place in self.places]

    def build(self, model: nn.Module, generator: torch.Generator | None) -> list[Patch]:
        """The patches."""
        return [patch for delta in self._deltas() for patch in delta.build(model, generator)]


@dataclass(frozen=True)
class Prefix(Method):
    """Learned keys and values in front of those of attention.

    Args:
        length: prefix positions, at least 1.
        reparameterize: width of the network that makes them while they train, 0 to train them directly.
        compensate: leave the change at full strength (arXiv 2303.10070); reparameterize is 0 then, as in the paper.
        learn_scale: one learned scale for the keys and one for the values, from 1 on.
        init: "bert" or "lae"; None takes "lae" with compensation and "bert" without.
        within: glob pattern on the name of attention's output projection.

    Source: arXiv 2101.00190 section 4.3; 2110.04366 equations 5 to 9.
    """

    length: int = 30
    reparameterize: int = _REPARAMETERISED
    compensate: bool = False
    learn_scale: bool = False
    init: Init | None = None
    within: str = "*"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._delta()

    def _delta(self) -> Delta:
        return cell(
            "prefix",
            self.length,
            composition="compensated" if self.compensate else "gated",
            learn_scale=self.learn_scale,
            init=self.init or ("lae" if self.compensate else "bert"),
            reparameterize=self.reparameterize,
            within=self.within,
        )

    def build(self, model: nn.Module, generator: torch.Generator | None) -> list[Patch]:
        """The patches."""
        return self._delta().build(model, generator)

    def settled(self) -> Prefix:
        """Without the network that makes the prefix."""
        return Prefix(**{**self.__dict__, "reparameterize": 0})


@dataclass(frozen=True)
class MAM(Method):
    """Mix-and-match: a short prefix at attention and a scaled parallel adapter at the feed-forward parts.

    Args:
        prefix: length of the prefix. bottleneck: width of the adapter. scale: factor of its change.
        reparameterize: as in `Prefix`. dropout: of the adapter's hidden units.

    Source: arXiv 2110.04366 section 4.6.
    """

    prefix: int = 30
    bottleneck: int = 512
    scale: float = 4.0
    reparameterize: int = _REPARAMETERISED
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._cells()

    def _cells(self) -> tuple[Delta, Delta]:
        beside = cell("scaled-parallel-adapter", self.bottleneck, scale=self.scale, dropout=self.dropout)
        return cell("prefix", self.prefix, reparameterize=self.reparameterize), beside

    def build(self, model: nn.Module, generator: torch.Generator | None) -> list[Patch]:
        """The patches."""
        return [patch for part in self._cells() for patch in part.build(model, generator)]

    def settled(self) -> MAM:
        """Without the network that makes the prefix."""
        return MAM(**{**self.__dict__, "reparameterize": 0})
