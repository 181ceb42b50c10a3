"""Finding what the user named, and saying what was probably meant."""

from __future__ import annotations

import difflib
from pathlib import Path

from leaven.errors import DataError


def existing_path(spec: str, argument: str) -> Path:
    """The path after the scheme. Raises: DataError saying what exists near it when it does not."""
    if not argument:
        raise DataError(f"{spec!r} names no path; write it after the colon, for example {spec}data")
    path = Path(argument).expanduser()
    if path.exists():
        return path
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    missing = path.relative_to(parent).parts[0] if path.is_relative_to(parent) else path.name
    near = difflib.get_close_matches(missing, names, n=1, cutoff=0.6)
    hint = f"; did you mean {str(parent / near[0])!r}?" if near else ""
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise DataError(f"{spec}: no such file or folder{hint} In {str(parent)!r} there is: {shown or 'nothing'}")


def existing_file(spec: str, path: Path, suffixes: tuple[str, ...]) -> Path:
    """Raises: DataError for a folder or an empty file; the message lists fitting files in the folder."""
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if entry.suffix in suffixes)[:8]
        hint = f"; it has {', '.join(inside)}" if inside else f"; it has no {' or '.join(suffixes)} file"
        raise DataError(f"{spec}: {str(path)!r} is a folder, expected a file{hint}")
    if path.stat().st_size == 0:
        raise DataError(f"{spec}: the file {str(path)!r} is empty")
    return path


def files_below(folder: Path, skipped: frozenset[str] = frozenset()) -> list[Path]:
    """Files in a folder and its folders, sorted; hidden ones and those in `skipped` folders left out."""
    found: list[Path] = []
    stack = [folder]
    while stack:
        for entry in stack.pop().iterdir():
            if entry.name.startswith("."):
                continue
            if entry.is_dir() and not entry.is_symlink():
                if entry.name not in skipped:
                    stack.append(entry)
            elif entry.is_file():
                found.append(entry)
    return sorted(found)


def nothing_fits(spec: str, path: Path, files: list[Path], expected: str) -> DataError:
    """The error for a folder without a usable file."""
    if not files:
        return DataError(f"{spec}: the folder {str(path)!r} is empty; expected {expected}")
    suffixes = sorted({file.suffix or file.name for file in files})
    return DataError(f"{spec}: no usable file in {str(path)!r}; expected {expected}, found {', '.join(suffixes[:12])}")
