"""Models of transformers that the trunk does not express, used as they are behind the same small protocol."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leaven.contracts import Tokens
from leaven.errors import ModelError
from leaven.models.bridge.foreign_cache import ForeignCache, KeptCache, RecomputedCache
from leaven.models.bridge.foreign_probe import Scores, cache_agrees, some_ids
from leaven.models.bridge.names import first_id
from leaven.models.encoder_decoder import ModelOutput


@dataclass(frozen=True)
class ForeignConfig:
    """What the rest of leaven asks of a model's configuration. `theirs` is transformers' own, as plain values."""

    model_type: str
    architecture: str
    vocab: int
    start_id: int
    eos_id: int
    pad_id: int
    theirs: dict[str, Any]


def _config(inner: Any, architecture: str, vocab: int) -> ForeignConfig:
    theirs = inner.config
    text = theirs.get_text_config(decoder=True) if hasattr(theirs, "get_text_config") else theirs

    def of(name: str, otherwise: int) -> int:
        return first_id(getattr(theirs, name, None), first_id(getattr(text, name, None), otherwise))

    pad = of("pad_token_id", of("eos_token_id", 0))
    start = of("decoder_start_token_id", of("bos_token_id", pad))
    return ForeignConfig(theirs.model_type, architecture, vocab, start, of("eos_token_id", -1), pad, theirs.to_dict())


def _long(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.long()


class ForeignEncoderDecoder(nn.Module):
    """A sequence-to-sequence model of transformers behind the protocol of `EncoderDecoder`.

    Example:
        >>> model = ForeignEncoderDecoder(BartForConditionalGeneration(config))  # doctest: +SKIP
        >>> model.logits(model.decode(decoder_input_ids, model.encode(input_ids, attention_mask)))  # doctest: +SKIP
    """

    def __init__(self, inner: Any, reason: str = "") -> None:
        super().__init__()
        self.inner, self.reason = inner, reason
        self.scores = Scores(inner)
        self.eval()
        vocab = inner.get_output_embeddings().weight.shape[0]
        self.config = _config(inner, "encoder-decoder", vocab)
        self._caches = True
        if inner.main_input_name == "input_ids":
            self._try_scores()

    @torch.no_grad()
    def _try_scores(self) -> None:
        ids = some_ids(self.inner, self.config.vocab)
        memory = self.encode(ids)
        scores = self._decoder_scores(ids, memory, None)
        self.scores.find(self._decoder_states(ids, memory, None), scores)
        self._caches = cache_agrees(
            lambda cache, part: self.logits(self.decode(part, memory, cache)), self.make_cache(), ids, scores
        )

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tokens:
        """Encoder states (batch, tokens, dim) and their mask. input_ids: the model's main input, whatever its kind."""
        encoder = self.inner.get_encoder()
        mask = _long(attention_mask)
        out = encoder(**{self.inner.main_input_name: input_ids}, attention_mask=mask)
        return Tokens(out.last_hidden_state, None if mask is None else mask.bool())

    def decode(self, decoder_input_ids: Tensor, memory: Tokens, cache: ForeignCache | None = None) -> Tensor:
        """Decoder states (batch, tokens, dim), to be handed to `logits`. With a cache, the new tokens alone are given.

        The batch may be a multiple of the memory's: consecutive entries then share a source, as beams do.
        """
        given = decoder_input_ids.shape
        branched = cache is not None and cache.beams is not None
        ids = decoder_input_ids.reshape(-1, 1) if branched else decoder_input_ids
        batch, sources, new = len(ids), len(memory.x), ids.shape[1]
        kept = cache if isinstance(cache, KeptCache) else None
        if kept is not None:
            kept.align_memory(batch, sources, ids.device)
        elif isinstance(cache, RecomputedCache):
            ids, _ = cache.extend(ids)
        if batch != sources:
            each = batch // sources
            mask = None if memory.mask is None else memory.mask.repeat_interleave(each, 0)
            memory = Tokens(memory.x.repeat_interleave(each, 0), mask)
        run = self._decoder_scores if self.scores.scale is None else self._decoder_states
        states = run(ids, memory, kept)
        if states is None:
            raise ModelError(f"the decoder of a {self.config.model_type} returns no last_hidden_state")
        return states[:, -new:].reshape(*given, -1)

    def _decoder_states(self, ids: Tensor, memory: Tokens, cache: KeptCache | None) -> Tensor | None:
        out = self.inner.get_decoder()(
            input_ids=ids,
            encoder_hidden_states=memory.x,
            encoder_attention_mask=_long(memory.mask),
            past_key_values=None if cache is None else cache.theirs,
            use_cache=cache is not None,
        )
        states: Tensor | None = getattr(out, "last_hidden_state", None)
        return states

    def _decoder_scores(self, ids: Tensor, memory: Tokens, cache: KeptCache | None) -> Tensor:
        from transformers.modeling_outputs import BaseModelOutput

        out = self.inner(
            encoder_outputs=BaseModelOutput(last_hidden_state=memory.x),
            attention_mask=_long(memory.mask),
            decoder_input_ids=ids,
            past_key_values=None if cache is None else cache.theirs,
            use_cache=cache is not None,
        )
        scores: Tensor = out.logits
        return scores

    def logits(self, states: Tensor) -> Tensor:
        """Scores (..., vocab) of what `decode` returned."""
        scores: Tensor = self.scores(states)
        return scores

    def make_cache(self) -> ForeignCache:
        """An empty cache for `decode`."""
        if not self._caches:
            return RecomputedCache()
        return KeptCache(self.inner.config.get_text_config(decoder=True), memory=True)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> ModelOutput:
        """Loss and logits, as the model itself gives them."""
        if decoder_input_ids is None and labels is None:
            decoder_input_ids = torch.full((len(input_ids), 1), self.config.start_id, device=input_ids.device)
        out = self.inner(
            **{self.inner.main_input_name: input_ids},
            attention_mask=_long(attention_mask),
            decoder_input_ids=decoder_input_ids,
            labels=labels,
            use_cache=False,
        )
        return ModelOutput(out.loss, out.logits)


