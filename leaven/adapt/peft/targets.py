"""Which linear maps a user means: name patterns and roles."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from leaven.adapt.peft.sites import ROLES, UNKNOWN_LAYOUT, Projection, projections
from leaven.errors import ConfigError

_PRESETS = {"attention": ROLES[:4], "ffn": ROLES[4:]}


def select(model: nn.Module, targets: str | Sequence[str]) -> list[Projection]:
    """Projections that the targets name.

    Args:
        targets: glob patterns on module names (`*.attn.*_proj`), roles separated by commas (`q,v`, `attention`, `ffn`),
            or both (`blocks.[0-4].*:k,v`); one string or several.

    Raises: ConfigError for a target that names nothing (with the nearest names), for an unknown role, and for a fused
        matrix whose parts cannot be told apart.
    """
    known = projections(model)
    chosen: dict[tuple[str, int], Projection] = {}
    for target in (targets,) if isinstance(targets, str) else targets:
        pattern, roles = _parse(target)
        found = [p for p in known if fnmatchcase(p.module, pattern) and (roles is None or p.role in roles)]
        unsplit = [p for p in known if p.role == UNKNOWN_LAYOUT and fnmatchcase(p.module, pattern)]
        if unsplit and (roles is None or set(roles) & set("qkv")):
            raise ConfigError(
                f"targets={target!r}: the layout of the fused matrix {unsplit[0].module!r} is not known, so its q, k "
                "and v cannot be told apart: leave it out, or split it into separate linear layers first"
            )
        if not found:
            raise ConfigError(f"targets={target!r} {why_nothing(model, pattern, known)}")
        chosen |= {(p.name, p.start): p for p in found}
    return [p for p in known if (p.name, p.start) in chosen]


def roles_in(place: str) -> tuple[str, ...] | None:
    """The roles that a string like `q,v` or `attention` lists, or None when it is something else."""
    names = place.split(",")
    if not all(name in ROLES or name in _PRESETS for name in names):
        return None
    return tuple(role for name in names for role in _PRESETS.get(name, (name,)))


def _parse(target: str) -> tuple[str, tuple[str, ...] | None]:
    pattern, colon, listed = target.rpartition(":")
    roles = roles_in(listed)
    if colon:
        if roles is None:
            raise ConfigError(f"targets={target!r}: {listed!r} lists no roles: expected some of {', '.join(ROLES)}")
        return pattern, roles
    return ("*", roles) if roles is not None else (target, None)


def why_nothing(model: nn.Module, pattern: str, known: Sequence[Projection]) -> str:
    """The end of a message about a pattern that fits nothing: what it does name, and the nearest candidates."""
    other = [f"{n} ({type(m).__name__})" for n, m in model.named_modules() if n and fnmatchcase(n, pattern)]
    shown: dict[str, list[str]] = {}
    for p in known:
        shown.setdefault(re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", p.module), []).append(p.role or "no role")
    listed = [f"{name} ({', '.join(dict.fromkeys(roles))})" for name, roles in shown.items()]
    near = difflib.get_close_matches(pattern, listed, n=8, cutoff=0.0)
    only = f"names only {', '.join(other[:2])}, no linear map of that role" if other else "names no module"
    return f"{only}; the nearest candidates are {'; '.join(near)}" if near else f"{only}: the model has no linear layer"
