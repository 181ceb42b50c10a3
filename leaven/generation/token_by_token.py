"""The loop that greedy decoding and sampling share: one token per row at a time, done entries drop out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from leaven.generation.constraints import Constraints
from leaven.generation.decoder_state import DecoderState
from leaven.generation.hypotheses import Generated


def extend(
    state: DecoderState,
    logits: Tensor,
    choose: Callable[[Tensor, Tensor], Tensor],
    constraints: Constraints,
    *,
    max_length: int,
    rows_per_entry: int = 1,
) -> Generated:
    """Decode until every row has ended.

    logits: (rows, 1, vocab) of the first new token; the state has been repeated to as many rows.
    choose: takes the constrained logits (open rows, vocab) and the numbers of these rows among all rows, (open rows,),
        and returns tokens (open rows,).

    Returns: ids (batch, rows_per_entry, length), in the order of the rows, and scores (batch, rows_per_entry).
    """
    config = state.model.config
    count, device = len(logits), logits.device
    ids = torch.full((count, max_length), config.pad_id, device=device)
    scores = torch.zeros(count, device=device)
    rows, ended = torch.arange(count, device=device), torch.zeros(count, dtype=torch.bool, device=device)
    length = 0
    for step in range(max_length):
        last = logits[:, -1]
        normaliser = last.logsumexp(-1)
        last = constraints.apply(last, step)
        tokens = choose(last, rows)
        gained = last.gather(1, tokens[:, None])[:, 0] - normaliser
        scores[rows] += gained.masked_fill(ended, 0.0)
        ids[rows, step] = tokens.masked_fill(ended, config.pad_id)
        ended = ended | (tokens == config.eos_id)
        length = step + 1
        entry_ended = ended.view(-1, rows_per_entry).all(1)
        done = int(entry_ended.sum())
        if done == len(entry_ended) or length == max_length:
            break
        # Dropping copies the cache, so it waits until a fair share of the work would go.
        if done and 8 * done >= len(entry_ended):
            entries = (~entry_ended).nonzero()[:, 0]
            state.keep(entries, rows_per_entry)
            kept = (~entry_ended).repeat_interleave(rows_per_entry)
            rows, ended, tokens = rows[kept], ended[kept], tokens[kept]
        logits = state.step(tokens[:, None])
    return Generated(ids[:, :length].reshape(-1, rows_per_entry, length), scores.view(-1, rows_per_entry))
