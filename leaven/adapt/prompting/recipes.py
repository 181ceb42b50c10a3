"""Methods of prompting, each a few lines of this package's parts that make a predictor for a user's task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from leaven.adapt.peft import Method, Prefix, PromptTuning, detach
from leaven.adapt.prompting.automatic_verbalizers import (
    PrototypeVerbalizer,
    SoftVerbalizer,
    TaskHead,
    search_label_words,
)
from leaven.adapt.prompting.classifier import PromptedClassifier
from leaven.adapt.prompting.multi_prompt import Demonstrations, PromptEnsemble, best_order, label_entropy
from leaven.adapt.prompting.search import SelectedPerInput, rank_templates, search_trigger
from leaven.adapt.prompting.slots import SlotReader
from leaven.adapt.prompting.spans import SpanClassifier, SpanLabeller
from leaven.adapt.prompting.template import Fields, Template
from leaven.adapt.prompting.verbalizers import (
    ComposedVerbalizer,
    ManualVerbalizer,
    Verbalizer,
    Words,
    decomposed_words,
)
from leaven.metrics.classification import accuracy
from leaven.training.config import TrainingConfig


class Predictor(Protocol):
    """What every method makes."""

    def predict(self, texts: Sequence[Any]) -> list[Any]:
        """An answer for each input: a label, or of sentences given as words their labelled spans."""
        ...


@dataclass(frozen=True)
class PromptTask:
    """What a method is given: a language model, a few labelled texts, and what the user knows to write.

    Args:
        words: label words, of one token each, by label.
        templates: the user's; the first is used where a method takes one. Their shape must be one that the model fills.
        texts, labels: training examples. dev_texts, dev_labels: held-out ones, to choose by.
        features: texts -> vectors (texts, dim), for what is near.
        budget, config: of each training.
    """

    model: nn.Module
    tokenizer: Any
    words: Words
    templates: tuple[str, ...]
    texts: Sequence[str]
    labels: Sequence[str]
    dev_texts: Sequence[str]
    dev_labels: Sequence[str]
    features: Callable[[list[str]], torch.Tensor]
    budget: str = "100 steps"
    config: TrainingConfig = field(default_factory=TrainingConfig)

    def reader(self) -> SlotReader:
        """The model's slots."""
        return SlotReader(self.model, self.tokenizer)

    def generator(self) -> torch.Generator:
        """For initial values."""
        return torch.Generator().manual_seed(self.config.seed)

    def classifier(
        self,
        strategy: str,
        template: str | Template | None = None,
        verbalizer: Words | Verbalizer | None = None,
        **rest: Any,
    ) -> PromptedClassifier:
        """A classifier of the task, by default of its first template and its words; trained unless tuning-free."""
        made = PromptedClassifier(
            self.model,
            self.tokenizer,
            template or self.templates[0],
            self.words if verbalizer is None else verbalizer,
            strategy,
            generator=self.generator(),
            **rest,
        )
        if strategy != "tuning-free":
            made.fit(self.texts, self.labels, self.budget, self.config)
        return made


def fine_tuning(task: PromptTask) -> Predictor:
    """No prompt: a new head, and the whole model trains."""
    head = TaskHead(list(task.words), task.reader().dim, task.generator())
    return task.classifier("promptless", Template("{text}", promptless=True), head)


def zero_shot(task: PromptTask) -> Predictor:
    """Template and words by hand, nothing trains."""
    return task.classifier("tuning-free")


def calibrated(task: PromptTask) -> Predictor:
    """Zero-shot, divided by what the prompt says of nothing."""
    made = task.classifier("tuning-free")
    made.calibrate()
    return made


def pattern_tuning(task: PromptTask) -> Predictor:
    """Template and words by hand, the model trains."""
    return task.classifier("fixed-prompt")


def prompt_tuning(task: PromptTask) -> Predictor:
    """Soft tokens at the model's input alone train."""
    return _prompted(task, PromptTuning(10))


def prefix_tuning(task: PromptTask) -> Predictor:
    """Keys and values in front of those of each layer train, made by a small network."""
    return _prompted(task, Prefix(5, reparameterize=32))


def _prompted(task: PromptTask, method: Method) -> Predictor:
    method.apply(task.model, task.generator())
    try:
        return task.classifier("fixed-LM")
    except BaseException:
        detach(task.model)
        raise


def initialised_prompt(task: PromptTask) -> Predictor:
    """Soft tokens that start as words, the rest stays."""
    return task.classifier("fixed-LM", task.templates[0].replace("{text}", "{text} {soft:it is about}"))


def hybrid_prompt(task: PromptTask) -> Predictor:
    """Soft tokens among the template's words train together with the model."""
    return task.classifier("prompt+LM", task.templates[0].replace("{text}", "{text} {soft:3}"))


def gradient_search(task: PromptTask) -> Predictor:
    """Trigger words by gradient, nothing trains."""
    soft = PromptedClassifier(
        task.model, task.tokenizer, task.templates[0].replace("{text}", "{text} {soft:2}"), task.words, "fixed-LM"
    )
    return task.classifier(
        "tuning-free", search_trigger(soft, task.texts, task.labels, rounds=1, candidates=4).template
    )


