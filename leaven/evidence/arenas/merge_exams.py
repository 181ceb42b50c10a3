"""What text embeddings are trained on and judged by in the merge arena: rows, graded pairs, rankings."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

Encode = Callable[[Sequence[str]], Tensor]
"""Unit vectors (texts, dim) of texts."""


class TextRow(NamedTuple):
    """A query, a text that belongs to it, texts that do not; rows of one group are no negatives of each other."""

    query: str
    positive: str
    negatives: tuple[str, ...]
    group: int


class Exam(ABC):
    """Texts and what is right about them."""

    @abstractmethod
    def score(self, encode: Encode) -> float:
        """The figure of an encoder, at most 100."""

    @abstractmethod
    def texts(self) -> list[str]:
        """All texts that are encoded."""


@dataclass(frozen=True)
class GradedPairs(Exam):
    """Pairs of texts whose likeness is known up to its order; scored by Spearman's correlation."""

    first: list[str]
    second: list[str]
    likeness: list[float]

    def score(self, encode: Encode) -> float:
        """100 * Spearman's correlation of cosines and likeness; 0 where all cosines are the same."""
        from scipy.stats import spearmanr

        cosines = (encode(self.first) * encode(self.second)).sum(1).double().numpy()
        found = 100 * float(spearmanr(cosines, self.likeness).statistic) if np.ptp(cosines) > 0 else 0.0
        return found if math.isfinite(found) else 0.0

    def texts(self) -> list[str]:
        """Both sides."""
        return [*self.first, *self.second]


@dataclass(frozen=True)
class Ranking(Exam):
    """Queries that are to rank documents; scored by nDCG@10.

    relevant: the documents' places for each query, at least one.
    """

    queries: list[str]
    documents: list[str]
    relevant: list[list[int]]

    def score(self, encode: Encode) -> float:
        """100 * mean nDCG@10; a document that is the query itself is left out of its ranking."""
        from sklearn.metrics import ndcg_score

        cosines = (encode(self.queries) @ encode(self.documents).T).double().numpy()
        truth = np.zeros(cosines.shape)
        for query, (text, places) in enumerate(zip(self.queries, self.relevant, strict=True)):
            truth[query, places] = 1
            cosines[query, [at for at, document in enumerate(self.documents) if document == text]] = -2
        return 100 * float(ndcg_score(truth, cosines, k=10))

    def texts(self) -> list[str]:
        """Queries and documents."""
        return [*self.queries, *self.documents]
