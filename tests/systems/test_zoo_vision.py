import dataclasses
from pathlib import Path

import pytest
import torch

from leaven.data.rendered.glyphs import GREEK, LETTERS
from leaven.data.rendered.shapes import COLOURS, SHAPES
from leaven.modalities.image import pixel_values
from leaven.models import zoo
from leaven.models.loading import load_model_and_tokenizer
from leaven.systems import zoo_recipes
from leaven.systems.zoo_vision import UNSEEN_PAIRS, _images

TINY = {"dim": 16, "depth": 1, "heads": 2, "patch": 8, "scenes": 40, "per_letter": 2, "crops": 6, "batch_size": 8}


def test_the_image_encoder_is_made_by_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = zoo_recipes.RECIPES["mini-vit"]
    options = {**recipe.options, **TINY, "pretrain": "4 steps", "label": "4 steps"}
    monkeypatch.setitem(zoo_recipes.RECIPES, "tiny-vit", dataclasses.replace(recipe, options=options))
    folder = zoo_recipes.make("tiny-vit", work=tmp_path / "work", out=tmp_path / "zoo")
    card = zoo.zoo_card("tiny-vit", tmp_path / "zoo")
    assert card["data"]["unlabelled images"] == 40 + 2 * len(LETTERS) + 6
    assert {"masked", "train accuracy"} == set(card["results"][0])
    model = load_model_and_tokenizer(folder).model
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    features = model(pixel_values(images))
    assert features.shape == (3, 16)
    again = zoo_recipes.make("tiny-vit", work=tmp_path / "work2", out=tmp_path / "zoo2")
    twin = load_model_and_tokenizer(again).model.state_dict()
    assert all(torch.equal(tensor, twin[name]) for name, tensor in model.state_dict().items())


def test_its_images() -> None:
    unlabelled, labelled, labels = _images(40, 2, 6, 0)
    assert unlabelled.dtype == torch.uint8 and unlabelled.shape[1:] == (3, 32, 32)
    assert len(labelled) == len(labels) == 2 * len(LETTERS) + 20
    assert set(labels[: 2 * len(LETTERS)].tolist()) == set(range(len(LETTERS)))
    assert labels[2 * len(LETTERS) :].min() >= len(LETTERS)
    assert not set(LETTERS) & set(GREEK)


def test_pixel_values_are_in_minus_one_to_one() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    assert pixel_values(images).flatten().tolist() == [-1.0, 1.0]
    torch.testing.assert_close(pixel_values(images.float() / 255), pixel_values(images))


def test_the_pair_of_encoders_is_made_by_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = zoo_recipes.RECIPES["mini-clip"]
    small = {"dim": 16, "depth": 1, "text_depth": 1, "heads": 2, "patch": 8, "projection": 8, "vocab": 400}
    options = {**recipe.options, **small, "scenes": 60, "train": "30 steps", "batch_size": 16}
    monkeypatch.setitem(zoo_recipes.RECIPES, "tiny-clip", dataclasses.replace(recipe, options=options))
    folder = zoo_recipes.make("tiny-clip", work=tmp_path / "work", out=tmp_path / "zoo")
    loaded = load_model_and_tokenizer(folder)
    assert loaded.tokenizer is not None
    ids = torch.tensor([[*loaded.tokenizer.encode(["a red star"])[0].ids, loaded.tokenizer.end_id]])
    assert loaded.model(ids, torch.zeros(2, 3, 32, 32)).shape == (2, 1)
    card = zoo.zoo_card("tiny-clip", tmp_path / "zoo")
    assert len(card["data"]["shape and colour pairs that never occur"]) == 20
    assert 0 <= card["results"][0]["own caption among 256 of new scenes"] <= 1


def test_pairs_that_are_left_out_are_spread_evenly() -> None:
    assert len(UNSEEN_PAIRS) == 20
    assert all(sum(shape == name for shape, _ in UNSEEN_PAIRS) == 2 for name in SHAPES)
    assert all(sum(colour == name for _, colour in UNSEEN_PAIRS) == 2 for name in COLOURS)
