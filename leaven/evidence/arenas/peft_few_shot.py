"""The arena of few labels: as many texts of every class as are asked for, a language model, and ways to prompt it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import Field, PositiveFloat, field_validator
from torch import Tensor, nn

from leaven.adapt.prompting import PromptedClassifier, PromptTask, SlotReader, Template
from leaven.adapt.prompting.recipes import Predictor
from leaven.errors import ConfigError, DataError
from leaven.evidence.arenas.peft_data import DOCSTRING_TOPICS, LabelledTexts, TextData, open_texts, some_of_each
from leaven.evidence.arenas.peft_model import DEFAULT_TEXT, tokenizer_of
from leaven.evidence.selection import Choice, best_of_grid
from leaven.evidence.system import Figures, Measurement, Outcome, System, SystemConfig, timed
from leaven.metrics.classification import balanced_accuracy
from leaven.models.loading import load_model_and_tokenizer
from leaven.models.saved import ARCHITECTURES, build_model
from leaven.training.budgets import Budget
from leaven.training.config import TrainingConfig

GAP = "gap"
ACCURACY = "balanced_accuracy"
_EVERY = 10**9
WORDS: dict[str, tuple[str, ...]] = {
    "windows": ("window", "widget"),
    "concurrency": ("thread", "process"),
    "mail": ("message", "mail"),
    "web": ("server", "request"),
    "numbers": ("number", "date"),
    "files": ("file", "path"),
    "debugging": ("test", "frame"),
    "modules": ("module", "import"),
    "negative": ("bad", "terrible"),
    "positive": ("good", "great"),
    "World": ("world", "country"),
    "Sports": ("game", "team"),
    "Business": ("business", "market"),
    "Sci/Tech": ("computer", "science"),
    "description": ("description", "meaning"),
    "entity": ("thing", "object"),
    "abbreviation": ("abbreviation", "short"),
    "human": ("person", "name"),
    "location": ("place", "location"),
    "number": ("number", "date"),
}
"""Label words of docstring-topics, sst2, agnews and trec."""


@dataclass(frozen=True)
class Shots:
    """Examples to train on, and held-out ones to choose by."""

    train: LabelledTexts
    dev: LabelledTexts


def draw_shots(data: TextData, per_class: int, dev_per_class: int, seed: int) -> Shots:
    """So many texts of every class of the train split, and of the valid split, in an order that mixes the classes.

    Shots of one seed are nested: those of a smaller number are among those of a larger one. A class of the valid split
    may have fewer.

    Raises: DataError for a class with fewer texts to train on, or none to choose by.
    """
    train = some_of_each(data.train, data.classes, per_class, seed)
    dev = some_of_each(data.valid, data.classes, dev_per_class, seed)
    for name in data.classes:
        if (found := train.labels.count(name)) < per_class:
            raise DataError(f"class {name!r} has {found} texts to train on; {per_class} of every class were asked for")
        if name not in dev.labels:
            raise DataError(f"class {name!r} has no text in the valid split to choose by")
    return Shots(train, dev)


class FewShotConfig(SystemConfig):
    """Options that the systems of the arena share."""

    data: str = Field(
        DOCSTRING_TOPICS,
        description="docstring-topics, sst2, agnews, trec, or rows of {text, label} such as jsonl:FILE",
    )
    model: str = Field(DEFAULT_TEXT, description="a language model: zoo:NAME, hf:ID or a folder")
    templates: tuple[str, ...] = Field(
        (
            "{text} This is about {mask}",
            "{text} Topic: {mask}",
            "{text} It works with the {mask}",
            "{text} See the {mask}",
            "{text} # {mask}",
        ),
        min_length=1,
        description="prompts with {text} and {mask}; the first is used where a method takes one",
    )
    words: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="label words by label; the named sets have their own"
    )
    shots: int = Field(16, ge=1, le=100_000, description="labelled texts of every class to train on")
    dev_shots: int = Field(16, ge=1, le=100_000, description="texts of every class to choose the learning rate by")
    test_limit: int = Field(600, ge=1, description="most texts to test on")
    budget: str = Field("100 steps", description="of each training, in steps")
    batch_size: int = Field(16, ge=1, le=4096, description="texts per step")
    learning_rates: tuple[PositiveFloat, ...] = Field(
        (3e-4, 3e-3, 3e-2), min_length=1, description="peak rates to try; the held-out shots pick one"
    )
    random_weights: bool = Field(False, description="forget what the model learnt: start from random weights")

    @field_validator("budget")
    @classmethod
    def _in_steps(cls, text: str) -> str:
        if list(Budget.parse(text).limits) != ["steps"]:
            raise ConfigError(f"budget={text!r}: expected steps alone, so that all methods make as many updates")
        return text


C = TypeVar("C", bound=FewShotConfig)
Method = Callable[[PromptTask, Any], list[Predictor]]
"""From a task and the system's configuration to what was trained: one predictor, or one for each template."""
Combination = tuple[str, Callable[[list[Predictor]], list[Predictor]]]
"""The method whose predictors are taken, and what is made of them without training."""
Trained = dict[tuple[str, float], list[Predictor]]
"""Predictors by method and learning rate."""


