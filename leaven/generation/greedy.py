"""Greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from leaven.generation.constraints import Constraints
from leaven.generation.decoder_state import DecoderState, check_lengths, decoding
from leaven.generation.hypotheses import Generated
from leaven.generation.token_by_token import extend


def greedy(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_length: int = 128,
    min_length: int = 0,
    prefix: Tensor | Sequence[int] | None = None,
    banned_ids: Sequence[int] | None = None,
    allowed_ids: Sequence[int] | None = None,
) -> Generated:
    """Take the most likely token at every step. Arguments as in `beam_search`.

    Returns: ids (batch, 1, length) and scores (batch, 1), the sum of log-probabilities.
    Raises: ConfigError for numbers out of range, an empty batch or an empty vocabulary.
    """
    check_lengths(max_length, min_length)
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
        found = extend(state, logits, lambda scores, _: scores.argmax(-1), constraints, max_length=max_length)
    return found.clone()
