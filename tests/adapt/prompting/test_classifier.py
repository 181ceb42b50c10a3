"""The table of strategies by checksums, training by its closed forms, and what is left untouched."""

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
    TEXTS,
    VOCAB,
    bert,
    byte_tokenizer,
    checksum,
    gpt2,
    text_encoder,
    word_tokenizer,
)  # fmt: skip
from torch.nn import functional as F

from leaven.adapt.peft import LoRA, Prefix, PromptTuning
from leaven.adapt.prompting import (
    STRATEGIES,
    ComposedVerbalizer,
    Demonstrations,
    ManualVerbalizer,
    PromptedClassifier,
    PromptEnsemble,
    PrototypeVerbalizer,
    SlotReader,
    SoftVerbalizer,
    TaskHead,
    Template,
    prompt_tokenizer,
)  # fmt: skip
from leaven.errors import ConfigError, DataError
from leaven.training.config import TrainingConfig

WORD = word_tokenizer()
QUICK = TrainingConfig(learning_rate=1e-2, warmup=0, schedule="constant", progress=False, log_every=1)
SOFT = "{soft:2} {text} . it is {mask} ."


def head() -> TaskHead:
    return TaskHead(["cold", "warm"], SlotReader(bert(), WORD).dim, torch.Generator().manual_seed(0))


def vectors(model: Any, template: str) -> SoftVerbalizer:
    reader = SlotReader(model, WORD)
    return SoftVerbalizer.from_words(ManualVerbalizer(COLD, reader.tokenizer, Template(template)), reader)


ROWS: dict[str, Any] = {
    "promptless": lambda model: PromptedClassifier(
        model, WORD, Template("{text}", promptless=True), head(), "promptless"
    ),
    "tuning-free": lambda model: PromptedClassifier(model, WORD, CLOZE, COLD, "tuning-free"),
    "fixed-LM": lambda model: PromptedClassifier(model, WORD, SOFT, COLD, "fixed-LM"),
    "fixed-prompt": lambda model: PromptedClassifier(model, WORD, CLOZE, COLD, "fixed-prompt"),
    "prompt+LM": lambda model: PromptedClassifier(model, WORD, SOFT, vectors(model, SOFT), "prompt+LM"),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("make", [bert, text_encoder])
def test_exactly_what_the_table_says_trains(strategy: str, make: Any) -> None:
    row, made = STRATEGIES[strategy], ROWS[strategy](make())
    frozen_by_user = next(made.model.language_model.parameters())
    frozen_by_user.requires_grad_(False)
    parts = made.model.language_model, made.model.soft, made.model.verbalizer
    before = [checksum(part) for part in parts]
    assert bool(row.prompt_parameters) == (made.model.soft is not None)
    if strategy == "tuning-free":
        with pytest.raises(ConfigError, match="trains nothing"):
            made.fit(TEXTS, LABELS, "2 steps", QUICK)
    else:
        made.fit(TEXTS, LABELS, "2 steps", QUICK)
    model_changed, soft_changed, answers_changed = (checksum(p) != b for p, b in zip(parts, before, strict=True))
    assert model_changed == row.language_model_trains
    assert soft_changed == row.prompt_parameters
    assert answers_changed == (strategy in ("promptless", "prompt+LM"))
    assert [p.requires_grad for p in made.model.language_model.parameters()].count(False) == 1
    if row.language_model_trains:
        assert checksum(made.model.language_model) != before[0] and not frozen_by_user.requires_grad


@pytest.mark.parametrize("name", ["bert", "gpt2", "text-encoder", "language-model"])
@pytest.mark.parametrize("method", [PromptTuning(3), Prefix(2, reparameterize=8)])
def test_learned_prefixes_train_and_their_model_does_not(name: str, method: Any) -> None:
    model = MODELS[name]()
    base = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    method.apply(model)
    made = PromptedClassifier(model, WORD, PREFIX, COLD, "fixed-LM")
    added = {key: tensor.clone() for key, tensor in model.state_dict().items() if key not in base}
    made.fit(TEXTS, LABELS, "2 steps", QUICK)
    after = model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in base.items())
    assert added and all(not torch.equal(after[key], tensor) for key, tensor in added.items())
    with pytest.raises(ConfigError, match="has no prompt parameters, and there are language_model"):
        PromptedClassifier(model, WORD, PREFIX, COLD, "fixed-prompt")


def test_an_adapter_stands_for_the_model_and_its_base_stays() -> None:
    model = bert()
    base = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    LoRA(rank=2, targets="q,v").apply(model)
    made = PromptedClassifier(model, WORD, CLOZE, COLD, "fixed-prompt")
    made.fit(TEXTS, LABELS, "3 steps", QUICK)
    after = model.state_dict()
    kept = [key for key in base if key in after]
    assert len(kept) > 10 and all(torch.equal(after[key], base[key]) for key in kept)
    assert any(float(value.abs().sum()) > 0 for key, value in after.items() if key not in base)


