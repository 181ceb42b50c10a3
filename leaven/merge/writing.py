"""Weights to disk: safetensors written as a stream, whole files and folders or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from leaven import __version__
from leaven.data.downloads import sha256_of
from leaven.errors import ModelError
from leaven.models.saved import MANIFEST, WEIGHTS, read_manifest
from leaven.training.checkpoint import replaced

if TYPE_CHECKING:
    from leaven.merge.weights import Weights

SHARD_BYTES = 5 * 10**9
"""Largest shard unless asked otherwise, as Hugging Face writes them."""

RECORD = "merge.json"
"""How a folder's weights came about; a folder with this file may be replaced by another merge."""

_BESIDE = {".json", ".txt", ".model", ".jinja"}
_OF_ONE_MODEL = {RECORD, "card.json", "trainer_state.json"}


def write_weights(weights: Weights, out: Path, shard_bytes: int) -> Path:
    """See `Weights.save`."""
    if out.suffix == ".safetensors":
        out.parent.mkdir(parents=True, exist_ok=True)
        _write_file(weights, list(weights.specs), out)
        return out
    if out.exists() and not (out / RECORD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} exists and is no earlier merge ({RECORD} is missing): choose another folder")
    with _new_folder(out) as draft:
        if weights.folder is not None:
            _copy_beside(weights.folder, draft)
        manifest = read_manifest(draft) if (draft / MANIFEST).is_file() else None
        # leaven's own folders have one file of weights and its checksum.
        _write_shards(weights, draft, shard_bytes if manifest is None else _total_bytes(weights))
        if manifest is not None:
            _write_json(draft / MANIFEST, manifest | {"sha256": sha256_of(draft / WEIGHTS)})
        _write_json(draft / RECORD, _record(weights))
    return out


def _record(weights: Weights) -> dict[str, Any]:
    return {"leaven": __version__, **weights.record()}


def _bytes_of(spec: Any) -> int:
    return int(spec.entries * spec.dtype.itemsize)


def _total_bytes(weights: Weights) -> int:
    return sum(map(_bytes_of, weights.specs.values()))


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A draft folder that takes the place of `out` when the block ends well and is deleted when it does not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    draft, old = out.with_name(f".draft-{out.name}"), out.with_name(f".old-{out.name}")
    for left in (draft, old):
        shutil.rmtree(left, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        if out.exists():
            out.rename(old)
        draft.rename(out)
    finally:
        if not out.exists() and old.exists():
            old.rename(out)
        for left in (draft, old):
            shutil.rmtree(left, ignore_errors=True)


def _write_shards(weights: Weights, folder: Path, shard_bytes: int) -> None:
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in weights.specs.items():
        if shards[-1] and size + _bytes_of(spec) > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _bytes_of(spec)
    if len(shards) == 1:
        _write_file(weights, shards[0], folder / WEIGHTS)
        return
    where: dict[str, str] = {}
    for place, names in enumerate(shards, 1):
        file = f"model-{place:05d}-of-{len(shards):05d}.safetensors"
        _write_file(weights, names, folder / file)
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": _total_bytes(weights)}, "weight_map": where}
    _write_json(folder / f"{WEIGHTS}.index.json", index)


def _write_file(weights: Weights, names: Sequence[str], path: Path) -> None:
    """One safetensors file, chunk by chunk; the format wants the widest types first, so that all are aligned."""
    from leaven.merge.weights import DTYPES

    type_names = {dtype: name for name, dtype in DTYPES.items()}
    foreign = [name for name in names if weights.specs[name].dtype not in type_names]
    if foreign:
        raise ModelError(f"{foreign[0]} has type {weights.specs[foreign[0]].dtype}: safetensors cannot hold it")
    names = sorted(names, key=lambda name: -weights.specs[name].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "merge": json.dumps(_record(weights))}}
    end = 0
    for name in names:
        spec = weights.specs[name]
        start, end = end, end + _bytes_of(spec)
        header[name] = {"dtype": type_names[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replaced(path) as draft:
        try:
            with draft.open("wb") as stream:
                stream.write(len(text).to_bytes(8, "little") + text)
                for name in names:
                    for start, stop in weights.chunks(name):
                        values = weights.flat(name, start, stop).contiguous()
                        stream.write(values.view(torch.uint8).numpy().data)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def _write_json(path: Path, value: Any) -> None:
    with replaced(path) as draft:
        draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _copy_beside(source: Path, target: Path) -> None:
    """Configuration and tokenizer of a model folder, and the folders of a sentence-transformers model's modules."""
    for file in source.iterdir():
        wanted = file.suffix in _BESIDE and not file.name.endswith(".index.json") and file.name not in _OF_ONE_MODEL
        if wanted and file.is_file():
            shutil.copyfile(file, target / file.name)
    modules = source / "modules.json"
    if modules.is_file():
        try:
            named = {module["path"] for module in json.loads(modules.read_text(encoding="utf-8"))}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{modules} is no list of modules with their paths: {error}") from error
        # Only folders that lie in the model's own are copied, whatever the file says.
        for folder in source.iterdir():
            if folder.name in named and folder.is_dir():
                shutil.copytree(folder, target / folder.name)
