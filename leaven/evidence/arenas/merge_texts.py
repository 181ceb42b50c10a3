"""Groups of tasks for text embeddings: of the standard library, and of the standard sets stsb and agnews."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from leaven.data.examples import CodeExample, Labelled, Pair, ScoredPair
from leaven.data.sources import open_source
from leaven.data.splits import Split, hash_share
from leaven.data.stdlib_code import stdlib_code
from leaven.errors import ConfigError, DataError
from leaven.evidence.arenas.merge_exams import Exam, GradedPairs, Ranking, TextRow

STDLIB, STANDARD = "stdlib-texts", "standard-texts"
GRADES = (0.0, 0.2, 0.4, 0.6, 0.8)
"""Shares of words that graded edits change."""


class TextTask(ABC):
    """A kind of likeness. The library is split by its top-level modules, so that no two splits share one.

    data: STDLIB or STANDARD, where the texts come from.
    """

    data: ClassVar[str] = STDLIB

    @abstractmethod
    def rows(self, split: Split, count: int, negatives: int, seed: int) -> list[TextRow]:
        """At most so many rows to train on, each with so many negatives."""

    @abstractmethod
    def exam(self, split: Split, count: int, seed: int) -> Exam:
        """What an encoder is judged by, of about so many texts."""


def _documented(split: Split, seed: int) -> list[tuple[str, CodeExample]]:
    """Documented functions with their documentation in one line of five words or more, in an order by seed.

    No text of another split is one to train on: modules copy documentation from one another.
    """
    known = set() if split == "train" else {text for text, _ in _documented("train", seed)}
    found: dict[str, CodeExample] = {}
    for example in stdlib_code(split, with_docstring=True):
        text = " ".join((example.docstring or "").split())
        if len(text.split()) >= 5 and text not in known:
            found.setdefault(text, example)
    if len(found) < 2:
        raise DataError(f"stdlib-code has {len(found)} documented functions in its {split} split: two are needed")
    return sorted(found.items(), key=lambda item: hash_share(item[0], seed))


def edited(text: str, share: float, words: Sequence[str], rng: np.random.Generator) -> str:
    """The text with a share of its words dropped, replaced by one of `words`, or swapped with the next, at random."""
    parts = text.split()
    for place in sorted(rng.permutation(len(parts))[: round(share * len(parts))], reverse=True):
        kind = int(rng.integers(3))
        if kind == 0 and len(parts) > 1:
            del parts[place]
        elif kind == 1 and place + 1 < len(parts):
            parts[place], parts[place + 1] = parts[place + 1], parts[place]
        else:
            parts[place] = words[int(rng.integers(len(words)))]
    return " ".join(parts)


class Edits(TextTask):
    """A docstring is like a mild edit of it, less so a heavy one."""

    def rows(self, split: Split, count: int, negatives: int, seed: int) -> list[TextRow]:
        """The positive has up to a fifth of its words changed, the negatives three fifths or more."""
        texts = [text for text, _ in _documented(split, seed)]
        words = " ".join(texts).split()
        made = []
        for group, text in enumerate(texts[:count]):
            rng = np.random.default_rng([seed, group])
            mild, *heavy = (
                edited(text, share, words, rng) for share in (rng.uniform(0.05, 0.2), *rng.uniform(0.6, 0.9, negatives))
            )
            made.append(TextRow(text, mild, tuple(heavy), group))
        return made

    def exam(self, split: Split, count: int, seed: int) -> GradedPairs:
        """Docstrings with an edit of one of `GRADES` each."""
        texts = [text for text, _ in _documented(split, seed)]
        words, rng = " ".join(texts).split(), np.random.default_rng(seed)
        grades = [GRADES[at % len(GRADES)] for at in range(min(count, len(texts)))]
        first = texts[: len(grades)]
        second = [edited(text, grade, words, rng) for text, grade in zip(first, grades, strict=True)]
        return GradedPairs(first, second, [1 - grade for grade in grades])


class CodeSearch(TextTask):
    """Documentation finds the code that it documents."""

    def rows(self, split: Split, count: int, negatives: int, seed: int) -> list[TextRow]:
        """Negatives are other functions, of the same module as far as it has any."""
        pairs = _documented(split, seed)
        codes = [example.code for _, example in pairs]
        by_module: dict[str, list[int]] = defaultdict(list)
        for place, (_, example) in enumerate(pairs):
            by_module[example.module].append(place)
        made = []
        for group, (text, example) in enumerate(pairs[:count]):
            rng = np.random.default_rng([seed, group])
            near = [at for at in by_module[example.module] if codes[at] != example.code]
            far = [int(at) for at in rng.permutation(len(pairs)) if codes[at] != example.code]
            places = [*(near[at] for at in rng.permutation(len(near))), *far][:negatives]
            made.append(TextRow(text, example.code, tuple(codes[at] for at in places), group))
        return made

    def exam(self, split: Split, count: int, seed: int) -> Ranking:
        """Each documentation ranks the code of all."""
        pairs = _documented(split, seed)[:count]
        codes = list(dict.fromkeys(example.code for _, example in pairs))
        place = {code: at for at, code in enumerate(codes)}
        return Ranking([text for text, _ in pairs], codes, [[place[example.code]] for _, example in pairs])


class Modules(TextTask):
    """Docstrings of one module are about one topic."""

    def rows(self, split: Split, count: int, negatives: int, seed: int) -> list[TextRow]:
        """The positive is of the query's module, the negatives of others."""
        texts, by_module = self._by_module(split, seed)
        names = {text: group for group, module in enumerate(by_module) for text in by_module[module]}
        made = []
        for place, text in enumerate(texts[:count]):
            rng = np.random.default_rng([seed, place])
            group = names[text]
            same = [other for other in list(by_module.values())[group] if other != text]
            others = [texts[at] for at in rng.permutation(len(texts)) if names[texts[at]] != group][:negatives]
            made.append(TextRow(text, same[int(rng.integers(len(same)))], tuple(others), group))
        return made

    def exam(self, split: Split, count: int, seed: int) -> Ranking:
        """Each docstring ranks all others."""
        texts, by_module = self._by_module(split, seed)
        chosen = texts[:count]
        place = {text: at for at, text in enumerate(chosen)}
        relevant = {
            text: [place[other] for other in group if other in place and other != text]
            for group in by_module.values()
            for text in group
        }
        queries = [text for text in chosen if relevant[text]]
        if not queries:
            raise DataError(f"modules: no two of {count} docstrings of the {split} split share a module; take more")
        return Ranking(queries, chosen, [relevant[text] for text in queries])

    @staticmethod
    def _by_module(split: Split, seed: int) -> tuple[list[str], dict[str, list[str]]]:
        """Docstrings whose module has another one, in an order by seed, and those of each module."""
        groups: dict[str, list[str]] = defaultdict(list)
        for text, example in _documented(split, seed):
            groups[example.module].append(text)
        kept = {module: texts for module, texts in groups.items() if len(texts) > 1}
        if len(kept) < 2:
            raise DataError(
                f"stdlib-code has {len(kept)} modules of two docstrings in its {split} split: two are needed"
            )
        return sorted((t for texts in kept.values() for t in texts), key=lambda text: hash_share(text, seed)), kept


