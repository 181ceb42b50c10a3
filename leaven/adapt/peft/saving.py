"""Adapters on disk: the small part as safetensors, and a manifest with the method and the checksums of its base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from leaven import __version__
from leaven.adapt.peft.dsee import LowRankSparse
from leaven.adapt.peft.method import Adaptation, Method, adaptation_of, detach, install, require_unadapted
from leaven.adapt.peft.patches import Patch, sha256
from leaven.adapt.peft.peft_format import CONFIG as PEFT_CONFIG
from leaven.adapt.peft.peft_format import read_peft, write_peft
from leaven.adapt.peft.pruning import apply_masks, cut_heads
from leaven.adapt.peft.sites import base_tensor
from leaven.data.downloads import sha256_of
from leaven.errors import ConfigError, ModelError
from leaven.training.checkpoint import replaced

MANIFEST = "adapter.json"
TENSORS = "adapter.safetensors"
_MASK = "mask:"


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The learned tensors by name, copied: those of the patches and of modules that train along.

    A reparameterised prefix appears with its network; `settle` drops that.
    """
    adaptation = adaptation_of(model)
    paths = tuple(f"{path}." for path in adaptation.patches)
    state = {name: t.detach().clone() for name, t in model.state_dict().items() if name.startswith(paths)}
    return state | {name: model.get_parameter(name).detach().clone() for name in adaptation.trained}


@torch.no_grad()
def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy the tensors of `adapter_state` into the adapted model. Raises: ModelError for missing or other tensors."""
    present = adapter_state(model)
    if difference := sorted(present.keys() ^ state.keys()):
        raise ModelError(f"the adapter's tensors differ from the model's in {', '.join(difference[:3])}")
    for name, value in state.items():
        if value.shape != present[name].shape:
            raise ModelError(f"{name} has shape {tuple(value.shape)}, the model's {tuple(present[name].shape)}")
    model.load_state_dict(state, strict=False)


def save_adapter(model: nn.Module, folder: Path | str, format: Literal["leaven", "peft"] = "leaven") -> Path:
    """Write the small part of an adapted model: `adapter.safetensors` and `adapter.json`, or peft's two files.

    The network of a reparameterised prefix is left out, its output is stored. The model is not changed.

    Raises: ModelError when the model carries no adapter, or one that peft's format cannot hold.
    """
    folder = Path(folder)
    adaptation = adaptation_of(model)
    if format == "peft":
        return write_peft(model, adaptation, folder)
    if format != "leaven":
        raise ConfigError(f"format={format!r}: expected leaven or peft")
    tensors = _settled_state(model, adaptation)
    for name, kept in adaptation.masks.items():
        tensors[f"{_MASK}{name}"] = _packed(kept)
    folder.mkdir(parents=True, exist_ok=True)
    with replaced(folder / TENSORS) as draft:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, draft)
    manifest = {
        "leaven": __version__,
        "method": adaptation.method.settled().to_dict(),
        "sha256": sha256_of(folder / TENSORS),
        "base": adaptation.hashes,
        "trained": list(adaptation.trained),
        "heads": adaptation.heads,
        "masks": {name: list(kept.shape) for name, kept in adaptation.masks.items()},
    }
    with replaced(folder / MANIFEST) as draft:
        draft.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return folder


def _settled_state(model: nn.Module, adaptation: Adaptation) -> dict[str, Tensor]:
    state = {name: model.get_parameter(name).detach().clone() for name in adaptation.trained}
    for patch in adaptation.modules(model):
        for name, tensor in patch.settled_state().items():
            state[f"{patch.path}.{name}"] = tensor.detach().clone()
    return state


def load_adapter(model: nn.Module, folder: Path | str) -> nn.Module:
    """Attach the adapter of a folder, leaven's or a LoRA adapter of peft, to its base model, in place.

    Raises: ModelError for a folder that is incomplete or altered, and, naming the weight and both checksums, for
        another base model than the one the adapter was trained on (peft's format has no such checksums). The model is
        then left as it was.
    """
    require_unadapted(model)
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        return _load_own(model, folder)
    if (folder / PEFT_CONFIG).is_file():
        return _attach(model, *read_peft(model, folder), None)
    raise ModelError(f"{folder} holds no adapter: expected {MANIFEST}, or peft's {PEFT_CONFIG}")


def _load_own(model: nn.Module, folder: Path) -> nn.Module:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        method = Method.from_dict(manifest["method"])
        found = sha256_of(folder / TENSORS)
        if found != manifest["sha256"]:
            raise ModelError(
                f"{folder / TENSORS} was altered: its sha256 is {found}, {MANIFEST} says {manifest['sha256']}"
            )
        state = load_file(folder / TENSORS)
        bases, heads, masks = dict(manifest["base"]), dict(manifest["heads"]), dict(manifest["masks"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{folder} holds no whole adapter: {type(error).__name__}: {error}") from error
    _require_base(model, bases, str(folder))
    learned = {name: tensor for name, tensor in state.items() if not name.startswith(_MASK)}
    patches = method.build(model, None)
    if not heads and not masks:
        return _attach(model, method, patches, learned, bases)
    adaptation = install(model, method, patches, bases)
    try:
        if heads:
            cut_heads(model, adaptation, heads)
        _resize(adaptation.modules(model), learned)
        load_adapter_state(model, learned)
    except ModelError:
        if not heads:
            detach(model)
        raise
    adaptation.masks = {name: _unpacked(state[f"{_MASK}{name}"], shape) for name, shape in masks.items()}
    apply_masks(model, adaptation)
    return model


def _attach(
    model: nn.Module,
    method: Method,
    patches: list[Patch],
    state: Mapping[str, Tensor],
    bases: dict[str, str] | None,
) -> nn.Module:
    install(model, method, patches, bases)
    try:
        load_adapter_state(model, state)
    except ModelError:
        detach(model)
        raise
    return model


def _require_base(model: nn.Module, bases: Mapping[str, str], folder: str) -> None:
    for name, expected in bases.items():
        try:
            found = sha256(base_tensor(model, name))
        except AttributeError as error:
            raise ModelError(f"{folder} adapts {name}, which this {type(model).__name__} does not have") from error
        if found != expected:
            raise ModelError(
                f"{folder} was trained on another base model: {name} has sha256 {found}, expected {expected}; load "
                "the base it was trained on, in the same type"
            )


def _resize(patches: list[Patch], state: Mapping[str, Tensor]) -> None:
    """Give sparse entries the number that the file holds: heads that were cut took some with them."""
    for patch in patches:
        for name, change in patch.named_modules():
            stored = state.get(f"{patch.path}.{name}.values")
            if isinstance(change, LowRankSparse) and stored is not None:
                change.values = nn.Parameter(change.values.new_zeros(len(stored)))
                change.rows, change.columns = (old.new_zeros(len(stored)) for old in (change.rows, change.columns))


def _packed(kept: Tensor) -> Tensor:
    """One bit per entry, the first entry in the lowest bit."""
    bits = nn.functional.pad(kept.flatten().to(torch.uint8), (0, -kept.numel() % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _unpacked(packed: Tensor, shape: list[int]) -> Tensor:
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    count = 1
    for size in shape:
        count *= size
    return bits.flatten()[:count].bool().view(shape)
