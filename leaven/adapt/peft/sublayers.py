"""The attention and feed-forward sub-layers of a model: where each is read and written."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from leaven.adapt.peft.sites import Projection, projections
from leaven.adapt.peft.targets import why_nothing
from leaven.errors import ConfigError


@dataclass(frozen=True)
class SubLayer:
    """An attention or feed-forward sub-layer: the map that reads its input x and the one that writes its output h.

    core: for attention, the module in whose call keys and values meet; parts: its projections by role.
    """

    entry: str
    exit: str
    core: str
    parts: dict[str, Projection]

    @property
    def reading(self) -> Projection:
        """The projection that reads x."""
        return self.parts.get("up") or self.parts["q"]

    @property
    def writing(self) -> Projection:
        """The projection that writes h."""
        return self.parts.get("down") or self.parts["o"]


def attention_layers(model: nn.Module, within: str = "*") -> list[SubLayer]:
    """Attention sub-layers whose output projection's name matches the pattern.

    Raises: ConfigError when there is none.
    """
    known = projections(model)
    layers = []
    for out in (p for p in known if p.role == "o" and fnmatchcase(p.module, within)):
        parts = {"o": out}
        for role in "qkv":
            near = _nearest(out.module if role == "q" else parts["q"].module, [p for p in known if p.role == role])
            if near is None:
                break
            parts[role] = near
        else:
            core = _common([parts[role].module for role in "qkv"])
            multihead = isinstance(model.get_submodule(core), nn.MultiheadAttention)
            if not multihead and core == parts["q"].module:
                core = core.rpartition(".")[0]
            entry, last = (core, core) if multihead else (parts["q"].module, out.module)
            layers.append(SubLayer(entry, last, core, parts))
    return _some(layers, "attention", model, within, known)


def feed_forward_layers(model: nn.Module, within: str = "*") -> list[SubLayer]:
    """Feed-forward sub-layers whose last map's name matches the pattern. Raises: ConfigError when there is none."""
    known = projections(model)
    layers = []
    for down in (p for p in known if p.role == "down" and fnmatchcase(p.module, within)):
        up = _nearest(down.module, [p for p in known if p.role in ("up", "gate")])
        if up is not None:
            layers.append(SubLayer(up.module, down.module, "", {"up": up, "down": down}))
    return _some(layers, "feed-forward", model, within, known)


def _some(layers: list[SubLayer], kind: str, model: nn.Module, within: str, known: list[Projection]) -> list[SubLayer]:
    if not layers:
        raise ConfigError(f"no {kind} sub-layer was found: within={within!r} {why_nothing(model, within, known)}")
    return layers


def _shared(first: str, second: str) -> int:
    count = 0
    for a, b in zip(first.split("."), second.split("."), strict=False):
        if a != b:
            break
        count += 1
    return count


def _nearest(name: str, candidates: list[Projection]) -> Projection | None:
    return max(candidates, key=lambda p: _shared(name, p.module), default=None)


def _common(names: list[str]) -> str:
    shared = min(_shared(names[0], name) for name in names)
    return ".".join(names[0].split(".")[:shared])
