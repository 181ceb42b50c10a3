"""Seeds mixed from a run's seed, and the state of the global generators that dropout and user code draw from."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_MASK = (1 << 64) - 1


def mix(*parts: int) -> int:
    """One well-spread seed in [0, 2**63) from several integers; a change in any of them changes every bit.

    Source: the SplitMix64 finalizer (Steele, Lea, Flood 2014).
    """
    state = 0
    for part in parts:
        state = (state + (part & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def seed_global_generators(seed: int) -> None:
    """Seed torch (all devices), numpy and python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def global_rng_state() -> dict[str, Any]:
    """State of the global torch, numpy and python generators as JSON values."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": _encode(torch.get_rng_state()),
        "numpy": [
            kind,
            base64.b64encode(np.asarray(keys, dtype="<u4").tobytes()).decode(),
            position,
            has_gauss,
            cached,
        ],
        "python": [version, list(words), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = _encode(torch.cuda.get_rng_state())
    return state


def set_global_rng_state(state: dict[str, Any]) -> None:
    """Return the global generators to a state of `global_rng_state`."""
    torch.set_rng_state(_decode(state["torch"]))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.frombuffer(base64.b64decode(keys), dtype="<u4"), position, has_gauss, cached))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_decode(state["cuda"]))


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Leave the global generators as they were before the block, whatever it draws."""
    state = global_rng_state()
    try:
        yield
    finally:
        set_global_rng_state(state)


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
