"""A model whose weights are combined from those of others by trainable coefficients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from leaven.contracts import Batch, Loss, Objective
from leaven.errors import ConfigError, ModelError
from leaven.merge.compatibility import listed, overflow, refuse_nonfinite
from leaven.merge.weights import MemoryWeights, Weights
from leaven.models.saved import tied_names


class MixedModel(nn.Module):
    """weights = base + sum_i coefficient_i * vectors_i, for each parameter tensor ("block") of a model.

    Its only parameters are coefficients. Called like the model itself, it runs the model with the mixed weights and in
    eval mode. The gradient of a coefficient is <gradient of the weights, vector>: it costs one product per block and
    no copies of the vectors.

    Args:
        model: any module; its buffers are used as they are, its parameters replaced.
        vectors: what is mixed; their tensors stay in memory.
        base: what is added to; None adds to nothing.
        groups: into how many groups the entries of each block are split, each with coefficients of its own.
        generator: of the random groups, which are the same for blocks of one shape; needed for more than one group.
        store: type that the vectors are kept in; torch.float16 halves their memory.

    Raises: ModelError when a block is missing from a vector or has another shape, or a value is NaN, infinite or too
    large for `store`; ConfigError for impossible groups.
    """

    def __init__(
        self,
        model: nn.Module,
        vectors: Sequence[Weights],
        base: Weights | None,
        *,
        groups: int = 1,
        generator: torch.Generator | None = None,
        store: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if groups < 1 or (groups > 1) != (generator is not None):
            raise ConfigError(f"groups is {groups}: expected at least 1, and a generator exactly when more than 1")
        parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
        if not parameters:
            raise ModelError(f"{type(model).__name__} has no floating-point parameters to mix")
        self.blocks = tuple(parameters)
        self._shapes = {name: p.shape for name, p in parameters.items()}
        places = block_names(model, [*vectors, *([] if base is None else [base])])
        self._vectors = {
            name: torch.stack([_stored(v, places[v, name], store) for v in vectors]).to(p.device)
            for name, p in parameters.items()
        }
        self._origin = {
            name: _stored(base, places[base, name], torch.float32).to(p.device)
            for name, p in parameters.items()
            if base is not None
        }
        self._groups: dict[torch.Size, Tensor] = {}
        if generator is not None:
            for p in parameters.values():
                if p.shape not in self._groups:
                    drawn = torch.randint(groups, (p.numel(),), generator=generator)
                    self._groups[p.shape] = drawn.to(p.device)
        self._device = next(iter(parameters.values())).device
        # In a tuple, so that the model is no part of this module: its parameters are not trained, its mode stays.
        self._models = (model.eval(),)

    @property
    def model(self) -> nn.Module:
        """The model whose weights are replaced."""
        return self._models[0]

    @abstractmethod
    def coefficients(self) -> Tensor:
        """What the vectors are multiplied by: (vectors, blocks), or (vectors, blocks, groups)."""

    def weights(self) -> dict[str, Tensor]:
        """The mixed weights by parameter name, differentiable in the coefficients."""
        mixed: dict[str, Tensor] = {}
        coefficients = self.coefficients()
        own = dict(self.model.named_parameters())
        for place, name in enumerate(self.blocks):
            shape, vectors = self._shapes[name], self._vectors[name]
            shares = coefficients[:, place].to(torch.promote_types(vectors.dtype, torch.float32))
            with torch.autocast(coefficients.device.type, enabled=False):
                flat: Tensor = _Mix.apply(  # type: ignore[no-untyped-call]
                    shares, vectors, self._origin.get(name), self._groups.get(shape)
                )
            mixed[name] = flat.view(shape).to(own[name].dtype)
        return mixed

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns with the mixed weights."""
        return functional_call(self.model, self.weights(), args, kwargs)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(model, *args)` with the mixed weights in the model, whichever of its methods the function calls."""
        return run_with(self.model, self.weights(), function, *args)

    @torch.no_grad()
    def bake(self, source: Weights | None = None) -> MemoryWeights:
        """Copies of the mixed weights and the model's buffers: ordinary weights, as cheap to run as one model.

        Args:
            source: weights from whose folder configuration and tokenizer are saved along.
        """
        mixed, tied = self.weights(), tied_names(self.model)
        state = {n: mixed.get(n, t).detach().clone() for n, t in self.model.state_dict().items() if n not in tied}
        return MemoryWeights(state, f"baked {type(self).__name__}", source.folder if source is not None else None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Moving to a device or type reaches what is no parameter or buffer of this module as well.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.model._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._vectors = {name: fn(tensor) for name, tensor in self._vectors.items()}
        self._origin = {name: fn(tensor) for name, tensor in self._origin.items()}
        self._groups = {shape: fn(tensor) for shape, tensor in self._groups.items()}
        return self


class MixedObjective(nn.Module):
    """An objective for any model as one for a `MixedModel`, so that `leaven.training.loop.fit` trains coefficients."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """As the objective does."""
        return self.objective.prepare(batch, generator)

    def forward(self, model: Runs, batch: Batch) -> Loss:
        """The objective's loss of the model with mixed weights."""
        loss: Loss = model.run(self.objective, batch)
        return loss


class Runs(Protocol):
    """A mixed model, as far as an objective needs it."""

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(model, *args)` with the mixed weights."""
        ...


class RepeatedBatches:
    """The same batches over and over, as `fit` wants its data."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        if not batches:
            raise ConfigError("no batches to train the coefficients on")
        self.batches, self.at = batches, 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            batch = self.batches[self.at % len(self.batches)]
            self.at += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        return {"at": self.at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a position."""
        self.at = state["at"]


def run_with(model: nn.Module, weights: Mapping[str, Tensor], function: Callable[..., Any], *args: Any) -> Any:
    """`function(model, *args)` with other tensors in the place of the parameters of these names."""
    return functional_call(_Runner(model), {f"model.{name}": t for name, t in weights.items()}, (function, *args))


class _Runner(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self.model, *args)


class _Mix(torch.autograd.Function):
    """origin + sum_i c_i * vectors_i; kept for the gradient are the vectors themselves."""

    @staticmethod
    def forward(
        ctx: Any, coefficients: Tensor, vectors: Tensor, origin: Tensor | None, groups: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(vectors, groups)
        ctx.shape = coefficients.shape
        if groups is None:
            mixed = coefficients @ vectors.to(coefficients.dtype)
        else:
            mixed = torch.stack([c[groups] * v for c, v in zip(coefficients, vectors, strict=True)]).sum(0)
        return mixed if origin is None else origin + mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        vectors, groups = ctx.saved_tensors
        if groups is None:
            return vectors.to(gradient.dtype) @ gradient, None, None, None
        products = [gradient.new_zeros(ctx.shape[1]).index_add(0, groups, v * gradient) for v in vectors]
        return torch.stack(products), None, None, None


def block_names(model: nn.Module, sources: Sequence[Weights]) -> dict[tuple[Weights, str], str]:
    """The name that each source has for each floating-point parameter of a model: its own, or one tied to it.

    Raises: ModelError naming the blocks that are missing from a source or have another shape there.
    """
    aliases: dict[str, list[str]] = {}
    for alias, original in tied_names(model).items():
        aliases.setdefault(original, []).append(alias)
    found: dict[tuple[Weights, str], str] = {}
    wrong: list[str] = []
    for source in sources:
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            place = next((n for n in (name, *aliases.get(name, [])) if n in source.specs), None)
            if place is None:
                wrong.append(f"{name}: missing from {source.label}")
            elif (shape := source.specs[place].shape) != tuple(parameter.shape):
                wrong.append(f"{name}: shape {shape} in {source.label}, {tuple(parameter.shape)} in the model")
            else:
                found[source, name] = place
    if wrong:
        raise ModelError(f"the model's blocks are not those of the weights to mix:{listed(wrong)}")
    return found


def _stored(source: Weights, name: str, dtype: torch.dtype) -> Tensor:
    values = source.tensor(name).flatten()
    if not values.isfinite().all():
        refuse_nonfinite([source])
    stored = values.to(dtype)
    if not stored.isfinite().all():
        overflow(f"{name} of {source.label}", dtype)
    return stored
