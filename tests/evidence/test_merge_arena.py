import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from leaven.errors import ConfigError, LeavenError, ModelError
from leaven.evidence.arenas import merge_sweep
from leaven.evidence.arenas.merge_arena import SMOKE
from leaven.evidence.arenas.merge_classifiers import Pixels, image_batches, linear_probe, open_image_model
from leaven.evidence.arenas.merge_folder import open_classifiers
from leaven.evidence.arenas.merge_ground import Merged, judged, task_arithmetic
from leaven.evidence.arenas.merge_images import classifier_ground
from leaven.evidence.arenas.merge_shifts import SHIFTS, augmented, shifted
from leaven.evidence.arenas.merge_sweep import MergeConfig, Sweep, draw_plans, with_wrong_labels
from leaven.evidence.selection import ReadTwiceError
from leaven.merge import uniform_soup
from leaven.modalities.image import pixel_values
from leaven.models.saved import save_model
from leaven.models.trunk import TrunkConfig
from leaven.models.vision import ImageEncoder, ImageEncoderConfig


def encoder(seed: int = 0, labels: int = 0, dim: int = 16) -> ImageEncoder:
    torch.manual_seed(seed)
    trunk = TrunkConfig(dim=dim, depth=1, heads=2, positions="none")
    return ImageEncoder(ImageEncoderConfig(trunk, size=32, patch=8, labels=labels))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("start") / "encoder", encoder()))


@pytest.fixture
def config(start: str) -> MergeConfig:
    return MergeConfig(model=start, **SMOKE)


