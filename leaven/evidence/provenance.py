"""What a measurement was made with: machine, versions and commit, without names of hosts, people or folders."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from leaven.catalog import checkout


def machine() -> dict[str, Any]:
    """Processor, usable cores, memory in GiB, platform and accelerators."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "cpu": _cpu(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "platform": f"{platform.system()} {platform.machine()}",
        "accelerators": [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())],
    }


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    from leaven import __version__

    found = {"leaven": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(root: Path | None = None) -> dict[str, Any]:
    """Commit of the source tree, and whether the package differs from it; both None outside a git checkout.

    Only the package counts: evidence that the run itself rewrites does not make the tree another one.
    """
    root = root or checkout()
    head = _git(root, "rev-parse", "HEAD") if root is not None else None
    if root is None or head is None:
        return {"commit": None, "dirty": None}
    return {"commit": head.strip(), "dirty": bool((_git(root, "status", "--porcelain", "--", "leaven") or "").strip())}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
