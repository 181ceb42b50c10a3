"""Verbalizers against loops over words, brute force, and the identities that tie one kind to another."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from adapt.prompting.small_prompts import (
    LABELS,
    MODELS,
    TEXTS,
    VOCAB,
    bert,
    byte_tokenizer,
    gpt2,
    language_model,
    word_tokenizer,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leaven.adapt.prompting import (
    ComposedVerbalizer,
    ManualVerbalizer,
    PrototypeVerbalizer,
    SlotReader,
    Slots,
    SoftVerbalizer,
    Template,
    decomposed_words,
    prompt_tokenizer,
    search_label_words,
)  # fmt: skip
from leaven.adapt.prompting.automatic_verbalizers import best_assignment, likelihood_ratio
from leaven.errors import ConfigError, DataError

WORD = prompt_tokenizer(word_tokenizer())
TEMPLATE = Template("{text} it is {mask} .")
WORDS = {"cold": ["cold", "ice", "snow"], "warm": ["warm", "fire"], "wet": "rain"}


def slots(rows: int = 4, count: int = 1, seed: int = 0) -> Slots:
    generator = torch.Generator().manual_seed(seed)
    return Slots(torch.randn(rows, count, 8, generator=generator), torch.randn(rows, count, VOCAB, generator=generator))


def by_loops(logits: Tensor, words: dict[str, list[list[int]]], how: str, content_free: Tensor | None = None) -> Tensor:
    """OpenPrompt's order: project, softmax over all label words, calibrate, log, mean."""

    def probabilities(row: Tensor) -> list[list[float]]:
        take = {"first": lambda t: t[0], "mean": lambda t: sum(t) / len(t), "max": max}[how]
        raw = [[math.exp(take([float(row[i]) for i in ids])) for ids in own] for own in words.values()]
        total = sum(sum(own) for own in raw)
        return [[value / total for value in own] for own in raw]

    out = []
    for row in logits:
        found = probabilities(row)
        if content_free is not None:
            free = probabilities(content_free)
            found = [[a / b for a, b in zip(x, y, strict=True)] for x, y in zip(found, free, strict=True)]
            total = sum(sum(own) for own in found)
            found = [[value / total for value in own] for own in found]
        out.append([sum(math.log(value) for value in own) / len(own) for own in found])
    return torch.tensor(out)


@pytest.mark.parametrize("how", ["first", "mean", "max"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_scores_equal_loops_over_words(how: str, calibrated: bool) -> None:
    words = {"cold": ["cold", "unkind"], "warm": ["warm", "fire sun hot"], "wet": ["rain"]}
    verbalizer = ManualVerbalizer(words, WORD, TEMPLATE, multi_token=how)  # type: ignore[arg-type]
    read, free = slots(), slots(1, seed=5)
    if calibrated:
        verbalizer.calibrate(free)
    ids = {label: [WORD.encode(word) for word in given] for label, given in words.items()}
    want = by_loops(read.logits[:, 0], ids, how, free.logits[0, 0] if calibrated else None)
    torch.testing.assert_close(verbalizer(read), want, rtol=1e-5, atol=1e-5)


def test_calibrated_scores_of_the_content_free_input_are_uniform() -> None:
    read = slots(1)
    parts = [ManualVerbalizer(WORDS, WORD, TEMPLATE), SoftVerbalizer(["a", "b"], 8, torch.Generator().manual_seed(0))]
    for verbalizer in parts:
        before = verbalizer(read).softmax(-1)
        verbalizer.calibrate(read)
        count = len(verbalizer.labels)
        torch.testing.assert_close(verbalizer(read).softmax(-1), torch.full((1, count), 1 / count))
        verbalizer.calibrate(None)
        torch.testing.assert_close(verbalizer(read).softmax(-1), before)
        assert (before - 1 / count).abs().max() > 1e-3


def test_several_content_free_inputs_count_by_their_mean_probability() -> None:
    verbalizer, read, free = ManualVerbalizer(WORDS, WORD, TEMPLATE), slots(), slots(3, seed=1)
    mean = verbalizer.log_units(free).exp().mean(0)
    want = verbalizer.log_units(read).exp() / mean
    verbalizer.calibrate(free)
    torch.testing.assert_close(verbalizer.log_units(read).exp(), want / want.sum(1, keepdim=True))


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "text-encoder", "language-model", "encoder-decoder"])
@pytest.mark.parametrize("how", ["error", "mean", "first"])
def test_label_vectors_from_words_score_as_the_words(name: str, how: str) -> None:
    reader = SlotReader(MODELS[name](), word_tokenizer())
    template = Template("{text} it is {mask}")
    words = {**WORDS, "odd": ["green" if how == "error" else "unkind sun"]}
    manual = ManualVerbalizer(words, WORD, template, multi_token=how)  # type: ignore[arg-type]
    (read,) = reader.read([reader.encode(template, text) for text in TEXTS], lambda slots: slots)
    soft = SoftVerbalizer.from_words(manual, reader)
    torch.testing.assert_close(soft(read).softmax(-1), manual(read).softmax(-1), rtol=1e-4, atol=1e-5)


