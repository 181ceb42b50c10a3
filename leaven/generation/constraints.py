"""Which tokens may be decoded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leaven.errors import ConfigError


class Constraints:
    """A minimum length and a vocabulary: the scores of what is not allowed become -inf.

    Probabilities are not normalised again, as in Hugging Face's beam search: the score of a sequence stays that which
    the model gives it.

    Args:
        vocab: size of the vocabulary.
        eos_id: the token that ends a sequence, negative when none does; allowed once `min_length` is reached, unless
            it is banned.
        min_length: tokens, the end token not counted, before a sequence may end.
        banned_ids: tokens that are never decoded.
        allowed_ids: when given, all others are banned.

    Raises: ConfigError for an id outside the vocabulary, or when nothing is left.
    """

    def __init__(
        self,
        vocab: int,
        eos_id: int,
        *,
        min_length: int = 0,
        banned_ids: Sequence[int] | None = None,
        allowed_ids: Sequence[int] | None = None,
        device: torch.device | None = None,
    ) -> None:
        if min_length < 0:
            raise ConfigError(f"min_length={min_length}: expected 0 or more tokens")
        for name, ids in (("banned_ids", banned_ids), ("allowed_ids", allowed_ids)):
            outside = [i for i in ids or () if not 0 <= i < vocab]
            if outside:
                raise ConfigError(f"{name} holds {outside[0]}: expected ids in [0, {vocab})")
        self.eos_id, self.min_length = eos_id, min_length
        self.banned: Tensor | None = None
        if banned_ids or allowed_ids is not None:
            ending = [eos_id] if eos_id >= 0 else []
            banned = torch.zeros(vocab, dtype=torch.bool)
            if allowed_ids is not None:
                banned[:] = True
                banned[[*allowed_ids, *ending]] = False
            if banned_ids:
                banned[list(banned_ids)] = True
            left = set((~banned).nonzero()[:, 0].tolist())
            if not left or (min_length and left <= {eos_id}):
                raise ConfigError("banned_ids and allowed_ids leave no token to decode: allow at least one")
            self.banned = banned.to(device)

    def apply(self, scores: Tensor, step: int) -> Tensor:
        """Scores (..., vocab) of the token that follows `step` decoded ones, changed in place."""
        if self.banned is not None:
            scores.masked_fill_(self.banned, -torch.inf)
        if step < self.min_length and self.eos_id >= 0:
            scores[..., self.eos_id] = -torch.inf
        return scores
