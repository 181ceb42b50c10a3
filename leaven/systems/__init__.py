"""The 106 systems, one module each in packages by area, and the ways into them."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaven.catalog import card
from leaven.errors import CatalogError

if TYPE_CHECKING:
    from leaven.evidence.system import Outcome, System

_FOLDER = Path(__file__).parent


def built_systems() -> list[str]:
    """Slugs of the systems whose module exists."""
    return sorted(path.stem.replace("_", "-") for path in _FOLDER.glob("*/*.py") if path.stem != "__init__")


def find_system(slug: str) -> type[System[Any]]:
    """The class of a system.

    Raises: CatalogError for an unknown slug, and for a system that is planned but not built.
    """
    known = card(slug)
    found = sorted(_FOLDER.glob(f"*/{known.module}.py"))
    if not found:
        built = built_systems()
        near = difflib.get_close_matches(slug, built, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise CatalogError(f"{slug} is planned but not built; built are {', '.join(built) or 'none yet'}{hint}")
    from leaven.evidence.system import System

    module = importlib.import_module(f"leaven.systems.{found[0].parent.name}.{known.module}")
    return next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, System) and getattr(value, "slug", None) == slug
    )


def run(slug: str, *, out: str | Path | None = None, **options: Any) -> Outcome:
    """Run a system with some options changed; `leaven info SLUG` lists them.

    Args:
        out: folder for what the run makes; a run that finds its own beginnings there goes on from them. By default
            `runs/SLUG`.

    Raises: CatalogError; pydantic's ValidationError for an option out of bounds; ConfigError for a folder that holds
    something else.
    """
    from leaven.systems.running import run_in

    system = find_system(slug)
    folder = Path(out) if out is not None else Path("runs") / slug
    return run_in(system(system.Config(**options)), folder)


def load(model: str | Path) -> Any:
    """A trained model by name: a folder that a run has made, `zoo:NAME` or `hf:ID`, with its tokenizer."""
    from leaven.models.loading import load_model_and_tokenizer

    return load_model_and_tokenizer(model)


def apply(model: str | Path, task: str, text: str, **options: Any) -> list[dict[str, str]]:
    """Use a trained model on an input; see `leaven.systems.applying.apply_model`."""
    from leaven.systems.applying import apply_model

    return apply_model(str(model), task, text, **options)


def compare(*specs: str, **options: Any) -> Any:
    """Systems, `SLUG` or `SLUG:ARM`, on the same data; see `leaven.evidence.compare`."""
    from leaven.evidence.compare import compare as compare_classes

    return compare_classes({spec: find_system(spec.partition(":")[0]) for spec in specs}, **options)