@dataclass(frozen=True)
class Ground:
    """What all methods of a run share."""

    model: nn.Module
    tokenizer: Any
    words: dict[str, tuple[str, ...]]
    data: TextData
    shots: Shots


class FewShotSystem(System[C]):
    """Ways to prompt by the system; shots, rates and the test by the arena.

    methods: by name. combined: further ones, made of what a method trained. untrained: those that make no update.
    gap_of: the two whose difference in accuracy, the first less the second, is the figure `gap`, which the method "gap"
    gives. Accuracy is balanced: shots have as many texts of every class, and tests need not.
    """

    title = ""
    methods: ClassVar[Mapping[str, Method]]
    combined: ClassVar[Mapping[str, Combination]] = {}
    untrained: ClassVar[tuple[str, ...]] = ()
    gap_of: ClassVar[tuple[str, str]]

    def compared(self) -> tuple[str, ...]:
        """Methods that a run puts side by side."""
        return (*self.methods, *self.combined)

    @property
    def method(self) -> str:
        """The method that is measured."""
        return str(getattr(self.config, "method", ""))

    def run(self, out: Path) -> Outcome:
        """Compare the methods on the same shots."""
        del out
        timings: dict[str, float] = {}
        with timed(timings, "data and model"):
            ground = self.ground()
        chosen: dict[str, Choice[list[Predictor]]] = {}
        for name in self.compared():
            with timed(timings, name):
                chosen[name] = self.best(ground, name)
        test = ground.data.test.read()
        rows: list[list[Any]] = []
        for name, best in chosen.items():
            rate = None if name in self.untrained else f"{best.value:g}"
            rows.append([name, rate, best.score, *judged(best.result, test).values()])
        return Outcome(
            system=self.slug,
            title=self.title,
            config=self.config.model_dump(mode="json"),
            columns=["method", "learning rate", "held-out", "balanced accuracy", "worst template"],
            rows=rows,
            samples=_samples(chosen, test),
            timings=timings,
            model=next(reversed(chosen.values())).result[0],
        )

    def measure(self, out: Path) -> Measurement:
        """One arm: the rate is picked on the held-out shots, the test split is read once.

        Arms of a seed that follow one another in a process share what they trained; their budget is what each would
        have used.
        """
        del out
        started, config = time.perf_counter(), self.config
        ground = self.ground()
        names = self.gap_of if self.method == GAP else (self.method,)
        trained = _trained(config.model_dump_json(exclude={"method", "compare", "learning_rates"}))
        chosen = {name: self.best(ground, name, trained) for name in names}
        test = ground.data.test.read()
        metrics, *others = (judged(best.result, test) for best in chosen.values())
        if others:
            metrics = {ACCURACY: metrics[ACCURACY], GAP: metrics[ACCURACY] - others[0][ACCURACY]}
        steps = 0 if self.method in self.untrained else Budget.parse(config.budget).steps
        return Measurement(
            metrics=metrics,
            validation={f"{ACCURACY}: {name}": best.score for name, best in chosen.items()},
            budget={
                "shots": float(config.shots),
                "steps": float(steps or 0),
                "trials": float(sum(best.trials for best in chosen.values())),
            },
            chosen={name: {"learning_rate": best.value} for name, best in chosen.items()},
            seconds=time.perf_counter() - started,
        )

    def ground(self) -> Ground:
        """Model, data and shots.

        Raises: ConfigError for label words that do not fit the labels, or random weights of a model that is used as it
        is; DataError for too few texts.
        """
        config = self.config
        loaded = load_model_and_tokenizer(config.model)
        model: Any = loaded.model
        if config.random_weights:
            if loaded.kind not in ARCHITECTURES or hasattr(model, "inner"):
                raise ConfigError(f"random_weights: {config.model} is used as it is, and cannot be made anew")
            torch.manual_seed(config.seed)
            model = build_model(model.config).eval()
        data = open_texts(config.data, limits=(_EVERY, _EVERY, config.test_limit))
        own = {name: WORDS[name] for name in data.classes if name in WORDS}
        words = config.words or own
        if set(words) != set(data.classes):
            raise ConfigError(
                f"words has {', '.join(words) or 'nothing'}, and the labels are {', '.join(data.classes)}: give label "
                'words for each, such as words={"0": ["bad"], "1": ["good"]}'
            )
        shots = draw_shots(data, config.shots, config.dev_shots, config.seed)
        return Ground(model, tokenizer_of(loaded, config.model), words, data, shots)

    def best(self, ground: Ground, name: str, trained: Trained | None = None) -> Choice[list[Predictor]]:
        """The training whose rate does best on the held-out shots; the base model stays as it is.

        trained: what there is already, which grows.
        """
        rates = self.config.learning_rates[: 1 if name in self.untrained else None]
        kept: Trained = {} if trained is None else trained
        source, combine = self.combined.get(name, (name, None))

        def attempt(rate: float) -> tuple[float, list[Predictor]]:
            if (source, rate) not in kept:
                kept[source, rate] = self.methods[source](self.task(ground, rate), self.config)
            made = kept[source, rate]
            made = combine(made) if combine else made
            return judged(made, ground.shots.dev)[ACCURACY], made

        return best_of_grid(rates, attempt)

    def task(self, ground: Ground, rate: float) -> PromptTask:
        """The shots with a copy of the model; texts are near whose states at the first template's slot are."""
        config, train, dev = self.config, ground.shots.train, ground.shots.dev
        model = copy.deepcopy(ground.model)
        reader, template = SlotReader(model, ground.tokenizer), Template(config.templates[0])

        def features(texts: list[str]) -> Tensor:
            prompts = [reader.encode(template, text) for text in texts]
            return torch.cat(reader.read(prompts, lambda slots: slots.states[:, 0].cpu()))

        return PromptTask(
            model=model,
            tokenizer=ground.tokenizer,
            words=ground.words,
            templates=config.templates,
            texts=train.texts,
            labels=train.labels,
            dev_texts=dev.texts,
            dev_labels=dev.labels,
            features=features,
            budget=config.budget,
            config=TrainingConfig(learning_rate=rate, seed=config.seed, warmup=0.06),
        )


