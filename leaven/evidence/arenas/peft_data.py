"""Labelled texts and images for the arenas of adapters and prompts, and their rows as a model reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from leaven.adapt.prompting import PromptTokenizer
from leaven.contracts import Batch
from leaven.data.docstring_topics import PACKAGES, TOPICS, topic_texts
from leaven.data.examples import Labelled
from leaven.data.registry import STANDARD_SETS
from leaven.data.sources import open_source
from leaven.data.splits import Split, some_by_hash
from leaven.errors import DataError
from leaven.evidence.arenas.image_data import ImageSet
from leaven.evidence.selection import Sealed
from leaven.modalities.image import pixel_values

DOCSTRING_TOPICS, DOCSTRING_PACKAGES = "docstring-topics", "docstring-packages"
_DOCSTRINGS = {DOCSTRING_TOPICS: TOPICS, DOCSTRING_PACKAGES: PACKAGES}


def has_texts(spec: str) -> bool:
    """Whether a source is one of labelled texts: docstrings, a standard set of them, or rows of {text, label}."""
    standard = STANDARD_SETS.get(spec)
    return (
        spec in _DOCSTRINGS
        or spec.startswith(("jsonl:", "csv:", "hf:"))
        or (standard is not None and Labelled in standard.kinds)
    )


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with the names of their classes."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class TextData:
    """The three splits; the test split can be read once. classes: names, in the order of their indices."""

    classes: list[str]
    train: LabelledTexts
    valid: LabelledTexts
    test: Sealed[LabelledTexts]


def open_texts(spec: str, *, limits: tuple[int, int, int], source: bool = False) -> TextData:
    """Texts of a source.

    Args:
        spec: "docstring-topics", what a piece of the standard library is about; "docstring-packages", which of twenty
            packages it is from; or rows of {text, label}, such as `jsonl:FILE` or `csv:FILE`, whose labels are whole
            numbers or names; or agnews, sst2, trec.
        limits: most texts in train, valid and test; which depends on each text alone.
        source: of docstrings: lines of code too.

    Raises: ConfigError and DataError as `open_source` does; DataError for fewer than two classes, or a class of valid
    or test that has no text to train on. Classes stand in the order of their numbers or names.
    """
    names: tuple[Split, ...] = ("train", "valid", "test")
    splits = [some_by_hash(_labelled(spec, split, source), most) for split, most in zip(names, limits, strict=True)]
    known = {example.label for example in splits[0]}
    if len(known) < 2:
        raise DataError(f"{spec}: the train split has {len(known)} classes; expected two or more")
    for split, found in zip(names, splits, strict=True):
        if not found:
            raise DataError(f"{spec}: the {split} split has no text: give more rows")
        if unknown := next((example for example in found if example.label not in known), None):
            raise DataError(
                f"{unknown.where or spec}: label {unknown.label!r} is in the {split} split and no text to train on has "
                f"it; there are {', '.join(sorted(map(str, known)))}"
            )
    named = _names(spec, known)
    train, valid, test = (
        LabelledTexts(tuple(one.text for one in found), tuple(named[one.label] for one in found)) for found in splits
    )
    return TextData(list(named.values()), train, valid, Sealed(test, spec))


def some_of_each(texts: LabelledTexts, classes: Sequence[str], per_class: int, seed: int) -> LabelledTexts:
    """At most so many texts of every class, classes mixed; those of a smaller number are among those of a larger."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    left = dict.fromkeys(classes, per_class)
    chosen = []
    for at in order:
        if left[texts.labels[at]]:
            left[texts.labels[at]] -= 1
            chosen.append(at)
    return LabelledTexts(tuple(texts.texts[at] for at in chosen), tuple(texts.labels[at] for at in chosen))


def _names(spec: str, labels: set[int | str]) -> dict[int | str, str]:
    """Names of the classes by their labels, in order."""
    topics = list(_DOCSTRINGS.get(spec, ()))
    ordered = sorted(labels, key=lambda label: (0, label, "") if isinstance(label, int) else (1, 0, label))
    return {at: topics[at] if topics and isinstance(at, int) else str(at) for at in ordered}


@cache
def _labelled(spec: str, split: Split, source: bool) -> list[Labelled]:
    """Once per process: arms share them."""
    if topics := _DOCSTRINGS.get(spec):
        return topic_texts(split, topics=topics, source=source)
    return open_source(spec, Labelled, split=split).examples


class Rows(Protocol):
    """Labelled inputs of a classifier. targets: (rows,) int64, indices of the classes. inputs: the texts, if any."""

    targets: Tensor
    inputs: tuple[str, ...]

    def length(self, at: int) -> int:
        """Tokens of a row, 1 where all rows are alike."""
        ...

    def batch(self, at: Sequence[int]) -> Batch:
        """The fields that the model reads, for these rows."""
        ...


class TextRows:
    """Texts as token ids: start tokens, at most so many tokens in all, end tokens.

    Shapes: `input_ids`, `attention_mask` (batch, longest of the batch).
    """

    def __init__(self, texts: LabelledTexts, classes: list[str], tokenizer: PromptTokenizer, max_tokens: int) -> None:
        room = max_tokens - len(tokenizer.start_ids) - len(tokenizer.end_ids)
        self.ids = [[*tokenizer.start_ids, *tokenizer.encode(text)[:room], *tokenizer.end_ids] for text in texts.texts]
        self.inputs, self.pad_id = texts.texts, tokenizer.pad_id
        self.targets = torch.tensor([classes.index(label) for label in texts.labels])

    def length(self, at: int) -> int:
        """Tokens of a row."""
        return max(len(self.ids[at]), 1)

    def batch(self, at: Sequence[int]) -> Batch:
        """Padded at the end."""
        rows = [self.ids[row] for row in at]
        width = max(map(len, rows))
        lengths = torch.tensor([len(row) for row in rows])
        return {
            "input_ids": torch.tensor([[*row, *[self.pad_id] * (width - len(row))] for row in rows]),
            "attention_mask": torch.arange(width) < lengths[:, None],
        }


class ImageRows:
    """Images as pixel values (batch, 3, size, size)."""

    inputs: tuple[str, ...] = ()

    def __init__(self, images: ImageSet, classes: list[str]) -> None:
        self.images, self.targets = images.images, images.targets(classes)

    def length(self, at: int) -> int:
        """All are alike."""
        return 1

    def batch(self, at: Sequence[int]) -> Batch:
        """As leaven's own models read them."""
        return {"pixel_values": pixel_values(self.images[torch.tensor(at)])}


@dataclass(frozen=True)
class ClassificationTask:
    """Rows of the splits; `read_test` gives those of the test split once."""

    classes: list[str]
    train: Rows
    valid: Rows
    read_test: Callable[[], Rows]
