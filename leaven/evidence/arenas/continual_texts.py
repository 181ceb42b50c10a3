"""Labelled texts in the arena of continual learning: rows of tokens, and any text encoder as one vector per text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leaven.contracts import Batch
from leaven.errors import DataError
from leaven.evidence.arenas.continual_stream import Part, Parts
from leaven.evidence.arenas.peft_data import LabelledTexts, TextRows, open_texts, some_of_each
from leaven.evidence.arenas.peft_model import Backbone

_ALL = 10**9


class TokenEncoder(nn.Module):
    """A text encoder as the mean of its states over the tokens of a text.

    Args:
        model: with `encode(ids, mask)` or `states(ids, mask)`, as leaven's own and the bridged ones have.

    Shapes: `input_ids` (rows, tokens) int64 and `attention_mask` (rows, tokens) bool, padded at the end to the longest
    of all texts -> features (rows, dim). What no row of the batch fills is not computed.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, texts: Batch) -> Tensor:
        """Features."""
        ids, mask = _filled(texts)
        encode = getattr(self.model, "encode", None)
        states: Tensor = encode(ids, mask).x if encode is not None else self.model.states(ids, mask)
        weight = mask[..., None].to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


class WordCounts(nn.Module):
    """The control without a model: how often a text has each token, (rows, 32768) float32; larger ids share places."""

    places = 2**15

    def forward(self, texts: Batch) -> Tensor:
        """Features."""
        ids, mask = _filled(texts)
        return torch.zeros(len(ids), self.places).scatter_add_(1, ids % self.places, mask.float())


def _filled(texts: Batch) -> tuple[Tensor, Tensor]:
    mask = texts["attention_mask"]
    longest = int(mask.sum(1).max())
    return texts["input_ids"][:, :longest], mask[:, :longest]


def text_parts(spec: str, backbone: Backbone, *, per_class: tuple[int, int, int], longest: int, seed: int) -> Parts:
    """Texts of a source as the rows of tokens that a model reads.

    Args:
        per_class: most texts of a class in train, valid and test; the seed draws where there are more.
        longest: most tokens of a text; no more than the model has positions for.

    Raises: what `open_texts` raises; DataError for a class without a text in a split.
    """
    data = open_texts(spec, limits=(_ALL, _ALL, _ALL))
    longest = min(longest, backbone.longest or longest)

    def part(split: str, texts: LabelledTexts, most: int) -> Part:
        texts = some_of_each(texts, data.classes, most, seed)
        if missing := [name for name in data.classes if name not in texts.labels]:
            raise DataError(
                f"{spec}: class {missing[0]!r} has no text in the {split} split: it needs about ten texts or more"
            )
        assert backbone.tokenizer is not None  # a backbone of texts has one
        rows = TextRows(texts, data.classes, backbone.tokenizer, longest)
        return Part.of(rows.batch(range(len(texts))), texts.labels)

    train, valid, test = (
        part(split, texts, most)
        for split, texts, most in zip(
            ("train", "valid", "test"), (data.train, data.valid, data.test.read()), per_class, strict=True
        )
    )
    return Parts(sorted(data.classes), train, valid, test, "texts")
