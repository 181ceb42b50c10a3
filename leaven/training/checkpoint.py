"""Checkpoints on disk: safetensors and json in a folder that appears whole or not at all and is verified when read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from leaven.errors import CheckpointError

FORMAT = 1
_MANIFEST = "manifest.json"
_STATE = "state.json"
_NAME = re.compile(r"(step|best)-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder."""

    path: Path
    step: int

    def tensors(self, name: str) -> dict[str, Tensor] | None:
        """The tensors of `NAME.safetensors` on the CPU, or None where the checkpoint has no such file."""
        file = self.path / f"{name}.safetensors"
        if not file.exists():
            return None
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: not a readable safetensors file ({error}); delete {self.path}") from error

    def state(self) -> dict[str, Any]:
        """The contents of state.json."""
        state: dict[str, Any] = _read_json(self.path / _STATE)
        return state


def write(
    folder: Path, kind: str, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Checkpoint:
    """Write `KIND-STEP` under the folder: one safetensors file per entry of `tensors`, state.json and a manifest.

    All is written and flushed to the disk under another name, which is then renamed: a reader, or a run that resumes
    after a crash, sees the whole checkpoint or none.

    Args:
        folder: the run's folder; made if missing.
        kind: "step" or "best".
        tensors: tensors by file stem; no two tensors of a file may share memory.
        state: JSON values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{kind}-{step:08d}"
    draft = folder / f".draft-{target.name}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    for name, contents in tensors.items():
        save_file({key: value.contiguous() for key, value in contents.items()}, draft / f"{name}.safetensors")
    (draft / _STATE).write_text(json.dumps(state), encoding="utf-8")
    files = {file.name: _fingerprint(file) for file in sorted(draft.iterdir())}
    manifest = {"format": FORMAT, "kind": kind, "step": step, "files": files}
    (draft / _MANIFEST).write_text(json.dumps(manifest | {"sha256": _digest(manifest)}, indent=1), encoding="utf-8")
    for file in draft.iterdir():
        _flush(file)
    _flush(draft)
    if target.exists():
        # Left by an earlier life of this run; a folder cannot be renamed onto one that has files in it.
        shutil.rmtree(_aside(target))
    draft.rename(target)
    _flush(folder)
    return Checkpoint(target, step)


def verify(path: Path) -> Checkpoint:
    """The checkpoint of the folder, after every file's size and sha256 was compared with the manifest.

    Raises: CheckpointError that names the file and what is wrong with it.
    """
    match = _NAME.fullmatch(path.name)
    if match is None or not path.is_dir():
        raise CheckpointError(f"{path}: not a checkpoint folder; expected a folder named step-00000123")
    manifest = _read_json(path / _MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{path / _MANIFEST}: expected an object with the checksums of the files")
    if manifest.pop("sha256", None) != _digest(manifest):
        raise CheckpointError(f"{path / _MANIFEST}: was altered: its own checksum does not match")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {manifest.get('format')!r}; this version of leaven reads format {FORMAT}"
        )
    if (manifest.get("kind"), manifest.get("step")) != (match[1], int(match[2])):
        raise CheckpointError(f"{path}: holds {manifest.get('kind')} {manifest.get('step')}: the folder was renamed")
    _compare_files(path, manifest["files"])
    state = _read_json(path / _STATE)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / _STATE}: expected a JSON object")
    return Checkpoint(path, int(match[2]))


def latest_good(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a run that verifies, or None if the run has written none yet.

    A damaged one is passed over with a warning that says what is wrong with it.

    Raises: CheckpointError if there are checkpoints and every one is damaged.
    """
    wrong: list[str] = []
    for path in reversed(listed(folder, "step")):
        try:
            checkpoint = verify(path)
        except CheckpointError as error:
            wrong.append(str(error))
            continue
        for message in wrong:
            warnings.warn(f"damaged checkpoint passed over, {path.name} used: {message}", stacklevel=2)
        return checkpoint
    if wrong:
        raise CheckpointError(
            f"{folder}: no checkpoint can be used: {'; '.join(wrong)}. Restore one from a copy or start in a new folder"
        )
    return None


def listed(folder: Path, kind: str) -> list[Path]:
    """Checkpoint folders of a kind, oldest step first, unverified."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if (m := _NAME.fullmatch(p.name)) is not None and m[1] == kind)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and best ones that no kept checkpoint refers to."""
    steps = listed(folder, "step")
    for path in steps[:-keep]:
        shutil.rmtree(_aside(path))
    referred = {_read_json(path / _STATE).get("best", {}).get("step") for path in steps[-keep:]}
    newest = [path.name for path in listed(folder, "best")][-1:]
    for path in listed(folder, "best"):
        if path.name not in newest and int(path.name.split("-")[1]) not in referred:
            shutil.rmtree(_aside(path))


def discard_after(folder: Path, step: int) -> None:
    """Move checkpoints of later steps out of the way (as `.damaged-NAME`), so that they are not used."""
    for path in (*listed(folder, "step"), *listed(folder, "best")):
        if int(path.name.split("-")[1]) > step:
            kept = folder / f".damaged-{path.name}"
            shutil.rmtree(kept, ignore_errors=True)
            path.rename(kept)


def clear_drafts(folder: Path) -> None:
    """Delete what a killed writer left behind."""
    if folder.is_dir():
        for path in (*folder.glob(".draft-*"), *folder.glob(".old-*")):
            shutil.rmtree(path)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A draft path to write a file to, which replaces `path` in one step when the block ends well."""
    draft = path.with_name(f".draft-{path.name}")
    yield draft
    _flush(draft)
    draft.replace(path)


def _aside(path: Path) -> Path:
    """Rename a folder in one step to a name that no reader looks at, so that its deletion may be interrupted."""
    old = path.with_name(f".old-{path.name}")
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    return old


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest(), "size": file.stat().st_size}


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error


def _compare_files(path: Path, expected: Mapping[str, Any]) -> None:
    found = {file.name for file in path.iterdir()} - {_MANIFEST}
    for name in sorted(set(expected) - found):
        raise CheckpointError(f"{path / name}: missing")
    for name in sorted(found - set(expected)):
        raise CheckpointError(f"{path / name}: not in the manifest; a checkpoint holds nothing else")
    for name, entry in expected.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file}: not a file")
        size = file.stat().st_size
        if size != entry["size"]:
            raise CheckpointError(f"{file}: has {size} bytes, expected {entry['size']}: truncated or altered")
        if _fingerprint(file)["sha256"] != entry["sha256"]:
            raise CheckpointError(f"{file}: altered: its sha256 is not the one of the manifest")
