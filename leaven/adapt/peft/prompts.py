"""Soft tokens: learned states among the tokens that a stack of layers reads."""

from __future__ import annotations

import inspect
import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from leaven.adapt.peft.method import Method
from leaven.adapt.peft.patches import Patch, own_type
from leaven.adapt.peft.sublayers import attention_layers
from leaven.contracts import Tokens
from leaven.errors import ConfigError, ModelError
from leaven.models.trunk import Trunk


class PromptPatch(Patch):
    """Puts prompts (layers, length, dim) before or after the first token, and takes their states out at the end.

    With several layers, each layer after the first reads prompts of its own in the place of the earlier ones' states.
    """

    def __init__(self, host: str, base: str, layers: list[str], prompts: Tensor, at: int) -> None:
        super().__init__(host, "prompt", (base,))
        self.layers, self.at = layers, at
        self.prompts = nn.Parameter(prompts)

    @property
    def length(self) -> int:
        """Soft tokens."""
        return self.prompts.shape[1]

    def put(self, x: Tensor, skip: int = 0, layer: int = 0) -> Tensor:
        """Prompts among the tokens (batch, tokens, dim), instead of `skip` states that stand there."""
        soft = self.prompts[layer].to(x.dtype).expand(len(x), -1, -1)
        return torch.cat([x[:, : self.at], soft, x[:, self.at + skip :]], dim=1)

    def widen(self, x: Tensor, value: float) -> Tensor:
        """A field (batch, tokens) with this value at the prompts."""
        return torch.cat([x[:, : self.at], x.new_full((len(x), self.length), value), x[:, self.at :]], dim=1)

    def take(self, x: Tensor) -> Tensor:
        """States without those of the prompts."""
        return torch.cat([x[:, : self.at], x[:, self.at + self.length :]], dim=1)

    def why_not_merged(self) -> str:
        """The reason why no weights do what the patch does."""
        return "it adds tokens, not a change of a weight"

    def add_hooks(self, model: nn.Module) -> None:
        """Hooks of the stack, and of each layer that has prompts of its own."""
        self.add_stack_hooks(model)
        for index, name in enumerate(self.layers[1 : len(self.prompts)], start=1):
            self._handles.append(model.get_submodule(name).register_forward_pre_hook(_Renew(self, index)))

    @abstractmethod
    def add_stack_hooks(self, model: nn.Module) -> None:
        """Put the prompts in at the first layer, and take them out behind the last."""


class _Renew:
    """A hook that gives a layer its own prompts."""

    def __init__(self, patch: PromptPatch, layer: int) -> None:
        self.patch, self.layer = patch, layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.patch.put(args[0], self.patch.length, self.layer), *args[1:])


class TrunkPrompt(PromptPatch):
    """Prompts of a trunk."""

    def add_stack_hooks(self, model: nn.Module) -> None:
        """At the call of the trunk."""
        trunk = model.get_submodule(self.host)
        self._handles.append(trunk.register_forward_pre_hook(self._before, with_kwargs=True))
        self._handles.append(trunk.register_forward_hook(self._after))

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tokens, *rest = (kwargs["tokens"],) if "tokens" in kwargs else args
        for name in ("cache", "segments", "collect"):
            if kwargs.get(name) is not None:
                raise ModelError(
                    f"a trunk with soft tokens was called with {name}: use Prefix, which leaves tokens alone"
                )
        kwargs = {key: value for key, value in kwargs.items() if key != "tokens"}
        if kwargs.get("prefix_length") is not None:
            kwargs["prefix_length"] = kwargs["prefix_length"] + self.length
        mask = None if tokens.mask is None else self.widen(tokens.mask, True)
        positions = tokens.positions
        if positions is not None:
            at, new = self.at, torch.arange(self.at, self.at + self.length, device=positions.device)
            new = new.expand(*positions.shape[:-1], -1)
            positions = torch.cat([positions[..., :at], new, positions[..., at:] + self.length], dim=-1)
        return (Tokens(self.put(tokens.x), mask, positions), *rest), kwargs

    def _after(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return self.take(output)


class TextPrompt(PromptPatch):
    """Prompts of a text model of transformers, through `inputs_embeds`."""

    def add_stack_hooks(self, model: nn.Module) -> None:
        """At the call of the model's body."""
        body = model.get_submodule(self.host)
        self._handles.append(body.register_forward_pre_hook(self._before, with_kwargs=True))
        self._handles.append(body.register_forward_hook(self._after))

    def _before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs)
        fields = {k: v for k, v in given.arguments.items() if k not in ("kwargs", "args") and v is not None}
        fields |= given.arguments.get("kwargs", {})
        past = fields.get("past_key_values")
        if past is not None and past.get_seq_length():
            raise ModelError("decoding with a cache does not go with soft tokens: use_cache=False, or use Prefix")
        if fields.get("position_ids") is not None:
            raise ModelError("position_ids do not count the soft tokens: leave them out")
        x = fields.pop("inputs_embeds", None)
        ids = fields.pop("input_ids", None)
        if x is None:
            x = module.get_input_embeddings()(ids)
        for name, value in (("attention_mask", 1), ("token_type_ids", 0)):
            if (field := fields.get(name)) is not None:
                if field.dim() != 2:
                    raise ModelError(f"{name} of shape {tuple(field.shape)}: with soft tokens expected (batch, tokens)")
                fields[name] = self.widen(field, value)
        return (), fields | {"inputs_embeds": self.put(x)}

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (self.take(output[0]), *output[1:])
        output["last_hidden_state"] = self.take(output.last_hidden_state)
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(self.take(state) for state in output.hidden_states)
        return output


