import io
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from standard_data import needs_data

from leaven.data.examples import CodeExample, LabelledImage
from leaven.data.images import archived, load_images
from leaven.data.registry import STANDARD_SETS
from leaven.data.sources import check_source, open_source
from leaven.data.standard_files import locate
from leaven.data.standard_images import cifar10, omniglot
from leaven.errors import ConfigError, DataError
from leaven.evidence.arenas.image_data import open_images

SPLITS = ("train", "valid", "test")


def drawn(rng, size):
    content = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size, size, 3)).astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def archive(tmp_path):
    """Like the published file: cifar10/PART/CLASS/image, 60 images to train and 4 to test of two classes."""
    path, rng = tmp_path / "photographs.zip", np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as opened:
        for part, count in (("train", 60), ("test", 4)):
            for label in ("cat", "ship"):
                opened.writestr(f"cifar10/{part}/{label}/", b"")
                for at in range(count):
                    opened.writestr(f"cifar10/{part}/{label}/{at:04d}.png", drawn(rng, 8))
    return path


def read(archive, split):
    return cifar10((archive,), "all", split, LabelledImage)


def test_an_unpacked_archive_gives_the_same_images_in_the_same_splits(archive, tmp_path):
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path)
    root = tmp_path / "cifar10"
    for split in SPLITS:
        packed = read(archive, split)
        unpacked = open_source(f"imagefolder:{root}", LabelledImage, split=split).examples
        assert [(one.path.split("cifar10/")[1], one.label) for one in packed] == [
            (Path(one.path).relative_to(root).as_posix(), one.label) for one in unpacked
        ]
        pixels = [load_images([one.path for one in part], 8) for part in (packed, unpacked)]
        assert torch.equal(*pixels) and pixels[0].shape == (len(packed), 3, 8, 8)
    assert not set(read(archive, "train")) & set(read(archive, "valid"))
    assert Counter(one.label for one in read(archive, "test")) == {"cat": 4, "ship": 4}


def test_drawers_of_a_split_draw_in_no_other(tmp_path):
    path = tmp_path / "characters.zip"
    names = [
        f"images/{alphabet}/{character}/0{at}_{drawer:02d}.png"
        for alphabet, at in (("Greek", 1), ("Latin", 2))
        for character in ("character01", "character02")
        for drawer in range(1, 21)
    ]
    with zipfile.ZipFile(path, "w") as opened:
        for name in names:
            opened.writestr(name, b"")
    found = {split: omniglot((path,), "all", split, LabelledImage) for split in SPLITS}
    drawers = {split: sorted({int(one.path[-6:-4]) for one in part}) for split, part in found.items()}
    assert drawers == {"train": [*range(1, 11)], "valid": [*range(11, 16)], "test": [*range(16, 21)]}
    for part, count in (("train", 10), ("valid", 5), ("test", 5)):
        assert Counter(one.label for one in found[part]) == {
            f"{alphabet}/character0{at}": count for alphabet in ("Greek", "Latin") for at in (1, 2)
        }


def test_what_an_archive_lacks_is_told(archive, tmp_path):
    with pytest.raises(DataError, match=r"photographs.zip!/cifar10/gone.png: cannot be read from the archive"):
        load_images([archived(archive, "cifar10/gone.png")], 8)
    with pytest.raises(DataError, match=r"gone.zip!/x.png: cannot be read as an image: .*No such file"):
        load_images([archived(tmp_path / "gone.zip", "x.png")], 8)
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(DataError, match=r"text.zip: no zip archive that can be read"):
        cifar10((tmp_path / "text.zip",), "all", "train", LabelledImage)
    with pytest.raises(DataError, match=r"text.zip!/x.png: cannot be read from the archive"):
        load_images([archived(tmp_path / "text.zip", "x.png")], 8)


def test_a_selection_cannot_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("LEAVEN_DATA", str(tmp_path))
    monkeypatch.setenv("LEAVEN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"cifar10: the file images/cifar10_12k.zip is not at hand and nothing to down"):
        open_source("cifar10", LabelledImage)


@pytest.mark.parametrize("name", ["cifar10", "omniglot"])
def test_an_altered_archive_is_noticed(name, tmp_path, monkeypatch):
    file = STANDARD_SETS[name].files["all"][0]
    place = tmp_path / file.path
    place.parent.mkdir()
    with zipfile.ZipFile(place, "w") as opened:
        opened.writestr("cifar10/train/cat/0.png", b"")
    monkeypatch.setenv("LEAVEN_DATA", str(tmp_path))
    with pytest.raises(DataError, match=rf"{name}: {place} is altered or cut off"):
        open_source(name, LabelledImage)
    with pytest.raises(ConfigError, match=f"{name} has no CodeExample examples: it offers LabelledImage"):
        open_source(name, CodeExample)


@needs_data
def test_published_counts():
    counts = {
        split: Counter(one.label for one in open_source("cifar10", LabelledImage, split=split)) for split in SPLITS
    }
    assert len(counts["train"]) == 10 and set(counts["test"].values()) == {200}
    assert all(counts["train"][label] + counts["valid"][label] == 1000 for label in counts["test"])
    assert 900 < counts["valid"].total() < 1100
    assert check_source("omniglot").good_count == 136 * 20
    labels = Counter(one.label for one in open_source("omniglot", LabelledImage, split="train"))
    assert set(labels.values()) == {10} and Counter(label.partition("/")[0] for label in labels) == {
        "Balinese": 24, "Early_Aramaic": 22, "Greek": 24, "Korean": 40, "Latin": 26,
    }  # fmt: skip


@needs_data
@pytest.mark.parametrize(
    ("name", "member", "label", "split"),
    [
        ("cifar10", "cifar10/test/truck/0706.jpg", "truck", "test"),
        ("omniglot", "images_background_small1/Balinese/character01/0108_14.png", "Balinese/character01", "valid"),
    ],
)
def test_an_image_is_that_of_the_archive(name, member, label, split):
    dataset = STANDARD_SETS[name]
    place = locate(dataset, dataset.files["all"][0])
    example = LabelledImage(archived(place, member), label)
    assert example in open_source(name, LabelledImage, split=split).examples
    with zipfile.ZipFile(place) as opened, Image.open(io.BytesIO(opened.read(member))) as image:
        expected = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(load_images([example.path], 32)[0].permute(1, 2, 0).numpy(), expected)


@needs_data
@pytest.mark.parametrize(("name", "sizes"), [("cifar10", (60, 20, 40)), ("omniglot", (816, 272, 544))])
def test_the_arenas_open_them(name, sizes):
    data = open_images(name, size=32, classes=2, per_class=(6, 2, 4), gap=0.0, seed=0)
    test = data.test.read()
    assert (len(data.train), len(data.valid), len(test)) == sizes
    assert test.images.shape[1:] == (3, 32, 32) and test.images.dtype == torch.uint8
    assert len(data.classes) == sizes[0] // 6 == len(set(test.labels))
