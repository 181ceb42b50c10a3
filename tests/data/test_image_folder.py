from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leaven.data.examples import LabelledImage
from leaven.data.images import load_images
from leaven.data.sources import check_source, kind_of, open_source
from leaven.errors import ConfigError, DataError


def fill(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 20) -> Path:
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for at in range(count):
            pixels = np.full((10, 14, 3), 40 * label + at, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{at:02d}.png")
    return folder


def test_classes_are_folders_and_the_three_splits_make_up_the_whole(tmp_path: Path) -> None:
    spec = f"imagefolder:{fill(tmp_path)}"
    assert kind_of(spec) is LabelledImage
    parts = {name: open_source(spec, LabelledImage, split=name).examples for name in ("train", "valid", "test")}
    assert sorted(one.path for part in parts.values() for one in part) == sorted(
        one.path for one in open_source(spec, LabelledImage, split="all")
    )
    assert len(parts["train"]) > 20
    assert parts["valid"] and parts["test"]
    assert {one.label for one in parts["train"]} == {"cat", "dog"}
    assert all(Path(one.path).parent.name == one.label for one in parts["train"])


def test_given_splits_are_kept_and_validation_comes_out_of_training(tmp_path: Path) -> None:
    fill(tmp_path / "train", count=60)
    fill(tmp_path / "test", count=3)
    spec = f"imagefolder:{tmp_path}"
    train, valid, test = (open_source(spec, LabelledImage, split=s).examples for s in ("train", "valid", "test"))
    assert len(test) == 6 and all("/test/" in one.path for one in test)
    assert len(train) + len(valid) == 120 and 2 <= len(valid) <= 30
    assert not {one.path for one in train} & {one.path for one in valid}
    fill(tmp_path / "val", count=2)
    assert len(open_source(spec, LabelledImage, split="valid")) == 4
    assert len(open_source(spec, LabelledImage, split="train")) == 120


def test_what_is_no_image_is_listed_and_too_much_of_it_refused(tmp_path: Path) -> None:
    fill(tmp_path, count=30)
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "cat" / "broken.png").write_bytes((tmp_path / "cat" / "00.png").read_bytes()[:30])
    (tmp_path / "stray.png").write_bytes((tmp_path / "cat" / "00.png").read_bytes())
    (tmp_path / "empty").mkdir()
    spec = f"imagefolder:{tmp_path}"
    ledger = check_source(spec)
    reasons = {Path(row.file).name: row.reason for row in ledger.bad_rows}
    assert ledger.good_count == 60
    assert "no image by its name" in reasons["notes.txt"]
    assert "cannot be opened as an image" in reasons["broken.png"]
    assert "lies in no class folder" in reasons["stray.png"]
    assert "no image in this class folder" in reasons["empty"]
    with pytest.raises(DataError, match="4 of 64 rows are bad"):
        open_source(spec, LabelledImage)
    assert len(open_source(spec, LabelledImage, split="all", max_bad_share=0.1)) == 60


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ("empty", "has no class folders; expected DIR/CLASS/image.png"),
        ("file", "is a file; expected a folder"),
        ("missing", "no such file or folder"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, made: str, says: str) -> None:
    place = tmp_path / made
    if made == "empty":
        place.mkdir()
    elif made == "file":
        place.write_text("x")
    with pytest.raises(DataError, match=says):
        open_source(f"imagefolder:{place}", LabelledImage)


def test_a_folder_for_training_alone_has_no_test_split(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    with pytest.raises(DataError, match="a folder for training and none for testing"):
        open_source(f"imagefolder:{tmp_path}", LabelledImage, split="test")


def test_pixels(tmp_path: Path) -> None:
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, 4:12] = (200, 100, 50)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide[:, :, 0]).save(tmp_path / "grey.png")
    turned = Image.fromarray(wide)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=100, subsampling=0)
    pixels = load_images([tmp_path / "wide.png", tmp_path / "grey.png", tmp_path / "turned.jpg"], 8)
    assert pixels.shape == (3, 3, 8, 8) and pixels.dtype == torch.uint8
    # The middle square is all colour.
    assert pixels[0].flatten(1).float().mean(1).tolist() == [200, 100, 50]
    assert pixels[1].float().mean() == 200
    assert (pixels[2].float().mean((1, 2)) - torch.tensor([200.0, 100, 50])).abs().max() < 6
    assert load_images([tmp_path / "wide.png"], 4, channels=1).shape == (1, 1, 4, 4)


def test_files_cut_off_and_sizes_that_cannot_be(tmp_path: Path) -> None:
    fill(tmp_path, ("cat",), 1)
    whole = (tmp_path / "cat" / "00.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:50])
    with pytest.raises(DataError, match=r"cut\.png: cannot be read as an image"):
        load_images([tmp_path / "cut.png"], 8)
    with pytest.raises(ConfigError, match="1 or 3 channels"):
        load_images([], 8, channels=2)


@pytest.mark.parametrize("count", [3, 6, 20])
def test_every_class_has_images_in_every_split_however_few_there_are(count: int, tmp_path: Path) -> None:
    classes = tuple(f"class {at}" for at in range(6))
    spec = f"imagefolder:{fill(tmp_path, classes, count)}"
    splits = {name: open_source(spec, LabelledImage, split=name).examples for name in ("train", "valid", "test")}
    assert sum(map(len, splits.values())) == 6 * count
    for part in splits.values():
        assert {one.label for one in part} == set(classes)


@pytest.mark.parametrize("count", [2, 10])
def test_a_class_of_few_training_images_gives_one_to_validation(count: int, tmp_path: Path) -> None:
    classes = tuple(f"class {at}" for at in range(6))
    fill(tmp_path / "train", classes, count)
    train, valid = (
        open_source(f"imagefolder:{tmp_path}", LabelledImage, split=name).examples for name in ("train", "valid")
    )
    assert len(train) + len(valid) == 6 * count
    assert {one.label for one in train} == {one.label for one in valid} == set(classes)