class Sentences(TextTask):
    """Sentences of the STS benchmark are alike from 0 to 5."""

    data = STANDARD

    def rows(self, split: Split, count: int, negatives: int, seed: int) -> list[TextRow]:
        """Pairs from 4 up; negatives are what is alike by 2 at most, else sentences of other pairs."""
        pairs = self._pairs(split, seed)
        unlike, alike = defaultdict[str, list[str]](list), defaultdict[str, set[str]](set)
        for pair in pairs:
            for one, other in ((pair.first, pair.second), (pair.second, pair.first)):
                if pair.score <= 2:
                    unlike[one].append(other)
                else:
                    alike[one].add(other)
        made = []
        for group, pair in enumerate([pair for pair in pairs if pair.score >= 4][:count]):
            rng, known = np.random.default_rng([seed, group]), {pair.first, pair.second, *alike[pair.first]}
            others = (pairs[at].second for at in rng.permutation(len(pairs)))
            far = [*unlike[pair.first], *(text for text in others if text not in known)]
            made.append(TextRow(pair.first, pair.second, tuple(far[:negatives]), group))
        return made

    def exam(self, split: Split, count: int, seed: int) -> GradedPairs:
        """Pairs with their published scores."""
        pairs = self._pairs(split, seed)[:count]
        return GradedPairs([p.first for p in pairs], [p.second for p in pairs], [p.score for p in pairs])

    @staticmethod
    def _pairs(split: Split, seed: int) -> list[ScoredPair]:
        pairs = open_source("stsb", ScoredPair, split=split).examples
        return sorted(pairs, key=lambda pair: hash_share(f"{pair.first}\0{pair.second}", seed))


class Headlines(TextTask):
    """A headline finds its article."""

    data = STANDARD

    def rows(self, split: Split, count: int, negatives: int, seed: int) -> list[TextRow]:
        """Negatives are other articles on the same topic."""
        news = self._news(split, seed)
        by_topic = defaultdict[object, list[str]](list)
        for pair, topic in news:
            by_topic[topic].append(pair.target)
        made = []
        for group, (pair, topic) in enumerate(news[:count]):
            order = np.random.default_rng([seed, group]).permutation(len(by_topic[topic]))
            near = [by_topic[topic][at] for at in order if by_topic[topic][at] != pair.target]
            made.append(TextRow(pair.source, pair.target, tuple(near[:negatives]), group))
        return made

    def exam(self, split: Split, count: int, seed: int) -> Ranking:
        """Each headline ranks the articles of all."""
        pairs = [pair for pair, _ in self._news(split, seed)[:count]]
        texts = list(dict.fromkeys(pair.target for pair in pairs))
        place = {text: at for at, text in enumerate(texts)}
        return Ranking([pair.source for pair in pairs], texts, [[place[pair.target]] for pair in pairs])

    @staticmethod
    def _news(split: Split, seed: int) -> list[tuple[Pair, object]]:
        pairs = open_source("agnews", Pair, split=split).examples
        topics = [one.label for one in open_source("agnews", Labelled, split=split).examples]
        return sorted(zip(pairs, topics, strict=True), key=lambda item: hash_share(item[0].source, seed))


TEXT_TASKS: dict[str, TextTask] = {
    "edits": Edits(),
    "code": CodeSearch(),
    "modules": Modules(),
    "sts": Sentences(),
    "headlines": Headlines(),
}
"""Every group of tasks by name."""


def text_task(name: str) -> TextTask:
    """A group of tasks. Raises: ConfigError for an unknown name."""
    if name not in TEXT_TASKS:
        raise ConfigError(f"tasks: there is no group {name!r}; there are {', '.join(TEXT_TASKS)}")
    return TEXT_TASKS[name]
