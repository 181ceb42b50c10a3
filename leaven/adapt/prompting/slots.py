"""What a language model predicts at the answer slots of a prompt, whatever its kind and library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from leaven.adapt.peft.prompts import PromptPatch
from leaven.adapt.prompting.template import Demonstration, Encoded, Fields, Kind, Template
from leaven.adapt.prompting.tokenizer import prompt_tokenizer
from leaven.contracts import Batch
from leaven.errors import ConfigError, ModelError

T = TypeVar("T")
_KINDS: dict[str, Kind] = {"text-encoder": "masked", "language-model": "causal", "encoder-decoder": "seq2seq"}


class Slots(NamedTuple):
    """At each answer slot what the output matrix reads (batch, slots, dim), and its scores (batch, slots, vocab)."""

    states: Tensor
    logits: Tensor


class SoftTokens(nn.Module):
    """Learned embeddings for the soft tokens of a template.

    Args:
        ids: the token that each starts as; None for a random one.
        embedded: embeddings of the vocabulary (vocab, dim).

    Source: arXiv 2104.08691 section 2.1 (prompts that start as words).
    """

    def __init__(self, ids: Sequence[int | None], embedded: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        drawn = torch.randint(len(embedded), (len(ids),), generator=generator).tolist()
        chosen = [other if i is None else i for i, other in zip(ids, drawn, strict=True)]
        self.weight = nn.Parameter(embedded[chosen].detach().clone())


class SlotReader:
    """Runs a masked, causal or sequence-to-sequence model on prompts and reads the answer slots.

    Works through hooks on the input embedding and the output matrix, so that the model is used as it is and scores are
    computed at the slots alone: in a causal model the last token, in a sequence-to-sequence one the decoder's.

    Args:
        model: of transformers, or `TextEncoder`, `LanguageModel` or `EncoderDecoder`.
        tokenizer: as in `prompt_tokenizer`.
        kind: "masked", "causal" or "seq2seq"; None asks the model.
        max_length: most tokens of a prompt; None takes what the model has positions for.

    Raises: ModelError for a model without input embedding or output matrix.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, kind: Kind | None = None, max_length: int | None = None):
        self.tokenizer = prompt_tokenizer(tokenizer)
        inner = getattr(model, "inner", model)
        self.model, self.config = model, cast(Any, inner.config)
        self._inner = inner
        self.kind = kind or _kind_of(inner)
        if self.kind not in _KINDS.values():
            raise ConfigError(f"kind={self.kind!r}: expected masked, causal or seq2seq")
        self.embedding, self.output = _ends(inner, self.kind)
        self.max_length = max_length or _context(inner)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    def embedded(self) -> Tensor:
        """The vocabulary as the model's first layer reads it (vocab, dim)."""
        count = cast(Tensor, self.embedding.weight).shape[0]
        with torch.no_grad():
            return cast(Tensor, self.embedding(torch.arange(count, device=self.device)))

    @property
    def dim(self) -> int:
        """Width of the states that the output matrix reads."""
        return int(cast(Tensor, self.output.weight).shape[1])

    def output_rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (..., dim) and biases (...) of the output matrix for these tokens, on the CPU."""
        weight, bias = cast(Tensor, self.output.weight).detach().cpu(), self.output.bias
        return weight[ids], torch.zeros(ids.shape) if bias is None else cast(Tensor, bias).detach().cpu()[ids]

    def read(
        self, prompts: Sequence[Encoded], use: Callable[[Slots], T], *, soft: Tensor | None = None, batch_size: int = 32
    ) -> list[T]:
        """What `use` makes of the slots of each batch of prompts, without gradients and in evaluation mode."""
        with evaluating(self.model), torch.no_grad():
            starts = range(0, len(prompts), batch_size)
            return [use(self(self.batch(prompts[at : at + batch_size]), soft)) for at in starts]

    def batch(self, prompts: Sequence[Encoded]) -> Batch:
        """`collate`, where the model computes."""
        return {name: field.to(self.device) for name, field in self.collate(prompts).items()}

    def encode(
        self, template: Template, fields: Fields, demonstrations: Sequence[Demonstration] = (), width: int = 1
    ) -> Encoded:
        """The prompt of an input, as `Template.encode` makes it, with the decoder's side where there is one."""
        made = template.encode(
            self.tokenizer,
            fields,
            kind=self.kind,
            max_length=self.max_length,
            demonstrations=demonstrations,
            width=width,
        )
        if self.kind != "seq2seq":
            return made
        sentinel = self.tokenizer.sentinel_id
        start = getattr(self.config, "start_id", None)
        start = getattr(self.config, "decoder_start_token_id", None) if start is None else start
        if start is None:
            raise ModelError("the model's configuration has no start token for its decoder: set decoder_start_token_id")
        decoder = [int(start), *([sentinel] if sentinel is not None and not template.promptless else [])]
        return made._replace(decoder=decoder, slots=[len(decoder) - 1])

    def collate(self, prompts: Sequence[Encoded]) -> Batch:
        """A batch of prompts, padded at the end.

        input_ids, attention_mask, soft (batch, tokens); slots (batch, slots); for sequence-to-sequence models
        decoder_input_ids (batch, tokens'), whose padding no slot sees.
        """
        batch = {
            "input_ids": _padded([p.ids for p in prompts], self.tokenizer.pad_id),
            "attention_mask": _padded([[1] * len(p.ids) for p in prompts], 0).bool(),
            "soft": _padded([p.soft for p in prompts], -1),
            "slots": torch.tensor([p.slots for p in prompts]),
        }
        if self.kind == "seq2seq":
            batch["decoder_input_ids"] = _padded([p.decoder for p in prompts], self.tokenizer.pad_id)
        return batch

    def __call__(
        self, batch: Batch, soft: Tensor | None = None, watch: Callable[[Tensor], Tensor] | None = None
    ) -> Slots:
        """Read the slots of a batch of `collate`.

        Args:
            soft: embeddings of the soft tokens (soft tokens, dim).
            watch: sees the input embeddings (batch, tokens, dim), and returns what is to stand in their place.
        """
        seen: list[Tensor] = []
        with self._embeddings(batch, soft, watch), self._gathered(batch["slots"], seen):
            arguments = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"].long()}
            if "decoder_input_ids" in batch:
                arguments["decoder_input_ids"] = batch["decoder_input_ids"]
            out: Any = self._inner(**arguments)
        return Slots(seen[0], out.logits)

    @contextmanager
    def _embeddings(
        self, batch: Batch, soft: Tensor | None, watch: Callable[[Tensor], Tensor] | None
    ) -> Iterator[None]:
        calls = 0

        def change(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls > 1:
                return output
            if soft is not None:
                places = batch["soft"]
                learned = soft[places.clamp(min=0)].to(output.dtype)
                output = torch.where((places >= 0)[..., None], learned, output)
            return output if watch is None else watch(output)

        handle = self.embedding.register_forward_hook(change)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _gathered(self, slots: Tensor, seen: list[Tensor]) -> Iterator[None]:
        """Let the output matrix read the slots alone."""

        def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            states = args[0].gather(1, slots[..., None].expand(-1, -1, args[0].shape[-1]))
            seen.append(states)
            return (states, *args[1:])

        handle = self.output.register_forward_pre_hook(gather)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode within the block."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def _kind_of(model: Any) -> Kind:
    architecture = getattr(model.config, "architecture", None)
    if architecture in _KINDS:
        return _KINDS[architecture]
    if getattr(model.config, "is_encoder_decoder", False):
        return "seq2seq"
    return "causal" if getattr(model, "can_generate", lambda: False)() else "masked"


def _ends(model: Any, kind: Kind) -> tuple[nn.Module, nn.Module]:
    """The input embedding and the output matrix."""
    if hasattr(model, "embed") and hasattr(model, "head"):
        if model.head is None:
            raise ModelError("the text encoder has no masked-token head to fill a slot with: build it with head=True")
        return cast(nn.Module, model.embed.tokens), cast(nn.Module, model.head.proj)
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if output is None:
        raise ModelError(
            f"{type(model).__name__} has no output matrix over a vocabulary to fill a slot with: expected a language "
            "model, such as one of AutoModelForMaskedLM or AutoModelForCausalLM"
        )
    body = model.get_encoder() if kind == "seq2seq" else model
    return cast(nn.Module, body.get_input_embeddings()), cast(nn.Module, output)


def _context(model: Any) -> int | None:
    """Positions that the model has, less the soft tokens that take some."""
    config = model.config
    text = getattr(config, "embedding_positions", 0) - getattr(config, "position_offset", 0)
    trunk = getattr(config, "trunk", None)
    if text > 0:
        limit: int | None = text
    elif trunk is not None:
        limit = trunk.max_positions if trunk.positions == "learned" else None
    else:
        limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        for name, module in model.named_modules():
            # RoBERTa and its kin count positions from behind the padding index.
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                limit = module.num_embeddings - module.padding_idx - 1
    used = sum(m.length for m in model.modules() if isinstance(m, PromptPatch))
    return None if limit is None else limit - used
