"""Weights as a source: names, shapes and types are known at once, values are read when they are asked for."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

from leaven.errors import ModelError
from leaven.merge.writing import SHARD_BYTES, write_weights
from leaven.models.saved import fill_model, tied_names

CHUNK = 1 << 15
"""Entries read and combined at a time: they stay in the processor's cache, and torch starts no threads for so few."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types by the name that safetensors gives them."""

_PICKLED = (".bin", ".pt", ".pth")


class Spec(NamedTuple):
    """Shape and type of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def entries(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


class Weights(ABC):
    """Named tensors that are read piece by piece.

    specs: shape and type by name, in the source's order. label: how messages name the source.
    folder: where the model's configuration and tokenizer lie, None where there is no such folder.
    """

    specs: Mapping[str, Spec]
    label: str
    folder: Path | None = None

    @abstractmethod
    def flat(self, name: str, start: int, stop: int) -> Tensor:
        """Entries start..stop of a tensor in row-major order, (stop - start,) on the CPU; not to be written to."""

    @property
    def identity(self) -> Hashable:
        """Equal for two sources that read the same files or the same memory."""
        return id(self)

    def record(self) -> dict[str, Any]:
        """How the weights came about, as JSON values; kept beside saved weights."""
        return {"source": self.label}

    def chunks(self, name: str) -> Iterator[tuple[int, int]]:
        """Ranges of at most `CHUNK` entries that make up the tensor."""
        entries = self.specs[name].entries
        for start in range(0, entries, CHUNK):
            yield start, min(start + CHUNK, entries)

    def tensor(self, name: str) -> Tensor:
        """A copy of the tensor on the CPU."""
        spec = self.specs[name]
        whole = torch.empty(spec.entries, dtype=spec.dtype)
        for start, stop in self.chunks(name):
            whole[start:stop] = self.flat(name, start, stop)
        return torch.reshape(whole, spec.shape)

    def state(self) -> dict[str, Tensor]:
        """Copies of all tensors by name: a state dict."""
        return {name: self.tensor(name) for name in self.specs}

    def into(self, model: nn.Module) -> nn.Module:
        """Copy the weights into a model, which is put in eval mode. Raises: ModelError where they do not fit."""
        return fill_model(model, self.state(), self.label)

    def save(self, out: Path | str, shard_bytes: int = SHARD_BYTES) -> Path:
        """Write a `.safetensors` file, or a model folder with what the first source's folder holds beside weights.

        The output appears whole or not at all; of the weights, only a few chunks are in memory at a time.

        Args:
            out: a path ending in .safetensors, or a folder that is new, empty or an earlier merge (which is replaced).
            shard_bytes: largest file of a folder, >= 1; a single tensor may exceed it.

        Raises: ModelError when the folder holds something else, or a weight is NaN or infinite.
        """
        return write_weights(self, Path(out), shard_bytes)


class MemoryWeights(Weights):
    """Tensors that are in memory, read where they lie: the values are those of the moment of reading."""

    def __init__(self, tensors: Mapping[str, Any], label: str, folder: Path | None = None) -> None:
        wrong = [f"{n!r}: {type(t).__name__}" for n, t in tensors.items() if not isinstance(t, Tensor)]
        if wrong or not tensors:
            raise ModelError(f"{label} is no state dict: expected tensors by name, found {wrong[:3] or 'nothing'}")
        self._tensors: dict[str, Tensor] = {name: tensor.detach() for name, tensor in tensors.items()}
        self.specs = {name: Spec(tuple(t.shape), t.dtype) for name, t in self._tensors.items()}
        self.label, self.folder = label, folder

    @property
    def identity(self) -> Hashable:
        """Where the tensors lie."""
        return tuple((name, tensor.data_ptr()) for name, tensor in self._tensors.items())

    def flat(self, name: str, start: int, stop: int) -> Tensor:
        """Entries start..stop."""
        tensor = self._tensors[name]
        if tensor.is_contiguous():
            return tensor.view(-1)[start:stop].cpu()
        # Flattening would copy the whole tensor for each of its pieces.
        return tensor.take(torch.arange(start, stop, device=tensor.device)).cpu()


class SafetensorsWeights(Weights):
    """One model in safetensors files. Only what is asked for is read, and nothing stays mapped into memory.

    Raises: ModelError when a file is missing or damaged, or two files hold the same name.
    """

    def __init__(self, files: Sequence[Path], label: str, folder: Path | None = None) -> None:
        self.label, self.folder, self.files = label, folder, tuple(files)
        specs: dict[str, Spec] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        self._open: tuple[Path, BinaryIO] | None = None
        for file in files:
            for name, (spec, offset) in _header(file).items():
                if name in specs:
                    raise ModelError(f"{label}: {name} is in {self._places[name][0].name} and in {file.name}")
                specs[name], self._places[name] = spec, (file, offset)
        self.specs = specs

    def __del__(self) -> None:
        if getattr(self, "_open", None) is not None:
            self._open[1].close()  # type: ignore[index]

    @property
    def identity(self) -> Hashable:
        """The files."""
        return tuple(file.resolve() for file in self.files)

    def flat(self, name: str, start: int, stop: int) -> Tensor:
        """Entries start..stop."""
        file, offset = self._places[name]
        values = torch.empty(stop - start, dtype=self.specs[name].dtype)
        target = values.view(torch.uint8).numpy().data
        if self._open is None or self._open[0] != file:
            if self._open is not None:
                self._open[1].close()
            self._open = (file, file.open("rb", buffering=0))
        stream = self._open[1]
        stream.seek(offset + start * values.element_size())
        done = 0
        while done < len(target):
            got = stream.readinto(target[done:])  # type: ignore[attr-defined]  # unbuffered files have it
            if not got:
                raise ModelError(f"{file} ends inside {name}: it was cut while it was read")
            done += got
        return values


def _header(file: Path) -> dict[str, tuple[Spec, int]]:
    """Shape, type and position of each tensor, after the library has checked the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "pt"):
            pass
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entries = json.loads(stream.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{file} is not a whole safetensors file: {error}; copy or download it again") from error
    entries.pop("__metadata__", None)
    foreign = sorted({entry["dtype"] for entry in entries.values()} - DTYPES.keys())
    if foreign:
        raise ModelError(f"{file} holds tensors of type {', '.join(foreign)}; merging knows {', '.join(DTYPES)}")
    return {
        name: (Spec(tuple(entry["shape"]), DTYPES[entry["dtype"]]), 8 + length + entry["data_offsets"][0])
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"])
    }


Source = Weights | nn.Module | Mapping[str, Tensor] | Path | str
"""What can be merged: weights, a live model, a state dict, a file, a folder, `zoo:NAME` or `hf:ID`."""


def open_weights(source: Source, label: str | None = None) -> Weights:
    """Weights of any source.

    A safetensors file, a folder (of Hugging Face, sharded or not, or of leaven), `zoo:NAME` and `hf:ID` are read
    lazily; so are modules and dictionaries, which are not copied. Pickled files are loaded whole, with torch's
    `weights_only` loader. Names that are tied to another in a module are left out, as they are in saved files.

    Args:
        label: how messages name a source that has no path.

    Raises: ModelError when there is no such file, or it is damaged or holds anything but tensors.
    """
    if isinstance(source, Weights):
        return source
    if isinstance(source, nn.Module):
        tied = tied_names(source)
        state = {name: tensor for name, tensor in source.state_dict().items() if name not in tied}
        return MemoryWeights(state, label or type(source).__name__)
    if isinstance(source, Mapping):
        return MemoryWeights(source, label or "state dict")
    return _from_disk(str(source))


def _from_disk(name: str) -> Weights:
    from leaven.models.bridge.weights import read_pickled, weight_files
    from leaven.models.loading import MINILM, model_folder

    path = model_folder(name) if name.startswith(("zoo:", "hf:")) or name == MINILM else Path(name).expanduser()
    if path.is_dir():
        files = weight_files(path)
        folder = path
    elif path.is_file():
        files, folder = [path], None
    else:
        raise ModelError(f"there are no weights {name!r}: expected a file, a model folder, zoo:NAME or hf:ID")
    if all(file.suffix == ".safetensors" for file in files):
        return SafetensorsWeights(files, name, folder)
    foreign = [file for file in files if file.suffix not in _PICKLED]
    if foreign:
        raise ModelError(f"{foreign[0]} has no known ending: expected .safetensors or a state dict in {_PICKLED}")
    return MemoryWeights({n: t for file in files for n, t in read_pickled(file).items()}, name, folder)


def open_all(sources: Sequence[Source]) -> list[Weights]:
    """Weights of several sources; those without a path are named by their place in the list, from 1 on."""
    return [open_weights(source, f"source {place}") for place, source in enumerate(sources, 1)]