def ranked_templates(task: PromptTask) -> Predictor:
    """The best of the user's templates on held-out examples."""

    def make(template: Template) -> PromptedClassifier:
        return task.classifier("tuning-free", template)

    return make(
        rank_templates([Template(t) for t in task.templates], make, task.dev_texts, task.dev_labels)[0].template
    )


def likeliest_template(task: PromptTask) -> Predictor:
    """For each text the template that the model finds most natural with it."""
    return SelectedPerInput([task.classifier("tuning-free", template) for template in task.templates])


def searched_words(task: PromptTask) -> Predictor:
    """Label words found on the examples, then the model trains."""
    found = search_label_words(task.reader(), Template(task.templates[0]), task.texts, task.labels, keep=4)
    return task.classifier("fixed-prompt", verbalizer=found)


def decomposed_labels(task: PromptTask) -> Predictor:
    """The words of the labels' names are the label words."""
    return task.classifier("tuning-free", verbalizer=decomposed_words(list(task.words)), multi_token="mean")


def label_vectors(task: PromptTask) -> Predictor:
    """Label vectors that start as words train, the model does not."""
    manual = ManualVerbalizer(task.words, task.reader().tokenizer, Template(task.templates[0]))
    return task.classifier("fixed-LM", verbalizer=SoftVerbalizer.from_words(manual, task.reader()))


def prototypes(task: PromptTask) -> Predictor:
    """Prototypes of the labels and the model train."""
    reader = task.reader()
    learned = PrototypeVerbalizer(list(task.words), reader.dim, task.generator(), projection=16)
    return task.classifier("prompt+LM", verbalizer=learned)


def span_answers(task: PromptTask) -> Predictor:
    """Answers of several tokens, scored whole."""
    template = Template(task.templates[0])
    answers = {label: [f"{word} {word}" for word in ([given] if isinstance(given, str) else given)]
               for label, given in task.words.items()}  # fmt: skip
    return SpanClassifier(task.reader(), template, answers)


def uniform_ensemble(task: PromptTask) -> PromptEnsemble:
    """The mean over the user's templates."""
    return PromptEnsemble([task.classifier("tuning-free", template) for template in task.templates])


def weighted_ensemble(task: PromptTask) -> Predictor:
    """The mean weighted by accuracy on held-out examples."""
    members = [task.classifier("tuning-free", template) for template in task.templates]
    weights = [1 + accuracy(member.predict(task.dev_texts), task.dev_labels) for member in members]
    return PromptEnsemble(members, weights)


def majority_vote(task: PromptTask) -> Predictor:
    """What most templates say."""
    return PromptEnsemble(uniform_ensemble(task).members, vote=True)


def distilled_ensemble(task: PromptTask) -> Predictor:
    """One promptless model taught by the templates' mean on unlabelled texts."""
    soft = uniform_ensemble(task).soft_labels(task.dev_texts)
    head = TaskHead(list(task.words), task.reader().dim, task.generator())
    student = PromptedClassifier(task.model, task.tokenizer, Template("{text}", promptless=True), head, "promptless")
    student.fit(task.dev_texts, soft, task.budget, task.config)
    return student


def demonstrations(task: PromptTask) -> Predictor:
    """The nearest example of every label before each prompt, nothing trains."""
    shots = Demonstrations(task.texts, task.labels, features=task.features)
    return task.classifier("tuning-free", demonstrations=shots)


def ordered_demonstrations(task: PromptTask) -> Predictor:
    """An example of every label, in the order under which predictions are most varied."""

    def ordered(order: tuple[int, ...]) -> PromptedClassifier:
        return task.classifier("tuning-free", demonstrations=Demonstrations(task.texts, task.labels, order=order))

    def value(order: tuple[int, ...]) -> float:
        return label_entropy(ordered(order).scores(task.dev_texts))

    return ordered(best_order(value, len(set(task.labels)), limit=6))


def composed_prompt(task: PromptTask) -> Predictor:
    """Two slots, whose answers must both fit the label."""
    template = Template(f"{task.templates[0]} {{mask}} .")
    tokenizer = task.reader().tokenizer
    parts = [ManualVerbalizer(task.words, tokenizer, template, slot=slot) for slot in range(2)]
    return task.classifier(
        "fixed-prompt", template, ComposedVerbalizer(parts, {label: (label, label) for label in task.words})
    )


def decomposed_prompt(task: PromptTask) -> Predictor:
    """One prompt for each span of a sentence; the first label is that of no span."""
    template = task.templates[0].replace("{text}", "{text} {span}")

    def make() -> PromptedClassifier:
        made = PromptedClassifier(task.model, task.tokenizer, template, task.words, "fixed-prompt")
        spans: list[Fields] = [{"text": text, "span": text.split()[0]} for text in task.texts]
        made.fit(spans, task.labels, task.budget, task.config)
        return made

    return SpanLabeller(make(), next(iter(task.words)), longest=2)
