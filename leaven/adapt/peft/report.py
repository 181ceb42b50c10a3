"""What adapting costs: trained numbers, stored bytes, frozen bases, operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from leaven.adapt.peft.method import adaptation_of
from leaven.adapt.peft.sites import projections
from leaven.adapt.peft.sublayers import attention_layers
from leaven.errors import ConfigError


@dataclass(frozen=True)
class Trainable:
    """Counts of an adapted model.

    adapter: learned numbers of the patches. head: those of modules that train along. base: the base model's numbers,
    head included. stored_bytes: what the adapter takes on disk, without the head. frozen_basis: frozen numbers kept
    beside the base, recomputed when it is loaded. modules: learned numbers by patch.
    """

    adapter: int
    head: int
    base: int
    stored_bytes: int
    frozen_basis: int
    modules: dict[str, int]

    @property
    def percent(self) -> float:
        """Learned numbers of the adapter, head apart, per hundred of the base model's without the head."""
        return 100 * self.adapter / (self.base - self.head)

    def __str__(self) -> str:
        return (
            f"adapter {self.adapter:,} ({self.percent:.3g}% of {self.base - self.head:,}), head {self.head:,}, "
            f"{self.stored_bytes:,} bytes, frozen basis {self.frozen_basis:,}"
        )


def trainable_report(model: nn.Module) -> Trainable:
    """Count what trains. Raises: ModelError when the model carries no adapter."""
    adaptation = adaptation_of(model)
    patches = adaptation.modules(model)
    learned = {id(p): p for patch in patches for p in patch.parameters()}
    everything = {id(p): p for p in model.parameters()}
    stored = [tensor for patch in patches for tensor in patch.settled_state().values()]
    return Trainable(
        adapter=sum(p.numel() for p in learned.values()),
        head=sum(p.numel() for p in {id(q): q for q in map(model.get_parameter, adaptation.trained)}.values()),
        base=sum(p.numel() for key, p in everything.items() if key not in learned),
        stored_bytes=sum(tensor.numel() * tensor.element_size() for tensor in stored),
        frozen_basis=sum(patch.frozen_basis() for patch in patches),
        modules={patch.path: sum(p.numel() for p in patch.parameters()) for patch in patches},
    )


class Flops(NamedTuple):
    """Operations of one sequence's forward pass, two per multiplication; zeros of weights counted or not."""

    attention_projections: int
    attention_scores: int
    feed_forward: int

    @property
    def total(self) -> int:
        """All three."""
        return sum(self)


def forward_flops(model: nn.Module, tokens: int, *, skip_zeros: bool = False) -> Flops:
    """Count a Transformer's operations from the shapes of its frozen weights; adapters and heads are left out.

    Args:
        tokens: length of the sequence, at least 1; every attention module is taken to read that many.
        skip_zeros: do not count multiplications by zero weights, as if the machine could leave them out.
    """
    if tokens < 1:
        raise ConfigError(f"tokens={tokens}: expected the length of a sequence, at least 1")
    counts = {"attention": 0, "ffn": 0}
    for part in projections(model):
        weight = part.weight(model)
        size = int((weight != 0).sum()) if skip_zeros else weight.numel()
        if part.role:
            counts["attention" if part.role in "qkvo" else "ffn"] += 2 * size * tokens
    widths = [layer.parts["q"].stop - layer.parts["q"].start for layer in attention_layers(model)]
    return Flops(counts["attention"], sum(4 * width * tokens**2 for width in widths), counts["ffn"])
