"""The small files of an expert: parameter-efficient modules, heads and labels, without the encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from leaven.adapt.continual.heads import TaskHeads, bare_linear
from leaven.adapt.continual.learner import Label
from leaven.errors import DataError, ModelError
from leaven.training.checkpoint import replaced

_FORMAT = "leaven expert 1"


class Expert(NamedTuple):
    """Tensors of the modules by name, heads, and labels in the order of the logits."""

    module: dict[str, Tensor]
    heads: TaskHeads
    classes: list[Label]


def write_expert(path: Path, module: Mapping[str, Tensor], heads: TaskHeads, classes: Sequence[Label]) -> None:
    """Write one safetensors file, whole or not at all, with the labels as json in its header.

    Raises: DataError for labels other than text, numbers and booleans.
    """
    odd = next((label for label in classes if type(label) not in (str, int, float, bool)), None)
    if odd is not None:
        raise DataError(f"{path}: cannot save label {odd!r}; json holds text, numbers and booleans")
    tensors = {f"module.{name}": tensor for name, tensor in module.items()}
    tensors |= {f"heads.{name}": tensor for name, tensor in heads.state_dict().items()}
    header = {"format": _FORMAT, "classes": json.dumps(list(classes)), "sizes": json.dumps(heads.sizes)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as draft:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, draft, metadata=header)


def read_expert(path: Path, expected: Mapping[str, Tensor]) -> Expert:
    """An expert that `write_expert` wrote, on the CPU.

    Raises: ModelError when the file is missing or damaged, or its modules have other names or shapes than expected.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        if header.get("format") != _FORMAT:
            raise ValueError("it has another format")
        classes, sizes = json.loads(header["classes"]), json.loads(header["sizes"])
        width = tensors["heads.tasks.0.weight"].shape[1]
        heads = TaskHeads(bare_linear(width, size) for size in sizes)
        heads.load_state_dict({n.removeprefix("heads."): t for n, t in tensors.items() if n.startswith("heads.")})
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{path}: no expert that leaven saved ({error})") from error
    module = {name.removeprefix("module."): t for name, t in tensors.items() if name.startswith("module.")}
    if {name: t.shape for name, t in module.items()} != {name: t.shape for name, t in expected.items()}:
        raise ModelError(f"{path}: its modules are not those that attach puts into this encoder")
    return Expert(module, heads, classes)
