"""Pairs of source and target text as token ids, for fine-tuning a sequence-to-sequence model.

Batch fields: those of text; `input_ids` the source `<s> control source </s>`, `labels` the target `tag target </s>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from leaven.contracts import Batch
from leaven.data.examples import ClonePair, Pair
from leaven.modalities.code_tokenizer import CodeTokenizer
from leaven.modalities.text import IGNORE

Item = dict[str, Any]


@dataclass(frozen=True)
class PairFormat:
    """How pairs of one task are written.

    control: text in front of every source, such as "summarize python: ".
    tag: language whose tag `<tag>` begins every target ("en", "python", ...); None for no tag.
    max_source, max_target: lengths in tokens, specials included, to which sources and targets are cut.
    """

    control: str = ""
    tag: str | None = None
    max_source: int = 512
    max_target: int = 256


@dataclass(frozen=True)
class EncodedPairs:
    """Items for a loader, and how many sources and targets had to be cut."""

    items: list[Item]
    cut_sources: int
    cut_targets: int


def target_start(form: PairFormat, tokenizer: CodeTokenizer) -> list[int]:
    """Ids that begin every target, which a decoder is given."""
    return tokenizer.tag_ids(form.tag) if form.tag is not None else []


def encode_pairs(pairs: Sequence[Pair], tokenizer: CodeTokenizer, form: PairFormat) -> EncodedPairs:
    """One item per pair. What does not fit is cut before the end token."""
    sources, cut_sources = encode_sources([pair.source for pair in pairs], tokenizer, form)
    start = target_start(form, tokenizer)
    room = form.max_target - len(start) - 1
    targets = [encoding.ids for encoding in tokenizer.encode([pair.target for pair in pairs])]
    items = [
        {"input_ids": source, "labels": np.array([*start, *target[:room], tokenizer.end_id], dtype=np.int64)}
        for source, target in zip(sources, targets, strict=True)
    ]
    return EncodedPairs(items, cut_sources, sum(len(target) > room for target in targets))


def encode_sources(
    sources: Sequence[str], tokenizer: CodeTokenizer, form: PairFormat
) -> tuple[list[np.ndarray[Any, Any]], int]:
    """Token ids of each source, and how many were cut."""
    control = tokenizer.encode([form.control])[0].ids if form.control else []
    room = form.max_source - len(control) - 2
    encoded = [encoding.ids for encoding in tokenizer.encode(sources)]
    rows = [np.array([tokenizer.start_id, *control, *ids[:room], tokenizer.end_id], dtype=np.int64) for ids in encoded]
    return rows, sum(len(ids) > room for ids in encoded)


def collate_pairs(items: Sequence[Item], pad_id: int) -> Batch:
    """Pad to one batch."""
    inputs = padded([item["input_ids"] for item in items], pad_id)
    return {
        "input_ids": inputs,
        "attention_mask": padded([np.ones(len(item["input_ids"]), dtype=np.int64) for item in items], 0).bool(),
        "labels": padded([item["labels"] for item in items], IGNORE),
    }


def encode_clones(pairs: Sequence[ClonePair], tokenizer: CodeTokenizer, max_source: int) -> list[Item]:
    """One item per pair of programs, each `<s> program </s>` and cut before its end token."""
    form = PairFormat(max_source=max_source)
    first, _ = encode_sources([pair.first for pair in pairs], tokenizer, form)
    second, _ = encode_sources([pair.second for pair in pairs], tokenizer, form)
    return [{"first": a, "second": b, "label": p.label} for a, b, p in zip(first, second, pairs, strict=True)]


def collate_clones(items: Sequence[Item], pad_id: int) -> Batch:
    """Pad both programs: `first_ids`, `second_ids`, their `_attention_mask` and `label`."""
    batch: Batch = {"label": torch.tensor([item["label"] for item in items])}
    for side in ("first", "second"):
        batch[f"{side}_ids"] = padded([item[side] for item in items], pad_id)
        batch[f"{side}_attention_mask"] = padded([np.ones(len(item[side]), dtype=np.int64) for item in items], 0).bool()
    return batch


def padded(rows: Sequence[np.ndarray[Any, Any]], fill: int) -> torch.Tensor:
    """Rows of ids as one tensor (rows, longest), filled up on the right."""
    out = np.full((len(rows), max(len(row) for row in rows)), fill, dtype=np.int64)
    for at, row in enumerate(rows):
        out[at, : len(row)] = row
    return torch.from_numpy(out)
