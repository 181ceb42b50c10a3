"""The models that are shipped are what their cards say, and know something."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from leaven.adapt.continual import SimpleCIL
from leaven.evidence.arenas.continual_encoder import open_encoder, random_twin
from leaven.evidence.arenas.image_data import open_images
from leaven.models.loading import load_model_and_tokenizer
from leaven.models.saved import WEIGHTS, read_manifest
from leaven.models.zoo import zoo_card, zoo_folder, zoo_names
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