@pytest.mark.parametrize("name", MODELS)
def test_the_first_loss_is_the_cross_entropy_of_the_scores_and_training_learns_the_labels(name: str) -> None:
    made = PromptedClassifier(MODELS[name](), WORD, PREFIX, COLD, "fixed-prompt", batch_size=len(TEXTS))
    targets = made.targets(TEXTS, LABELS)
    want = float(F.nll_loss(made.scores(TEXTS), targets))
    result = made.fit(TEXTS, LABELS, "40 steps", QUICK)
    assert result.records[0]["cross_entropy"] == pytest.approx(want, abs=1e-4)
    assert made.predict(TEXTS) == LABELS
    again = PromptedClassifier(MODELS[name](), WORD, PREFIX, COLD, "fixed-prompt", batch_size=len(TEXTS))
    again.fit(TEXTS, LABELS, "40 steps", QUICK)
    assert torch.equal(again.scores(TEXTS), made.scores(TEXTS))


@pytest.mark.parametrize("template", [SOFT, "{text} {soft:it is} {mask} ."])
def test_soft_tokens_alone_learn_the_labels(template: str) -> None:
    config = QUICK.model_copy(update={"learning_rate": 0.1})
    made = PromptedClassifier(text_encoder(), WORD, template, COLD, "fixed-LM")
    start = float(F.nll_loss(made.scores(TEXTS), made.targets(TEXTS, LABELS)))
    made.fit(TEXTS, LABELS, "60 steps", config)
    assert float(F.nll_loss(made.scores(TEXTS), made.targets(TEXTS, LABELS))) < start / 2


def test_a_student_takes_over_soft_labels() -> None:
    teacher = PromptEnsemble(
        [PromptedClassifier(bert(), WORD, t, COLD, "tuning-free") for t in (CLOZE, "{text} is {mask} .")]
    )
    soft = teacher.soft_labels(TEXTS)
    student = ROWS["promptless"](bert())
    student.fit(TEXTS, soft, "60 steps", QUICK.model_copy(update={"length_groups": 2}))
    torch.testing.assert_close(student.scores(TEXTS).exp(), soft, atol=0.08, rtol=0)


def test_prototypes_start_as_means_of_the_training_states() -> None:
    model = bert()
    verbalizer = PrototypeVerbalizer(["cold", "warm"], 24, torch.Generator().manual_seed(0))
    made = PromptedClassifier(model, WORD, CLOZE, verbalizer, "fixed-LM")
    made.fit(TEXTS, LABELS, "1 steps", QUICK.model_copy(update={"learning_rate": 1e-9}))
    states = made.reader.read(made.encode(TEXTS), lambda slots: slots.states[:, 0])[0]
    unit = F.normalize(states, dim=-1)
    means = torch.stack([unit[:6].mean(0), unit[6:].mean(0)])
    torch.testing.assert_close(verbalizer.prototypes.detach(), means, atol=1e-5, rtol=1e-4)


def test_slots_of_a_composed_prompt_train_together() -> None:
    template = Template("{text} {mask} in {mask}")
    tokenizer = prompt_tokenizer(WORD)
    parts = [ManualVerbalizer({"a": "ice", "b": "sun"}, tokenizer, template, slot=slot) for slot in range(2)]
    joined = ComposedVerbalizer(parts, {"cold": ("a", "b"), "warm": ("b", "b")})
    made = PromptedClassifier(bert(), WORD, template, joined, "fixed-prompt")
    made.fit(TEXTS, LABELS, "40 steps", QUICK)
    assert made.predict(TEXTS) == LABELS
    with pytest.raises(ConfigError, match="has 2 answer slots, and the verbalizer reads 1"):
        PromptedClassifier(bert(), WORD, template, COLD, "fixed-prompt")


def test_training_shows_no_example_its_own_answer() -> None:
    made = PromptedClassifier(
        bert(),
        WORD,
        CLOZE,
        COLD,
        "fixed-prompt",
        demonstrations=Demonstrations(TEXTS[:2] + TEXTS[-2:], LABELS[:2] + LABELS[-2:]),
    )
    ids = [prompt.ids for prompt in made.encode(TEXTS[:2])]
    first, second = (WORD.encode(text, add_special_tokens=False) for text in TEXTS[:2])
    assert ids[0][1 : 1 + len(second)] == second and ids[1][1 : 1 + len(first)] == first
    made.fit(TEXTS[:2], LABELS[:2], "1 steps", QUICK)


