"""The embedded source `stdlib-code`: functions of the running interpreter's standard library."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import sysconfig
import tokenize
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path

from leaven.data.cache import cache_dir, write_atomically
from leaven.data.examples import CodeExample
from leaven.data.near_duplicates import NearDuplicateIndex
from leaven.data.python_functions import python_functions
from leaven.data.splits import Split, SplitName, check_split, hash_split
from leaven.errors import DataError

SCAN_VERSION = 1
# Chosen so that shares of functions come near 80/10/10; the assignment itself depends on module names alone,
# so a module keeps its split in every version of Python.
SPLIT_SEED = 658
NEAR_DUPLICATE = 0.9

_SKIPPED_FOLDERS = frozenset(
    {
        "site-packages",
        "dist-packages",
        "__pycache__",
        "test",
        "tests",
        "idle_test",
        "_bundled",
        "_vendor",
        "lib-dynload",
    }
)
_log = logging.getLogger(__name__)


def split_of_module(module: str, seed: int = SPLIT_SEED) -> SplitName:
    """Split of a dotted module name, the same for all that share its top-level name.

    A private twin (`_pydecimal`, `_strptime`) goes with the module it serves where the name says so.
    """
    top = module.split(".", 1)[0].removeprefix("_py").lstrip("_")
    return hash_split(top, seed)


def _python_files(root: Path, skip_top: frozenset[str] = frozenset()) -> list[Path]:
    found: list[Path] = []
    stack = [root]
    while stack:
        folder = stack.pop()
        for entry in folder.iterdir():
            if folder == root and entry.name.removesuffix(".py") in skip_top:
                continue
            if entry.is_dir():
                if entry.name not in _SKIPPED_FOLDERS and not entry.name.startswith((".", "config-")):
                    stack.append(entry)
            elif entry.suffix == ".py":
                found.append(entry)
    return sorted(found)


def _module_name(file: Path, root: Path) -> str:
    parts = list(file.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _functions_of(file: Path, root: Path) -> list[CodeExample]:
    try:
        with tokenize.open(file) as handle:
            source = handle.read()
        return python_functions(source, _module_name(file, root), file.relative_to(root).as_posix())
    except (SyntaxError, ValueError, RecursionError, OSError) as error:
        # Templates and deliberately broken files lie among installed packages.
        _log.debug("%s left out: %s", file, error)
        return []


def _scan(root: Path, files: Iterable[Path]) -> list[CodeExample]:
    found = [example for file in files for example in _functions_of(file, root)]
    index = NearDuplicateIndex(NEAR_DUPLICATE, reference=(example.code for example in found))
    # Of duplicates the documented one is worth keeping.
    order = sorted(range(len(found)), key=lambda at: found[at].docstring is None)
    kept = [at for at in order if index.add(found[at].code)]
    return [found[at] for at in sorted(kept)]


def _fingerprint(root: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256(f"{SCAN_VERSION} {sys.version}".encode())
    for file in files:
        status = file.stat()
        digest.update(f"{file.relative_to(root).as_posix()} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _read_cache(path: Path, key: str) -> list[CodeExample] | None:
    try:
        header, body = path.read_bytes().split(b"\n", 1)
        claim = json.loads(header)
        if claim != {"key": key, "sha256": hashlib.sha256(body).hexdigest()}:
            raise ValueError("key or checksum differ")
        return [CodeExample(**json.loads(line)) for line in body.splitlines()]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, OSError) as error:
        _log.warning("the cached scan %s is damaged (%s); scanning again", path, error)
        return None


def _write_cache(path: Path, key: str, examples: Iterable[CodeExample]) -> None:
    body = "".join(json.dumps(asdict(example)) + "\n" for example in examples).encode()
    header = json.dumps({"key": key, "sha256": hashlib.sha256(body).hexdigest()}).encode()
    try:
        write_atomically(path, header + b"\n" + body)
    except OSError as error:
        _log.warning("the scan of the standard library could not be kept in %s: %s", path, error)


def _scanned(name: str, root: Path, files: list[Path], scan: Callable[[], list[CodeExample]]) -> list[CodeExample]:
    """What a scan found, kept under the cache folder until the interpreter or one of the files changes."""
    key = _fingerprint(root, files)
    path = cache_dir() / f"{name}-{sys.version_info.major}.{sys.version_info.minor}-{key[:16]}.jsonl"
    examples = _read_cache(path, key)
    if examples is None:
        examples = scan()
        _write_cache(path, key, examples)
    return examples


@cache
def _everything(root: Path, folder: Path) -> tuple[CodeExample, ...]:
    del folder  # part of the key: another cache folder is another answer
    if not root.is_dir():
        raise DataError(
            f"stdlib-code: this interpreter's standard library is not a folder of source files ({root}); "
            "use a Python that ships its sources, or another source such as code:DIR"
        )
    files = _python_files(root)
    examples = _scanned("stdlib-code", root, files, lambda: _scan(root, files))
    if not examples:
        raise DataError(f"stdlib-code: no Python functions found under {root}; use another source such as code:DIR")
    return tuple(examples)


def stdlib_code(split: Split = "train", with_docstring: bool = False) -> list[CodeExample]:
    """Deduplicated functions and methods of the standard library, split by top-level module.

    Args:
        split: `train`, `valid`, `test` (about 80/10/10 of the functions, no top-level module in two) or `all`.
        with_docstring: only those that have one.

    The order is that of modules and lines. The first call scans for a few seconds; the result is kept under the cache
    folder until the interpreter or its library changes.
    Raises: ConfigError for an unknown split; DataError when the interpreter has no library sources.
    """
    check_split(split, "stdlib-code")
    examples = _everything(Path(sysconfig.get_path("stdlib")), cache_dir())
    return [
        example
        for example in examples
        if (split == "all" or split_of_module(example.module) == split)
        and (example.docstring is not None or not with_docstring)
    ]


def installed_code(exclude_modules: Iterable[str] = ()) -> list[CodeExample]:
    """Functions of the pure-Python packages installed beside the interpreter, for pre-training.

    Deduplicated among themselves and against the standard library, whose `valid` and `test` splits stay unseen. The
    first call takes minutes where many packages are installed; the result is kept under the cache folder.

    Args:
        exclude_modules: top-level module names to leave out; leaven itself always is.
    """
    root = Path(sysconfig.get_path("purelib"))
    if not root.is_dir():
        return []
    files = _python_files(root, frozenset({"leaven", *exclude_modules}))

    def scan() -> list[CodeExample]:
        known = [example.code for example in stdlib_code("all")]
        index = NearDuplicateIndex(NEAR_DUPLICATE, reference=known)
        for code in known:
            index.add(code)
        return [example for file in files for example in _functions_of(file, root) if index.add(example.code)]

    return _scanned("installed-code", root, files, scan)
