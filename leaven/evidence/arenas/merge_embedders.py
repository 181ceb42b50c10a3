"""Text encoders as embedding models: one vector per text, its lower layers computed once, trained by contrast."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.contracts import Batch, Tokens
from leaven.data.loader import Loader
from leaven.errors import ConfigError, ModelError
from leaven.evidence.arenas.merge_exams import TextRow
from leaven.evidence.arenas.merge_ground import LazyBatches
from leaven.models.encoder import TextEncoder
from leaven.models.loading import load_model_and_tokenizer, model_folder
from leaven.models.trunk import Trunk

ROWS = 32
"""Texts that are encoded at a time when nothing is learned."""


@dataclass(frozen=True)
class TextModel:
    """A text encoder, its tokenizer (of the library `tokenizers`) and the folder that both come from."""

    encoder: TextEncoder
    tokenizer: Any
    folder: Path


def open_text_model(spec: str, longest: int) -> TextModel:
    """The text encoder of a name.

    Args:
        spec: minilm (all-MiniLM-L6-v2, of the extra of that name), zoo:NAME, hf:ID or a folder with `tokenizer.json`.
        longest: tokens that a text is cut to.

    Raises: ModelError for anything but a text encoder with a tokenizer, and where the extra is missing.
    """
    from tokenizers import Tokenizer

    model = load_model_and_tokenizer(spec).model
    if not isinstance(model, TextEncoder):
        raise ModelError(f"{spec} is a {type(model).__name__}: expected a text encoder, such as BERT")
    folder = model_folder(spec)
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{spec} has no tokenizer.json: save the tokenizer in its fast form beside the model")
    _require_mean_pooling(folder, spec)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(min(longest, model.config.embedding_positions))
    return TextModel(model, tokenizer, folder)


def _require_mean_pooling(folder: Path, spec: str) -> None:
    """Refuse a sentence encoder that pools otherwise, as sentence-transformers writes beside it."""
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return
    modes = {name for name, value in json.loads(file.read_text(encoding="utf-8")).items() if value is True}
    other = sorted(name for name in modes if name.startswith("pooling_mode_") and name != "pooling_mode_mean_tokens")
    if other:
        raise ModelError(
            f"{spec} pools its states by {other[0].removeprefix('pooling_mode_')} ({file}): expected mean_tokens; take "
            "another model"
        )


class SentenceEncoder(nn.Module):
    """Mean of the last states of a text encoder, of length 1 (arXiv 1908.10084).

    Args:
        encoder: whose weights are copied.
        layers: how many of the last blocks are parameters; the others are frozen, and what they give is computed once
            (`read`). 0: all weights are parameters.

    Raises: ConfigError for more layers than there are.
    """

    def __init__(self, encoder: TextEncoder, layers: int) -> None:
        super().__init__()
        config = encoder.config.trunk
        if layers > config.depth:
            raise ConfigError(f"layers={layers}: the model has {config.depth}")
        self.layers, self.pad_id = layers, encoder.config.pad_id
        # In a tuple, so that the frozen part has no parameters here.
        self._frozen = (encoder.eval(),)
        if not layers:
            self.embed: nn.Module | None = encoder.embed
            self.trunk = encoder.encoder
            return
        self.embed = None
        positions = config.positions if config.positions in ("rotary", "t5") else "none"
        self.trunk = Trunk(replace(config, depth=layers, positions=positions))
        self.trunk.load_state_dict(self._last_blocks())

    def _last_blocks(self) -> dict[str, Tensor]:
        first = len(self._frozen[0].encoder.blocks) - self.layers
        found = {}
        for name, tensor in self._frozen[0].encoder.state_dict().items():
            part, _, rest = name.partition(".")
            if part == "blocks":
                place, _, rest = rest.partition(".")
                if int(place) >= first:
                    found[f"blocks.{int(place) - first}.{rest}"] = tensor
            elif part != "positions":
                found[name] = tensor
        return found

    @torch.no_grad()
    def read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """What the trained part is given: token ids (batch, tokens), or the states (batch, tokens, dim) before it."""
        if not self.layers:
            return ids
        encoder, states = self._frozen[0], list[Tensor]()
        encoder.encoder(encoder.embed(ids, mask), collect=states)
        return states[len(encoder.encoder.blocks) - self.layers]

    def forward(self, read: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors (batch, dim) of what `read` gave; mask (batch, tokens) bool."""
        tokens = Tokens(read, mask) if self.embed is None else self.embed(read, mask)
        weight = mask.to(torch.float32)[..., None]
        pooled = (self.trunk(tokens) * weight).sum(1) / weight.sum(1).clamp(min=1)
        return F.normalize(pooled, dim=-1)

    def settle(self) -> TextEncoder:
        """The whole text encoder with these weights."""
        encoder = self._frozen[0]
        if self.layers:
            first = len(encoder.encoder.blocks) - self.layers
            with torch.no_grad():
                for name, tensor in self.trunk.state_dict().items():
                    part, _, rest = name.partition(".")
                    place, _, inner = rest.partition(".")
                    mine = f"blocks.{int(place) + first}.{inner}" if part == "blocks" else name
                    encoder.encoder.state_dict()[mine].copy_(tensor)
        return encoder