def test_calibration_makes_content_free_inputs_even_and_training_ends_it() -> None:
    for model, template in ((bert(), CLOZE), (gpt2(), PREFIX)):
        made = PromptedClassifier(model, WORD, template, COLD, "fixed-prompt")
        plain = made.scores(TEXTS)
        made.calibrate(["n / x"])
        torch.testing.assert_close(made.scores(["n / x"]).exp(), torch.full((1, 2), 0.5))
        assert (made.scores(TEXTS) - plain).abs().max() > 1e-3
        made.calibrate()
        made.calibrate(None)
        assert torch.equal(made.scores(TEXTS), plain)
        made.calibrate()
        made.fit(TEXTS, LABELS, "1 steps", QUICK)
        assert made.model.verbalizer.content_free is None


def test_a_failed_fit_changes_nothing() -> None:
    made = PromptedClassifier(bert(), WORD, SOFT, COLD, "prompt+LM")
    made.calibrate()
    before, scores = checksum(made.model), made.scores(TEXTS)
    free = [p.requires_grad for p in made.model.parameters()]
    for texts, labels, budget, config, error, message in [
        (TEXTS, LABELS[:-1], "1 steps", QUICK, DataError, "12 texts and 11 labels"),
        ([], [], "1 steps", QUICK, DataError, "at least one"),
        (TEXTS, ["hot"] * 12, "1 steps", QUICK, DataError, "'hot' is not one of cold, warm"),
        (TEXTS, torch.ones(12, 2), "1 steps", QUICK, DataError, "expected probabilities"),
        (TEXTS, LABELS, "1 parsec", QUICK, ConfigError, "unknown unit"),
        (TEXTS, LABELS, "1 steps", QUICK.model_copy(update={"lr_factors": {"x*": 2.0}}), ConfigError, "fits no"),
    ]:
        with pytest.raises(error, match=message):
            made.fit(texts, labels, budget, config)
        assert checksum(made.model) == before and torch.equal(made.scores(TEXTS), scores)
        assert [p.requires_grad for p in made.model.parameters()] == free


def test_predictions_say_what_they_rest_on() -> None:
    made = PromptedClassifier(bert(), WORD, CLOZE, {"cold": ["cold", "ice"], "warm": "warm"}, "tuning-free")
    long = " ".join(["snow"] * 60)
    found = made.explain(["sun", long])
    scores = made.scores(["sun", long])
    for row, one in enumerate(found):
        assert list(one.probabilities.values()) == pytest.approx(scores[row].exp().tolist(), abs=1e-6)
        assert one.label == max(one.probabilities, key=lambda label: one.probabilities[label])
        assert list(one.words) == ["cold", "ice", "warm"] and sum(one.words.values()) == pytest.approx(1, abs=1e-5)
    assert found[0].cut == 0 and found[1].cut == 60 - (made.reader.max_length - len(made.encode([""])[0].ids))  # type: ignore[operator]
    assert made.scores([]).shape == (0, 2) and made.predict([]) == []


def test_what_does_not_go_together_is_refused() -> None:
    def make(template: Any, verbalizer: Any, strategy: str, **options: Any) -> PromptedClassifier:
        return PromptedClassifier(bert(), WORD, template, verbalizer, strategy, **options)

    bare = Template("{text}", promptless=True)
    for arguments, message in [
        ((CLOZE, COLD, "fixed"), "expected one of promptless"),
        ((CLOZE, COLD, "fixed-LM"), "no prompt parameters: write"),
        ((SOFT, COLD, "fixed-prompt"), "has no prompt parameters, and there are soft.weight"),
        ((SOFT, COLD, "tuning-free"), "take strategy='fixed-LM'"),
        ((CLOZE, head(), "fixed-prompt"), "goes with a template"),
        ((CLOZE, COLD, "promptless"), "goes with a TaskHead"),
        ((bare, head(), "fixed-prompt"), "goes with a template"),
        ((bare, COLD, "promptless"), "no answer slot 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            make(*arguments)
    with pytest.raises(ConfigError, match="batch_size=0"):
        make(CLOZE, COLD, "fixed-prompt", batch_size=0)
    with pytest.raises(DataError, match="is one text"):
        make(CLOZE, COLD, "fixed-prompt").predict("ice")
    with pytest.raises(ConfigError, match="is a cloze"):
        PromptedClassifier(gpt2(), WORD, CLOZE, COLD, "tuning-free")
    with pytest.raises(ConfigError, match="truncation would delete"):
        make(CLOZE, COLD, "fixed-prompt", max_length=7)


def test_a_code_tokenizer_serves_as_well() -> None:
    tokenizer = byte_tokenizer()
    made = PromptedClassifier(text_encoder(len(tokenizer)), tokenizer, "{text} it is {mask}.", COLD, "fixed-prompt")
    made.fit(TEXTS, LABELS, "40 steps", QUICK)
    assert made.predict(TEXTS) == LABELS
    assert [tokenizer.decode(ids) for ids in made.model.verbalizer.ids] == [" cold", " warm"]  # type: ignore[union-attr]
    assert len(tokenizer) > VOCAB
