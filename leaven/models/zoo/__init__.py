"""The zoo: small models that leaven made itself and ships, one folder each with `leaven.json` and `card.json`."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from leaven.errors import ModelError

CARD_FIELDS = ("what", "data", "seed", "command", "sha256", "parameters", "size_bytes")
"""What a card says: the model in a line, its data, the seed and command that made it, its checksum and sizes."""

SHIPPED = Path(__file__).parent


def zoo_names(root: Path | None = None) -> list[str]:
    """Names of the models in the zoo, sorted. root: another zoo's folder than the one that ships with leaven."""
    return sorted(path.parent.name for path in (root or SHIPPED).glob("*/leaven.json"))


def zoo_folder(name: str, root: Path | None = None) -> Path:
    """The model folder of a name. Raises: ModelError for an unknown name, saying which exist and what was meant."""
    names = zoo_names(root)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"; did you mean zoo:{near[0]}?" if near else ""
        exist = f"the zoo has {', '.join(names)}" if names else "the zoo is empty"
        raise ModelError(f"there is no zoo:{name}: {exist}{hint}")
    return (root or SHIPPED) / name


def zoo_card(name: str, root: Path | None = None) -> dict[str, Any]:
    """The card of a model, with the fields of `CARD_FIELDS`. Raises: ModelError when it is missing or incomplete."""
    path = zoo_folder(name, root) / "card.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"zoo:{name} has no readable card: {error}") from error
    missing = [field for field in CARD_FIELDS if not isinstance(card, dict) or field not in card]
    if missing:
        raise ModelError(f"{path} lacks {', '.join(missing)}")
    return dict(card)