def images(count: int = 3, size: int = 12, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def test_shifts_are_what_they_say() -> None:
    x = images(4, 33)
    for name in SHIFTS:
        assert torch.equal(shifted(x, name, severity=0.0), x)
        assert torch.equal(shifted(x, name, seed=1), shifted(x, name, seed=1))
        # What happens to an image depends on its place alone, not on what else there is.
        assert torch.equal(shifted(x, name)[:2], shifted(x[:2], name))
    middle = x.double().mean((1, 2, 3), keepdim=True)
    assert (shifted(x, "contrast").double() - (middle + (x.double() - middle) / 2.5)).abs().max() <= 0.51
    # A rotation by a quarter turn, to either side, moves pixels and invents none.
    turned = shifted(x, "rotation", severity=90 / 25)
    assert all(
        any((one.double() - torch.rot90(image, k, (1, 2)).double()).abs().max() <= 1 for k in (1, -1))
        for one, image in zip(turned, x, strict=True)
    )
    point = torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
    point[:, :, 16, 16] = 255
    sigma, at = 33 / 32, torch.arange(33) - 16.0
    bell = torch.exp(-(at**2) / (2 * sigma**2)) / torch.exp(-(at**2) / (2 * sigma**2)).sum()
    assert (shifted(point, "blur")[0, 0].double() - 255 * torch.outer(bell, bell)).abs().max() <= 0.6
    grey = torch.full((40, 3, 16, 16), 128, dtype=torch.uint8)
    noise = shifted(grey, "noise", seed=3).double() - 128
    assert abs(float(noise.std()) - 32) < 0.5 and abs(float(noise.mean())) < 0.5
    with pytest.raises(ConfigError, match="shift='fog'"):
        shifted(x, "fog")


def test_augmentation_moves_an_image_as_its_drawn_numbers_say() -> None:
    x = pixel_values(images(5, 16))
    assert augmented(x, 0.0, torch.Generator()) is x
    torch.testing.assert_close(augmented(x, 1e-7, torch.Generator().manual_seed(0)), x, atol=1e-5, rtol=0)
    twice = [augmented(x, 0.7, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*twice) and not torch.equal(twice[0], x)
    # On a plain image only contrast and brightness show: x * (1 + 0.5 c) + 0.3 b.
    plain = torch.full((200, 3, 8, 8), 0.4)
    found = augmented(plain, 1.0, torch.Generator().manual_seed(2))
    drawn = torch.rand(6, 200, generator=torch.Generator().manual_seed(2)) * 2 - 1
    expected = (0.4 * (1 + 0.5 * drawn[4]) + 0.3 * drawn[5])[:, None, None, None].expand_as(found)
    torch.testing.assert_close(found, expected)


def test_a_linear_probe_is_the_logistic_regression_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    features, targets = torch.randn(200, 7, generator=generator), torch.randint(0, 4, (200,), generator=generator)
    weight, bias = linear_probe(features, targets, 4, decay=0.02)
    oracle = LogisticRegression(C=1 / (0.02 * 200), tol=1e-10, max_iter=10_000).fit(
        features.double().numpy(), targets.numpy()
    )
    np.testing.assert_allclose(weight.numpy(), oracle.coef_, atol=1e-5)
    centred = bias - bias.mean()
    np.testing.assert_allclose(centred.numpy(), oracle.intercept_ - oracle.intercept_.mean(), atol=1e-5)


def test_wrong_labels_and_plans_follow_from_the_seed() -> None:
    targets = torch.arange(5).repeat(40)
    wrong = with_wrong_labels(targets, 5, 0.15, seed=1)
    assert int((wrong != targets).sum()) == 30 and set(wrong.tolist()) <= set(range(5))
    assert torch.equal(with_wrong_labels(targets, 5, 0.0, seed=1), targets)
    plans = draw_plans(MergeConfig(runs=200))
    assert plans[:5] == draw_plans(MergeConfig(runs=5)) and plans[:5] != draw_plans(MergeConfig(runs=5, seed=1))
    rates = [math.log(plan.learning_rate) for plan in plans]
    assert math.log(1e-4) <= min(rates) and max(rates) <= math.log(3e-3)
    assert abs(np.mean(rates) - (math.log(1e-4) + math.log(3e-3)) / 2) < 0.3
    # A sweep, not one configuration under many seeds.
    for name in ("learning_rate", "weight_decay", "smoothing"):
        assert len({getattr(plan, name) for plan in plans}) == 200
    assert {plan.epochs for plan in plans} == {3, 4, 5, 6, 7, 8}
    assert 0.3 < np.mean([plan.augment > 0 for plan in plans]) < 0.7
    with pytest.raises(ConfigError, match=r"range \(0.1, 0.01\)"):
        MergeConfig(learning_rates=(0.1, 0.01))


def test_runs_share_encoder_and_probed_head_and_are_made_once(
    config: MergeConfig, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(config, tmp_path)
    base = sweep.base.state()
    for name, tensor in open_image_model(start).encoder.state_dict().items():
        assert torch.equal(base[name], tensor)
    assert base["head.weight"].abs().max() > 0
    starts: list[dict[str, Tensor]] = []
    trained = merge_sweep.fit

    def watched(model: nn.Module, *rest: object, **options: object) -> object:
        starts.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return trained(model, *rest, **options)

    monkeypatch.setattr(merge_sweep, "fit", watched)
    first = [sweep.ingredient(at).weights.state() for at in range(config.runs)]
    assert len(starts) == config.runs
    assert all(torch.equal(one[name], base[name]) for one in starts for name in base)
    assert all(not torch.equal(one["head.weight"], base["head.weight"]) for one in first)
    # Another arm of the seed finds them; of an interrupted run the missing one alone is made again, bit for bit.
    again = Sweep(config.model_copy(update={"lengths": (1.0,)}), tmp_path)
    assert again.kept.folder == sweep.kept.folder
    (sweep.kept.folder / "run-01.safetensors").unlink()
    second = [again.ingredient(at).weights.state() for at in range(config.runs)]
    assert len(starts) == config.runs + 1
    assert all(torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a)
    assert Sweep(config.model_copy(update={"seed": 1}), tmp_path).kept.folder != sweep.kept.folder
    notes = json.loads((sweep.kept.folder / "run-00.json").read_text())
    assert notes["learning_rate"] == sweep.plans[0].learning_rate and notes["records"]
    # Equal budgets: the long run has the steps of the whole sweep.
    assert sweep.long_run(0).records[-1]["step"] == sweep.steps == sum(map(sweep.steps_of, sweep.plans))


def test_soups_of_one_model_are_the_model_and_splits_stay_apart(config: MergeConfig, tmp_path: Path) -> None:
    ground = classifier_ground(config, tmp_path)
    one = ground.ingredients[1]
    judge = ground.test.read()
    with pytest.raises(ReadTwiceError):
        ground.test.read()
    single = judged(ground, Merged((one,)), judge)
    assert single["shifted"] == pytest.approx(sum(single[name] for name in SHIFTS) / len(SHIFTS))
    assert judged(ground, Merged((uniform_soup([one, one, one]),)), judge) == single
    assert judged(ground, Merged((one, one)), judge) == single
    assert judged(ground, Merged((one, one), "ensemble"), judge) == single
    # A brute-force ensemble.
    pair = ground.ingredients[:2]
    data = Sweep(config, tmp_path).data
    test = data.test.read()
    logits = [w.into(copy.deepcopy(ground.model))(pixel_values=pixel_values(test.images)) for w in pair]
    right = (sum(logits).argmax(1) == test.targets(data.classes)).double().mean()
    found = judged(ground, Merged(tuple(pair), "ensemble"), judge)
    assert found["accuracy"] == pytest.approx(100 * float(right))
    # What coefficients are fitted on is the validation split, each image once, and no test image is in it.
    seen = torch.cat([batch["pixel_values"] for batch in ground.batches])
    keys = {tuple(image.flatten().tolist()) for image in pixel_values(data.valid.images)}
    assert {tuple(image.flatten().tolist()) for image in seen} == keys and len(seen) == len(keys)
    assert not keys & {tuple(image.flatten().tolist()) for image in pixel_values(test.images)}


def test_task_arithmetic_is_the_sum_and_never_worse_than_the_mean(config: MergeConfig, tmp_path: Path) -> None:
    ground = classifier_ground(config, tmp_path)
    found = task_arithmetic(ground, (0.3, 1.0))
    base, length = ground.base().state(), found.chosen["length"]
    expected = {
        name: tensor + length * sum(w.state()[name] - tensor for w in ground.ingredients)
        for name, tensor in base.items()
    }
    state = found.weights[0].state()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, atol=1e-6, rtol=0)
    assert found.chosen["scores"][f"{1 / 3:g}"] == ground.score(uniform_soup(ground.ingredients).state())
    assert max(found.chosen["scores"].values()) == ground.score(state)


def write_images(place: Path, classes: tuple[str, ...] = ("a", "b", "c"), count: int = 40) -> str:
    rng = np.random.default_rng(0)
    for number, label in enumerate(classes):
        (place / label).mkdir(parents=True)
        for at in range(count):
            values = rng.integers(0, 120, (32, 32, 3)) + 60 * number
            Image.fromarray(values.astype(np.uint8)).save(place / label / f"{at:03d}.png")
    return f"imagefolder:{place}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_images(tmp_path_factory.mktemp("images"))


def nearby(seed: int, labels: int = 3, dim: int = 16) -> ImageEncoder:
    """Three such models have one ancestor, the model of seed 0."""
    model = encoder(0, labels, dim)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def test_checkpoints_of_a_folder_as_files_or_as_folders(data: str, start: str, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for at in range(3):
        save_model(tmp_path / "folders" / f"run{at}", nearby(at + 1), extra={"classes": ["a", "b", "c"]})
        save_file(nearby(at + 1).state_dict(), tmp_path / "files" / f"run{at}.safetensors")
    save_file(encoder(0, 3).state_dict(), tmp_path / "files" / "base.safetensors")
    (tmp_path / "folders" / "logs").mkdir()
    grounds = [
        classifier_ground(MergeConfig(model=start, data=data, ingredients=str(tmp_path / kind)), tmp_path)
        for kind in ("folders", "files")
    ]
    assert [len(ground.ingredients) for ground in grounds] == [3, 3]
    scores = [[ground.score(weights.state()) for weights in ground.ingredients] for ground in grounds]
    assert scores[0] == scores[1]
    # The file called base is the common start; without one it is the model, with a head that is probed.
    assert torch.equal(grounds[1].base().state()["head.weight"], encoder(0, 3).state_dict()["head.weight"])
    probed = grounds[0].base().state()
    assert torch.equal(probed["embed.proj.weight"], open_image_model(start).encoder.state_dict()["embed.proj.weight"])
    assert probed["head.weight"].shape == (3, 16) and probed["head.weight"].abs().max() > 0
    assert grounds[0].budget == {} and not list(tmp_path.glob("ingredients-*"))


def test_checkpoints_of_transformers(data: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    values = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**values, image_size=32, patch_size=8, id2label={0: "a", 1: "b", 2: "c"})
    torch.manual_seed(0)
    models = [transformers.ViTForImageClassification(config).eval() for _ in range(2)]
    processor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    for at, model in enumerate(models):
        model.save_pretrained(tmp_path / "vits" / f"run{at}")
        (tmp_path / "vits" / f"run{at}" / "preprocessor_config.json").write_text(json.dumps(processor))
    found = open_classifiers(MergeConfig(data=data, ingredients=str(tmp_path / "vits")))
    assert found.classifier.pixels == Pixels((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    x = images(4, 32)
    mean, std = (torch.tensor(processor[name])[:, None, None] for name in ("image_mean", "image_std"))
    pixels = (x.float() / 255 - mean) / std
    torch.testing.assert_close(found.classifier.pixels(x), pixels, atol=1e-6, rtol=1e-6)
    for weights, model in zip(found.weights, models, strict=True):
        mine = weights.into(found.classifier.model)(pixel_values=pixels)
        torch.testing.assert_close(mine, model(pixels).logits, atol=1e-4, rtol=1e-4)
    other = {**config.to_dict(), "id2label": {0: "b", 1: "a", 2: "c"}}
    for at in range(2):
        (tmp_path / "vits" / f"run{at}" / "config.json").write_text(json.dumps(other))
    with pytest.raises(ModelError, match=r"tells the classes b, a, c, ... apart"):
        open_classifiers(MergeConfig(data=data, ingredients=str(tmp_path / "vits")))


def test_a_network_with_batch_norm_gets_new_statistics(data: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=3)
    torch.manual_seed(0)
    first = transformers.ResNetForImageClassification(config).eval()
    second = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    for at, model in enumerate((first, second)):
        model.save_pretrained(tmp_path / "nets" / f"run{at}")
    config_of = MergeConfig(data=data, ingredients=str(tmp_path / "nets"), batch_size=200)
    ground = classifier_ground(config_of, tmp_path)
    assert open_image_model(str(tmp_path / "nets" / "run0")).labels == 3
    # With a new head of zeros on the body's pooled features, to be probed.
    headed, x = open_image_model(str(tmp_path / "nets" / "run0")).with_head(5).model, torch.randn(2, 3, 64, 64)
    assert torch.equal(headed(pixel_values=x), torch.zeros(2, 5))
    torch.testing.assert_close(headed.features(x), first.resnet(x).pooler_output.flatten(1))
    model = ground.filled(ground.ingredients[0])
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))
    model = ground.filled(uniform_soup(ground.ingredients))
    train = open_classifiers(config_of).data.train.images
    seen: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(pixel_values=pixel_values(train))
    hook.remove()
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), atol=1e-4, rtol=1e-3)


def write(place: Path, *models: ImageEncoder) -> str:
    place.mkdir()
    for at, model in enumerate(models):
        save_file(model.state_dict(), place / f"run{at}.safetensors")
    return str(place)


def test_one_clear_error_for_each_bad_folder(data: str, start: str, tmp_path: Path) -> None:
    def refused(folder: str) -> str:
        with pytest.raises(LeavenError) as caught:
            classifier_ground(MergeConfig(model=start, data=data, ingredients=folder), tmp_path).vectors()
        assert "\n\n" not in str(caught.value)
        return str(caught.value)

    one = refused(write(tmp_path / "one", nearby(1)))
    assert "holds only one checkpoint, run0.safetensors: merging needs two or more" in one
    assert "there is no such folder" in refused(str(tmp_path / "nothing"))
    shapes = refused(write(tmp_path / "shapes", nearby(1), nearby(2, dim=32)))
    assert "weights of different models cannot be combined" in shapes
    assert "embed.class_token: shape (16,), but (32,) in" in shapes
    broken = nearby(2)
    with torch.no_grad():
        broken.head.weight[0, :2] = torch.nan
    nan = refused(write(tmp_path / "nan", nearby(1), broken))
    assert "head.weight of" in nan and "run1.safetensors: 2 of 48 values" in nan
    classes = refused(write(tmp_path / "classes", nearby(1, labels=5), nearby(2, labels=5)))
    assert "head.bias has shape (5,), expected (3,)" in classes and "data that they were fine-tuned for" in classes
    for at in range(2):
        save_model(tmp_path / "five" / f"run{at}", nearby(at, labels=5))
    assert "tells 5 classes apart" in refused(str(tmp_path / "five"))
    for at in range(2):
        save_model(tmp_path / "wide" / f"run{at}", nearby(at, dim=32))
    assert "is not what the checkpoints were fine-tuned from" in refused(str(tmp_path / "wide"))
    for at in range(2):
        save_model(tmp_path / "named" / f"run{at}", nearby(at + 1), extra={"classes": ["a", "c", "b"]})
    named = refused(str(tmp_path / "named"))
    assert "tells the classes a, c, b, ... apart (3), but those of the data are a, b, c" in named
    (tmp_path / "one" / "run1.safetensors").write_bytes(b"no tensors")
    assert "is not a whole safetensors file" in refused(str(tmp_path / "one"))


def test_batches_are_made_when_they_are_asked_for() -> None:
    x, order = images(5), torch.tensor([4, 2, 0, 1, 3])
    batches = image_batches(x, {"label": torch.arange(5)}, Pixels(), 2, order)
    assert len(batches) == 3 and [batch["label"].tolist() for batch in batches] == [[4, 2], [0, 1], [3]]
    assert torch.equal(batches[-1]["pixel_values"], pixel_values(x[[3]]))
    assert [batch["label"].tolist() for batch in batches[1:]] == [[0, 1], [3]]
    with pytest.raises(IndexError):
        batches[3]
    torch.testing.assert_close(Pixels()(x), pixel_values(x))
