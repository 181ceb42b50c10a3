"""What the loop asks of its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from leaven.contracts import Batch


class DataStream(Protocol):
    """An endless, resumable stream of batches.

    It may also have `set_shard(rank: int, world_size: int)`, called before the first batch; each process then gets its
    own rows of the global batch. A batch's `row` (batch,) int64 is the row's index in the global batch.
    """

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the current position on, without end."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Position as JSON values: the batches handed out so far count as used. The same on every process."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position; the next `iter` starts there."""
        ...


def count_tokens(batch: Batch) -> int:
    """Tokens of a batch as the data give it, before corruption and cutting.

    They are the real positions of every field named `attention_mask` or `*_attention_mask`; without such a field the
    number of elements of `input_ids`, else of the largest field.
    """
    masks = [value for name, value in batch.items() if name == "attention_mask" or name.endswith("_attention_mask")]
    if masks:
        return sum(int(mask.sum()) for mask in masks)
    if "input_ids" in batch:
        return batch["input_ids"].numel()
    return max((value.numel() for value in batch.values()), default=0)


def count_examples(batch: Batch) -> int:
    """Rows in a batch: the length of `row`, else of the first field."""
    field = batch["row"] if "row" in batch else next(iter(batch.values()), None)
    return 0 if field is None else len(field)
