"""Several prompts for one answer: ensembles, and demonstrations put before the prompt."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from leaven.adapt.prompting.template import Demonstration, Fields
from leaven.adapt.prompting.verbalizers import Verbalizer
from leaven.errors import ConfigError, DataError


class Classifier(Protocol):
    """What labels texts: a `PromptedClassifier` or anything made of several."""

    labels: tuple[str, ...]

    def scores(self, texts: Sequence[Fields]) -> Tensor:
        """Log-probabilities (texts, labels)."""
        ...


def predicted(classifier: Classifier, texts: Sequence[Fields]) -> list[str]:
    """The likeliest label of each text."""
    return [classifier.labels[at] for at in classifier.scores(texts).argmax(-1).tolist()]


class PromptEnsemble:
    """Several prompted classifiers as one.

    Args:
        members: classifiers of the same labels.
        weights: of each member, not negative; None for equal ones. Such as accuracies on validation texts.
        vote: count the members' predictions (ties go to the mean) instead of averaging their probabilities.

    Raises: ConfigError for members of different labels, or weights that do not fit.
    Source: arXiv 2107.13586 section 6.1.
    """

    def __init__(self, members: Sequence[Classifier], weights: Sequence[float] | None = None, *, vote: bool = False):
        if not members:
            raise ConfigError("an ensemble needs at least one member")
        self.labels = members[0].labels
        if other := [m.labels for m in members if m.labels != self.labels]:
            raise ConfigError(f"members have different labels: {self.labels} and {other[0]}")
        given = [1.0] * len(members) if weights is None else [float(w) for w in weights]
        if len(given) != len(members) or min(given) < 0 or not 0 < sum(given) < math.inf:
            raise ConfigError(f"weights={given}: expected {len(members)} numbers from 0 on, not all 0")
        self.members, self.vote = tuple(members), vote
        self.weights = torch.tensor(given) / sum(given)

    def scores(self, texts: Sequence[Fields]) -> Tensor:
        """Log-probabilities (texts, labels); with a vote, of the members' shares."""
        each = torch.stack([member.scores(texts) for member in self.members])
        mean = (each + self.weights.log()[:, None, None]).logsumexp(0)
        if not self.vote:
            return mean
        cast = F.one_hot(each.argmax(-1), len(self.labels)) * self.weights[:, None, None]
        tie = 1e-6
        return ((1 - tie) * cast.sum(0) + tie * mean.exp()).log()

    def predict(self, texts: Sequence[Fields]) -> list[str]:
        """The likeliest label of each text."""
        return predicted(self, texts)

    def soft_labels(self, texts: Sequence[Fields], temperature: float = 2.0) -> Tensor:
        """Probabilities (texts, labels), softened, that `PromptedClassifier.fit` takes as labels to distill into one.

        Source: arXiv 2001.07676 section 3.3.
        """
        return (self.scores(texts) / temperature).softmax(-1)


