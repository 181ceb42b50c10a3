"""Deterministic splits and sampling rates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

from leaven.errors import ConfigError

T = TypeVar("T")
SplitName = Literal["train", "valid", "test"]
Split = Literal["train", "valid", "test", "all"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test", "all")


def check_split(split: str, where: str) -> None:
    """Raises: ConfigError unless `split` is train, valid, test or all."""
    if split not in SPLITS:
        raise ConfigError(f"{where}: unknown split {split!r}; expected one of {', '.join(SPLITS)}")


def hash_share(key: str, seed: int = 0) -> float:
    """A number in [0, 1) that depends on the key and the seed alone, uniform over keys."""
    # The first 53 bits, so that the quotient is exact and below 1.
    digest = hashlib.sha256(f"{seed}:{key}".encode("utf-8", errors="surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2.0**53


def hash_split(key: str, seed: int = 0) -> SplitName:
    """Split of a key, 80/10/10 in expectation, the same on every machine and whatever other keys there are."""
    share = hash_share(key, seed)
    return "train" if share < 0.8 else "valid" if share < 0.9 else "test"


def assign_splits(keys: Iterable[str], seed: int = 0) -> dict[str, SplitName]:
    """Split of each distinct key by `hash_split`; with three keys or more none of the splits stays empty.

    In a small set a split that got nothing takes one key of the largest split (the one whose hash comes first).
    Fewer than three distinct keys all go to train.
    """
    distinct = sorted(set(keys), key=lambda key: (hash_share(key, seed), key))
    if len(distinct) < 3:
        return dict.fromkeys(distinct, "train")
    assigned: dict[str, SplitName] = {key: hash_split(key, seed) for key in distinct}
    names: tuple[SplitName, ...] = ("train", "valid", "test")
    for name in names:
        taken = list(assigned.values())
        if name not in taken:
            largest = max(taken, key=taken.count)
            assigned[next(key for key in distinct if assigned[key] == largest)] = name
    return assigned


def sample_rates(sizes: Sequence[int], alpha: float = 0.7) -> list[float]:
    """Probability of each task, proportional to size^alpha: 1 samples by size, 0 uniformly.

    Args:
        sizes: examples per task, each >= 1.
        alpha: in [0, 1].

    Raises: ConfigError for an empty list, a size below 1 or an alpha outside [0, 1].
    Source: arXiv 2109.00859 equation 4.
    """
    if not sizes:
        raise ConfigError("sample_rates: no task sizes given; expected at least one")
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"sample_rates: alpha is {alpha}, expected a number from 0 to 1")
    for index, size in enumerate(sizes):
        if size < 1:
            raise ConfigError(
                f"sample_rates: task {index} has {size} examples, expected at least 1; leave empty tasks out"
            )
    weights = [float(size) ** alpha for size in sizes]
    total = sum(weights)
    return [weight / total for weight in weights]


def some_by_hash(items: Sequence[T], most: int) -> list[T]:
    """At most so many items, drawn by a hash of each, in their old order, so that no module crowds out the others."""
    if len(items) <= most:
        return list(items)
    chosen = sorted(range(len(items)), key=lambda at: hash_share(repr(items[at])))[:most]
    return [items[at] for at in sorted(chosen)]