def test_composed_labels_are_products_of_their_parts() -> None:
    template = Template("{text} {mask} in {mask}")
    kind = ManualVerbalizer({"person": "person", "city": "city"}, WORD, template)
    link = ManualVerbalizer({"lives": "lives", "was": "was", "is": "is"}, WORD, template, slot=1)
    rules = {"resident": ("person", "lives"), "place": ("city", "is"), "past": ("city", "was")}
    composed, read = ComposedVerbalizer([kind, link], rules), slots(count=2)
    assert composed.slots == template.slots == 2
    first, second = (part(Slots(read.states[:, at : at + 1], read.logits[:, at : at + 1])).softmax(-1)
                     for at, part in enumerate((kind, link)))  # fmt: skip
    product = torch.stack([first[:, 0] * second[:, 0], first[:, 1] * second[:, 2], first[:, 1] * second[:, 1]], 1)
    torch.testing.assert_close(composed(read).softmax(-1), product / product.sum(1, keepdim=True))
    assert composed.answers("place") == (tuple(WORD.encode("city")), tuple(WORD.encode("is")))
    for bad, message in [
        ({"a": ("person",), "b": ("city", "is")}, "2 slots"),
        ({"a": ("x", "is"), "b": ("city", "is")}, "wants 'x'"),
        ({"a": ("city", "is"), "b": ("city", "is")}, "same rule"),
    ]:
        with pytest.raises(ConfigError, match=message):
            ComposedVerbalizer([kind, link], bad)


def test_words_that_cannot_serve_are_refused() -> None:
    def make(words: dict[str, object], **options: object) -> ManualVerbalizer:
        return ManualVerbalizer(words, WORD, TEMPLATE, **options)  # type: ignore[arg-type]

    with pytest.raises(
        ConfigError, match=r"'unkind' of label 'b' is 2 tokens \('un' \+ '##kind'\).*'first', 'mean' or 'max'"
    ):
        make({"a": "cold", "b": "unkind"})
    assert make({"a": "cold", "b": "unkind"}, multi_token="first").ids[1] == WORD.encode("unkind")
    with pytest.raises(ConfigError, match="labels 'a' and 'b' share a word: 'ice' and 'ice'"):
        make({"a": ["cold", "ice"], "b": ["warm", "ice"]})
    with pytest.raises(ConfigError, match="share a word: 'unkind' and 'unly'"):
        make({"a": "unkind", "b": "unly"}, multi_token="first")
    assert make({"a": "unkind", "b": "unly"}, multi_token="mean").labels == ("a", "b")
    for words, message in [
        ({"a": "cold", "b": "zebra"}, "'zebra' of label 'b' is not in the vocabulary"),
        ({"a": "cold"}, "two or more"),
        ({"a": "cold", "b": []}, "has no words"),
        ({"a": "cold", "b": ""}, "not in the vocabulary"),
    ]:
        with pytest.raises(ConfigError, match=message):
            make(words)
    with pytest.raises(ConfigError, match="multi_token='sum'"):
        make(WORDS, multi_token="sum")
    with pytest.raises(DataError, match="has no words for a label"):
        SoftVerbalizer(["a", "b"], 8, torch.Generator()).answers("a")


