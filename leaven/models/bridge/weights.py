"""The weights of a Hugging Face folder: safetensors first, pickled files only where they hold nothing but tensors."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from leaven.data.cache import cache_dir
from leaven.data.downloads import sha256_of
from leaven.errors import ModelError

SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder by name, floating-point ones in float32.

    Read are, in this order, `model.safetensors`, its sharded form, `pytorch_model.bin`, its sharded form. A pickled
    file is read with torch's `weights_only` loader alone and kept as safetensors in leaven's cache.

    Raises: ModelError naming the file when one is missing, damaged or holds anything but tensors.
    """
    state: dict[str, Tensor] = {}
    for path in weight_files(folder):
        readable = path if path.suffix == ".safetensors" else _converted(path)
        for name, tensor in _read_safetensors(readable).items():
            state[name] = tensor.float() if tensor.is_floating_point() else tensor
    return state


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a folder. Raises: ModelError when there are none or a shard is missing."""
    for single in (SAFETENSORS, PICKLED):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / f"{single}.index.json").is_file():
            return _shards(folder / f"{single}.index.json")
    found = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file())[:8]) or "no files"
    raise ModelError(f"{folder} has no {SAFETENSORS} and no {PICKLED}, whole or sharded; it has {found}")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is not an index of shards (a weight_map of names to files): {error}") from error
    for name in names:
        # An index from elsewhere must not make us read files outside its folder.
        if Path(name).name != name or Path(name).suffix not in (".safetensors", ".bin"):
            raise ModelError(f"{index} names the shard {name!r}: expected a .safetensors or .bin file beside it")
        if not (index.parent / name).is_file():
            raise ModelError(f"{index} names the shard {name}, which is missing from {index.parent}")
    return [index.parent / name for name in names]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(str(path)))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ModelError(
            f"{path} is not a whole safetensors file: {error}; copy or download the model again"
        ) from error


def _converted(path: Path) -> Path:
    """The safetensors form of a pickled file in leaven's cache, made when it is not there yet or was damaged."""
    target = cache_dir() / "converted" / f"{sha256_of(path)}.safetensors"
    known = _checksum_file(target)
    if target.is_file() and known.is_file() and known.read_text(encoding="utf-8") == sha256_of(target):
        return target
    return _convert(path, target)


def _checksum_file(target: Path) -> Path:
    return target.with_suffix(".sha256")


def _convert(path: Path, target: Path) -> Path:
    from safetensors.torch import save_file

    state = read_pickled(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(suffix=".part", dir=target.parent)
    os.close(handle)
    draft = Path(name)
    try:
        save_file(state, str(draft), metadata={"format": "pt"})
        checksum = sha256_of(draft)
        draft.replace(target)
        _checksum_file(target).write_text(checksum, encoding="utf-8")
    finally:
        draft.unlink(missing_ok=True)
    return target


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a `torch.save`d state dict, each with memory of its own; code in the file is never run.

    Raises: ModelError when the file is damaged or holds anything but a flat dictionary of names to tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may fail in any way
        why = str(error).strip().splitlines()
        raise ModelError(
            f"{path} is refused: torch's weights_only loader cannot read it, so it is damaged or holds more than "
            f"tensors ({type(error).__name__}: {why[0] if why else 'no message'}); use a safetensors file instead"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is refused: it holds a {type(content).__name__}, expected a dictionary of tensors")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise ModelError(
                f"{path} is refused: its entry {name!r} is a {type(tensor).__name__}, not a dense tensor by name"
            )
    return {name: tensor.detach().clone().contiguous() for name, tensor in content.items()}
