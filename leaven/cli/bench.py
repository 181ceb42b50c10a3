"""`leaven bench`: the speed and quality measurements of the source tree."""

from __future__ import annotations

import ast
import difflib
import subprocess
import sys
from pathlib import Path

import typer

from leaven.catalog import checkout
from leaven.cli.listing import AsJson
from leaven.cli.output import print_json, print_table
from leaven.errors import ConfigError


def benchmarks() -> dict[str, Path]:
    """The benchmarks by name. Raises: ConfigError when there is no folder of them."""
    folder = (checkout() or Path.cwd()) / "benchmarks"
    files = sorted(folder.glob("*.py")) if folder.is_dir() else []
    found = {file.stem: file for file in files if not file.stem.startswith("_")}
    if not found:
        raise ConfigError(f"no benchmarks in {folder}: they come with the source tree of leaven, not with the package")
    return found


def _summary(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


_PASSED: list[str] | None = typer.Argument(None, help="Passed on to the benchmark, after --.")


def bench(
    name: str | None = typer.Argument(None, help="Which one to run; without a name they are listed."),
    arguments: list[str] | None = _PASSED,
    as_json: bool = AsJson,
) -> None:
    """List the benchmarks or run one."""
    found = benchmarks()
    if name is None:
        rows = [(one, _summary(file)) for one, file in found.items()]
        if as_json:
            print_json([{"name": one, "what": what} for one, what in rows])
        else:
            print_table(("benchmark", "what"), rows, wrap=True)
        return
    if name not in found:
        near = difflib.get_close_matches(name, found, n=2)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"no benchmark {name!r}: there are {', '.join(found)}.{hint}")
    passed = [*(["--json"] if as_json else []), *(arguments or [])]
    raise typer.Exit(subprocess.call([sys.executable, str(found[name]), *passed]))
