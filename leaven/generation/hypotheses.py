"""What decoding returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Generated(NamedTuple):
    """Decoded sequences, best first.

    ids: (batch, n_best, length) int64, the new tokens alone: no start token, prompt or forced prefix. The end token is
        included and padding follows it; length is that of the longest.
    scores: (batch, n_best), the sum of log-probabilities, which beam search divides by length ** length_penalty; -inf
        where the constraints leave fewer than n_best sequences.
    """

    ids: Tensor
    scores: Tensor

    def clone(self) -> Generated:
        """A copy; made outside inference mode, it can be fed to a model that is being trained."""
        return Generated(self.ids.clone(), self.scores.clone())
