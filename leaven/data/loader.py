"""An endless, resumable, shardable stream of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leaven.contracts import Batch
from leaven.errors import CheckpointError, ConfigError, DataError

Item = Mapping[str, Any]
Indices = NDArray[np.int64]


def _check_shard(rank: int, world_size: int) -> None:
    if world_size < 1 or not 0 <= rank < world_size:
        raise ConfigError(f"Loader: rank {rank} of {world_size} processes; expected 0 <= rank < world_size")


class Loader:
    """Batches without end: epochs follow one another, each in a fresh order that (seed, epoch) decides.

    A global batch of `world_size` equal shares is drawn in an order that depends on its size, not on how it is shared;
    rank r gets the r-th share. So two processes with batch size B see together what one sees with 2B. Every batch has
    the additional field `row` (batch,) int64: the place of each example in the global batch.

    Args:
        items: examples, each a mapping from field to array or number.
        collate: makes a `Batch` of a list of items.
        batch_size: examples per process and batch; give this or `max_tokens`.
        max_tokens: most padded tokens (examples times longest) per process and batch; needs `length`.
        length: tokens of an item, >= 1; needed for `max_tokens` and `bucket`.
        bucket: number of global batches in a window within which examples of like length are put together, then the
            batches shuffled; 0 for none.
        round_to: with `max_tokens`, the number of examples in a global batch is a multiple of this, so that any world
            size that divides it sees the same global batches.
        seed: >= 0.
        shuffle: False keeps the order of the items in every epoch.
        drop_last: leave out the incomplete last batch of an epoch; False completes it with the epoch's first examples.

    Raises: ConfigError for options that contradict each other; DataError when an epoch has no complete batch, or a
    length is below 1.
    """

    def __init__(
        self,
        items: Sequence[Item],
        collate: Callable[[list[Item]], Batch],
        *,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        length: Callable[[Item], int] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
        bucket: int = 0,
        round_to: int = 8,
    ) -> None:
        if (batch_size is None) == (max_tokens is None):
            raise ConfigError("Loader: give either batch_size or max_tokens")
        per_process = batch_size if batch_size is not None else max_tokens
        if per_process is None or per_process < 1:
            raise ConfigError(f"Loader: batch_size or max_tokens is {per_process}, expected at least 1")
        if seed < 0 or bucket < 0 or round_to < 1:
            raise ConfigError(f"Loader: seed {seed}, bucket {bucket}, round_to {round_to}; expected >= 0, >= 0, >= 1")
        if (max_tokens is not None or bucket) and length is None:
            raise ConfigError("Loader: max_tokens and bucket need length, a function from an item to its tokens")
        if len(items) == 0:
            raise DataError("Loader: there are no examples to make batches of")
        self.items = items
        self.collate = collate
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.bucket = bucket
        self.round_to = round_to
        self._per_process = per_process
        self._lengths: Indices | None = None
        if length is not None and (max_tokens is not None or bucket):
            self._lengths = np.array([length(item) for item in items], dtype=np.int64)
            if self._lengths.min() < 1:
                at = int(self._lengths.argmin())
                raise DataError(f"Loader: item {at} has {self._lengths[at]} tokens, expected at least 1")
        self.epoch = 0
        self.batch = 0
        self.rank = self.world_size = -1
        self._plan: list[Indices] = []
        self._planned_epoch = -1
        self.set_shard(rank, world_size)

    def set_shard(self, rank: int, world_size: int) -> None:
        """Take the share of one of `world_size` processes; the position stays. Raises: ConfigError, DataError."""
        _check_shard(rank, world_size)
        if self.max_tokens is not None and self.round_to % world_size:
            raise ConfigError(f"Loader: round_to is {self.round_to}, expected a multiple of the {world_size} processes")
        if world_size != self.world_size:
            self._planned_epoch = -1
        self.rank, self.world_size = rank, world_size
        if not self._batches_of_epoch():
            raise DataError(
                f"Loader: {len(self.items)} examples do not fill one batch of {self._global_size} over {world_size} "
                "processes; lower the batch size, give more data or set drop_last=False"
            )

    @property
    def _global_size(self) -> int:
        """Examples (or padded tokens) of a global batch."""
        return self._per_process * self.world_size

    @property
    def batches_per_epoch(self) -> int:
        """Batches in the current epoch."""
        return len(self._batches_of_epoch())

    def _batches_of_epoch(self) -> list[Indices]:
        if self._planned_epoch != self.epoch:
            self._plan = self._planned(self.epoch)
            self._planned_epoch = self.epoch
        return self._plan

    def _planned(self, epoch: int) -> list[Indices]:
        random = np.random.default_rng([self.seed, epoch])
        count = len(self.items)
        order = random.permutation(count) if self.shuffle else np.arange(count)
        order = self._whole(order.astype(np.int64))
        if self.bucket and self._lengths is not None:
            window = self.bucket * self._examples_per_batch(self._lengths)
            pieces = [order[start : start + window] for start in range(0, len(order), window)]
            order = np.concatenate(
                [piece[np.argsort(self._lengths[piece], kind="stable")] for piece in pieces] or [order]
            )
        if self._lengths is not None and self.max_tokens is not None:
            batches = self._cut_by_tokens(order, self._lengths)
        else:
            batches = list(order.reshape(-1, self._global_size))
        if self.bucket and self.shuffle:
            batches = [batches[at] for at in random.permutation(len(batches))]
        return batches

    def _examples_per_batch(self, lengths: Indices) -> int:
        if self.max_tokens is None:
            return self._global_size
        return max(self._global_size // int(lengths.mean()), self.round_to)

    def _whole(self, order: Indices) -> Indices:
        """The order cut or completed to whole batches (with `max_tokens`: to whole groups of `round_to`)."""
        unit = self._global_size if self.max_tokens is None else self.round_to
        rest = len(order) % unit
        if not rest:
            return order
        if self.drop_last:
            return order[: len(order) - rest]
        return np.resize(order, len(order) - rest + unit)

    def _cut_by_tokens(self, order: Indices, lengths: Indices) -> list[Indices]:
        longest = int(lengths.max())
        if longest * self.round_to > self._global_size:
            raise ConfigError(
                f"Loader: {self.round_to} examples of {longest} tokens do not fit max_tokens {self.max_tokens} on each "
                f"of {self.world_size} processes; raise max_tokens, cut long examples or lower round_to"
            )
        batches: list[Indices] = []
        start, widest = 0, 0
        for at in range(0, len(order), self.round_to):
            group = int(lengths[order[at : at + self.round_to]].max())
            if (at + self.round_to - start) * max(widest, group) > self._global_size:
                batches.append(order[start:at])
                start, widest = at, 0
            widest = max(widest, group)
        if start < len(order):
            batches.append(order[start:])
        return batches

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        plan = self._batches_of_epoch()
        while self.batch >= len(plan):
            self.epoch, self.batch = self.epoch + 1, 0
            plan = self._batches_of_epoch()
        chosen = plan[self.batch]
        share = len(chosen) // self.world_size
        first = self.rank * share
        batch = dict(self.collate([self.items[int(at)] for at in chosen[first : first + share]]))
        batch["row"] = torch.arange(first, first + share)
        self.batch += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        """Position of the next batch, and what must not change for it to mean the same."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "seed": self.seed,
            "items": len(self.items),
            "global_size": self._global_size,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on at a saved position. Raises: CheckpointError when the data, the seed or the global batch differ."""
        now = self.state_dict()
        missing = [name for name in now if name not in state]
        if missing:
            raise CheckpointError(f"Loader: the saved position lacks {', '.join(missing)}")
        for name in ("seed", "items", "global_size"):
            if state[name] != now[name]:
                raise CheckpointError(
                    f"Loader: the position was saved with {name} {state[name]}, now it is {now[name]}; resume with the "
                    "same data, seed and global batch (batch size times processes)"
                )
        self.epoch, self.batch = int(state["epoch"]), int(state["batch"])
