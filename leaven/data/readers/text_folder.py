"""Reader of `text:PATH`: paragraphs of a text file or of the text files in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from leaven.data.examples import Text
from leaven.data.ledger import Ledger
from leaven.data.readers.paths import files_below, nothing_fits

TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")


def read_paragraphs(path: Path, ledger: Ledger) -> Iterator[tuple[Text, int]]:
    """Paragraphs (runs of lines between blank lines) with the number of their first line.

    A paragraph with a line that is not UTF-8 goes to the ledger, and so does a file without any text.
    """
    lines: list[str] = []
    start, broken, any_text = 0, 0, False
    with path.open("rb") as file:
        for number, raw in enumerate(chain(file, [b""]), start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip()
            except UnicodeDecodeError:
                line, broken = "?", broken or number
            if line.strip():
                any_text = True
                start = start or number
                lines.append(line)
                continue
            if broken:
                ledger.bad(str(path), broken, "paragraph left out: a line is not UTF-8")
            elif lines:
                yield Text("\n".join(lines)), start
            lines, start, broken = [], 0, 0
    if not any_text:
        ledger.bad(str(path), 0, "empty file")


def text_files(spec: str, path: Path) -> list[Path]:
    """The files to read: the one named, or those in the folder. Raises: DataError when there are none."""
    if path.is_file():
        return [path]
    files = files_below(path)
    fitting = [file for file in files if file.suffix.lower() in TEXT_SUFFIXES]
    if not fitting:
        raise nothing_fits(spec, path, files, f"text files ({', '.join(TEXT_SUFFIXES)})")
    return fitting
