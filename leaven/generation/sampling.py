"""Sampling: from the whole distribution, or its top k or nucleus."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leaven.errors import ConfigError
from leaven.generation.constraints import Constraints
from leaven.generation.decoder_state import DecoderState, check_lengths, decoding
from leaven.generation.hypotheses import Generated
from leaven.generation.token_by_token import extend


def sample(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    generator: torch.Generator,
    samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    max_length: int = 128,
    min_length: int = 0,
    prefix: Tensor | Sequence[int] | None = None,
    banned_ids: Sequence[int] | None = None,
    allowed_ids: Sequence[int] | None = None,
) -> Generated:
    """Draw every token at random; the same generator state gives the same ids.

    Args:
        generator: source of all randomness, on the device of the model or on the CPU.
        samples: independent sequences per entry of the batch, >= 1.
        temperature, top_k, top_p: see `filter_logits`.
        Others as in `beam_search`.

    Returns: ids (batch, samples, length) in the order drawn, and scores (batch, samples): the sum of the
        log-probabilities that the model itself gives, before temperature and truncation.
    Raises: ConfigError for numbers out of range, an empty batch or an empty vocabulary.
    """
    check_lengths(max_length, min_length)
    check_filter(temperature, top_k, top_p)
    if samples < 1:
        raise ConfigError(f"samples={samples}: expected at least 1")
    with decoding(model):
        state = DecoderState(model, input_ids, attention_mask, prefix)
        logits = state.begin().repeat_interleave(samples, dim=0)
        if samples > 1:
            state.repeat(samples)
        constraints = Constraints(
            logits.shape[-1],
            state.model.config.eos_id,
            min_length=min_length,
            banned_ids=banned_ids,
            allowed_ids=allowed_ids,
            device=logits.device,
        )
        count = len(logits)

        def choose(scores: Tensor, rows: Tensor) -> Tensor:
            # One number per row whether or not it has ended, so that no row's draws depend on when others end.
            uniform = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
            return draw(filter_logits(scores, temperature, top_k, top_p), uniform.to(scores.device)[rows])

        found = extend(state, logits, choose, constraints, max_length=max_length, rows_per_entry=samples)
    return found.clone()


def check_filter(temperature: float, top_k: int | None, top_p: float) -> None:
    """Raises: ConfigError for numbers that `filter_logits` cannot use."""
    if not temperature > 0:
        raise ConfigError(f"temperature={temperature}: expected above 0; for the most likely token use greedy decoding")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k={top_k}: expected at least 1, or None for the whole vocabulary")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p={top_p}: expected in (0, 1]")


def filter_logits(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """Divide logits (rows, vocab) by the temperature, then set to -inf all but the top k, then all but the nucleus.

    The nucleus is the smallest set of most likely tokens that holds at least `top_p` of the probability.

    Raises: ConfigError for numbers out of range. Source: arXiv 1904.09751 section 3.1 (nucleus).
    """
    check_filter(temperature, top_k, top_p)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k)[0][:, -1:], -torch.inf)
    if top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(-1)
        outside = probability.cumsum(-1) - probability >= top_p
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(1, index, outside), -torch.inf)
    return logits


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (rows,) by inversion of the distribution of logits (rows, vocab) at uniform numbers (rows,) in [0, 1)."""
    cumulative = logits.double().softmax(-1).cumsum(-1)
    token = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    # Rounding may carry the number to the very end, where only tokens without probability would be left.
    last = logits.shape[-1] - 1 - logits.isfinite().flip(-1).int().argmax(-1, keepdim=True)
    return token.minimum(last)[:, 0]
