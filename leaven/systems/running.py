"""Running a system in a folder: its configuration is written first, and a folder is gone on in with the same one."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from leaven.errors import ConfigError, LeavenError
from leaven.evidence.alone import alone_in
from leaven.evidence.json_file import write_json
from leaven.evidence.system import Outcome, System
from leaven.training.distributed import is_main_process

CONFIG = "config.json"


def run_in(system: System[Any], folder: Path) -> Outcome:
    """Run a system in a folder, or go on with a run that was interrupted there.

    Raises: ConfigError when the folder holds a run of another system or configuration, or something else, or another
    process runs in it.
    """
    now = {"system": system.slug, "config": system.config.model_dump(mode="json")}
    if is_main_process():
        _claim_folder(folder, now)
    with alone_in(folder) if is_main_process() else nullcontext():
        try:
            outcome = system.run(folder)
        except LeavenError:
            # What the user got wrong before anything was made must not stand in the way of the next try.
            if is_main_process() and [path.name for path in folder.iterdir()] == [CONFIG]:
                shutil.rmtree(folder)
            raise
        if is_main_process():
            outcome.save(folder)
    return outcome


def _claim_folder(folder: Path, now: dict[str, Any]) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: give a folder with --out")
    if (folder / CONFIG).is_file():
        _check_same(read_run(folder), now, folder)
    elif folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and holds no run of leaven: give another folder with --out")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, now)


def read_run(folder: Path) -> dict[str, Any]:
    """System and configuration of a run. Raises: ConfigError when the folder holds none."""
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(found["system"], str) or not isinstance(found["config"], dict):
            raise ValueError("system and config are missing")
    except FileNotFoundError as error:
        raise ConfigError(f"{folder}: no run of leaven ({CONFIG} is missing)") from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{folder / CONFIG}: cannot be read ({error})") from error
    return dict(found)


def _check_same(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    if before["system"] != now["system"]:
        raise ConfigError(f"{folder} holds a run of {before['system']}, not of {now['system']}: give another --out")
    changed = [
        f"{name} was {before['config'].get(name)!r}, is {value!r}"
        for name, value in now["config"].items()
        if before["config"].get(name) != value
    ]
    if changed:
        raise ConfigError(
            f"{folder} holds a run with other options ({'; '.join(changed)}): give another --out, or "
            f"`--resume {folder}` to go on with its own"
        )
