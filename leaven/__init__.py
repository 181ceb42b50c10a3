"""leaven: pre-training, adapting, merging, retrieving and generating, from 106 papers in one library.

`leaven.run`, `leaven.apply`, `leaven.load` and `leaven.compare` mirror the command line; `leaven.catalog` says which
systems exist. Nothing is imported before it is asked for, so that `import leaven` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {"run": "leaven.systems", "load": "leaven.systems", "apply": "leaven.systems", "compare": "leaven.systems"}


def __getattr__(name: str) -> Any:
    # Names as strings: an import statement here would tie every room of the house to the topmost one.
    if name == "catalog":
        return import_module("leaven.catalog")
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'leaven' has no attribute {name!r}: there are catalog, {', '.join(_PUBLIC)}")


def __dir__() -> list[str]:
    return ["__version__", "catalog", *_PUBLIC]