@lru_cache(maxsize=1)
def _trained(ground: str) -> Trained:
    """What arms on one ground share; those on another begin anew."""
    del ground
    return {}


def judged(predictors: Sequence[Predictor], texts: LabelledTexts) -> Figures:
    """Mean balanced accuracy of the predictors in [0, 100], and that of the worst."""
    found = [balanced_accuracy(one.predict(texts.texts), texts.labels) for one in predictors]
    return {ACCURACY: fmean(found), "worst_template": min(found)}


def _samples(chosen: dict[str, Choice[list[Predictor]]], test: LabelledTexts) -> list[dict[str, str]]:
    """Three texts with the answer of the last prompted method, and its likeliest label words."""
    prompted = [one for best in chosen.values() for one in best.result if isinstance(one, PromptedClassifier)]
    if not prompted:
        return []
    places = range(0, len(test), max(1, len(test) // 3))[:3]
    found = prompted[-1].explain([test.texts[at] for at in places])
    return [
        {
            "task": "classify",
            "input": test.texts[at],
            "answer": f"{one.label} ({', '.join(f'{w} {p:.2f}' for w, p in _likeliest(one.words))})",
            "reference": test.labels[at],
        }
        for at, one in zip(places, found, strict=True)
    ]


def _likeliest(words: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(words.items(), key=lambda item: -item[1])[:3]
