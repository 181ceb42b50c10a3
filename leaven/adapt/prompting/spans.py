"""Answers of several tokens, and prompts for the parts of an input: spans scored whole, and a sentence span by span."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from leaven.adapt.prompting.multi_prompt import Classifier, predicted
from leaven.adapt.prompting.slots import SlotReader, Slots
from leaven.adapt.prompting.template import Encoded, Fields, Template
from leaven.adapt.prompting.verbalizers import Words
from leaven.errors import ConfigError


class SpanClassifier:
    """Labels texts by answers of any length, scored whole: the mean log-probability of an answer's tokens.

    A causal or sequence-to-sequence model predicts each token from those before; a masked model fills as many masks as
    the answer has tokens, each from the rest of the prompt alone. A label has the mean score of its answers. Nothing
    trains.

    Args:
        answers: one or more answers for each label.

    Raises: ConfigError for less than two labels, an answer without tokens, one of two labels, or several slots.
    Source: arXiv 2107.13586 section 5.1 (span answers); arXiv 2005.14165 section 2.4 (likelihood per token);
    arXiv 2010.06189 section 4 for masks.
    """

    def __init__(self, reader: SlotReader, template: Template, answers: Words, *, batch_size: int = 16) -> None:
        if template.slots != 1 or template.promptless:
            raise ConfigError(f"template {template.text!r} has {template.slots} slots: expected one {{mask}}")
        if len(answers) < 2:
            raise ConfigError(f"answers of {list(answers)}: expected two labels or more")
        self.reader, self.template, self.batch_size = reader, template, batch_size
        self.labels = tuple(answers)
        self.answers: list[tuple[int, list[int]]] = []
        for at, given in enumerate(answers.values()):
            for text in [given] if isinstance(given, str) else given:
                ids = template.answer_ids(reader.tokenizer, text)
                if not ids or any(ids == other for _, other in self.answers):
                    raise ConfigError(f"answer {text!r} of label {self.labels[at]!r} is empty or given twice")
                self.answers.append((at, ids))
        if bare := set(range(len(answers))) - {owner for owner, _ in self.answers}:
            raise ConfigError(f"label {self.labels[min(bare)]!r} has no answer")

    def _prompt(self, text: Fields, answer: list[int]) -> Encoded:
        made = self.reader.encode(self.template, text, width=len(answer) if self.reader.kind == "masked" else 1)
        if self.reader.kind == "masked":
            return made
        slots = [made.slots[0] + step for step in range(len(answer))]
        if self.reader.kind == "seq2seq":
            return made._replace(decoder=[*made.decoder, *answer[:-1]], slots=slots)
        return made._replace(ids=[*made.ids, *answer[:-1]], soft=[*made.soft, *[-1] * (len(answer) - 1)], slots=slots)

    def answer_scores(self, texts: Sequence[Fields]) -> Tensor:
        """Mean log-probability per token (texts, answers), on the CPU."""
        columns = []
        for _, answer in self.answers:
            prompts = [self._prompt(text, answer) for text in texts]
            wanted = torch.tensor(answer, device=self.reader.device)

            def likelihood(slots: Slots, wanted: Tensor = wanted) -> Tensor:
                found = F.log_softmax(slots.logits.float(), -1)
                return found.gather(2, wanted.expand(len(found), -1)[..., None]).mean((1, 2)).cpu()

            columns.append(torch.cat(self.reader.read(prompts, likelihood, batch_size=self.batch_size)))
        return torch.stack(columns, 1)

    def scores(self, texts: Sequence[Fields]) -> Tensor:
        """Log-probabilities (texts, labels)."""
        owned = F.one_hot(torch.tensor([owner for owner, _ in self.answers]), len(self.labels)).float()
        return F.log_softmax(self.answer_scores(texts) @ (owned / owned.sum(0)), -1)

    def predict(self, texts: Sequence[Fields]) -> list[str]:
        """The likeliest label of each text."""
        return predicted(self, texts)


class Span(NamedTuple):
    """Words start to stop, not included, of a sentence, with a label and its probability."""

    start: int
    stop: int
    label: str
    probability: float


class SpanLabeller:
    """Finds labelled spans with one prompt for each span of a sentence.

    Of spans that overlap the one with the likelier label stays.

    Args:
        classifier: reads the fields `text` and `span`, as in "{text} {span} is {mask}."
        outside: the label of spans that are nothing.
        longest: words of a span.

    Raises: ConfigError for an unknown label or a length below 1.
    Source: arXiv 2106.01760 sections 3.2 and 3.3 (template-based entity recognition); arXiv 2107.13586 section 6.4.
    """

    def __init__(self, classifier: Classifier, outside: str, longest: int = 4) -> None:
        if outside not in classifier.labels or longest < 1:
            raise ConfigError(
                f"outside={outside!r}, longest={longest}: expected one of {', '.join(classifier.labels)}, at least 1"
            )
        self.classifier, self.outside, self.longest = classifier, outside, longest

    def spans(self, words: Sequence[str]) -> list[Span]:
        """Labelled spans of one sentence, none of which overlap, from left to right."""
        places = [(start, stop) for start in range(len(words))
                  for stop in range(start + 1, min(start + self.longest, len(words)) + 1)]  # fmt: skip
        if not places:
            return []
        text = " ".join(words)
        scores = self.classifier.scores([{"text": text, "span": " ".join(words[a:b])} for a, b in places])
        values, found = scores.exp().max(-1)
        spans = [Span(*place, self.classifier.labels[at], value)
                 for place, at, value in zip(places, found.tolist(), values.tolist(), strict=True)]  # fmt: skip
        kept: list[Span] = []
        for span in sorted(spans, key=lambda one: -one.probability):
            free = all(span.stop <= other.start or other.stop <= span.start for other in kept)
            if span.label != self.outside and free:
                kept.append(span)
        return sorted(kept)

    def predict(self, sentences: Sequence[Sequence[str]]) -> list[list[Span]]:
        """Labelled spans of each sentence, given as words."""
        return [self.spans(words) for words in sentences]
