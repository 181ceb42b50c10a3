"""What corruptions share: noise that does not depend on how a batch is sharded, compaction, and sentinels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from leaven.contracts import Batch


def _mix(x: Tensor) -> Tensor:
    # splitmix64; int64 arithmetic wraps, and the mask makes the shift logical.
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * -4658895280553007687
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * -7723592293110705685
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def row_noise(batch: Batch, columns: int, generator: torch.Generator) -> Tensor:
    """Uniform noise in [0, 1), float64 (batch, columns), from the generator's next number and each row's global index.

    With the field `row` (batch,) int64, a row gets the same noise whichever process holds it and however wide the batch
    is padded; without it rows are numbered from 0. Source of the hash: splitmix64 (Steele et al. 2014).
    """
    example = next(field for field in batch.values() if field.ndim)
    rows = batch.get("row", torch.arange(len(example), device=example.device))
    key = int(torch.randint(2**62, (), generator=generator))
    column = torch.arange(columns, device=example.device)
    counter = _mix(rows[:, None] * -7046029254386353131 + key) + column * -7046029254386353131
    return ((_mix(counter) >> 11) & ((1 << 53) - 1)).double() / (1 << 53)


def compact(values: Tensor, keep: Tensor, pad: int) -> Tensor:
    """Kept entries of each row moved to the left, the rest padded, cut to the longest row.

    Shapes: values (batch, tokens), keep (batch, tokens) bool -> (batch, longest), at least one column.
    """
    lengths = keep.sum(1)
    width = max(int(lengths.max()), 1)
    order = torch.argsort(~keep, dim=1, stable=True)[:, :width]
    out = values.gather(1, order)
    return out.masked_fill(torch.arange(width, device=out.device) >= lengths[:, None], pad)


class Corrupted(NamedTuple):
    """inputs and labels (batch, tokens) int64, padded with pad and IGNORE."""

    inputs: Tensor
    labels: Tensor


def replace_by_sentinels(
    tokens: Tensor,
    mask: Tensor,
    group: Tensor,
    run: Tensor,
    *,
    sentinels: Tensor,
    end_id: int,
    pad_id: int,
    ignore: int,
    max_inputs: int,
    max_labels: int,
) -> Corrupted:
    """Replace each run of grouped tokens by its group's sentinel; the target lists each group once.

    tokens, mask: (batch, tokens), mask True at real tokens. group: (batch, tokens) int64, index of the sentinel that
    stands for a token, -1 to keep the token. run: (batch, tokens) int64, tells apart neighbouring runs of one group.
    The target is `sentinel tokens` of each group's first run, in order, then the end token. Inputs are cut to
    `max_inputs` after corruption, and groups whose first sentinel was cut away leave the target.
    """
    batch, length = tokens.shape
    hidden = (group >= 0) & mask
    before_group = torch.cat([group.new_full((batch, 1), -1), group[:, :-1]], 1)
    before_run = torch.cat([run.new_full((batch, 1), -1), run[:, :-1]], 1)
    starts = hidden & ((group != before_group) | (run != before_run))
    place = ((mask & ~hidden) | starts).long().cumsum(1) - 1
    sentinel = sentinels[group.clamp(min=0)]
    keep = ((mask & ~hidden) | starts) & (place < max_inputs)
    inputs = compact(torch.where(starts, sentinel, tokens), keep, pad_id)

    # The first run of a group is the one whose start is the group's earliest.
    position = torch.arange(length, device=tokens.device).expand(batch, -1)
    first = torch.full((batch, len(sentinels)), length, device=tokens.device)
    first.scatter_reduce_(1, group.clamp(min=0), torch.where(starts, position, length), "amin")
    run_start = torch.where(starts, position, 0).cummax(1).values
    listed = hidden & (run_start == first.gather(1, group.clamp(min=0))) & (place < max_inputs)
    listed = listed & (place.gather(1, run_start) < max_inputs)
    pieces = torch.stack([torch.where(starts, sentinel, 0), tokens], dim=2).flatten(1)
    use = torch.stack([starts & listed, listed], dim=2).flatten(1)
    pieces = torch.cat([pieces, pieces.new_full((batch, 1), end_id)], 1)
    use = torch.cat([use, use.new_ones(batch, 1)], 1)
    use = use & (use.long().cumsum(1) <= max_labels)
    return Corrupted(inputs, compact(pieces, use, ignore))
