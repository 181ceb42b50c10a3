"""What is attached to a model: patches, and the hooks by which they change what a module reads or returns."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from leaven.adapt.peft.sites import base_tensor
from leaven.errors import ConfigError, ModelError


class Patch(nn.Module):
    """One learned change at one place, a child of the module `host` under the name `label`.

    Hooks are methods of the patch, so that a deep copy of the model has its own.
    """

    def __init__(self, host: str, label: str, bases: tuple[str, ...]) -> None:
        super().__init__()
        self.host, self.label, self.bases = host, label, bases
        self._handles: list[Any] = []

    @property
    def path(self) -> str:
        """Name of the patch among the model's modules."""
        return f"{self.host}.{self.label}" if self.host else self.label

    def taken(self, model: nn.Module) -> bool:
        """Whether the model has something else in that place."""
        return hasattr(model.get_submodule(self.host), self.label)

    def install(self, model: nn.Module) -> None:
        """Put the patch in its place."""
        setattr(model.get_submodule(self.host), self.label, self)
        self.add_hooks(model)

    def remove(self, model: nn.Module) -> None:
        """Take the patch out again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        delattr(model.get_submodule(self.host), self.label)

    @abstractmethod
    def add_hooks(self, model: nn.Module) -> None:
        """Register the hooks that make the patch work."""

    def merged(self, model: nn.Module) -> dict[str, Tensor]:
        """Weights, by name, with which the model without the patch computes what it computes with it."""
        raise ModelError(f"{self.path} cannot be merged into weights: {self.why_not_merged()}")

    def why_not_merged(self) -> str:
        """The reason why no weights do what the patch does."""
        return "what it computes is no linear function of what the weights compute"

    def settle(self) -> None:
        """Drop what only training needs."""

    def settled_state(self) -> dict[str, Tensor]:
        """The learned tensors that `settle` would leave."""
        return self.state_dict()

    def frozen_basis(self) -> int:
        """Frozen numbers that the patch keeps beside the base model's."""
        return sum(buffer.numel() for buffer in self.buffers() if buffer.is_floating_point())


def require_float(model: nn.Module, names: tuple[str, ...]) -> None:
    """Raises: ConfigError for a base weight that is quantised or not materialised."""
    for name in names:
        weight = base_tensor(model, name)
        if not weight.is_floating_point():
            raise ConfigError(
                f"{name} has type {weight.dtype}: a quantised weight cannot be adapted, dequantise the model first"
            )
        if weight.is_meta:
            raise ConfigError(f"{name} is on the meta device, without numbers: load the weights before adapting")


def own_type(model: nn.Module, name: str) -> dict[str, Any]:
    """Device of a base weight and the type of what is learned for it: at least float32."""
    weight = base_tensor(model, name)
    return {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}


def sha256(tensor: Tensor) -> str:
    """Checksum of a tensor's shape, type and numbers as 64 hexadecimal digits."""
    data = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tuple(data.shape)} {data.dtype} ".encode())
    digest.update(data.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The tensor that a module was called on."""
    given = (*args, *kwargs.values())
    found = next((value for value in given if isinstance(value, Tensor)), None)
    if found is None:
        raise ModelError("an adapted module was called without a tensor")
    return found


def replaced_first(output: Any, change: Any) -> Any:
    """The output of a module with its tensor, or the first entry of its tuple, replaced by `change` of it."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    return change(output)
