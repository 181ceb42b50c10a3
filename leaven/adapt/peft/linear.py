"""Learned changes of the linear maps of a model, in parallel to the frozen weight; fused maps are changed by part."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from leaven.adapt.peft.patches import Patch, first_input
from leaven.adapt.peft.sites import Projection, base_tensor
from leaven.errors import ConfigError


class LinearChange(Protocol):
    """A learned map from the inputs of a projection to a change of its outputs."""

    def __call__(self, x: Tensor) -> Tensor:
        """The change (..., outputs) for inputs (..., inputs)."""
        ...

    def matrix(self) -> Tensor:
        """The change as a matrix (outputs, inputs)."""
        ...


class LinearPatch(Patch):
    """Changes of one linear module: one per part, named by the part's role.

    sequential: the change reads the part's own output rather than the module's input.
    """

    def __init__(
        self, label: str, parts: list[Projection], changes: list[nn.Module], *, sequential: bool = False
    ) -> None:
        first = parts[0]
        super().__init__(first.module, label, (first.name,))
        self.parts, self.sequential = parts, sequential
        self.transposed = first.transposed
        self.changes = nn.ModuleDict({p.role or "all": c for p, c in zip(parts, changes, strict=True)})

    def add_hooks(self, model: nn.Module) -> None:
        """One hook on the module's output."""
        self._handles.append(model.get_submodule(self.host).register_forward_hook(self._write, with_kwargs=True))

    def _write(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        x = first_input(args, kwargs)
        for part, change in self.items():
            read = output[..., part.start : part.stop] if self.sequential else x
            added = change(read).to(output.dtype)
            output = output + F.pad(added, (part.start, output.shape[-1] - part.stop))
        return output

    def items(self) -> list[tuple[Projection, LinearChange]]:
        """Parts with their changes."""
        return [(part, cast(LinearChange, self.changes[part.role or "all"])) for part in self.parts]

    def merged(self, model: nn.Module) -> dict[str, Tensor]:
        """The weight with every part's change added; sequential changes also change the bias."""
        if any(getattr(change, "form", "linear") != "linear" for change in self.changes.values()):
            return super().merged(model)
        name = self.bases[0]
        weight = base_tensor(model, name).detach()
        matrix = (
            (weight.t() if self.transposed else weight).to(torch.promote_types(weight.dtype, torch.float32)).clone()
        )
        bias = getattr(model.get_submodule(self.host), "bias", None)
        shifted = None if bias is None or not self.sequential else bias.detach().to(matrix.dtype).clone()
        for part, change in self.items():
            rows, delta = slice(part.start, part.stop), change.matrix()
            matrix[rows] += delta @ matrix[rows] if self.sequential else delta
            if shifted is not None:
                shifted[rows] += delta @ shifted[rows]
        new = {name: matrix.t() if self.transposed else matrix}
        return new if shifted is None else new | {f"{self.host}.bias": shifted}


class ReadWeightPatch(LinearPatch):
    """Changes of a weight that another module reads without calling its owner, as `nn.MultiheadAttention` does.

    The weight is parametrized: reading it gives the frozen weight plus the change.
    """

    @property
    def path(self) -> str:
        """Name of the patch among the model's modules."""
        return f"{self.host}.parametrizations.{self.tensor}.0"

    @property
    def tensor(self) -> str:
        """Name of the weight in its module."""
        return self.parts[0].tensor

    def taken(self, model: nn.Module) -> bool:
        """Whether the weight is parametrized already."""
        return bool(parametrize.is_parametrized(model.get_submodule(self.host), self.tensor))

    def install(self, model: nn.Module) -> None:
        """Parametrize the weight; it stays frozen."""
        parametrize.register_parametrization(model.get_submodule(self.host), self.tensor, self)

    def remove(self, model: nn.Module) -> None:
        """Leave the frozen weight as a plain parameter again."""
        parametrize.remove_parametrizations(model.get_submodule(self.host), self.tensor, leave_parametrized=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight."""
        for part, change in self.items():
            delta = change.matrix().to(weight.dtype)
            weight = weight + F.pad(delta, (0, 0, part.start, len(weight) - part.stop))
        return weight


def patch_linears(
    label: str, chosen: list[Projection], changes: dict[Projection, nn.Module], *, sequential: bool = False
) -> list[Patch]:
    """One patch per module for the chosen projections.

    Raises: ConfigError where the change needs what the module does not show.
    """
    by_tensor: dict[str, list[Projection]] = {}
    for part in chosen:
        by_tensor.setdefault(part.name, []).append(part)
    patches: list[Patch] = []
    for name, parts in by_tensor.items():
        own = [changes[part] for part in parts]
        if not parts[0].parametrized:
            patches.append(LinearPatch(label, parts, own, sequential=sequential))
        elif sequential or any(getattr(change, "form", "linear") != "linear" for change in own):
            raise ConfigError(
                f"{name} is read inside nn.MultiheadAttention, which shows neither its input nor its output: "
                "only a linear, parallel change without dropout can be made there"
            )
        elif any(getattr(change, "dropout", 0.0) for change in own):
            raise ConfigError(
                f"{name} is read inside nn.MultiheadAttention: dropout={own[0].dropout} cannot be applied there"
            )
        else:
            patches.append(ReadWeightPatch(label, parts, own))
    return patches


def require_width(part: Projection, width: int, inputs: int, option: str) -> None:
    """Raises: ConfigError for a bottleneck wider than the map it changes."""
    limit = min(inputs, part.stop - part.start)
    if not 1 <= width <= limit:
        raise ConfigError(
            f"{option}={width} for {part.module} ({part.role or 'all'}), which maps {inputs} to "
            f"{part.stop - part.start} features: expected 1 to {limit}"
        )
