"""Verbalizers: the answer mapping, from what a model predicts at the slot to scores of labels."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.adapt.prompting.slots import Slots
from leaven.adapt.prompting.template import Template
from leaven.adapt.prompting.tokenizer import PromptTokenizer
from leaven.errors import ConfigError, DataError

Words = Mapping[str, str | Sequence[str]]
"""Label words by label."""
MultiToken = Literal["error", "first", "mean", "max"]


def exact(scores: Tensor) -> Tensor:
    """In float32 at least."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


class Verbalizer(nn.Module):
    """Scores of labels from the answer slots; subclasses say what is scored first (words, labels) and how it is pooled.

    Shapes: `Slots` of a batch -> (batch, labels) unnormalised log-scores.
    """

    content_free: Tensor | None

    def __init__(self, labels: Sequence[str], slots: int = 1) -> None:
        super().__init__()
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise ConfigError(f"labels={list(labels)}: expected two or more, all different")
        self.labels, self.slots = tuple(labels), slots
        self.register_buffer("content_free", None, persistent=False)

    @abstractmethod
    def units(self, slots: Slots) -> Tensor:
        """Log-scores (batch, units) of what is scored first, here the labels."""

    def pooled(self, units: Tensor) -> Tensor:
        """Scores of labels from normalised log-probabilities of the units."""
        return units

    def log_units(self, slots: Slots) -> Tensor:
        """Log-probabilities of the units among each other, after calibration."""
        found = F.log_softmax(self.units(slots), -1)
        return found if self.content_free is None else F.log_softmax(found - self.content_free, -1)

    def forward(self, slots: Slots) -> Tensor:
        """Scores of labels."""
        return self.pooled(self.log_units(slots))

    @torch.no_grad()
    def calibrate(self, slots: Slots | None) -> None:
        """Divide probabilities by those of content-free inputs (their mean), from now on; None ends it.

        Source: arXiv 2102.09690 section 5, in the form without bias.
        """
        self.content_free = None
        if slots is not None:
            found = self.log_units(slots)
            self.content_free = found.logsumexp(0) - torch.tensor(float(len(found))).log()

    def answers(self, label: str) -> tuple[tuple[int, ...], ...]:
        """Token ids, for each slot, of the words that answer with a label. Raises: DataError where none do."""
        raise DataError(f"a {type(self).__name__} has no words for a label, so that nothing can be demonstrated")


class ManualVerbalizer(Verbalizer):
    """The label whose words are likeliest: the mean over its words of their log-probability among all label words.

    Args:
        words: one or more words for each label.
        tokenizer, template, slot: where the words stand; after a space they are other tokens than without.
        multi_token: what to do with words of several tokens: refuse them, or take the score of their "first" token or
            the "mean" or "max" over their tokens, all read at the slot.

    Raises: ConfigError for a word of several tokens or none, one that the vocabulary lacks, or one of two labels.
    Source: arXiv 2107.13586 section 5; 2001.07676 section 3.1.
    """

    def __init__(
        self,
        words: Words,
        tokenizer: PromptTokenizer,
        template: Template,
        *,
        multi_token: MultiToken = "error",
        slot: int = 0,
    ) -> None:
        super().__init__(list(words))
        if multi_token not in ("error", "first", "mean", "max"):
            raise ConfigError(f"multi_token={multi_token!r}: expected error, first, mean or max")
        listed = {label: [given] if isinstance(given, str) else list(given) for label, given in words.items()}
        if empty := [label for label, given in listed.items() if not given]:
            raise ConfigError(f"label {empty[0]!r} has no words")
        self.words = tuple(word for given in listed.values() for word in given)
        self.owners = tuple(at for at, given in enumerate(listed.values()) for _ in given)
        self.multi_token = multi_token
        self.ids = [template.answer_ids(tokenizer, word, slot) for word in self.words]
        self._check(tokenizer)
        width = max(map(len, self.ids))
        self.tokens: Tensor
        self.real: Tensor
        self.mean: Tensor
        padded = [[*ids, *ids[:1] * (width - len(ids))] for ids in self.ids]
        self.register_buffer("tokens", torch.tensor(padded), persistent=False)
        lengths = torch.tensor([len(ids) for ids in self.ids])
        self.register_buffer("real", torch.arange(width) < lengths[:, None], persistent=False)
        owned = F.one_hot(torch.tensor(self.owners), len(self.labels)).float()
        self.register_buffer("mean", owned / owned.sum(0), persistent=False)

    def _check(self, tokenizer: PromptTokenizer) -> None:
        seen: dict[tuple[int, ...], tuple[str, str]] = {}
        for word, owner, ids in zip(self.words, self.owners, self.ids, strict=True):
            label = self.labels[owner]
            if not ids or tokenizer.unknown_id in ids:
                raise ConfigError(f"word {word!r} of label {label!r} is not in the vocabulary: choose another")
            if len(ids) > 1 and self.multi_token == "error":
                pieces = " + ".join(repr(tokenizer.decode([i])) for i in ids)
                raise ConfigError(
                    f"word {word!r} of label {label!r} is {len(ids)} tokens ({pieces}): choose a word of one token, "
                    "or multi_token='first', 'mean' or 'max'"
                )
            read = tuple(ids[:1] if self.multi_token == "first" else ids)
            other_label, other = seen.setdefault(read, (label, word))
            if other_label != label:
                raise ConfigError(
                    f"labels {other_label!r} and {label!r} share a word: {other!r} and {word!r} are scored by the same "
                    "tokens, so that they could not be told apart; give each its own"
                )

    def units(self, slots: Slots) -> Tensor:
        """Scores of words (batch, words)."""
        found = exact(slots.logits[:, 0])[:, self.tokens]
        if self.multi_token == "max":
            return found.masked_fill(~self.real, -torch.inf).amax(-1)
        if self.multi_token == "mean":
            return (found * self.real).sum(-1) / self.real.sum(-1)
        return found[..., 0]

    def pooled(self, units: Tensor) -> Tensor:
        """The mean over each label's words."""
        return units @ self.mean.to(units.dtype)

    def answers(self, label: str) -> tuple[tuple[int, ...], ...]:
        """The label's first word."""
        if label not in self.labels:
            raise DataError(f"label {label!r} is not one of {', '.join(self.labels)}")
        return (tuple(self.ids[self.owners.index(self.labels.index(label))]),)


