"""Beam search on a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from leaven.errors import ConfigError
from leaven.generation.constraints import Constraints
from leaven.generation.decoder_state import DecoderState, check_lengths, decoding
from leaven.generation.hypotheses import Generated

_CHUNK = 64


def beam_search(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    beams: int = 5,
    n_best: int = 1,
    max_length: int = 128,
    min_length: int = 0,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    prefix: Tensor | Sequence[int] | None = None,
    banned_ids: Sequence[int] | None = None,
    allowed_ids: Sequence[int] | None = None,
) -> Generated:
    """The sequences of highest score, sum of log-probabilities / length ** length_penalty, that a beam search finds.

    Gives what `generate(num_beams=beams, max_new_tokens=max_length)` of Hugging Face gives. An entry of the batch is
    done when no running beam can beat its worst kept sequence: judged by the present length (`early_stopping=False`) or
    by the length that would favour the beam most ("never"); True stops as soon as `beams` sequences have ended.

    Args:
        model: encoder-decoder or decoder-only model, see `DecoderState`.
        input_ids: (batch, tokens) int64, source or prompt.
        attention_mask: (batch, tokens), 0 or False at padding.
        beams: running hypotheses per entry, >= 1. n_best: sequences returned per entry, in [1, beams].
        max_length: most new tokens, the end token included. min_length: fewest, the end token not counted.
        length_penalty: above 0 favours long sequences, below 0 short ones.
        prefix: (prefix,) or (batch, prefix) ids that every sequence is forced to begin with; not returned or scored.
        banned_ids, allowed_ids: constrain the vocabulary, see `Constraints`.

    Returns: ids (batch, n_best, length) and scores (batch, n_best), best first.
    Raises: ConfigError for numbers out of range, an empty batch or an empty vocabulary.
    Source: transformers `generation/utils.py`, `_beam_search`.
    """
    check_lengths(max_length, min_length)
    if beams < 1:
        raise ConfigError(f"beams={beams}: expected at least 1")
    if not 1 <= n_best <= beams:
        raise ConfigError(f"n_best={n_best}: expected between 1 and beams={beams}")
    if early_stopping not in (True, False, "never"):
        raise ConfigError(f"early_stopping={early_stopping!r}: expected True, False or 'never'")
    with decoding(model):
        state = DecoderState(model, input_ids, attention_mask, prefix)
        logits = state.begin()
        constraints = Constraints(
            logits.shape[-1],
            state.model.config.eos_id,
            min_length=min_length,
            banned_ids=banned_ids,
            allowed_ids=allowed_ids,
            device=logits.device,
        )
        search = _Search(
            state,
            constraints,
            logits,
            beams=beams,
            max_length=max_length,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
        )
        found = search.run(logits, n_best)
    return found.clone()


class _Search:
    """Running and ended hypotheses of the entries still open."""

    def __init__(
        self,
        state: DecoderState,
        constraints: Constraints,
        logits: Tensor,
        *,
        beams: int,
        max_length: int,
        length_penalty: float,
        early_stopping: bool | Literal["never"],
    ) -> None:
        self.state, self.constraints = state, constraints
        self.beams, self.max_length = beams, max_length
        self.length_penalty, self.early_stopping = length_penalty, early_stopping
        batch, device, pad_id = len(logits), logits.device, state.model.config.pad_id
        self.sequences = torch.full((batch, beams, max_length), pad_id, device=device)
        self.ended = self.sequences.clone()
        self.ended_scores = torch.full((batch, beams), -torch.inf, device=device)
        self.scores = torch.zeros(batch, 1, device=device)
        self.done = torch.zeros(batch, 1, dtype=torch.bool, device=device)
        self.entries = torch.arange(batch, device=device)
        self.all_ended, self.all_scores = self.ended.clone(), self.ended_scores.clone()

    def run(self, logits: Tensor, n_best: int) -> Generated:
        """Search from the scores (batch, 1, vocab) of the first token on."""
        self.state.branch(self.beams)
        for step in range(self.max_length):
            parents = self._advance(logits, step)
            if step + 1 == self.max_length or bool(self.done.all()):
                break
            if step:
                self.state.cache.follow(parents)
            self._drop_done()
            logits = self.state.step(self.sequences[:, :, step])
        self._store()
        ids, scores = self.all_ended[:, :n_best], self.all_scores[:, :n_best]
        pad_id = self.state.model.config.pad_id
        width = int(self._lengths(ids, scores).max())
        return Generated(ids[..., :width].masked_fill(scores[..., None].isneginf(), pad_id), scores)

    def _lengths(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Tokens up to the end token or, where a sequence was cut, all of them."""
        ends = ids == self.constraints.eos_id
        lengths = torch.where(ends.any(-1), ends.long().argmax(-1) + 1, ids.shape[-1])
        return lengths.masked_fill(scores.isneginf(), 0)

    def _advance(self, logits: Tensor, step: int) -> Tensor:
        """Choose the next tokens; returns the beams (open entries, beams) that they continue."""
        vocab = logits.shape[-1]
        totals = logits.log_softmax(-1).add_(self.scores[..., None])
        totals = self.constraints.apply(totals, step).flatten(1)
        candidates, index = _top(totals, 2 * self.beams)
        parents, tokens = index // vocab, index % vocab
        ends = tokens == self.constraints.eos_id
        last = step + 1 == self.max_length
        if last or bool(ends[:, : self.beams].any()):
            self._end(candidates, parents, tokens, ends | last, step)
        self.scores, chosen = candidates.masked_fill(ends, -torch.inf).topk(self.beams)
        parents, tokens = parents.gather(1, chosen), tokens.gather(1, chosen)
        if step:
            self.sequences = self.sequences.gather(1, parents[:, :, None].expand_as(self.sequences))
        self.sequences[:, :, step] = tokens
        self._judge(step)
        return parents

    def _end(self, scores: Tensor, parents: Tensor, tokens: Tensor, ends: Tensor, step: int) -> None:
        """Keep the best of the sequences that have ended before and those that end now."""
        scores, parents, tokens = scores[:, : self.beams], parents[:, : self.beams], tokens[:, : self.beams]
        scores = scores / (step + 1) ** self.length_penalty
        scores = scores.masked_fill(self.done | ~ends[:, : self.beams], -torch.inf)
        now = self.sequences.gather(1, parents[:, :, None].expand_as(self.sequences))
        now[:, :, step] = tokens
        self.ended_scores, kept = torch.cat([self.ended_scores, scores], dim=1).topk(self.beams)
        both = torch.cat([self.ended, now], dim=1)
        self.ended = both.gather(1, kept[:, :, None].expand(-1, -1, both.shape[2]))

    def _judge(self, step: int) -> None:
        """Find the entries that are done."""
        favourable = self.max_length if self.early_stopping == "never" and self.length_penalty > 0 else step + 1
        hope = self.scores[:, :1] / favourable**self.length_penalty
        worst = self.ended_scores[:, -1:]
        self.done = self.done | (hope <= worst)
        if self.early_stopping is True:
            self.done = self.done | ~worst.isneginf()

    def _store(self) -> None:
        self.all_ended[self.entries], self.all_scores[self.entries] = self.ended, self.ended_scores

    def _drop_done(self) -> None:
        # Dropping copies the cache, so it waits until a fair share of the work would go.
        done = int(self.done.sum())
        if not done or 8 * done < len(self.done):
            return
        self._store()
        keep = (~self.done[:, 0]).nonzero()[:, 0]
        self.state.keep(keep)
        self.entries, self.scores, self.done = self.entries[keep], self.scores[keep], self.done[keep]
        self.sequences, self.ended, self.ended_scores = self.sequences[keep], self.ended[keep], self.ended_scores[keep]


def _top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of scores (rows, n) and their columns, descending; -inf fills up when there are fewer.

    The highest lie in the chunks of highest maximum, so only those are sorted: finding maxima is much the cheaper part.
    """
    rows, n = scores.shape
    head = n - n % _CHUNK
    if head // _CHUNK <= count:
        top, index = scores.topk(min(count, n))
        if n < count:
            missing = count - n
            top = torch.cat([top, top.new_full((rows, missing), -torch.inf)], dim=1)
            index = torch.cat([index, index.new_zeros(rows, missing)], dim=1)
        return top, index
    chunks = scores[:, :head].view(rows, -1, _CHUNK)
    chosen = chunks.amax(-1).topk(count)[1]
    near = chunks.gather(1, chosen[:, :, None].expand(-1, -1, _CHUNK)).flatten(1)
    top, place = torch.cat([near, scores[:, head:]], dim=1).topk(count)
    inside = place < count * _CHUNK
    column = chosen.gather(1, (place // _CHUNK).clamp(max=count - 1)) * _CHUNK + place % _CHUNK
    return top, torch.where(inside, column, place - count * _CHUNK + head)
