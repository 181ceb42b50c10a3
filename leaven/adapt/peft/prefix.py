"""Prefixes: learned keys and values that every query of an attention module also sees."""

from __future__ import annotations

import copy
import re
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from leaven.adapt.peft.patches import Patch, own_type
from leaven.adapt.peft.sublayers import SubLayer
from leaven.errors import ConfigError, ModelError

Composition = Literal["add", "scaled", "gated", "compensated"]


class PrefixNetwork(nn.Module):
    """The part of the reparameterisation that layers share: an embedding per prefix position, a layer and tanh.

    Shapes: () -> (length, hidden).
    """

    def __init__(self, length: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(length, dim))
        self.weight = nn.Parameter(torch.zeros(hidden, dim))
        self.bias = nn.Parameter(torch.zeros(hidden))

    def forward(self) -> Tensor:
        """What each layer's own output matrix reads."""
        return F.linear(self.embedding, self.weight, self.bias).tanh()


class PrefixPatch(Patch):
    """Keys and values beside those of one attention module.

    composition: "gated" joins them to the others under one softmax: h becomes (1 - share) h + share * change, where the
    share is the attention that falls on the prefix (arXiv 2110.04366 equation 7). "compensated" leaves the share out of
    the second term (arXiv 2303.10070 section 3.2). "add" and "scaled" leave h whole.
    The module is watched while it runs: its call of `scaled_dot_product_attention` receives the prefix.
    """

    def __init__(
        self,
        layer: SubLayer,
        length: int,
        *,
        composition: Composition,
        scale: float,
        learn_scale: bool,
        network: PrefixNetwork | None,
    ) -> None:
        key, value = layer.parts["k"], layer.parts["v"]
        super().__init__(layer.core, "prefix_tuning", tuple(dict.fromkeys((key.name, value.name))))
        self.composition, self.length = composition, length
        self.key_width = key.stop - key.start
        width = self.key_width + value.stop - value.start
        self.network = network
        if network is None:
            self.states = nn.Parameter(torch.zeros(length, width))
        else:
            self.out_weight = nn.Parameter(torch.zeros(width, len(network.weight)))
            self.out_bias = nn.Parameter(torch.zeros(width))
        learned = 0 if not learn_scale else 1 if composition == "scaled" else 2
        self.scales = nn.Parameter(torch.full((learned,), scale)) if learned else None
        self.scale = scale
        self._watching: list[_Watch] = []

    @torch.no_grad()
    def initialise(self, init: str, generator: torch.Generator | None) -> None:
        """Fill in initial values: "bert" normal with deviation 0.02, "lae" uniform in [0, 0.01]."""
        if generator is None:
            return
        matrices = [self.states] if self.network is None else [self.out_weight]
        for matrix in matrices:
            if init == "lae":
                nn.init.uniform_(matrix, 0.0, 0.01, generator=generator)
            else:
                nn.init.normal_(matrix, std=0.02, generator=generator)

    def keys_and_values(self) -> tuple[Tensor, Tensor]:
        """(length, key width) and (length, value width)."""
        states: Tensor = self.states if self.network is None else self._made(self.network)
        key, value = states[:, : self.key_width], states[:, self.key_width :]
        if self.scales is not None and len(self.scales) == 2:
            key, value = key * self.scales[0], value * self.scales[1]
        return key, value

    def _made(self, network: PrefixNetwork) -> Tensor:
        return F.linear(network(), self.out_weight, self.out_bias)

    @torch.no_grad()
    def settle(self) -> None:
        """Keep the network's output alone."""
        if self.network is not None:
            states = self._made(self.network)
            self.network = None
            del self.out_weight, self.out_bias
            self.states = nn.Parameter(states)

    def settled_state(self) -> dict[str, Tensor]:
        """Prefix and scales, without the network."""
        settled = copy.deepcopy(self)
        settled.settle()
        return settled.state_dict()

    def why_not_merged(self) -> str:
        """The reason why no weights do what the patch does."""
        return "its keys take part in a softmax over the input, which no weight matrix can express"

    def add_hooks(self, model: nn.Module) -> None:
        """Watch the attention module from its call to its return."""
        core = model.get_submodule(self.host)
        self._handles.append(core.register_forward_pre_hook(self._begin))
        self._handles.append(core.register_forward_hook(self._end, always_call=True))

    def _begin(self, module: nn.Module, args: Any) -> None:
        watch = _Watch(self)
        watch.begin()
        self._watching.append(watch)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        watch = self._watching.pop()
        watch.end()
        if output is not None and not watch.calls:
            raise ModelError(
                f"{self.host} ({type(module).__name__}) did not call torch's scaled_dot_product_attention, so its keys "
                "and values cannot be reached: load the model with attn_implementation='sdpa', or use another method"
            )

    def attend(  # noqa: PLR0917  # the signature of torch's function
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **rest: Any,
    ) -> Tensor:
        """`scaled_dot_product_attention` with the prefix. query, key, value: (batch, heads, tokens, head_dim)."""
        extra_key, extra_value = (
            _as_heads(s, like) for s, like in zip(self.keys_and_values(), (key, value), strict=True)
        )

        def change() -> Tensor:
            return F.scaled_dot_product_attention(query, extra_key, extra_value, None, dropout_p, False, **rest)

        if self.composition in ("add", "scaled"):
            h = F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **rest)
            return h + change() * (self.scale if self.scales is None else self.scales.to(h.dtype))
        mask = _with_prefix_visible(attn_mask, is_causal, query, key, self.length)
        beside = extra_value if self.composition == "gated" else torch.zeros_like(extra_value)
        keys, values = torch.cat([extra_key, key], dim=-2), torch.cat([beside, value], dim=-2)
        h = F.scaled_dot_product_attention(query, keys, values, mask, dropout_p, False, **rest)
        return h if self.composition == "gated" else h + change()


