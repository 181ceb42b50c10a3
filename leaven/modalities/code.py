"""Code: functions with their documentation to token ids that know words and identifiers.

Batch fields beside those of text (all (batch, tokens) int64; -1 where there is none, at padding too):
    word_ids: index of the word (identifier, number, one sign of punctuation) that a token is part of.
    identifier_ids: index of the developer-chosen name that a token spells, in order of first occurrence.
    occurrence_ids: index of the occurrence of a name that a token is part of.
    segment_ids: 0 for specials and padding, NATURAL for the documentation, PROGRAM for the code.
and `language` (batch,) int64, the tag of the row's programming language, -1 where the vocabulary has none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from leaven.contracts import Batch
from leaven.data.examples import CodeExample
from leaven.data.languages import identifier_spans
from leaven.modalities.code_tokenizer import WORD, CodeTokenizer

NATURAL, PROGRAM = 1, 2
Item = dict[str, Any]
_PIECE = 2000
_PER_TOKEN = ("input_ids", "word_ids", "identifier_ids", "occurrence_ids", "segment_ids")


def encode_functions(
    examples: Sequence[CodeExample], tokenizer: CodeTokenizer, *, max_tokens: int = 2048
) -> list[Item]:
    """One item per function: `<s> documentation </s> code </s>`, or `<s> code </s>` where it has no documentation.

    Nothing is cut here at the length of the model (objectives corrupt first and cut then); `max_tokens` bounds memory.
    """
    items: list[Item] = []
    # In pieces: the encodings of a large corpus, with their offsets, would need many times its memory.
    for start in range(0, len(examples), _PIECE):
        piece = examples[start : start + _PIECE]
        codes = tokenizer.encode([example.code for example in piece])
        docs = tokenizer.encode([example.docstring or "" for example in piece])
        items += [
            _cut(_item(example, code, doc, tokenizer), max_tokens)
            for example, code, doc in zip(piece, codes, docs, strict=True)
        ]
    return items


def _cut(item: Item, length: int) -> Item:
    return {key: value[:length] if key in _PER_TOKEN else value for key, value in item.items()}


def _word_indices(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    words = [match.span() for match in WORD.finditer(text)]
    starts = [start for start, _ in words]
    indices = []
    for start, end in offsets:
        word = bisect_right(starts, max(start, end - 1)) - 1
        indices.append(word if word >= 0 and words[word][1] >= end > words[word][0] else -1)
    return indices


def _item(example: CodeExample, code: Any, doc: Any, tokenizer: CodeTokenizer) -> Item:
    spans = identifier_spans(example.code, example.language)
    starts = [start for start, _ in spans]
    names: dict[str, int] = {}
    of_span = [names.setdefault(example.code[start:end], len(names)) for start, end in spans]
    identifiers, occurrences = [], []
    for start, end in code.offsets:
        span = bisect_right(starts, max(start, end - 1)) - 1
        inside = span >= 0 and spans[span][0] < end <= spans[span][1]
        identifiers.append(of_span[span] if inside else -1)
        occurrences.append(span if inside else -1)
    doc_words = _word_indices(example.docstring or "", doc.offsets)
    shift = max(doc_words, default=-1) + 1
    code_words = [word + shift if word >= 0 else -1 for word in _word_indices(example.code, code.offsets)]
    natural = [*doc.ids, tokenizer.end_id] if doc.ids else []
    gap = [-1] * len(natural)
    return {
        "input_ids": np.array([tokenizer.start_id, *natural, *code.ids, tokenizer.end_id], dtype=np.int64),
        "word_ids": np.array([-1, *([*doc_words, -1] if natural else []), *code_words, -1], dtype=np.int64),
        "identifier_ids": np.array([-1, *gap, *identifiers, -1], dtype=np.int64),
        "occurrence_ids": np.array([-1, *gap, *occurrences, -1], dtype=np.int64),
        "segment_ids": np.array(
            [0, *([NATURAL] * len(doc.ids) + [0] if natural else []), *[PROGRAM] * len(code.ids), 0], dtype=np.int64
        ),
        "language": tokenizer.tokenizer.token_to_id(f"<{example.language}>") or -1,
    }


def collate_functions(items: Sequence[Item], pad_id: int) -> Batch:
    """Pad items to one batch with the fields of this module, `input_ids` and `attention_mask`."""
    length = max(len(item["input_ids"]) for item in items)
    batch: Batch = {}
    for field in _PER_TOKEN:
        fill = pad_id if field == "input_ids" else 0 if field == "segment_ids" else -1
        array = np.full((len(items), length), fill, dtype=np.int64)
        for row, item in enumerate(items):
            array[row, : len(item[field])] = item[field]
        batch[field] = torch.from_numpy(array)
    lengths = torch.tensor([len(item["input_ids"]) for item in items])
    batch["attention_mask"] = torch.arange(length)[None] < lengths[:, None]
    batch["language"] = torch.tensor([item["language"] for item in items])
    return batch