class TextStore:
    """Texts as the trained part of an encoder reads them, each computed once."""

    def __init__(self, encoder: SentenceEncoder, tokenizer: Any) -> None:
        self.encoder, self.tokenizer = encoder, tokenizer
        self._read: dict[str, Tensor] = {}

    def add(self, texts: Sequence[str]) -> None:
        """Read those that are new."""
        new = sorted(set(texts) - self._read.keys(), key=lambda text: (len(text), text))
        for start in range(0, len(new), ROWS):
            part = new[start : start + ROWS]
            rows = [torch.tensor(row.ids) for row in self.tokenizer.encode_batch(part)]
            ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.encoder.pad_id)
            lengths = [len(row) for row in rows]
            read = self.encoder.read(ids, _mask(lengths))
            self._read |= {text: one[:length].clone() for text, one, length in zip(part, read, lengths, strict=True)}

    def fields(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What the encoder is called with: padded texts and their mask (texts, tokens) bool."""
        self.add(texts)
        rows = [self._read[text] for text in texts]
        padding = 0 if self.encoder.layers else self.encoder.pad_id
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
        return padded, _mask([len(row) for row in rows])

    @torch.no_grad()
    def vectors(self, model: nn.Module, texts: Sequence[str]) -> Tensor:
        """Unit vectors (texts, dim), the model in eval mode."""
        self.add(texts)
        model.eval()
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        order = sorted(range(len(texts)), key=lambda at: len(self._read[texts[at]]))
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        for start in range(0, len(order), ROWS):
            places = order[start : start + ROWS]
            read, mask = self.fields([texts[at] for at in places])
            for at, vector in zip(places, model(read.to(device), mask.to(device)).cpu(), strict=True):
                found[at] = vector
        return torch.stack(found)


def _mask(lengths: Sequence[int]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def text_batch(rows: Sequence[TextRow], store: TextStore) -> Batch:
    """The batch of `leaven.objectives.contrastive.TextContrast`."""
    texts = {
        "query": [row.query for row in rows],
        "positive": [row.positive for row in rows],
        "negatives": [text for row in rows for text in row.negatives],
    }
    batch: Batch = {"group": torch.tensor([row.group for row in rows])}
    for name, listed in texts.items():
        batch[name], batch[f"{name}_attention_mask"] = store.fields(listed)
    return batch


def text_loader(rows: Sequence[TextRow], store: TextStore, batch_size: int, seed: int) -> Loader:
    """Endless batches of rows of one task."""
    return Loader(
        [{"at": at} for at in range(len(rows))],
        lambda items: text_batch([rows[item["at"]] for item in items], store),
        batch_size=batch_size,
        seed=seed,
        drop_last=len(rows) >= batch_size,
    )


def text_batches(parts: Sequence[Sequence[TextRow]], store: TextStore) -> LazyBatches:
    """Batches of rows in a fixed order."""
    return LazyBatches(len(parts), lambda at: text_batch(parts[at], store))
