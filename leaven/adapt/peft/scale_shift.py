"""Scales and shifts of what modules return (SSF), and shifts alone (BitFit)."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from leaven.adapt.peft.method import Method
from leaven.adapt.peft.patches import Patch, own_type
from leaven.adapt.peft.sites import base_tensor, projections, shared_weights
from leaven.errors import ConfigError


class ScaleShiftPatch(Patch):
    """Multiplies each feature of a module's output by a scale and adds a shift; either may be missing.

    Shapes: features are the last dimension, of convolutions and batch norms the second.
    """

    def __init__(self, host: str, label: str, features: int, *, axis: int, scale: bool, shift: bool) -> None:
        bases = (f"{host}.weight" if host else "weight",)
        super().__init__(host, label, bases if scale else (f"{host}.bias" if host else "bias",))
        self.axis = axis
        self.scale = nn.Parameter(torch.ones(features)) if scale else None
        self.shift = nn.Parameter(torch.zeros(features)) if shift else None

    def add_hooks(self, model: nn.Module) -> None:
        """One hook on the output."""
        self._handles.append(model.get_submodule(self.host).register_forward_hook(self._write))

    def _write(self, module: nn.Module, args: object, output: Tensor) -> Tensor:
        shape = [1] * output.dim()
        shape[self.axis] = -1
        if self.scale is not None:
            output = output * self.scale.view(shape).to(output.dtype)
        return output if self.shift is None else output + self.shift.view(shape).to(output.dtype)

    def merged(self, model: nn.Module) -> dict[str, Tensor]:
        """Weight and bias, scaled and shifted; a bias is made where a shift needs one."""
        module = model.get_submodule(self.host)
        prefix = f"{self.host}." if self.host else ""
        bias = getattr(module, "bias", None)
        new: dict[str, Tensor] = {}
        if self.scale is not None:
            weight = base_tensor(model, f"{prefix}weight").detach()
            first = type(module).__name__ != "Conv1D"
            new[f"{prefix}weight"] = weight * (self.scale.view(-1, *[1] * (weight.dim() - 1)) if first else self.scale)
            bias = None if bias is None else bias * self.scale
        if self.shift is not None:
            bias = self.shift if bias is None else bias + self.shift
        return new if bias is None else new | {f"{prefix}bias": bias.detach().clone()}


@dataclass(frozen=True)
class SSF(Method):
    """Scale and shift the output of every linear map, convolution and norm.

    So that all can be merged, a norm without a bias (RMS norm) is only scaled, and a module that shares its weight with
    another (a tied head) is passed over, as are the maps inside of `nn.MultiheadAttention`, which it does not call.

    Args:
        targets: glob pattern or patterns on module names.
        init_std: deviation of the initial scales around 1 and shifts around 0; 0 starts as the base model, the paper's
            code has 0.02.

    Raises: ConfigError when no module matches.
    Source: arXiv 2210.08823 section 3.2.
    """

    targets: str | tuple[str, ...] = "*"
    init_std: float = 0.0

    def build(self, model: nn.Module, generator: torch.Generator | None) -> list[Patch]:
        """The patches."""
        patches: list[Patch] = []
        shared = shared_weights(model)
        for name, module in _matching(model, self.targets):
            if id(module.weight) in shared:
                continue
            channels = isinstance(module, _ConvNd | _BatchNorm)
            features = _features(module)
            patch = ScaleShiftPatch(
                name, "ssf", features, axis=1 if channels else -1, scale=True, shift=not isinstance(module, nn.RMSNorm)
            )
            if generator is not None and self.init_std:
                with torch.no_grad():
                    for parameter in patch.parameters():
                        parameter.add_(torch.randn(features, generator=generator) * self.init_std)
            patches.append(patch.to(**own_type(model, patch.bases[0])))
        return patches


@dataclass(frozen=True)
class BitFit(Method):
    """Train biases alone, as a shift beside each frozen bias.

    Args:
        targets: glob pattern or patterns on names of modules; those without a bias are passed over.

    Raises: ConfigError when no module with a bias matches.
    Source: arXiv 2106.10199 section 3.
    """

    targets: str | tuple[str, ...] = "*"

    def build(self, model: nn.Module, generator: torch.Generator | None) -> list[Patch]:
        """The patches."""
        found = [(n, m) for n, m in _matching(model, self.targets) if getattr(m, "bias", None) is not None]
        if not found:
            raise ConfigError(f"targets={self.targets!r} matches no module with a bias: BitFit has nothing to train")
        return [
            ScaleShiftPatch(
                name,
                "bitfit",
                _features(module),
                axis=1 if isinstance(module, _ConvNd | _BatchNorm) else -1,
                scale=False,
                shift=True,
            ).to(**own_type(model, f"{name}.bias" if name else "bias"))
            for name, module in found
        ]


def _features(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[-1] if type(module).__name__ == "Conv1D" else weight.shape[0])


def _matching(model: nn.Module, targets: str | tuple[str, ...]) -> list[tuple[str, nn.Module]]:
    patterns = (targets,) if isinstance(targets, str) else targets
    linear = {p.module for p in projections(model) if not p.parametrized}
    kinds = (_ConvNd, _BatchNorm, nn.LayerNorm, nn.RMSNorm)
    able = [(n, m) for n, m in model.named_modules() if n in linear or isinstance(m, kinds)]
    able = [(n, m) for n, m in able if getattr(m, "weight", None) is not None]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name, _ in able):
            raise ConfigError(
                f"targets={pattern!r} matches no linear map, convolution or norm with a weight; there are, for "
                f"example, {', '.join(name for name, _ in able[:6]) or 'none'}"
            )
    found = [(n, m) for n, m in able if any(fnmatchcase(n, pattern) for pattern in patterns)]
    for name, module in found:
        if getattr(module, "transposed", False) or (
            isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1
        ):
            raise ConfigError(
                f"{name} ({type(module).__name__}) has its features on another axis: leave it out of targets"
            )
    return found
