"""Exact and near-duplicate detection by token sets."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable

_TOKEN = re.compile(r"\w+|[^\w\s]")


def token_set(text: str) -> frozenset[str]:
    """Words and single punctuation marks of a text, without order or count."""
    return frozenset(_TOKEN.findall(text))


class NearDuplicateIndex:
    """Remembers texts and tells whether a new one repeats an old one.

    A repeat has the same text up to white space, or a token set whose Jaccard similarity with that of a remembered
    text is at least `threshold`. The answer is exact: two sets so similar must share one of their few rarest tokens
    (prefix filtering), and only texts that do are compared.

    Args:
        threshold: Jaccard similarity in (0, 1] from which a text counts as a repeat.
        reference: texts from which token rarity is estimated; it affects speed, never the answer.
    """

    def __init__(self, threshold: float = 0.9, reference: Iterable[str] = ()) -> None:
        self.threshold = threshold
        self._frequency = Counter(token for text in reference for token in token_set(text))
        self._texts: set[str] = set()
        self._sets: list[frozenset[str]] = []
        self._by_token: dict[str, list[int]] = defaultdict(list)

    def _prefix(self, tokens: frozenset[str]) -> list[str]:
        # Shared tokens number at least ceil(threshold * size), so one is among the first size - that + 1.
        keep = len(tokens) - math.ceil(self.threshold * len(tokens) - 1e-9) + 1
        return sorted(tokens, key=lambda token: (self._frequency[token], token))[:keep]

    def seen(self, text: str) -> bool:
        """Whether the text repeats a remembered one."""
        if " ".join(text.split()) in self._texts:
            return True
        tokens = token_set(text)
        return self._similar(tokens, self._prefix(tokens))

    def _similar(self, tokens: frozenset[str], prefix: list[str]) -> bool:
        size = len(tokens)
        checked: set[int] = set()
        for token in prefix:
            for index in self._by_token.get(token, ()):
                if index in checked:
                    continue
                checked.add(index)
                other = self._sets[index]
                if not self.threshold * size <= len(other) + 1e-9 or not self.threshold * len(other) <= size + 1e-9:
                    continue
                shared = len(tokens & other)
                if shared >= self.threshold * (size + len(other) - shared) - 1e-9:
                    return True
        return False

    def add(self, text: str) -> bool:
        """Remember the text unless it repeats a remembered one; returns whether it was new."""
        flat = " ".join(text.split())
        if flat in self._texts:
            return False
        tokens = token_set(text)
        prefix = self._prefix(tokens)
        if self._similar(tokens, prefix):
            return False
        self._texts.add(flat)
        for token in prefix:
            self._by_token[token].append(len(self._sets))
        self._sets.append(tokens)
        return True
