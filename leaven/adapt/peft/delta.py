"""The four axes of arXiv 2110.04366 as switches of one method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from leaven.adapt.peft.bottleneck import Bottleneck, HeadBottleneck, Init, Norm, SubLayerPatch
from leaven.adapt.peft.linear import patch_linears, require_width
from leaven.adapt.peft.method import Method
from leaven.adapt.peft.patches import Patch, own_type
from leaven.adapt.peft.prefix import Composition, build_prefixes
from leaven.adapt.peft.sites import Projection, heads_of
from leaven.adapt.peft.sublayers import SubLayer, attention_layers, feed_forward_layers
from leaven.adapt.peft.targets import roles_in, select
from leaven.errors import ConfigError

Form = Literal["linear", "relu", "gelu", "silu", "softmax"]
Insertion = Literal["parallel", "sequential"]


@dataclass(frozen=True, kw_only=True)
class Delta(Method):
    """A learned change of a hidden state h, described by four independent choices.

    Args:
        form: of the change: a bottleneck of this activation ("linear": none), or "softmax" over learned keys.
        insertion: "parallel" reads the input x of the part that makes h, "sequential" reads h.
        place: what h is: the output of "attention" or "ffn" (before residual and norm), of the "heads" of attention,
            or of projections, by role ("q,v", "up,down").
        composition: "add" h + change, "scaled" h + scale * change, "gated" (1 - share) h + share * change with the
            share of attention that the prefix draws, "compensated" (1 - share) h + change.
        bottleneck: width r, or length of the prefix; per head where place is "heads".
        scale: s of "scaled". learn_scale: train it, from `scale` on; of a gated or compensated prefix, one scale for
            the keys and one for the values (arXiv 2303.10070 section 3.2).
        init: "lora" Kaiming-uniform down and zero up, so that nothing changes at first; "bert" normal, deviation 0.02;
            "lae" uniform in [0, 0.01], for prefixes. The default is "lora", and "bert" for prefixes.
        dropout: of the input of a linear bottleneck, of the hidden units of another, in [0, 1).
        norm: layer norm on what the change reads, "in", or on the scaled change, "out"; for the output of a sub-layer.
        reparameterize: hidden width of the network that makes a prefix while it trains, 0 for none.
        within: glob pattern on the name of the module whose output changes, to choose some layers.

    Example:
        >>> Delta(form="relu", insertion="parallel", place="ffn", composition="scaled", bottleneck=512, scale=4.0)
        Delta(train=(), form='relu', ...)

    Raises: ConfigError for cells of the space that do not exist.
    Source: arXiv 2110.04366 section 4.1, table 1.
    """

    form: Form
    insertion: Insertion
    place: str
    composition: Composition
    bottleneck: int
    scale: float = 1.0
    learn_scale: bool = False
    init: Init | None = None
    dropout: float = 0.0
    norm: Norm = "none"
    reparameterize: int = 0
    within: str = "*"

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds_of = {"form": Form, "insertion": Insertion, "composition": Composition, "norm": Norm}
        for name, kinds in kinds_of.items():
            if getattr(self, name) not in get_args(kinds):
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(get_args(kinds))}")
        if self.place not in ("attention", "ffn", "heads") and roles_in(self.place) is None:
            raise ConfigError(
                f"place={self.place!r}: expected attention, ffn, heads or roles such as 'q,v' or 'up,down'"
            )
        if self.bottleneck < 1 or not 0 <= self.dropout < 1 or self.reparameterize < 0:
            raise ConfigError(
                f"bottleneck={self.bottleneck}, dropout={self.dropout}, reparameterize={self.reparameterize}: "
                "expected a width of at least 1, a share in [0, 1) and a width of at least 0"
            )
        if reason := self._impossible():
            raise ConfigError(
                f"there is no {self.form}, {self.insertion}, {self.place}, {self.composition} change: {reason}"
            )

    def _impossible(self) -> str:
        softmax = self.form == "softmax"
        gated = self.composition in ("gated", "compensated")
        if softmax and self.place != "heads":
            return "a softmax form compares queries with learned keys, and queries are there in the heads alone"
        if softmax and self.insertion == "sequential":
            return "the queries of a softmax form are made from the input of attention, not from its output"
        if gated and not softmax:
            return "the gate is the share of attention that falls on learned keys, and only a softmax form has keys"
        if self.scale != 1.0 and self.composition != "scaled":
            return f"scale={self.scale} would have no effect, use composition='scaled'"
        if self.learn_scale and self.composition == "add":
            return "learn_scale has nothing to learn, use composition='scaled'"
        if softmax and (self.dropout or self.init == "lora"):
            return "a prefix has neither hidden units to drop nor a matrix that could start at zero"
        if not softmax and (self.reparameterize or self.init == "lae"):
            return "reparameterize and init='lae' are for prefixes"
        if self.norm != "none" and (softmax or self.place not in ("attention", "ffn")):
            return "a layer norm goes with the output of a sub-layer, place='attention' or 'ffn'"
        return "heads have no dropout" if self.place == "heads" and self.dropout else ""

    def build(self, model: nn.Module, generator: torch.Generator | None) -> list[Patch]:
        """The patches."""
        if self.form == "softmax":
            return build_prefixes(
                model,
                attention_layers(model, self.within),
                self.bottleneck,
                composition=self.composition,
                scale=self.scale,
                learn_scale=self.learn_scale,
                hidden=self.reparameterize,
                init=self.init or "bert",
                generator=generator,
            )
        if self.place == "heads":
            return [self._on_heads(model, layer, generator) for layer in attention_layers(model, self.within)]
        if self.place in ("attention", "ffn"):
            find = attention_layers if self.place == "attention" else feed_forward_layers
            return [self._on_output(model, layer, generator) for layer in find(model, self.within)]
        return self._on_projections(model, generator)

    def _change(self, inputs: int, outputs: int, generator: torch.Generator | None) -> Bottleneck:
        change = Bottleneck(
            inputs,
            outputs,
            self.bottleneck,
            form=self.form,
            scale=self.scale,
            learn_scale=self.learn_scale,
            dropout=self.dropout,
            norm=self.norm,
        )
        return change.initialise(self.init or "lora", generator)

    def _on_projections(self, model: nn.Module, generator: torch.Generator | None) -> list[Patch]:
        chosen = select(model, f"{self.within}:{self.place}")
        sequential = self.insertion == "sequential"
        changes: dict[Projection, nn.Module] = {}
        for part in chosen:
            outputs, inputs = part.weight(model).shape
            inputs = outputs if sequential else inputs
            require_width(part, self.bottleneck, inputs, "bottleneck")
            changes[part] = self._change(inputs, outputs, generator).to(**own_type(model, part.name))
        return patch_linears("adapter", chosen, changes, sequential=sequential)

    def _on_output(self, model: nn.Module, layer: SubLayer, generator: torch.Generator | None) -> Patch:
        reading, writing = layer.reading, layer.writing
        outputs = writing.weight(model).shape[0]
        inputs = reading.weight(model).shape[1] if self.insertion == "parallel" else outputs
        require_width(writing, self.bottleneck, inputs, "bottleneck")
        patch = SubLayerPatch(layer, self._change(inputs, outputs, generator), parallel=self.insertion == "parallel")
        return patch.to(**own_type(model, writing.name))

    def _on_heads(self, model: nn.Module, layer: SubLayer, generator: torch.Generator | None) -> Patch:
        reading, writing = layer.reading, layer.writing
        heads = heads_of(model.get_submodule(layer.core))
        joined = writing.weight(model).shape[1]
        if writing.parametrized or heads is None or joined % heads:
            raise ConfigError(
                f"place='heads': the heads of {layer.core} ({type(model.get_submodule(layer.core)).__name__}) cannot "
                "be told apart from outside: use place='attention'"
            )
        inputs = reading.weight(model).shape[1]
        limit = min(joined // heads, inputs)
        if self.bottleneck > limit:
            raise ConfigError(f"bottleneck={self.bottleneck} per head of {layer.core}: heads have {limit} features")
        change = HeadBottleneck(
            inputs,
            heads,
            joined // heads,
            self.bottleneck,
            own=self.insertion == "sequential",
            form=self.form,
            scale=self.scale,
            learn_scale=self.learn_scale,
        ).initialise(self.init or "lora", generator)
        patch = SubLayerPatch(layer, change, parallel=self.insertion == "parallel")
        return patch.to(**own_type(model, writing.name))

    def settled(self) -> Delta:
        """Without the network that makes a prefix."""
        return Delta(**{**self.__dict__, "reparameterize": 0})