def test_names_give_their_own_words() -> None:
    found = decomposed_words(["person:city_of_birth", "person:city_of_death", "orgName"])
    assert found == {"person:city_of_birth": ["birth"], "person:city_of_death": ["death"], "orgName": ["org", "name"]}
    with pytest.raises(ConfigError, match="no word that no other"):
        decomposed_words(["city", "city of ice"])


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_likelihood_ratio_equals_the_sum_over_examples(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(7, 5, generator=generator).log_softmax(-1)
    targets = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    found = likelihood_ratio(log_probs, targets, 3)
    for label, word in itertools.product(range(3), range(5)):
        total, own = 0.0, int((targets == label).sum())
        for row, target in zip(log_probs.tolist(), targets.tolist(), strict=True):
            odds = row[word] - math.log(1 - math.exp(row[word]))
            total += odds if target == label else -odds * own / (7 - own)
        assert abs(float(found[label, word]) - total) < 1e-5


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_assignment_equals_brute_force(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(9, 6, generator=generator).log_softmax(-1)
    targets = torch.randint(3, (9,), generator=generator)
    shortlists = [[0, 1, 2, 3], [2, 3, 4], [5, 0, 2]]

    def value(words: tuple[int, ...]) -> tuple[int, float]:
        chosen = log_probs[:, list(words)].double().log_softmax(-1)
        return int((chosen.argmax(1) == targets).sum()), float(chosen[range(9), targets].mean())

    options = [words for words in itertools.product(*shortlists) if len(set(words)) == 3]
    assert value(tuple(best_assignment(log_probs, targets, shortlists))) == max(map(value, options))


def test_long_shortlists_are_climbed_and_end_where_no_single_word_helps() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(30, 64, generator=generator).log_softmax(-1)
    targets = torch.randint(3, (30,), generator=generator)
    shortlists = [list(range(60))] * 3

    def value(words: list[int]) -> tuple[int, float]:
        chosen = log_probs[:, words].double().log_softmax(-1)
        return int((chosen.argmax(1) == targets).sum()), float(chosen[range(30), targets].mean())

    found = best_assignment(log_probs, targets, shortlists)
    near = [[*found[:at], word, *found[at + 1 :]] for at in range(3) for word in range(60) if word not in found]
    assert len(set(found)) == 3 and value(found) >= max(map(value, near))
    with pytest.raises(DataError, match="no different word"):
        best_assignment(log_probs, targets, [[1], [1], [2]])


@pytest.mark.parametrize("make", [bert, gpt2])
def test_searched_words_equal_brute_force_over_the_vocabulary(make: object) -> None:
    reader = SlotReader(make(), word_tokenizer())  # type: ignore[operator]
    template = Template("{text} it is {mask}")
    found = search_label_words(reader, template, TEXTS, LABELS, keep=200)
    (read,) = reader.read([reader.encode(template, text) for text in TEXTS], lambda slots: slots)
    targets = torch.tensor([found.labels.index(label) for label in LABELS])
    words = [i for i in range(VOCAB) if i not in WORD.special_ids and WORD.decode([i]).isalpha()]

    def value(pair: tuple[int, int]) -> tuple[int, float]:
        chosen = read.logits[:, 0, list(pair)].double().log_softmax(-1)
        return int((chosen.argmax(1) == targets).sum()), float(chosen[range(len(targets)), targets].mean())

    best = max(value(pair) for pair in itertools.permutations(words, 2))
    got = value((found.ids[0][0], found.ids[1][0]))
    assert got[0] == best[0] and abs(got[1] - best[1]) < 1e-6


def test_searched_words_are_whole_words_in_their_place() -> None:
    tokenizer = byte_tokenizer()
    reader = SlotReader(language_model(len(tokenizer)), tokenizer)
    found = search_label_words(reader, Template("{text} it is {mask}"), TEXTS, LABELS, words=2, keep=3)
    assert len(found.words) == 4 == len(set(found.words)) and all(word.isalpha() for word in found.words)
    assert all(reader.tokenizer.decode(ids) == f" {word}" for ids, word in zip(found.ids, found.words, strict=True))
    with pytest.raises(ConfigError, match="keep >= words"):
        search_label_words(reader, Template("{text} it is {mask}"), TEXTS, LABELS, words=2, keep=1)
    with pytest.raises(DataError, match="are words; allow more"):
        search_label_words(reader, Template("{text} it is {mask}"), TEXTS, LABELS, words=2, keep=2, candidates=1)


def test_prototypes_are_means_and_scores_cosines() -> None:
    made = PrototypeVerbalizer(["a", "b"], 8, torch.Generator().manual_seed(0), projection=3, temperature=0.5)
    read, targets = slots(6), torch.tensor([0, 1, 0, 1, 1, 0])
    made.start(read.states, targets)
    projected = read.states[:, 0] @ made.projection.T  # type: ignore[union-attr]
    unit = projected / projected.norm(dim=1, keepdim=True)
    means = torch.stack([unit[targets == at].mean(0) for at in range(2)])
    want = torch.nn.functional.cosine_similarity(unit[:, None], means[None], dim=-1) / 0.5
    torch.testing.assert_close(made(read).softmax(-1), want.softmax(-1))
    with pytest.raises(ConfigError, match="temperature=0"):
        PrototypeVerbalizer(["a", "b"], 8, torch.Generator(), temperature=0)
