"""The bottleneck form of a change, down, activation, up, and its place at a sub-layer or at the heads of attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.adapt.peft.patches import Patch, first_input, replaced_first
from leaven.adapt.peft.sites import base_tensor
from leaven.adapt.peft.sublayers import SubLayer

FORMS: dict[str, Callable[[Tensor], Tensor] | None] = {"linear": None, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}
Init = Literal["lora", "bert", "lae"]
Norm = Literal["none", "in", "out"]


class Bottleneck(nn.Module):
    """Wup act(Wdown x), times a scale; without activation it has no biases and is one matrix of low rank.

    `norm` puts a layer norm on x ("in") or on the scaled change ("out").

    Shapes: (..., inputs) -> (..., outputs).
    Source: arXiv 2110.04366 table 1; initial values section 4.1: "lora" is Kaiming-uniform down and zero up, so that
    the change is zero at first, "bert" is normal with deviation 0.02.
    """

    scale: Tensor | float

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int,
        *,
        form: str = "linear",
        scale: float = 1.0,
        learn_scale: bool = False,
        dropout: float = 0.0,
        norm: Norm = "none",
    ) -> None:
        super().__init__()
        self.form, self.dropout = form, dropout
        self.down = nn.Parameter(torch.zeros(width, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, width))
        self.down_bias = nn.Parameter(torch.zeros(width)) if FORMS[form] else None
        self.up_bias = nn.Parameter(torch.zeros(outputs)) if FORMS[form] else None
        self.scale = nn.Parameter(torch.tensor(scale)) if learn_scale else scale
        self.norm_in = nn.LayerNorm(inputs) if norm == "in" else None
        self.norm_out = nn.LayerNorm(outputs) if norm == "out" else None

    @property
    def is_matrix(self) -> bool:
        """Whether the change is a linear function."""
        return FORMS[self.form] is None and self.norm_in is None and self.norm_out is None

    @torch.no_grad()
    def initialise(self, init: Init, generator: torch.Generator | None) -> Bottleneck:
        """Fill the matrices with initial values; without a generator they stay zero."""
        if generator is not None and init == "lora":
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)
        elif generator is not None:
            for matrix in (self.down, self.up):
                nn.init.normal_(matrix, std=0.02, generator=generator)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """The change."""
        x = x.to(self.down.dtype)
        if self.norm_in is not None:
            x = self.norm_in(x)
        activation = FORMS[self.form]
        if activation is None:
            hidden = F.linear(F.dropout(x, self.dropout, self.training), self.down)
        else:
            hidden = F.dropout(activation(F.linear(x, self.down, self.down_bias)), self.dropout, self.training)
        change = F.linear(hidden, self.up, self.up_bias) * self.scale
        return change if self.norm_out is None else self.norm_out(change)

    def matrix(self) -> Tensor:
        """The change as one matrix (outputs, inputs); only where `is_matrix`."""
        return self.up @ self.down * self.scale

    def keep_rows(self, rows: Tensor) -> None:
        """Keep these outputs alone."""
        self.up = nn.Parameter(self.up.detach()[rows])
        if self.up_bias is not None:
            self.up_bias = nn.Parameter(self.up_bias.detach()[rows])


class HeadBottleneck(nn.Module):
    """One bottleneck per head of attention, each writing the output of its head.

    Shapes: (..., inputs) -> (..., heads * head_dim); `own` heads read their own output instead of all inputs.
    Source: arXiv 2110.04366 section 4.4, multi-head parallel adapter.
    """

    scale: Tensor | float

    def __init__(
        self,
        inputs: int,
        heads: int,
        head_dim: int,
        width: int,
        *,
        own: bool,
        form: str,
        scale: float,
        learn_scale: bool,
    ) -> None:
        super().__init__()
        self.form, self.own = form, own
        self.down = nn.Parameter(torch.zeros(heads, width, head_dim if own else inputs))
        self.up = nn.Parameter(torch.zeros(heads, head_dim, width))
        self.scale = nn.Parameter(torch.tensor(scale)) if learn_scale else scale

    @torch.no_grad()
    def initialise(self, init: Init, generator: torch.Generator | None) -> HeadBottleneck:
        """As `Bottleneck.initialise`, per head."""
        for down, up in zip(self.down, self.up, strict=True):
            if generator is not None and init == "lora":
                nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
            elif generator is not None:
                nn.init.normal_(down, std=0.02, generator=generator)
                nn.init.normal_(up, std=0.02, generator=generator)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """The change of the concatenated heads."""
        x = x.to(self.down.dtype)
        if self.own:
            hidden = torch.einsum("...hi,hri->...hr", x.reshape(*x.shape[:-1], len(self.down), -1), self.down)
        else:
            hidden = torch.einsum("...i,hri->...hr", x, self.down)
        activation = FORMS[self.form]
        hidden = hidden if activation is None else activation(hidden)
        return torch.einsum("...hr,hdr->...hd", hidden, self.up).flatten(-2) * self.scale


class SubLayerPatch(Patch):
    """Adds a bottleneck's change to the output h of a sub-layer, or to its heads, before residual and norm.

    parallel: the change is computed from the sub-layer's input x, otherwise from what it is added to.
    """

    def __init__(self, layer: SubLayer, change: Bottleneck | HeadBottleneck, *, parallel: bool) -> None:
        bases = tuple(dict.fromkeys((layer.reading.name, layer.writing.name)))
        super().__init__(layer.exit, "adapter", bases)
        self.entry, self.parallel, self.change = layer.entry, parallel, change
        self.written = layer.writing
        self._x: Tensor | None = None

    def add_hooks(self, model: nn.Module) -> None:
        """Read at the entry, write at the exit."""
        if self.parallel:
            entry = model.get_submodule(self.entry)
            self._handles.append(entry.register_forward_pre_hook(self._read, with_kwargs=True))
        last = model.get_submodule(self.host)
        if isinstance(self.change, HeadBottleneck):
            self._handles.append(last.register_forward_pre_hook(self._write_heads))
        else:
            self._handles.append(last.register_forward_hook(self._write))

    def _read(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._x = first_input(args, kwargs)

    def _changed(self, h: Tensor) -> Tensor:
        x, self._x = (self._x, None) if self.parallel else (h, None)
        return h if x is None else h + self.change(x).to(h.dtype)

    def _write(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return replaced_first(output, self._changed)

    def _write_heads(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._changed(args[0]), *args[1:])

    def merged(self, model: nn.Module) -> dict[str, Tensor]:
        """A linear change that reads what it is added to is a factor of the last matrix; no other can be merged."""
        if self.parallel or isinstance(self.change, HeadBottleneck) or not self.change.is_matrix:
            return super().merged(model)
        return followed_by(model, self.written.module, self.change.matrix(), transposed=self.written.transposed)

    def why_not_merged(self) -> str:
        """The reason why no weights do what the patch does."""
        if isinstance(self.change, Bottleneck) and self.change.form == "linear" and not self.change.is_matrix:
            return "its layer norm is no linear function, and a weight matrix computes only linear ones"
        if self.change.form != "linear":
            return f"its {self.change.form} is no linear function, and a weight matrix computes only linear ones"
        return "it reads the sub-layer's input, which reaches the output through a nonlinear function"


def followed_by(model: nn.Module, module: str, change: Tensor, *, transposed: bool) -> dict[str, Tensor]:
    """Weight and bias of a linear map h followed by h + change h."""
    weight = base_tensor(model, f"{module}.weight")
    matrix = (weight.t() if transposed else weight).to(change.dtype)
    matrix = matrix + change @ matrix
    new = {f"{module}.weight": matrix.t() if transposed else matrix}
    bias = getattr(model.get_submodule(module), "bias", None)
    return new if bias is None else new | {f"{module}.bias": bias + change @ bias.to(change.dtype)}
