"""Reader of `code:PATH`: functions of the source files of eight languages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from leaven.data.examples import CodeExample
from leaven.data.grammars import LANGUAGES, language_of, parse
from leaven.data.languages import functions, has_syntax_error
from leaven.data.ledger import Ledger
from leaven.data.python_functions import first_paragraph
from leaven.data.readers.paths import files_below, nothing_fits
from leaven.errors import DataError

if TYPE_CHECKING:
    import tree_sitter

_SKIPPED = frozenset({"node_modules", "__pycache__", "site-packages", "venv"})


def code_files(spec: str, path: Path) -> list[Path]:
    """The source files to read. Raises: DataError when there are none, or the one named is of another language."""
    if path.is_file():
        if language_of(path) is None:
            raise DataError(
                f"{spec}: the suffix {path.suffix!r} belongs to none of the languages {', '.join(LANGUAGES)}"
            )
        return [path]
    files = files_below(path, _SKIPPED)
    fitting = [file for file in files if language_of(file) is not None]
    if not fitting:
        raise nothing_fits(spec, path, files, f"source files of {', '.join(LANGUAGES)}")
    return fitting


def _first_error_line(tree: tree_sitter.Tree) -> int:
    node = tree.root_node
    while True:
        inner = next((child for child in node.children if child.has_error or child.is_missing), None)
        if inner is None or node.is_error:
            return node.start_point[0] + 1
        node = inner


def read_code(path: Path, ledger: Ledger, root: Path | None = None) -> Iterator[CodeExample]:
    """Functions of one file; what cannot be used goes to the ledger with its line.

    A file that is not UTF-8 or empty counts as one bad row (an empty `__init__.py` is usual and does not); in a file
    with a syntax error the functions that parse are still used.

    Args:
        root: folder to which `CodeExample.path` is relative.
    """
    language = language_of(path)
    if language is None:
        return
    try:
        source = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        ledger.bad(str(path), line, f"not UTF-8 at byte {error.start}")
        return
    if not source.strip():
        if path.name != "__init__.py":
            ledger.bad(str(path), 0, "empty file")
        return
    tree = parse(source, language)
    damaged, reported = tree.root_node.has_error, False
    shown = path.relative_to(root).as_posix() if root is not None else path.name
    for span in functions(source, language):
        if damaged and has_syntax_error(source[span.start : span.end], language):
            ledger.bad(str(path), span.start_line, f"function {span.name!r} does not parse as {language}")
            reported = True
            continue
        docstring = first_paragraph(span.docstring) if span.docstring else None
        yield CodeExample(
            code=span.code,
            language=language,
            name=span.name,
            docstring=docstring or None,
            module=shown.rsplit(".", 1)[0].replace("/", "."),
            path=shown,
            line=span.start_line,
        )
    if damaged and not reported:
        ledger.bad(str(path), _first_error_line(tree), f"syntax error: does not parse as {language}")
