"""The catalogue: every leaf has a method that runs, or a reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from adapt.prompting.small_prompts import COLD, LABELS, MODELS, TEXTS, word_tokenizer

from leaven.adapt.prompting import FACETS, METHODS, NONE, STRATEGIES, PromptedClassifier, PromptMethod, PromptTask, find
from leaven.errors import ConfigError, LeavenError
from leaven.training.config import TrainingConfig

WORD = word_tokenizer()
TEMPLATES = {
    "cloze": ("{text} it is {mask} .", "{text} , {mask} .", "topic of {text} is {mask} ."),
    "prefix": ("{text} it is {mask}", "topic of {text} is {mask}", "{text} , {mask}"),
}
BY_KIND = {"masked": "text-encoder", "causal": "gpt2", "seq2seq": "encoder-decoder"}


def letters(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[text.count(c) for c in "aeiou "] for text in texts]).float() + 0.1


def task(kind: str, shape: str) -> PromptTask:
    config = TrainingConfig(progress=False, warmup=0)
    return PromptTask(
        MODELS[BY_KIND[kind]](),
        WORD,
        COLD,
        TEMPLATES[shape],
        TEXTS,
        LABELS,
        TEXTS[::2],
        LABELS[::2],
        letters,
        budget="1 steps",
        config=config,
    )


CASES = [(method, kind) for method in METHODS for kind in method.model]


@pytest.mark.parametrize(("method", "kind"), CASES, ids=[f"{method.name}-{kind}" for method, kind in CASES])
def test_every_method_runs(method: PromptMethod, kind: str) -> None:
    shape = "cloze" if kind == "masked" and "cloze" in method.shape else "prefix"
    made: Any = method.make(task(kind, shape))
    if method.multi_prompt == "decomposition":
        spans = made.predict([["ice", "in", "summer"]])
        assert len(spans) == 1 and all(span.label == "warm" for span in spans[0])
        return
    assert set(made.predict(TEXTS)) <= {"cold", "warm"} and len(made.predict(TEXTS)) == len(TEXTS)
    members = made.members if hasattr(made, "members") else made.classifiers if hasattr(made, "classifiers") else [made]
    for member in members:
        if isinstance(member, PromptedClassifier):
            assert member.strategy == STRATEGIES[method.tuning]
            assert method.shape == ("none",) or member.template.promptless or member.template.shape == shape


@pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
def test_what_is_for_no_labels_reads_none_and_the_rest_needs_some(method: PromptMethod) -> None:
    kind = method.model[0]
    given = task(kind, "cloze")
    unlabelled = replace(given, texts=[], labels=[], dev_labels=[])
    if "zero" in method.regime:
        made: Any = method.make(unlabelled)
        assert made.predict(TEXTS) == method.make(task(kind, "cloze")).predict(TEXTS)  # type: ignore[attr-defined]
    else:
        with pytest.raises(LeavenError):
            method.make(unlabelled)


def test_every_leaf_has_a_method_or_a_reason() -> None:
    for facet, leaves in FACETS.items():
        for leaf in leaves:
            runs = find(**{facet: leaf})
            assert bool(runs) != ((facet, leaf) in NONE), (facet, leaf)
    assert all(len(reason) > 30 for reason in NONE.values())
    assert set(FACETS["tuning"]) == set(STRATEGIES)
    assert all(value in FACETS[facet] for method in METHODS for facet in FACETS for value in method.values(facet))
    assert len({method.name for method in METHODS}) == len(METHODS)


def test_facets_and_branches_find_methods() -> None:
    found = find(shape="cloze", effort="continuous", tuning="fixed-LM")
    assert {method.name for method in found} == {"prompt-tuning", "prefix-tuning", "initialised-prompt"}
    assert [method.name for method in find(answer="continuous:prototypes")] == ["protoverb"]
    assert len(find()) == len(METHODS) and not find(effort="discrete:mining")
    assert find(effort="manual", tuning="promptless", shape="cloze")[0].name == "distilled-ensemble"
    with pytest.raises(ConfigError, match="facet 'form': expected one of model, shape"):
        find(form="cloze")
    with pytest.raises(ConfigError, match="effort='magic': expected one of none, manual"):
        find(effort="magic")