class ComposedVerbalizer(Verbalizer):
    """Sub-prompts joined by rules: a label holds when each slot of the template answers as its rule says.

    log p(label) is the sum over slots of log p(the slot's answer), normalised.

    Args:
        parts: a verbalizer for each slot.
        rules: for each label the sub-label of every slot: {"born in": ("person", "was born in", "city"), ...}.

    Raises: ConfigError for a rule that does not fit the parts, or two labels with the same rule.
    Source: arXiv 2105.11259 section 3 (PTR).
    """

    def __init__(self, parts: Sequence[Verbalizer], rules: Mapping[str, Sequence[str]]) -> None:
        super().__init__(list(rules), slots=len(parts))
        for label, rule in rules.items():
            if len(rule) != len(parts):
                raise ConfigError(f"the rule of {label!r} has {len(rule)} parts, and the prompt {len(parts)} slots")
            for at, (sub, part) in enumerate(zip(rule, parts, strict=True)):
                if sub not in part.labels:
                    raise ConfigError(
                        f"the rule of {label!r} wants {sub!r} in slot {at}: expected {', '.join(part.labels)}"
                    )
        if len({tuple(rule) for rule in rules.values()}) < len(rules):
            raise ConfigError("two labels have the same rule, so that they could not be told apart")
        self.parts = nn.ModuleList(parts)
        self.rules = {label: tuple(rule) for label, rule in rules.items()}
        places = [[part.labels.index(rule[at]) for rule in rules.values()] for at, part in enumerate(parts)]
        self.places: Tensor
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def units(self, slots: Slots) -> Tensor:
        """Scores of labels."""
        found = []
        for at, (part, places) in enumerate(zip(self.parts, self.places, strict=True)):
            here = Slots(slots.states[:, at : at + 1], slots.logits[:, at : at + 1])
            found.append(F.log_softmax(part(here), -1)[:, places])
        return torch.stack(found).sum(0)

    def answers(self, label: str) -> tuple[tuple[int, ...], ...]:
        """The words of the label's rule."""
        if label not in self.rules:
            raise DataError(f"label {label!r} is not one of {', '.join(self.labels)}")
        return tuple(p.answers(sub)[0] for p, sub in zip(self.parts, self.rules[label], strict=True))  # type: ignore[operator]


def decomposed_words(labels: Sequence[str]) -> dict[str, list[str]]:
    """Label words from the words of the labels' own names, without those that several labels have.

    Raises: ConfigError for a label that has no word of its own.
    Source: arXiv 2107.13586 section 5.2.2 (label decomposition).
    """
    parts = {label: list(dict.fromkeys(w.lower() for w in _NAME_WORD.findall(label))) for label in labels}
    everywhere = [word for words in parts.values() for word in words]
    own = {label: [word for word in words if everywhere.count(word) == 1] for label, words in parts.items()}
    if bare := [label for label, words in own.items() if not words]:
        raise ConfigError(f"label {bare[0]!r} has no word that no other label has: give label words by hand")
    return own


_NAME_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