class ForeignLanguageModel(nn.Module):
    """A causal language model of transformers behind the protocol of `LanguageModel`, in mode "causal" alone."""

    def __init__(self, inner: Any, reason: str = "") -> None:
        super().__init__()
        self.inner, self.reason = inner, reason
        self.scores = Scores(inner)
        self.eval()
        self.config = _config(inner, "language-model", inner.get_output_embeddings().weight.shape[0])
        ids = some_ids(inner, self.config.vocab)
        arguments = self._arguments(None, None, None)
        self._caches = True
        with torch.no_grad():
            scores = self._own_scores(ids, arguments)
            self.scores.find(self._states(ids, arguments), scores)
            self._caches = cache_agrees(
                lambda cache, part: self.logits(self.states(part, cache=cache)), self.make_cache(), ids, scores
            )

    def states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        cache: ForeignCache | None = None,
    ) -> Tensor:
        """States (batch, tokens, dim), to be handed to `logits`. With a cache, the new tokens alone are given.

        attention_mask: (batch, tokens), covering the past as well; after `cache.branch` the cache knows it.
        positions: (batch, tokens) int64, for models that take any.
        """
        ids, mask = input_ids, attention_mask
        if cache is not None and cache.beams is not None:
            ids, mask = input_ids.reshape(-1, 1), cache.beam_mask()
            positions = None if positions is None else positions.reshape(-1, 1)
        new = ids.shape[1]
        if isinstance(cache, RecomputedCache):
            ids, positions = cache.extend(ids, positions)
        run = self._own_scores if self.scores.scale is None else self._states
        states = run(ids, self._arguments(mask, positions, cache if isinstance(cache, KeptCache) else None))
        if states is None:
            raise ModelError(f"a {self.config.model_type} returns no last_hidden_state")
        return states[:, -new:].reshape(*input_ids.shape, -1)

    def _arguments(self, mask: Tensor | None, positions: Tensor | None, cache: KeptCache | None) -> dict[str, Any]:
        arguments: dict[str, Any] = {"attention_mask": _long(mask), "use_cache": cache is not None}
        if cache is not None:
            arguments["past_key_values"] = cache.theirs
        if positions is not None and "position_ids" in inspect.signature(self.inner.forward).parameters:
            arguments["position_ids"] = positions
        return arguments

    def _states(self, ids: Tensor, arguments: dict[str, Any]) -> Tensor | None:
        body = self.inner.base_model
        if body is self.inner:
            return None
        states: Tensor | None = getattr(body(ids, **arguments), "last_hidden_state", None)
        return states

    def _own_scores(self, ids: Tensor, arguments: dict[str, Any]) -> Tensor:
        scores: Tensor = self.inner(ids, **arguments).logits
        return scores

    def logits(self, states: Tensor) -> Tensor:
        """Scores (..., vocab) of what `states` returned."""
        scores: Tensor = self.scores(states)
        return scores

    def make_cache(self) -> ForeignCache:
        """An empty cache for `states`."""
        if not self._caches:
            return RecomputedCache()
        return KeptCache(self.inner.config.get_text_config(decoder=True), memory=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> ModelOutput:
        """Loss of the next token and logits, as the model itself gives them."""
        out = self.inner(input_ids, attention_mask=_long(attention_mask), labels=labels, use_cache=False)
        return ModelOutput(out.loss, out.logits)


class ForeignEncoder(nn.Module):
    """Any other model of transformers: `encode` gives its body's states, `forward` what the model itself gives."""

    def __init__(self, inner: Any, reason: str = "") -> None:
        super().__init__()
        self.inner, self.reason = inner, reason
        self.eval()
        self.config = _config(inner, "encoder", int(getattr(inner.config, "vocab_size", 0) or 0))

    def encode(self, inputs: Tensor, attention_mask: Tensor | None = None) -> Tokens:
        """States (batch, tokens, dim) and their mask; inputs: the model's main input (input_ids, pixel_values, ...).

        Raises: ModelError when the model's body needs more than that or gives no states.
        """
        body = self.inner.base_model
        arguments = {body.main_input_name: inputs}
        if attention_mask is not None and "attention_mask" in inspect.signature(body.forward).parameters:
            arguments["attention_mask"] = attention_mask.long()
        try:
            states = body(**arguments).last_hidden_state
        except (TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"a {self.config.model_type} cannot encode its {body.main_input_name} alone: call the model itself "
                f"(`.inner`), or use as_features and say what to take; transformers says: {error}"
            ) from error
        return Tokens(states, None if attention_mask is None else attention_mask.bool())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model itself gives."""
        return self.inner(*args, **kwargs)


def wrap(inner: Any, reason: str = "") -> ForeignEncoderDecoder | ForeignLanguageModel | ForeignEncoder:
    """A model of transformers behind leaven's protocol. reason: why it is used as it is. It is put in eval mode."""
    if inner.can_generate() and inner.get_output_embeddings() is not None:
        if inner.config.is_encoder_decoder:
            return ForeignEncoderDecoder(inner, reason)
        if inner.main_input_name == "input_ids":
            return ForeignLanguageModel(inner, reason)
    return ForeignEncoder(inner, reason)
