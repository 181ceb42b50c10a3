"""The folder of a claim run or a comparison: what was measured so far, under which configuration."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leaven.errors import ConfigError
from leaven.evidence.entrants import Entrant
from leaven.evidence.json_file import EvidenceError, read_json, write_json, write_text
from leaven.evidence.system import Measurement

_LABEL = re.compile(r"[\w.+-]+(:[\w.+-]+)?")
_PROTOCOL = "protocol.json"


class RunFolder:
    """Results by seed and entrant, each written whole when it is finished, under the configurations of protocol.json.

    Raises: ConfigError when the folder holds results of another configuration: it names what changed. Nothing is
    written then.
    """

    def __init__(self, path: Path, entrants: Sequence[Entrant], *, tier: str, smoke: bool) -> None:
        self.path, self.tier, self.smoke = path, tier, smoke
        self._entrants = {one.label: one for one in entrants}
        for label in self._entrants:
            if not _LABEL.fullmatch(label):
                raise ConfigError(f"{label!r} cannot be a file's name: an arm has letters, digits and . + - _ alone")
        configs = {label: self._config(label, 0) for label in self._entrants}
        self.configs = {label: _without_seed(config) for label, config in configs.items()}
        mine = {
            "tier": tier,
            "smoke": smoke,
            "entrants": {
                label: {"system": one.system.slug, "arm": one.arm, "config": self.configs[label]}
                for label, one in self._entrants.items()
            },
        }
        self._protocol = self._reconciled(mine)

    def begin(self) -> None:
        """Make the folder and put the protocol on record."""
        write_json(self.path / _PROTOCOL, self._protocol)

    def abandon(self) -> None:
        """Leave no trace of a run that failed before it had anything to keep."""
        for folder in sorted(self.path.glob("seed-*/**"), reverse=True):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if not any(self.path.glob("seed-*")):
            (self.path / _PROTOCOL).unlink(missing_ok=True)
            if self.path.is_dir() and not any(self.path.iterdir()):
                self.path.rmdir()

    def work(self, seed: int, label: str) -> Path:
        """The folder that an entrant works and resumes in."""
        return self._stem(seed, label)

    def finished(self, seed: int, label: str) -> Measurement | None:
        """The result of an entrant under a seed, None while there is none.

        Raises: EvidenceError for a damaged file, ConfigError for a result of another configuration.
        """
        file = self._file(seed, label)
        if not file.exists():
            return None
        values = read_json(file)
        if values.get("digest") != self._digest(seed, label):
            raise ConfigError(
                f"{file}: the result of another configuration than that of {label} now; remove the file "
                "or choose another folder"
            )
        try:
            return Measurement.from_json(values["measurement"])
        except (LookupError, TypeError) as error:
            raise EvidenceError(f"{file}: not a result ({error!r}); remove it to measure again") from error

    def keep(self, seed: int, label: str, measurement: Measurement, provenance: Mapping[str, Any]) -> Measurement:
        """Write a result and give it as a later run will read it: figures of numpy and torch have become numbers.

        Diverged figures (nan, inf) are kept as they are: Python's own reader alone has to read this file.
        """
        values = {
            "digest": self._digest(seed, label),
            "config": self._config(label, seed),
            "provenance": dict(provenance),
            "measurement": measurement.to_json(),
        }
        text = json.dumps(values, indent=1, default=_number)
        write_text(self._file(seed, label), text + "\n")
        return Measurement.from_json(json.loads(text)["measurement"])

    def provenance(self, seed: int, label: str) -> dict[str, Any]:
        """What a finished result was made with."""
        found = read_json(self._file(seed, label)).get("provenance")
        return found if isinstance(found, dict) else {}

    def _stem(self, seed: int, label: str) -> Path:
        # A colon cannot be part of a file's name everywhere.
        return self.path / f"seed-{seed}" / label.replace(":", "@")

    def _file(self, seed: int, label: str) -> Path:
        stem = self._stem(seed, label)
        return stem.with_name(f"{stem.name}.json")

    def _config(self, label: str, seed: int) -> dict[str, Any]:
        system = self._entrants[label].configured(tier=self.tier, smoke=self.smoke, seed=seed)
        config: dict[str, Any] = json.loads(system.config.model_dump_json())
        return config

    def _digest(self, seed: int, label: str) -> str:
        one = self._entrants[label]
        values = [one.system.slug, one.arm, self.tier, self.smoke, self._config(label, seed)]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def _reconciled(self, mine: dict[str, Any]) -> dict[str, Any]:
        file = self.path / _PROTOCOL
        if not file.exists():
            if self.path.is_dir() and any(self.path.glob("seed-*")):
                raise ConfigError(
                    f"{self.path}: has results but no {_PROTOCOL}; choose another folder or remove this one"
                )
            if self.path.exists() and not self.path.is_dir():
                raise ConfigError(f"{self.path}: is a file; choose a folder")
            return mine
        before = read_json(file)
        changed = [
            f"{name} was {_shown(before.get(name))}, is {_shown(mine[name])}"
            for name in ("tier", "smoke")
            if before.get(name) != mine[name]
        ]
        old = before.get("entrants")
        if not isinstance(old, dict):
            raise EvidenceError(f"{file}: names no entrants; choose another folder or remove this one")
        for label, entry in mine["entrants"].items():
            if label in old:
                changed += [f"{label}: {one}" for one in _differences(old[label], entry)]
        if changed:
            raise ConfigError(
                f"{self.path} holds results of another configuration ({'; '.join(changed)}); "
                "choose another folder or remove this one"
            )
        return {**mine, "entrants": {**old, **mine["entrants"]}}


def _number(value: Any) -> Any:
    if not hasattr(value, "item"):
        raise EvidenceError(f"a measurement holds {value!r}: expected numbers, text, lists and dicts of them")
    return value.item()


def _without_seed(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "seed"}


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            one
            for key in sorted({*old, *new})
            for one in _differences(
                old.get(key, "unset"), new.get(key, "unset"), key if name in ("", "config") else f"{name}.{key}"
            )
        ]
    return [f"{name} was {_shown(old)}, is {_shown(new)}"]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
