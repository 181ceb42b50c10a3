"""A systematic survey of prompting: its typology as parts, and what it claims, tested on few labels (2107.13586)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator

from leaven.adapt.prompting import Demonstrations, PromptEnsemble, PromptTask, TaskHead, Template, search_label_words
from leaven.adapt.prompting.recipes import Predictor
from leaven.errors import ConfigError, DataError
from leaven.evidence.arenas.peft_few_shot import ACCURACY, GAP, Combination, FewShotConfig, FewShotSystem, Method
from leaven.evidence.claims import Claim


class PromptingConfig(FewShotConfig):
    """Options of the prompting kit."""

    method: str = Field("fixed-prompt", description="how labels are got from the model; `run` compares several")
    compare: tuple[str, ...] = Field(
        ("zero-shot", "calibrated", "promptless", "fixed-prompt", "fixed-lm"),
        min_length=1,
        description="methods that `run` puts side by side",
    )
    multi_token: Literal["error", "first", "mean", "max"] = Field(
        "mean", description="label words of several tokens: refuse them, or take the score of the first, mean or max"
    )
    max_tokens: int = Field(96, ge=8, le=8192, description="of a prompt; demonstrations are not counted")
    soft_tokens: int = Field(20, ge=1, le=1000, description="learned tokens of fixed-lm and prompt-and-lm")
    demonstration_words: int = Field(8, ge=1, le=1000, description="words that are kept of each demonstration")

    @field_validator("method", "compare")
    @classmethod
    def _known(cls, given: Any) -> Any:
        names = (given,) if isinstance(given, str) else given
        known = [*METHODS, *COMBINED, *([GAP] if isinstance(given, str) else [])]
        for name in names:
            if name not in known:
                raise ConfigError(f"there is no method {name!r}; there are {', '.join(known)}")
        return given


def _form(config: PromptingConfig) -> dict[str, Any]:
    return {"multi_token": config.multi_token, "batch_size": config.batch_size}


def _one(strategy: str, prefix: str = "", *, calibrated: bool = False) -> Method:
    def make(task: PromptTask, config: PromptingConfig) -> list[Predictor]:
        template = prefix.format(config.soft_tokens) + task.templates[0] if prefix else None
        made = task.classifier(strategy, template, max_length=config.max_tokens, **_form(config))
        if calibrated:
            made.calibrate()
        return [made]

    return make


def _promptless(task: PromptTask, config: PromptingConfig) -> list[Predictor]:
    head = TaskHead(list(task.words), task.reader().dim, task.generator())
    bare = Template("{text}", promptless=True)
    return [task.classifier("promptless", bare, head, max_length=config.max_tokens, batch_size=config.batch_size)]


def _each_template(task: PromptTask, config: PromptingConfig) -> list[Any]:
    """A model tuned with each template."""
    apart = [replace(task, model=copy.deepcopy(task.model), templates=(one,)) for one in task.templates]
    return [METHODS["fixed-prompt"](one, config)[0] for one in apart]


def _ensemble(made: list[Any]) -> list[Predictor]:
    return [PromptEnsemble(made)]


def _searched_words(task: PromptTask, config: PromptingConfig) -> list[Predictor]:
    found = search_label_words(task.reader(), Template(task.templates[0]), task.texts, task.labels)
    return METHODS["fixed-prompt"](replace(task, words=_words_of(found.labels, found.words)), config)


def _random_words(task: PromptTask, config: PromptingConfig) -> list[Predictor]:
    reader, template = task.reader(), Template(task.templates[0])
    found: list[str] = []
    for token in torch.randperm(len(reader.embedded()), generator=task.generator()).tolist():
        text = reader.tokenizer.decode([token]).strip()
        if text.isalpha() and text not in found and template.answer_ids(reader.tokenizer, text) == [token]:
            found.append(text)
        if len(found) == len(task.words):
            return METHODS["fixed-prompt"](replace(task, words=_words_of(list(task.words), found)), config)
    raise DataError(f"the vocabulary has only {len(found)} words of one token, and there are {len(task.words)} labels")


def _words_of(labels: Sequence[str], words: Sequence[str]) -> dict[str, str]:
    return dict(zip(labels, words, strict=True))


def _demonstrations(task: PromptTask, config: PromptingConfig) -> list[Predictor]:
    shots = Demonstrations(task.texts, task.labels, features=task.features, words=config.demonstration_words)
    return [task.classifier("fixed-prompt", demonstrations=shots, **_form(config))]


METHODS: dict[str, Method] = {
    "zero-shot": _one("tuning-free"),
    "calibrated": _one("tuning-free", calibrated=True),
    "promptless": _promptless,
    "fixed-prompt": _one("fixed-prompt"),
    "fixed-lm": _one("fixed-LM", "{{soft:{}}} "),
    "prompt-and-lm": _one("prompt+LM", "{{soft:{}}} "),
    "single-templates": _each_template,
    "searched-words": _searched_words,
    "random-words": _random_words,
    "demonstrations": _demonstrations,
}
COMBINED: dict[str, Combination] = {"ensemble": ("single-templates", _ensemble)}


class PromptingSurvey(FewShotSystem[PromptingConfig]):
    """Prompts against fine-tuning of a new head, and the leaves of the typology, with few labels.

    `gap` is the accuracy of a tuned prompt less that of a tuned head. Source: sections 4 to 7.
    """

    slug = "prompting-survey"
    title = "Prompting with few labels: templates, answer words, tuning strategies, ensembles, demonstrations"
    Config = PromptingConfig
    methods: ClassVar[Mapping[str, Method]] = METHODS
    combined: ClassVar[Mapping[str, Combination]] = COMBINED
    untrained = ("zero-shot", "calibrated")
    gap_of = ("fixed-prompt", "promptless")
    arms: ClassVar[dict[str, dict[str, Any]]] = {
        **{name: {"method": name} for name in (*METHODS, *COMBINED)},
        "gap": {"method": "gap"},
        "gap-256": {"method": "gap", "shots": 256},
        "gap-random": {"method": "gap", "random_weights": True},
    }
    tiers: ClassVar[dict[str, dict[str, Any]]] = {
        "embedded": {"budget": "50 steps", "max_tokens": 48},
        # Of news (32) and film reviews (50) a model that has read documentation alone finds hardly more than chance.
        "standard": {
            "data": "trec",
            "templates": (
                "{text} The answer is a {mask}",
                "{text} This asks for a {mask}",
                "{text} Answer: {mask}",
                "{text} Give the {mask}",
                "{text} # {mask}",
            ),
            "max_tokens": 48,
            "test_limit": 500,
            "budget": "50 steps",
            "batch_size": 8,
        },
    }
    seeds: ClassVar[dict[str, int]] = {"embedded": 5, "standard": 3}
    smoke: ClassVar[dict[str, Any]] = {
        "shots": 2, "dev_shots": 1, "test_limit": 16, "max_tokens": 32, "soft_tokens": 3, "demonstration_words": 2,
        "budget": "2 steps", "batch_size": 8, "learning_rates": (1e-3, 1e-2),
    }  # fmt: skip
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            says="With 16 labels a class, tuning with a prompt beats tuning with a new head",
            metric=ACCURACY,
            better="fixed-prompt",
            than="promptless",
            by=5.0,
            paper="SST-2, 16 shots: 92.7 against 81.4",
        ),
        # The standard tier has no class of 256 abbreviations.
        Claim("The gain shrinks with 256 labels a class", "gap", "gap", "gap-256", 0.0, tiers=("embedded",)),
        Claim("The gain comes from pre-training: from random weights it vanishes", "gap", "gap", "gap-random", 4.0),
        Claim("An ensemble of templates beats their mean", ACCURACY, "ensemble", "single-templates", 1.0),
        Claim("Searched label words beat random ones", ACCURACY, "searched-words", "random-words", 5.0),
        Claim("Calibration does not harm zero-shot prompts", ACCURACY, "calibrated", "zero-shot", -1.0),
    )

    def compared(self) -> tuple[str, ...]:
        """As configured."""
        return self.config.compare
