"""The models that are shipped are what their cards say, and know something."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from leaven.adapt.continual import SimpleCIL
from leaven.data.code_tasks.desugaring import desugaring
from leaven.data.code_tasks.generation import style_translation
from leaven.data.code_tasks.understanding import summarization
from leaven.data.examples import CodeExample, Pair
from leaven.data.rendered.captions import caption
from leaven.data.rendered.scenes import SceneWorld, render
from leaven.data.sources import open_source
from leaven.evidence.arenas.continual_encoder import fresh_model, open_encoder, random_twin
from leaven.evidence.arenas.continual_texts import TokenEncoder
from leaven.evidence.arenas.image_data import open_images
from leaven.evidence.arenas.peft_data import TextRows, open_texts, some_of_each
from leaven.evidence.arenas.peft_model import open_backbone, without_heads
from leaven.metrics.classification import accuracy
from leaven.modalities.image import pixel_values
from leaven.modalities.pairs import PairFormat, collate_pairs, encode_pairs
from leaven.models.loading import load_model_and_tokenizer
from leaven.models.saved import WEIGHTS, read_manifest
from leaven.models.zoo import zoo_card, zoo_folder, zoo_names
from leaven.objectives.sequence_to_sequence import SequenceToSequence
from leaven.systems.applying import apply_model
from leaven.systems.zoo_recipes import LARGEST_BYTES, RECIPES


@pytest.mark.parametrize("name", zoo_names())
def test_a_card_tells_the_model_and_the_command_that_makes_it(name: str) -> None:
    card, folder = zoo_card(name), zoo_folder(name)
    model = load_model_and_tokenizer(f"zoo:{name}").model
    assert card["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert card["size_bytes"] == (folder / WEIGHTS).stat().st_size <= LARGEST_BYTES
    assert card["sha256"] == read_manifest(folder)["sha256"]
    assert card["command"] == f"leaven zoo make {name}"
    assert card["options"] == json.loads(json.dumps(RECIPES[name].options))


def test_the_image_encoder_tells_characters_apart_that_it_has_not_seen() -> None:
    data = open_images("glyphs", size=32, classes=8, per_class=(8, 2, 8), gap=0.5, seed=3)
    test = data.test.read()
    accuracies = []
    encoder = open_encoder("zoo:mini-vit", 32)
    for one in (encoder, random_twin(encoder, 0)):
        learner = SimpleCIL(one)
        learner.learn(data.train.images, list(data.train.labels))
        answers = learner.predict(test.images)
        accuracies.append(sum(a == b for a, b in zip(answers, test.labels, strict=True)) / len(answers))
    assert accuracies[0] > 0.6 and accuracies[1] < 0.4


def test_images_and_captions_find_each_other() -> None:
    loaded = load_model_and_tokenizer("zoo:mini-clip")
    assert loaded.tokenizer is not None
    world = SceneWorld(seed=71)
    scenes = [world.scene(index) for index in range(64)]
    images = torch.stack([torch.from_numpy(render(one, 32).image).permute(2, 0, 1) for one in scenes])
    encoded = loaded.tokenizer.encode([caption(one, index) for index, one in enumerate(scenes)])
    rows = [torch.tensor([*one.ids, loaded.tokenizer.end_id]) for one in encoded]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=loaded.tokenizer.pad_id)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    with torch.no_grad():
        scores = loaded.model(ids, pixel_values(images), mask)
    found = (scores.argmax(1) == torch.arange(64)).float().mean()
    # Chance is 1.6%; captions leave things out, so that several fit a scene.
    assert found > 0.3


def test_states_of_the_masked_language_model_say_what_a_text_is_about() -> None:
    data = open_texts("docstring-topics", limits=(10**6,) * 3)
    parts = [some_of_each(part, data.classes, 16, 0) for part in (data.train, data.valid)]
    backbone = open_backbone("zoo:mini-mlm", images=False)
    assert backbone.tokenizer is not None
    found = []
    for model in (backbone.encoder, without_heads(fresh_model(backbone.encoder, 0))):
        read = TokenEncoder(model).eval()
        with torch.no_grad():
            vectors = [
                read(TextRows(part, data.classes, backbone.tokenizer, 64).batch(range(len(part)))).numpy()
                for part in parts
            ]
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        answers = probe.fit(vectors[0], parts[0].labels).predict(vectors[1])
        found.append(accuracy(list(answers), parts[1].labels))
    # Chance is 12.5; without the contrast of spans both were near 24.
    assert found[0] > 33 and found[0] > found[1] + 8


def test_the_masked_language_model_knows_more_than_how_often_tokens_come() -> None:
    loaded = load_model_and_tokenizer("zoo:mini-mlm")
    tokenizer = loaded.tokenizer
    lines = [line.strip() for line in Path(json.decoder.__file__).read_text(encoding="utf-8").splitlines()]
    rows = [ids for line in lines if len(ids := tokenizer.encode([line])[0].ids) >= 6]
    counts = Counter(token for ids in rows for token in ids)
    hidden = [(ids, at) for number, ids in enumerate(rows) for at in range(number % 4, len(ids), 4)]
    mask, total = tokenizer.tokenizer.token_to_id("<mask>"), sum(counts.values())
    by_frequency = -sum(math.log(counts[ids[at]] / total) for ids, at in hidden) / len(hidden)
    loss = 0.0
    for ids, at in hidden:
        seen = torch.tensor([[tokenizer.start_id, *ids[:at], mask, *ids[at + 1 :], tokenizer.end_id]])
        with torch.no_grad():
            logits = loaded.model(input_ids=seen, attention_mask=torch.ones_like(seen, dtype=torch.bool)).logits
        loss -= float(logits[0, at + 1].log_softmax(0)[ids[at]]) / len(hidden)
    assert loss < by_frequency


def test_the_code_model_reads_the_function_that_it_is_asked_about() -> None:
    loaded = load_model_and_tokenizer("zoo:code-t5")
    tasks = read_manifest(zoo_folder("code-t5"))["extra"]["tasks"]
    functions = open_source("stdlib-code", CodeExample, split="test").examples
    for task, make in (("summarize", summarization), ("desugar", desugaring), ("translate", style_translation)):
        form = PairFormat(**tasks[task])
        pairs = list(make(functions))[:40]
        # The right targets behind the right sources, then each behind the source of the next pair.
        others = [*pairs[1:], pairs[0]]
        turned = [Pair(other.source, pair.target) for pair, other in zip(pairs, others, strict=True)]
        losses = []
        for rows in (pairs, turned):
            batch = collate_pairs(encode_pairs(rows, loaded.tokenizer, form).items, loaded.tokenizer.pad_id)
            with torch.no_grad():
                losses.append(float(SequenceToSequence()(loaded.model, batch).total))
        assert losses[0] < losses[1] - 0.1, task


@pytest.mark.parametrize("task", ["name", "summarize", "defect", "refine", "translate", "desugar", "fill"])
def test_the_code_model_answers_for_every_task_it_was_trained_for(task: str) -> None:
    code = "def total(prices):\n    return sum([price for price in prices])\n"
    if task == "fill":
        code = "def total(prices):\n    <extra_id_0> = 0\n"
    (row,) = apply_model("zoo:code-t5", task, code)
    assert row["answer"]
    if task == "defect":
        assert row["answer"] in ("true", "false")
