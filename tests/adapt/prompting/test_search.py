"""Searched prompts against finite differences and brute force; likelihoods against the models' own losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adapt.prompting.small_prompts import (
    CLOZE,
    COLD,
    LABELS,
    MODELS,
    PREFIX,
    SPECIALS,
    TEXTS,
    VOCAB,
    bert,
    checksum,
    gpt2,
    word_tokenizer,
)  # fmt: skip
from torch.nn import functional as F

from leaven.adapt.prompting import (
    PromptedClassifier,
    SelectedPerInput,
    SlotReader,
    Template,
    log_likelihoods,
    rank_templates,
    search_trigger,
)  # fmt: skip
from leaven.adapt.prompting.search import hotflip
from leaven.errors import ConfigError, DataError

WORD = word_tokenizer()
SOFT = {"bert": "{text} {soft:2} {mask} .", "gpt2": "{text} {soft:2} {mask}"}


def classifier(name: str, template: str | Template, strategy: str = "tuning-free") -> PromptedClassifier:
    return PromptedClassifier(MODELS[name](), WORD, template, COLD, strategy)


def loss_with(name: str, ids: list[int]) -> float:
    """Cross-entropy with these tokens written into the template, through nothing but scores."""
    soft = Template(SOFT[name])
    made = classifier(name, soft.filled(ids, SlotReader(MODELS[name](), WORD).tokenizer))
    targets = torch.tensor([made.labels.index(label) for label in LABELS])
    return float(F.nll_loss(made.scores(TEXTS), targets))


@pytest.mark.parametrize("name", SOFT)
def test_the_ranking_of_tokens_is_that_of_finite_differences(name: str) -> None:
    made = PromptedClassifier(MODELS[name]().double(), WORD, SOFT[name], COLD, "fixed-LM")
    embedded, prompts = made.reader.embedded(), made.encode(TEXTS)
    targets, old = made.targets(TEXTS, LABELS), made.reader.embedded()[[7, 9]]

    def loss(soft: torch.Tensor) -> torch.Tensor:
        scores = made.model.verbalizer(made.reader(made.reader.collate(prompts), soft))
        return F.cross_entropy(scores, targets)

    soft = old.clone().requires_grad_(True)
    gradient = torch.autograd.grad(loss(soft), soft)[0][1]
    step, slopes = 1e-3, []
    for token in range(VOCAB):
        towards = torch.zeros_like(old)
        towards[1] = embedded[token] - old[1]
        slopes.append(float((loss(old + step * towards) - loss(old - step * towards)).detach()) / (2 * step))
    torch.testing.assert_close(
        embedded @ gradient - old[1] @ gradient, torch.tensor(slopes).double(), rtol=1e-3, atol=1e-5
    )
    ranked = hotflip(gradient, embedded, VOCAB, torch.ones(VOCAB, dtype=torch.bool))
    assert ranked.tolist() == torch.tensor(slopes).argsort().tolist()
    few = hotflip(gradient, embedded, 5, torch.arange(VOCAB) >= VOCAB - 3)
    assert sorted(few.tolist()) == [VOCAB - 3, VOCAB - 2, VOCAB - 1]


@pytest.mark.parametrize("name", SOFT)
def test_a_search_over_all_tokens_is_coordinate_descent_by_brute_force(name: str) -> None:
    made = classifier(name, SOFT[name], "fixed-LM")
    before = checksum(made.model)
    words = [10, 11, 12, 13, 14, 15]
    found = search_trigger(made, TEXTS, LABELS, rounds=1, candidates=len(words), allowed=words)
    start = [4, 4]
    first = min([start, *([word, 4] for word in words)], key=lambda ids: loss_with(name, ids))
    second = min([first, *([first[0], word] for word in words)], key=lambda ids: loss_with(name, ids))
    assert found.ids == second
    torch.testing.assert_close(
        torch.tensor(found.losses),
        torch.tensor([loss_with(name, ids) for ids in (start, first, second)]),
        atol=1e-5,
        rtol=1e-5,
    )
    assert checksum(made.model) == before
    assert found.template.encode(made.reader.tokenizer, "ice", kind=made.reader.kind).soft.count(-1) > 3


def test_a_search_leaves_special_tokens_and_label_words_out_and_ends_when_nothing_helps() -> None:
    made = classifier("bert", SOFT["bert"], "fixed-LM")
    found = search_trigger(made, TEXTS, LABELS, rounds=20, candidates=VOCAB)
    words = [i for ids in made.model.verbalizer.ids for i in ids]  # type: ignore[union-attr]
    assert not {*range(len(SPECIALS)), *words} & (set(found.ids) - {4})
    assert found.losses == sorted(found.losses, reverse=True) and len(found.losses) < 1 + 2 * 20
    assert abs(loss_with("bert", found.ids) - found.losses[-1]) < 1e-5
    again = search_trigger(made, TEXTS, LABELS, rounds=20, candidates=VOCAB)
    assert again.ids == found.ids


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(ConfigError, match="no soft tokens to search"):
        search_trigger(classifier("bert", CLOZE), TEXTS, LABELS)
    made = classifier("bert", SOFT["bert"], "fixed-LM")
    with pytest.raises(ConfigError, match="rounds=0"):
        search_trigger(made, TEXTS, LABELS, rounds=0)
    with pytest.raises(ConfigError, match="no token to choose"):
        search_trigger(made, TEXTS, LABELS, allowed=[])
    with pytest.raises(DataError, match="'hot' is not one of"):
        search_trigger(made, TEXTS, ["hot"] * len(TEXTS))


TEMPLATES = [CLOZE, "{text} is {mask} .", "the topic of {text} was {mask} , summer", "{mask} , {text}"]


def test_templates_are_ranked_by_the_development_texts_alone() -> None:
    dev, answers = TEXTS[::2], LABELS[::2]
    made: list[PromptedClassifier] = []
    seen: set[str] = set()

    def make(template: Template) -> PromptedClassifier:
        one = classifier("bert", template)
        encode = one.encode
        one.encode = lambda texts, **rest: [seen.update(texts), encode(texts, **rest)][1]  # type: ignore[method-assign, assignment, func-returns-value]
        made.append(one)
        return one

    ranked = rank_templates(TEMPLATES, make, dev, answers)
    assert seen == set(dev)
    want = {}
    for one in made:
        scores, targets = one.scores(dev), one.targets(dev, answers)
        right = int((scores.argmax(1) == targets).sum())
        want[one.template.text] = (100 * right / len(dev), float(scores[range(len(dev)), targets].mean()))
    assert [(r.accuracy, pytest.approx(r.log_likelihood)) for r in ranked] == sorted(want.values(), reverse=True)
    assert all(want[r.template.text][0] == r.accuracy for r in ranked)
    with pytest.raises(ConfigError, match="no templates"):
        rank_templates([], make, dev, answers)


def test_likelihood_of_a_causal_prompt_is_the_models_own_loss() -> None:
    model = gpt2()
    reader = SlotReader(model, WORD)
    for text in TEXTS[:3]:
        prompt = reader.encode(Template(PREFIX), text)
        ids = torch.tensor([prompt.ids])
        with torch.no_grad():
            want = -model(ids, labels=ids).loss
        torch.testing.assert_close(log_likelihoods(reader, [prompt])[0], want)


def test_likelihood_of_a_cloze_masks_each_token_in_turn() -> None:
    model = bert()
    reader = SlotReader(model, WORD)
    prompt = reader.encode(Template(CLOZE), "ice snow")
    ids = torch.tensor([prompt.ids])
    total, count = 0.0, 0
    for at, token in enumerate(prompt.ids):
        if token in (2, 3) or at in prompt.slots:
            continue
        masked = ids.clone()
        masked[0, at] = 4
        with torch.no_grad():
            total += float(model(masked).logits[0, at].log_softmax(-1)[token])
        count += 1
    assert count == len(prompt.ids) - 3
    torch.testing.assert_close(float(log_likelihoods(reader, [prompt])[0]), total / count, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="gives prompts no probability"):
        log_likelihoods(SlotReader(MODELS["t5"](), WORD), [prompt])
    with pytest.raises(DataError, match="no token that the model could predict"):
        log_likelihoods(reader, [reader.encode(Template("{text} {mask}"), "")])


def test_each_input_has_the_prompt_that_is_likeliest_for_it() -> None:
    model: Any = bert()
    members = [PromptedClassifier(model, WORD, template, COLD, "tuning-free") for template in TEMPLATES]
    chosen = SelectedPerInput(members).chosen(TEXTS).tolist()
    scores = SelectedPerInput(members).scores(TEXTS)
    for row, text in enumerate(TEXTS):
        found = [float(log_likelihoods(one.reader, one.encode([text]))[0]) for one in members]
        assert found[chosen[row]] == pytest.approx(max(found))
        torch.testing.assert_close(scores[row], members[chosen[row]].scores([text])[0])
    assert len(set(chosen)) > 1
    other = PromptedClassifier(model, WORD, CLOZE, {"a": "ice", "b": "sun"}, "tuning-free")
    with pytest.raises(ConfigError, match="same labels"):
        SelectedPerInput([members[0], other])