class _Watch(TorchFunctionMode):
    def __init__(self, patch: PrefixPatch) -> None:
        super().__init__()
        self.patch, self.calls = patch, 0

    def begin(self) -> None:
        """From here on, calls of torch's functions come here."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """No longer."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.calls += 1
            return self.patch.attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _as_heads(states: Tensor, like: Tensor) -> Tensor:
    """(length, width) as (batch, heads, length, head_dim); heads that share keys are repeated as the model did."""
    batch, heads, _, head_dim = like.shape
    split = states.to(like.dtype).view(len(states), -1, head_dim).transpose(0, 1)
    if len(split) != heads:
        split = split.repeat_interleave(heads // len(split), 0)
    return split.expand(batch, -1, -1, -1)


def _with_prefix_visible(mask: Tensor | None, causal: bool, query: Tensor, key: Tensor, extra: int) -> Tensor | None:
    if causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if mask is None:
        return None
    return F.pad(mask, (extra, 0), value=True) if mask.dtype == torch.bool else F.pad(mask, (extra, 0))


def build_prefixes(
    model: nn.Module,
    layers: list[SubLayer],
    length: int,
    *,
    composition: Composition,
    scale: float,
    learn_scale: bool,
    hidden: int,
    init: str,
    generator: torch.Generator | None,
) -> list[Patch]:
    """A patch per attention module; stacks (encoder, decoder, cross-attention) each share a network of their own.

    Raises: ConfigError where keys and values cannot be reached.
    """
    networks: dict[str, PrefixNetwork] = {}
    patches: list[Patch] = []
    for layer in layers:
        _require_reachable(model, layer)
        weight = layer.parts["q"].weight(model)
        stack = re.sub(r"\d+", "*", layer.core)
        if hidden and stack not in networks:
            networks[stack] = _network(length, weight.shape[1], hidden, generator)
        patch = PrefixPatch(
            layer,
            length,
            composition=composition,
            scale=scale,
            learn_scale=learn_scale,
            network=networks.get(stack),
        )
        patch.initialise(init, generator)
        patches.append(patch.to(**own_type(model, layer.parts["q"].name)))
    return patches


def _network(length: int, dim: int, hidden: int, generator: torch.Generator | None) -> PrefixNetwork:
    network = PrefixNetwork(length, dim, hidden)
    if generator is not None:
        with torch.no_grad():
            for matrix in (network.embedding, network.weight):
                nn.init.normal_(matrix, std=0.02, generator=generator)
    return network


def _require_reachable(model: nn.Module, layer: SubLayer) -> None:
    core = model.get_submodule(layer.core)
    if isinstance(core, nn.MultiheadAttention):
        raise ConfigError(
            f"{layer.core} is torch's nn.MultiheadAttention, which does not let keys and values be added: "
            "use LoRA(targets='attention') or an adapter on this model"
        )
    chosen = getattr(getattr(core, "config", None), "_attn_implementation", None)
    if chosen not in (None, "sdpa"):
        raise ConfigError(
            f"{layer.core} computes attention with {chosen!r}, which does not let keys and values be added: "
            "load the model with attn_implementation='sdpa'"
        )