class LayerPrompt(PromptPatch):
    """Prompts of a stack whose layers take states alone, such as a vision transformer."""

    def add_stack_hooks(self, model: nn.Module) -> None:
        """Before the first layer and behind the last."""
        self._handles.append(
            model.get_submodule(self.layers[0]).register_forward_pre_hook(self._before, with_kwargs=True)
        )
        self._handles.append(model.get_submodule(self.layers[-1]).register_forward_hook(self._after))

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x, *rest = args
        if any(isinstance(value, Tensor | tuple) for value in (*rest, *kwargs.values())):
            raise ModelError(
                f"{self.layers[0]} is called with masks or positions of the tokens, which do not count soft tokens: "
                "use Prefix on this model"
            )
        return (self.put(x), *rest), kwargs

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        return (self.take(output[0]), *output[1:]) if isinstance(output, tuple) else self.take(output)


@dataclass(frozen=True)
class PromptTuning(Method):
    """Soft tokens at the input of a stack, or at every layer of it.

    Their states are not handed on, so that the rest of the model sees as many tokens as before. The stack is the trunk,
    the encoder where there is one, the body of a text model of transformers, or the layers of a vision transformer.

    Args:
        length: soft tokens, at least 1.
        deep: every layer has soft tokens of its own (VPT-deep) rather than the first alone (VPT-shallow).
        position: "start", or "after-first" to leave a class token where it is.
        init: "normal" with deviation 0.02, or "vocabulary": embeddings of random tokens.

    Raises: ConfigError where the model has no such stack, or its pooler would read a soft token.
    Source: arXiv 2104.08691 section 2; arXiv 2203.12119 section 3.2.
    """

    length: int = 20
    deep: bool = False
    position: Literal["start", "after-first"] = "start"
    init: Literal["normal", "vocabulary"] = "normal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            self.length < 1
            or self.position not in ("start", "after-first")
            or self.init not in ("normal", "vocabulary")
        ):
            raise ConfigError(
                f"length={self.length}, position={self.position!r}, init={self.init!r}: expected at least 1, start or "
                "after-first, normal or vocabulary"
            )

    def build(self, model: nn.Module, generator: torch.Generator | None) -> list[Patch]:
        """The patches."""
        trunks = [(n, m) for n, m in model.named_modules() if isinstance(m, Trunk) and not m.config.cross_attention]
        if trunks:
            return [self._patch(model, TrunkPrompt, name, f"{name}.blocks.0" if name else "blocks.0", generator)
                    for name, _ in trunks]  # fmt: skip
        stacks = list(dict.fromkeys(_layer_of(layer.entry) for layer in attention_layers(model)))
        if "" in stacks:
            raise ConfigError("the model's attention is in no list of layers, so soft tokens have no place to enter")
        body = _text_body(model)
        if body is None:
            if any(isinstance(m, nn.MultiheadAttention) and not m.batch_first for m in model.modules()):
                raise ConfigError(
                    "nn.MultiheadAttention without batch_first=True: soft tokens expect (batch, tokens, dim)"
                )
            return [self._patch(model, LayerPrompt, stacks[0], stacks[0], generator)]
        pooler = getattr(model.get_submodule(body), "pooler", None)
        if pooler is not None and self.position == "start":
            raise ConfigError("the pooler reads the first state, which would be a soft token: position='after-first'")
        inside = [s for s in stacks if s.startswith(f"{body}." if body else "")]
        return [self._patch(model, TextPrompt, body, inside[0], generator)]

    def _patch(
        self, model: nn.Module, kind: type[PromptPatch], host: str, first: str, generator: torch.Generator | None
    ) -> Patch:
        stack = first.rpartition(".")[0]
        layers = [f"{stack}.{name}" if stack else name for name, _ in model.get_submodule(stack).named_children()]
        reading = next(layer.reading for layer in attention_layers(model) if layer.entry.startswith(f"{first}."))
        shape = (len(layers) if self.deep else 1, self.length, reading.weight(model).shape[1])
        prompts = torch.zeros(shape)
        if generator is not None and self.init == "normal":
            nn.init.normal_(prompts, std=0.02, generator=generator)
        elif generator is not None:
            prompts = self._from_vocabulary(model, shape, generator)
        at = 0 if self.position == "start" else 1
        return kind(host, reading.name, layers, prompts, at).to(**own_type(model, reading.name))

    @staticmethod
    def _from_vocabulary(model: nn.Module, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.embedding_dim == shape[-1]]
        if not tables:
            raise ConfigError("init='vocabulary': the model embeds no tokens, use init='normal'")
        table = max(tables, key=lambda m: m.num_embeddings).weight.detach()
        drawn = torch.randint(len(table), shape[:-1], generator=generator)
        return table[drawn.to(table.device)].float().clone()


def _layer_of(name: str) -> str:
    """The outermost numbered module that a module lies in, or ""."""
    match = re.match(r"(?:.*?\.)??\d+(?=\.)", name)
    return match[0] if match else ""


def _text_body(model: nn.Module) -> str | None:
    """Name of the part of a transformers model that reads token embeddings, or None."""
    found = next(
        (m for m in model.modules() if hasattr(m, "base_model_prefix") and hasattr(m, "get_input_embeddings")), None
    )
    if found is None:
        return None
    encoder_decoder = getattr(found.config, "is_encoder_decoder", False)
    body: Any = found.get_encoder() if encoder_decoder else found.base_model  # type: ignore[operator]
    if "inputs_embeds" not in inspect.signature(body.forward).parameters:
        return None
    name: str = next(name for name, module in model.named_modules() if module is body)
    return name
