import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from standard_data import needs_data

from leaven.data import downloads, standard_files
from leaven.data.cache import cache_dir, write_atomically
from leaven.data.examples import ClonePair, Pair, TaggedTokens, Text
from leaven.data.registry import STANDARD_SETS
from leaven.data.sources import open_source
from leaven.data.standard_files import locate
from leaven.data.standard_sets import aligned_lines, conll, wikitext
from leaven.errors import DataError


def sizes(name, kind):
    return tuple(len(open_source(name, kind, split=split)) for split in ("train", "valid", "test"))


@needs_data
def test_published_counts():
    assert sizes("java2cs", Pair) == (10_295, 499, 1_000)
    train, valid, test = sizes("refine", Pair)
    assert (train + valid, test) == (5_835, 5_835) and 0.88 < train / 5_835 < 0.92
    assert sum(sizes("concode", Pair)) == 2_000 and sum(sizes("cosqa", ClonePair)) == 604
    assert sum(sizes("cosqa", Pair)) == 313


@needs_data
def test_java2cs_lines_are_translations_of_each_other():
    pair = open_source("java2cs", Pair, split="test").examples[0]
    assert pair.source == "public void serialize(LittleEndianOutput out) {out.writeShort(field_1_vcenter);}"
    assert pair.target.startswith("public override void Serialize(ILittleEndianOutput out1)")


@needs_data
@pytest.mark.parametrize(("name", "kind"), [("concode", Pair), ("cosqa", ClonePair), ("refine", Pair)])
def test_divided_parts_share_no_group(name, kind):
    def group(example):
        if name == "concode":
            return example.source.partition("concode_field_sep")[2]
        return example.second if name == "cosqa" else example.source

    sides = [{group(example) for example in open_source(name, kind, split=split)} for split in ("train", "valid")]
    assert all(sides) and not sides[0] & sides[1]


@needs_data
def test_ner_tags_are_bio_and_one_per_token():
    source = open_source("stackoverflow-ner", TaggedTokens, split="test")
    assert len(source) > 3_000
    for example in source:
        assert len(example.tokens) == len(example.tags) > 0
        assert all(tag == "O" or tag[:2] in ("B-", "I-") for tag in example.tags)
        assert example.tokens[0] not in ("Question_ID", "Question_URL", "Answer_to_Question_ID")


@needs_data
def test_wikitext_is_cut_between_articles():
    train, valid = (open_source("wikitext2", Text, split=split).examples for split in ("train", "valid"))
    assert train[0] == Text("= Homarus gammarus =") and valid[0].text.startswith("= ") and valid[0].text.endswith(" =")
    assert len(train) + len(valid) == 2_461


@needs_data
def test_files_at_hand_have_the_recorded_checksums():
    for dataset in STANDARD_SETS.values():
        for files in dataset.files.values():
            for file in files:
                assert locate(dataset, file).is_file()


@pytest.fixture
def one_set(tmp_path, monkeypatch):
    content = b"a\nb\n"
    public = tmp_path / "public.txt"
    public.write_bytes(content)
    file = standard_files.StandardFile("code/x.txt", public.as_uri(), hashlib.sha256(content).hexdigest())
    dataset = replace(STANDARD_SETS["java2cs"], name="x", files={"train": (file, file)}, parts={"train": "train"})
    monkeypatch.setenv("LEAVEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LEAVEN_DATA", raising=False)
    monkeypatch.delenv("LEAVEN_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return dataset, file, public


def test_file_is_downloaded_once_then_read_from_the_cache(one_set):
    dataset, file, public = one_set
    path = locate(dataset, file)
    assert path == cache_dir() / "standard" / "code" / "x.txt" and dataset.missing() == []
    public.unlink()
    assert locate(dataset, file) == path
    assert dataset.load("train", Pair) == [Pair("a", "a"), Pair("b", "b")] == dataset.load("all", Pair)


def test_leaven_data_comes_before_cache_and_network(one_set, tmp_path, monkeypatch):
    dataset, file, public = one_set
    own = tmp_path / "data" / file.path
    write_atomically(own, public.read_bytes())
    monkeypatch.setenv("LEAVEN_DATA", str(tmp_path / "data"))
    assert locate(dataset, file) == own and not cache_dir().exists()


@pytest.mark.parametrize("variable", ["LEAVEN_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_says_what_to_put_where(one_set, monkeypatch, variable):
    dataset, file, _ = one_set
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DataError, match=rf"x: the file code/x.txt is not at hand.*{file.url}.*LEAVEN_DATA"):
        locate(dataset, file)
    assert dataset.missing() == [file, file]


def test_file_that_cannot_be_downloaded(one_set):
    dataset, file, public = one_set
    public.unlink()
    with pytest.raises(DataError, match=r"cannot be downloaded.*Put the file from"):
        locate(dataset, file)


def test_changed_download_is_not_kept(one_set):
    dataset, file, public = one_set
    public.write_bytes(b"other")
    with pytest.raises(DataError, match=r"has changed: its sha256 is"):
        locate(dataset, file)
    assert not (cache_dir() / "standard" / file.path).exists()


def test_altered_file_at_hand_is_noticed(one_set):
    dataset, file, _ = one_set
    path = locate(dataset, file)
    path.write_bytes(b"a\n")
    with pytest.raises(DataError, match="is altered or cut off"):
        locate(dataset, file)


def test_interrupted_write_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomically(path, b"old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_cache_folder(monkeypatch):
    monkeypatch.delenv("LEAVEN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/leaven")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "leaven"


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("true", True), ("0", False), ("", False), ("False", False)]
)
def test_offline_switch(monkeypatch, value, expected):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("LEAVEN_OFFLINE", value)
    assert downloads.offline() is expected


def test_every_set_names_origin_licence_and_checksums():
    for name, dataset in STANDARD_SETS.items():
        assert name == dataset.name and dataset.licence and "/" in dataset.origin
        assert set(dataset.parts) == {"train", "valid", "test"} and set(dataset.parts.values()) == set(dataset.files)
        for files in dataset.files.values():
            for file in files:
                assert len(file.sha256) == 64 and dataset.origin in file.url


def test_lines_end_at_line_feeds_alone(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes("x\x0cy\u2028z\r w\nlast".encode())
    assert len(aligned_lines((tmp_path / "a", tmp_path / "b"), "train", "train", Pair)) == 2
    (tmp_path / "b").write_bytes(b"one\n")
    with pytest.raises(DataError, match=r"has 2 lines, .* has 1"):
        aligned_lines((tmp_path / "a", tmp_path / "b"), "train", "train", Pair)


def test_conll(tmp_path):
    (tmp_path / "x").write_text("Question_ID\tO\n:\tO\n\t\n\nGo\tB-L\tGo\tB-L\n!\tO\n\t\nend\tO")
    assert conll((tmp_path / "x",), "train", "train", TaggedTokens) == [
        TaggedTokens(("Go", "!"), ("B-L", "O")),
        TaggedTokens(("end",), ("O",)),
    ]


def test_wikitext_headings_of_lower_level_are_no_articles(tmp_path):
    lines = [line for at in range(10) for line in (f" = T{at} = ", " = = Sub = = ", " text ")]
    (tmp_path / "x").write_text("\n \n".join(lines) + "\n")
    train = wikitext((tmp_path / "x",), "valid", "train", Text)
    valid = wikitext((tmp_path / "x",), "valid", "valid", Text)
    assert len(train) == 27 and [text.text for text in valid] == ["= T9 =", "= = Sub = =", "text"]
    assert len(wikitext((tmp_path / "x",), "test", "test", Text)) == 30
