"""JSON files that appear whole or not at all."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from leaven.errors import LeavenError


class EvidenceError(LeavenError):
    """Evidence is damaged, inconsistent, or cannot be had from what was measured."""


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step, its folder made if missing; a kill leaves the old contents or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".draft-{path.name}")
    with draft.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write plain values; a figure that is not finite becomes null, which is all that JSON has for it."""
    write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises: EvidenceError naming the file and what is wrong with it."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise EvidenceError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise EvidenceError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise EvidenceError(f"{path}: expected a JSON object")
    return value


def plain(value: Any) -> Any:
    """The value with every figure that is not finite replaced by None."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rounded(value: Any, digits: int = 6) -> Any:
    """The value with every figure rounded to significant digits; whole numbers, such as counts of tokens, are kept."""
    if isinstance(value, dict):
        return {key: rounded(one, digits) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one, digits) for one in value]
    if isinstance(value, float) and math.isfinite(value) and not value.is_integer():
        return float(f"{value:.{digits}g}")
    return value