@dataclass(frozen=True)
class Demonstrations:
    """Answered examples to put before each prompt.

    Args:
        texts, labels: examples to choose from; one that equals the input is never shown with it.
        per_label: how many of every label.
        features: texts -> vectors (texts, dim); the examples nearest by cosine are shown. None shows the first ones.
        order: places of the chosen ones, which are listed label by label and nearest first.
        words: of each example, its first ones are shown; None for all.

    Raises: DataError for no examples or a label with too few; ConfigError for an order that does not fit.
    Source: arXiv 2012.15723 section 6 (one per label, by similarity); 2101.06804 for the nearest.
    """

    texts: Sequence[Fields]
    labels: Sequence[str]
    per_label: int = 1
    features: Callable[[list[str]], Tensor] | None = None
    order: tuple[int, ...] | None = None
    words: int | None = None

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.labels) or not self.texts:
            raise DataError(f"{len(self.texts)} texts and {len(self.labels)} labels: expected as many, at least one")
        for label in self.names:
            if self.labels.count(label) < self.per_label:
                raise DataError(f"label {label!r} has fewer than per_label={self.per_label} examples")
        count = self.per_label * len(self.names)
        if self.words is not None and self.words < 1:
            raise ConfigError(f"words={self.words}: expected at least 1, or None for all")
        if self.per_label < 1 or (self.order is not None and sorted(self.order) != list(range(count))):
            raise ConfigError(f"per_label={self.per_label}, order={self.order}: expected an order of {count} places")

    @property
    def names(self) -> list[str]:
        """Labels in the order of their first example."""
        return list(dict.fromkeys(self.labels))

    def choose(self, queries: Sequence[Fields]) -> list[list[int]]:
        """For each input the examples to show, in their order.

        Raises: DataError for a label whose only examples are the input itself.
        """
        if self.features is None:
            near = torch.zeros(len(queries), len(self.texts))
        else:
            found = torch.as_tensor(self.features([_plain(text) for text in (*self.texts, *queries)])).float()
            if found.ndim != 2 or len(found) != len(self.texts) + len(queries):
                raise DataError(f"features gave {tuple(found.shape)}; expected (texts, dim), one row for each text")
            found = F.normalize(found, dim=-1)
            near = found[len(self.texts) :] @ found[: len(self.texts)].T
        return [self._chosen(query, row.argsort(descending=True, stable=True).tolist())
                for query, row in zip(queries, near, strict=True)]  # fmt: skip

    def _chosen(self, query: Fields, ranked: list[int]) -> list[int]:
        chosen: list[int] = []
        for label in self.names:
            own = [at for at in ranked if self.labels[at] == label and _plain(self.texts[at]) != _plain(query)]
            if len(own) < self.per_label:
                raise DataError(f"label {label!r}: beside the input itself there are only {len(own)} examples to show")
            chosen += own[: self.per_label]
        return chosen if self.order is None else [chosen[at] for at in self.order]

    def shown(self, chosen: Sequence[int], verbalizer: Verbalizer) -> list[Demonstration]:
        """Chosen examples with the words of their labels."""
        return [Demonstration(self._cut(self.texts[at]), verbalizer.answers(self.labels[at])) for at in chosen]

    def _cut(self, text: Fields) -> Fields:
        if self.words is None:
            return text
        first = {name: " ".join(value.split()[: self.words]) for name, value in _fields(text).items()}
        return first[""] if isinstance(text, str) else first


def _fields(text: Fields) -> dict[str, str]:
    return {"": text} if isinstance(text, str) else dict(text)


def _plain(text: Fields) -> str:
    return text if isinstance(text, str) else " ".join(text.values())


def best_order(
    value: Callable[[tuple[int, ...]], float],
    count: int,
    *,
    limit: int = 24,
    generator: torch.Generator | None = None,
) -> tuple[int, ...]:
    """The order of `count` demonstrations with the largest value, of all or else of `limit` random ones.

    Args:
        value: of an order, such as the accuracy on validation texts or `label_entropy` on unlabelled ones.

    Source: arXiv 2104.08786 section 3.
    """
    if math.factorial(count) <= limit:
        orders = list(itertools.permutations(range(count)))
    else:
        generator = generator or torch.Generator().manual_seed(0)
        drawn: dict[tuple[int, ...], None] = {}
        while len(drawn) < limit:
            drawn[tuple(torch.randperm(count, generator=generator).tolist())] = None
        orders = list(drawn)
    return max(orders, key=value)


def label_entropy(scores: Tensor, *, each: bool = False) -> float:
    """Entropy in nats of the labels predicted over texts (GlobalE) or, with `each`, the mean of each text's (LocalE).

    High values mean that a prompt does not prefer one label whatever the text. scores: (texts, labels), logarithms.
    Source: arXiv 2104.08786 section 3.2.
    """
    if each:
        return float(-(scores.exp() * scores.clamp(min=-1e4)).sum(-1).mean())
    shares = F.one_hot(scores.argmax(-1), scores.shape[1]).float().mean(0)
    return float(torch.special.entr(shares).sum())
