"""Ensembles, demonstrations and spans against their closed forms and brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from adapt.prompting.small_prompts import CLOZE, COLD, LABELS, MODELS, PREFIX, TEXTS, bert, gpt2, word_tokenizer
from torch import Tensor

from leaven.adapt.prompting import (
    Demonstrations,
    PromptedClassifier,
    PromptEnsemble,
    SlotReader,
    Span,
    SpanClassifier,
    SpanLabeller,
    Template,
    best_order,
    label_entropy,
)  # fmt: skip
from leaven.errors import ConfigError, DataError

WORD = word_tokenizer()


class Fixed:
    """A classifier whose probabilities are given."""

    def __init__(self, *rows: Sequence[float], labels: tuple[str, ...] = ("a", "b", "c")) -> None:
        self.labels, self.rows = labels, torch.tensor(rows)

    def scores(self, texts: Sequence[Any]) -> Tensor:
        return self.rows[: len(texts)].log()


MEMBERS = [
    Fixed((0.6, 0.3, 0.1), (0.2, 0.2, 0.6)),
    Fixed((0.1, 0.5, 0.4), (0.1, 0.8, 0.1)),
    Fixed((0.5, 0.4, 0.1), (0.7, 0.1, 0.2)),
]


def test_one_template_is_its_own_ensemble() -> None:
    alone = PromptedClassifier(bert(), WORD, CLOZE, COLD, "tuning-free")
    for ensemble in (PromptEnsemble([alone]), PromptEnsemble([alone, alone], [0.2, 0.8])):
        torch.testing.assert_close(ensemble.scores(TEXTS), alone.scores(TEXTS))
    assert PromptEnsemble([alone], vote=True).predict(TEXTS) == alone.predict(TEXTS)


def test_probabilities_are_averaged_and_votes_are_counted() -> None:
    mean = PromptEnsemble(MEMBERS).scores(["x", "y"]).exp()
    torch.testing.assert_close(mean, torch.stack([m.rows for m in MEMBERS]).mean(0))
    weighted = PromptEnsemble(MEMBERS, [1, 0, 3]).scores(["x", "y"]).exp()
    torch.testing.assert_close(weighted, (MEMBERS[0].rows + 3 * MEMBERS[2].rows) / 4)
    vote = PromptEnsemble(MEMBERS, vote=True)
    torch.testing.assert_close(vote.scores(["x"]).exp()[0], torch.tensor([2 / 3, 1 / 3, 0.0]), atol=1e-5, rtol=0)
    assert vote.predict(["x", "y"]) == ["a", "b"]  # of three votes for three labels the largest mean
    assert PromptEnsemble(MEMBERS, [1, 5, 1], vote=True).predict(["x"]) == ["b"]
    soft = PromptEnsemble(MEMBERS).soft_labels(["x"], temperature=2.0)[0]
    root = mean[0].sqrt()
    torch.testing.assert_close(soft, root / root.sum())


def test_members_that_do_not_fit_are_refused() -> None:
    for members, options, message in [
        ([], {}, "at least one"), ([MEMBERS[0], Fixed((0.5, 0.5), labels=("a", "b"))], {}, "different labels"),
        (MEMBERS, {"weights": [1, 2]}, "3 numbers"), (MEMBERS, {"weights": [1, -1, 1]}, "from 0 on"),
        (MEMBERS, {"weights": [0, 0, 0]}, "not all 0"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            PromptEnsemble(members, **options)  # type: ignore[arg-type]


def letters(texts: list[str]) -> Tensor:
    return torch.tensor([[text.count(c) for c in "abcdefghijklmnopqrstuvwxyz "] for text in texts]).float()


def test_the_nearest_of_each_label_are_shown_but_never_the_input_itself() -> None:
    shots = Demonstrations(TEXTS, LABELS, per_label=2, features=letters)
    unit = torch.nn.functional.normalize(letters(TEXTS), dim=1)
    for query, chosen in zip(TEXTS, shots.choose(TEXTS), strict=True):
        want = []
        for label in shots.names:
            others = [at for at in range(len(TEXTS)) if LABELS[at] == label and TEXTS[at] != query]
            others.sort(key=lambda at: -float(unit[at] @ unit[TEXTS.index(query)]))
            want += others[:2]
        assert chosen == want and query not in [TEXTS[at] for at in chosen]
    reordered = Demonstrations(TEXTS, LABELS, per_label=2, features=letters, order=(3, 1, 0, 2)).choose(["ice"])[0]
    plain = shots.choose(["ice"])[0]
    assert reordered == [plain[3], plain[1], plain[0], plain[2]]


def test_demonstrations_stand_before_the_prompt_with_their_answers() -> None:
    for model, template in ((bert(), CLOZE), (gpt2(), PREFIX)):
        made = PromptedClassifier(
            model, WORD, template, COLD, "tuning-free", demonstrations=Demonstrations(["rain", "sun"], ["cold", "warm"])
        )
        (prompt,) = made.encode(["ice"])
        end = " ." if template == CLOZE else ""
        text = f"rain . it is cold{end} sun . it is warm{end} ice . it is"
        want = WORD(f"{text} [MASK]{end}")["input_ids"] if template == CLOZE else WORD(text)["input_ids"][:-1]
        assert prompt.ids == want
        plain = PromptedClassifier(model, WORD, template, COLD, "tuning-free")
        assert (made.scores(["ice"]) - plain.scores(["ice"])).abs().max() > 1e-4
        with pytest.raises(DataError, match="give fewer or shorter demonstrations"):
            crowd = Demonstrations(TEXTS, LABELS, per_label=5)
            PromptedClassifier(model, WORD, template, COLD, "tuning-free", demonstrations=crowd).scores(["ice"])


def test_demonstrations_that_do_not_fit_are_refused() -> None:
    for arguments, error, message in [
        ({"texts": [], "labels": []}, DataError, "at least one"),
        ({"texts": ["a"], "labels": ["x"], "per_label": 2}, DataError, "fewer than per_label=2"),
        ({"texts": ["a", "b"], "labels": ["x", "y"], "order": (0, 2)}, ConfigError, "an order of 2 places"),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):  # type: ignore[arg-type]
            Demonstrations(**arguments)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="only 0 examples to show"):
        Demonstrations(["a", "b"], ["x", "y"]).choose(["a"])
    with pytest.raises(DataError, match="features gave"):
        Demonstrations(["a", "b"], ["x", "y"], features=lambda texts: torch.zeros(2, 3)).choose(["c"])


def test_orders_equal_brute_force_and_entropies_their_formulas() -> None:
    target = (2, 0, 3, 1)

    def value(order: tuple[int, ...]) -> float:
        return -sum((a - b) ** 2 for a, b in zip(order, target, strict=True))

    assert best_order(value, 4) == target == max(itertools.permutations(range(4)), key=value)
    seen: list[tuple[int, ...]] = []
    best_order(lambda order: float(len(seen)) + (seen.append(order) or 0.0), 6, limit=10)  # type: ignore[func-returns-value]
    assert len(seen) == 10 == len(set(seen)) and all(sorted(order) == list(range(6)) for order in seen)
    scores = torch.tensor([[0.7, 0.3], [0.6, 0.4], [0.9, 0.1], [0.2, 0.8]]).log()
    assert label_entropy(scores) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    each = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.7, 0.6, 0.9, 0.2)]
    assert label_entropy(scores, each=True) == pytest.approx(sum(each) / 4)
    certain = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).log()
    assert label_entropy(certain) == 0.0 == label_entropy(certain, each=True)


ANSWERS = {"cold": ["ice cold", "winter"], "warm": "fire and sun in summer".replace("and", ",")}


@pytest.mark.parametrize("name", ["gpt2", "language-model", "t5", "encoder-decoder", "bert", "text-encoder"])
def test_answers_are_scored_whole(name: str) -> None:
    model = MODELS[name]()
    reader = SlotReader(model, WORD)
    template = Template(CLOZE if reader.kind == "masked" else PREFIX)
    found = SpanClassifier(reader, template, ANSWERS).answer_scores(TEXTS[:3])
    for row, text in enumerate(TEXTS[:3]):
        for column, answer in enumerate(["ice cold", "winter", "fire , sun in summer"]):
            ids = reader.tokenizer.encode(answer)
            logs = []
            for step, token in enumerate(ids):
                if reader.kind == "masked":
                    marks = " ".join(["[MASK]"] * len(ids))
                    whole = WORD(f"{text} . it is {marks} .")["input_ids"]
                    at = whole.index(4) + step
                    logits = model(torch.tensor([whole])).logits[0, at]
                elif reader.kind == "causal":
                    before = [*WORD(f"{text} . it is")["input_ids"][:-1], *ids[:step]]
                    logits = model(torch.tensor([before])).logits[0, -1]
                else:
                    source = torch.tensor([WORD(f"{text} . it is <extra_id_0>")["input_ids"]])
                    target = torch.tensor([[0, 5, *ids[:step]]])
                    logits = model(source, decoder_input_ids=target).logits[0, -1]
                logs.append(float(logits.detach().log_softmax(-1)[token]))
            assert float(found[row, column]) == pytest.approx(sum(logs) / len(logs), abs=1e-4)


def test_answers_of_one_token_score_as_label_words() -> None:
    for model, template in ((bert(), CLOZE), (gpt2(), PREFIX)):
        words = PromptedClassifier(model, WORD, template, {"cold": ["cold", "ice"], "warm": "warm"}, "tuning-free")
        spans = SpanClassifier(SlotReader(model, WORD), Template(template), {"cold": ["cold", "ice"], "warm": "warm"})
        torch.testing.assert_close(spans.scores(TEXTS), words.scores(TEXTS), rtol=1e-4, atol=1e-5)
        assert spans.predict(TEXTS) == words.predict(TEXTS)
    reader = SlotReader(bert(), WORD)
    for answers, message in [
        ({"a": "ice"}, "two labels"),
        ({"a": "ice", "b": "ice"}, "given twice"),
        ({"a": "ice", "b": ""}, "is empty"),
        ({"a": "ice", "b": []}, "has no answer"),
    ]:
        with pytest.raises(ConfigError, match=message):
            SpanClassifier(reader, Template(CLOZE), answers)
    with pytest.raises(ConfigError, match="2 slots"):
        SpanClassifier(reader, Template("{text} {mask} {mask}"), ANSWERS)


class BySpan:
    """Knows two names; everything else is nothing."""

    labels = ("none", "city", "person")
    known: ClassVar[dict[str, tuple[float, ...]]] = {
        "paris": (0.1, 0.8, 0.1),
        "john": (0.2, 0.1, 0.7),
        "in paris": (0.3, 0.6, 0.1),
        "john lives": (0.05, 0.05, 0.9),
    }

    def scores(self, texts: Sequence[Any]) -> Tensor:
        assert all(fields["text"] == "john lives in paris" for fields in texts)
        return torch.tensor([self.known.get(fields["span"], (0.9, 0.05, 0.05)) for fields in texts]).log()


def test_spans_do_not_overlap_and_the_likeliest_stay() -> None:
    words = ["john", "lives", "in", "paris"]
    found = SpanLabeller(BySpan(), "none", longest=2).spans(words)
    assert [(s.start, s.stop, s.label) for s in found] == [(0, 2, "person"), (3, 4, "city")]
    assert found[0].probability == pytest.approx(0.9)
    single = SpanLabeller(BySpan(), "none", longest=1).predict([words, []])
    assert single == [[Span(0, 1, "person", pytest.approx(0.7)), Span(3, 4, "city", pytest.approx(0.8))], []]
    with pytest.raises(ConfigError, match="outside='other'"):
        SpanLabeller(BySpan(), "other")
