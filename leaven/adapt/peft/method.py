"""One mechanism for every method: freeze the model, attach patches, merge or take them out again."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from leaven.adapt.peft.patches import Patch, require_float, sha256
from leaven.adapt.peft.sites import base_tensor, shared_weights
from leaven.errors import ConfigError, ModelError

M = TypeVar("M", bound=nn.Module)
_HANDLE = "leaven_adaptation"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A description of what to attach to a model, and where; subclasses say how it is built.

    train: glob patterns on names of modules and parameters that train as well, such as a task head (`("head*",)`).
    """

    train: tuple[str, ...] = ()
    kinds: ClassVar[dict[str, type[Method]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Method.kinds[cls.__name__] = cls

    def __post_init__(self) -> None:
        for spec in fields(self):
            if isinstance(value := getattr(self, spec.name), list):
                object.__setattr__(self, spec.name, tuple(value))
        if isinstance(self.train, str):
            object.__setattr__(self, "train", (self.train,))

    @abstractmethod
    def build(self, model: nn.Module, generator: torch.Generator | None) -> list[Patch]:
        """Patches for the model, which is not changed; without a generator their learned numbers stay zero."""

    def apply(self, model: M, generator: torch.Generator | None = None) -> M:
        """Attach to the model, in place, and freeze everything else; the same model is returned.

        Args:
            model: any module; nothing of it is changed when the call fails.
            generator: where the initial values come from; one with seed 0 when None.

        Raises: ConfigError when nothing fits the description, ModelError when the model is adapted already.
        """
        require_unadapted(model)
        install(model, self, self.build(model, generator or torch.Generator().manual_seed(0)))
        return model

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for json."""
        return {"method": type(self).__name__, **{spec.name: getattr(self, spec.name) for spec in fields(self)}}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Method:
        """The inverse of `to_dict`. Raises: ModelError for a method or an option that does not exist."""
        name = values.get("method")
        if name not in Method.kinds:
            raise ModelError(f"unknown method {name!r}: expected one of {', '.join(sorted(Method.kinds))}")
        try:
            return Method.kinds[name](**{key: value for key, value in values.items() if key != "method"})
        except TypeError as error:
            raise ModelError(f"{name} was saved with options that this version does not have: {error}") from error

    def settled(self) -> Method:
        """The description of what is left once training-only parts are dropped."""
        return self


@dataclass
class Adaptation:
    """What an adapted model remembers of its adaptation; names are those of the model's parameters and modules.

    hashes: sha256 of the base weights the patches were made for. trained: parameters that train beside the patches.
    before: parameters that required gradients. masks: kept entries of pruned projections, by name and first row.
    heads: the attention heads that each sliced attention module kept.
    """

    method: Method
    patches: tuple[str, ...]
    hashes: dict[str, str]
    trained: tuple[str, ...]
    before: frozenset[str]
    masks: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, list[int]] = field(default_factory=dict)

    def modules(self, model: nn.Module) -> list[Patch]:
        """The patches of the model."""
        return [cast(Patch, model.get_submodule(path)) for path in self.patches]


@dataclass(frozen=True)
class Merged:
    """What `unmerge` needs: the adaptation that was merged, its patches and the weights that were replaced."""

    adaptation: Adaptation
    patches: list[Patch]
    replaced: dict[str, Tensor | None]
    written: dict[str, str]


def adaptation_of(model: nn.Module) -> Adaptation:
    """The adaptation of a model. Raises: ModelError when it has none."""
    found = model.__dict__.get(_HANDLE)
    if found is None:
        inner = [n for n, m in model.named_modules() if n and _HANDLE in m.__dict__]
        where = f"; its part {inner[0]!r} does: pass that" if inner else ": apply a method to it first"
        raise ModelError(f"this {type(model).__name__} carries no adapter{where}")
    return cast(Adaptation, found)


def require_unadapted(model: nn.Module) -> None:
    """Raises: ModelError when the model, or a part of it, carries an adapter."""
    if (there := model.__dict__.get(_HANDLE)) is not None:
        raise ModelError(
            f"the model carries {type(there.method).__name__} already: merge(model) or detach(model) first"
        )
    inside = next((name for name, module in model.named_modules() if isinstance(module, Patch)), None)
    if inside is not None:
        raise ModelError(f"a part of the model is adapted already ({inside}): merge or detach what was adapted first")


def install(model: nn.Module, method: Method, patches: list[Patch], hashes: dict[str, str] | None = None) -> Adaptation:
    """Attach patches that were built for the model and freeze the rest. Nothing is changed when it raises."""
    names = tuple(dict.fromkeys(name for patch in patches for name in patch.bases))
    require_float(model, names)
    _require_free(model, patches)
    trained = _trained(model, method.train, set(names))
    before = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    hashes = {name: sha256(base_tensor(model, name)) for name in names} if hashes is None else hashes
    model.requires_grad_(False)
    for name in trained:
        model.get_parameter(name).requires_grad_(True)
    for patch in patches:
        patch.train(model.get_submodule(patch.host).training)
        patch.install(model)
    adaptation = Adaptation(method, tuple(patch.path for patch in patches), hashes, trained, before)
    model.__dict__[_HANDLE] = adaptation
    return adaptation


def _require_free(model: nn.Module, patches: list[Patch]) -> None:
    places = [patch.path for patch in patches]
    for patch in patches:
        if places.count(patch.path) > 1 or patch.taken(model):
            raise ModelError(
                f"{patch.path} is taken: the model has something of that name, or two parts change one place"
            )


def _trained(model: nn.Module, patterns: Iterable[str], adapted: set[str]) -> tuple[str, ...]:
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    modules = [name for name, _ in model.named_modules() if name]
    chosen: dict[str, None] = {}
    for pattern in patterns:
        roots = tuple(f"{module}." for module in modules if fnmatchcase(module, pattern))
        found = [n for n in names if fnmatchcase(n, pattern) or (roots and n.startswith(roots))]
        if not found:
            near = ", ".join(difflib.get_close_matches(pattern, [*modules, *names], n=5, cutoff=0.0))
            raise ConfigError(f"train={pattern!r} names no parameter of the model; the nearest names are {near}")
        if clash := sorted(adapted & set(found)):
            raise ConfigError(f"train={pattern!r} names {clash[0]}, which the method adapts and freezes: leave out one")
        chosen |= dict.fromkeys(found)
    return tuple(chosen)


def detach(model: nn.Module) -> None:
    """Take the adapter out: the model is the base again, but for modules that trained along.

    Raises: ModelError when weights were pruned or heads were removed, which nothing in the model can undo.
    """
    adaptation = adaptation_of(model)
    if adaptation.masks or adaptation.heads:
        raise ModelError("the base weights were pruned, so taking the adapter out leaves no base: load the base again")
    _take_out(model, adaptation)


def _take_out(model: nn.Module, adaptation: Adaptation) -> None:
    for patch in reversed(adaptation.modules(model)):
        patch.remove(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in adaptation.before)
    del model.__dict__[_HANDLE]


@torch.no_grad()
def merge(model: nn.Module) -> Merged:
    """Fold the adapter into the weights: afterwards the model has the modules it had, and no trace of the adapter.

    Returns: what `unmerge` takes; it keeps the replaced weights, so drop it when the merge is final.
    Raises: ModelError naming the part that no weights can express, or a weight that is shared with another module.
    """
    adaptation = adaptation_of(model)
    patches = adaptation.modules(model)
    new: dict[str, Tensor] = {}
    for patch in patches:
        for name, value in patch.merged(model).items():
            if name in new:
                raise ModelError(f"{name} is changed by two parts, so they cannot both be merged")
            new[name] = value
    _require_unshared(model, new)
    _take_out(model, adaptation)
    replaced = {name: _write(model, name, value) for name, value in new.items()}
    written = {name: sha256(model.get_parameter(name)) for name in new}
    return Merged(adaptation, patches, replaced, written)


def _require_unshared(model: nn.Module, names: Iterable[str]) -> None:
    shared = shared_weights(model)
    for name in names:
        owners = shared.get(id(base_tensor(model, name)), []) if _exists(model, name) else []
        if owners:
            raise ModelError(f"{' and '.join(owners)} are one weight: merging would change both; untie them first")


def _exists(model: nn.Module, name: str) -> bool:
    owner, _, tensor = name.rpartition(".")
    module = model.get_submodule(owner)
    return parametrize.is_parametrized(module, tensor) or getattr(module, tensor) is not None


def _write(model: nn.Module, name: str, value: Tensor | None) -> Tensor | None:
    """Put new numbers into a parameter, or make it where there was none; returns the old numbers."""
    owner, _, tensor = name.rpartition(".")
    module = model.get_submodule(owner)
    present = getattr(module, tensor)
    if present is None or value is None:
        weight = module.get_parameter("weight")
        made = None if value is None else nn.Parameter(value.to(weight.dtype), requires_grad=weight.requires_grad)
        setattr(module, tensor, made)
        return None
    old: Tensor = present.detach().clone()
    present.copy_(value)
    return old


@torch.no_grad()
def unmerge(model: nn.Module, merged: Merged) -> None:
    """Undo a merge exactly: the earlier weights come back, and the adapter is attached as it was.

    Raises: ModelError when a merged weight has changed since, or the model was adapted again.
    """
    require_unadapted(model)
    for name, expected in merged.written.items():
        found = sha256(model.get_parameter(name))
        if found != expected:
            raise ModelError(f"{name} has changed since the merge: its sha256 is {found}, after the merge {expected}")
    for name, value in merged.replaced.items():
        _write(model, name, value)
    earlier = merged.adaptation
    restored = install(model, earlier.method, merged.patches, earlier.hashes)
    restored.masks, restored.heads = earlier.masks, earlier.heads


def settle(model: nn.Module) -> None:
    """Drop what only training needs: of a reparameterised prefix, only the network's output stays."""
    adaptation = adaptation_of(model)
    for patch in adaptation.modules(model):
        patch.settle()
    adaptation.method = adaptation.method.settled()


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The learned parameters of the patches, live, by name; not those of modules that train along."""
    adaptation = adaptation_of(model)
    paths = tuple(f"{path}." for path in adaptation.patches)
    return {name: p for name, p in model.named_parameters() if name.startswith(paths)}
