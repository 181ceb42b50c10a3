from collections import Counter

import pytest
from standard_data import needs_data

from leaven.data.examples import Labelled, Pair, ScoredPair
from leaven.data.registry import STANDARD_SETS
from leaven.data.sources import open_source
from leaven.data.standard_files import locate
from leaven.data.standard_texts import agnews, sst2, stsb, trec
from leaven.errors import ConfigError, DataError

TEXTS = {"agnews": Labelled, "sst2": Labelled, "stsb": ScoredPair, "trec": Labelled}


def splits(name, kind):
    return [open_source(name, kind, split=split).examples for split in ("train", "valid", "test")]


@needs_data
def test_published_counts():
    counts = {name: tuple(map(len, splits(name, kind))) for name, kind in TEXTS.items()}
    assert counts == {
        "agnews": (5_395, 605, 1_600),
        "sst2": (6_920, 872, 1_821),
        "stsb": (5_749, 1_500, 1_379),
        "trec": (4_915, 537, 500),
    }
    assert set(Counter(one.label for part in splits("agnews", Labelled) for one in part).values()) == {1_900}
    assert list(map(len, splits("agnews", Pair))) == [5_395, 605, 1_600]


@needs_data
def test_rows_read_by_hand():
    title, text = (
        "Fears for T N pension after talks",
        (
            "Unions representing workers at Turner Newall say they are 'disappointed' after talks with stricken parent "
            "firm Federal Mogul."
        ),
    )
    assert open_source("agnews", Labelled).examples[0] == Labelled(f"{title} {text}", "Business")
    assert open_source("agnews", Pair).examples[0] == Pair(title, text)
    assert open_source("sst2", Labelled, split="valid").examples[0] == Labelled(
        "one long string of cliches", "negative"
    )
    question = Labelled("How far is it from Denver to Aspen ?", "number")
    assert open_source("trec", Labelled, split="test").examples[0] == question
    pair = ScoredPair("A girl is styling her hair.", "A girl is brushing her hair.", 2.5)
    assert open_source("stsb", ScoredPair, split="test").examples[0] == pair


@needs_data
def test_what_trains_and_what_validates_share_no_text():
    for name in ("agnews", "trec"):
        train, valid, _ = ({one.text for one in part} for part in splits(name, Labelled))
        assert train and valid and not train & valid


@needs_data
def test_an_altered_file_is_noticed(tmp_path, monkeypatch):
    for name in TEXTS:
        dataset = STANDARD_SETS[name]
        file = dataset.files[dataset.parts["test"]][0]
        altered = tmp_path / file.path
        altered.parent.mkdir(exist_ok=True)
        altered.write_bytes(locate(dataset, file).read_bytes()[:-1])
    monkeypatch.setenv("LEAVEN_DATA", str(tmp_path))
    for name, kind in TEXTS.items():
        with pytest.raises(DataError, match=f"{name}: .* is altered or cut off .*replace it by https"):
            open_source(name, kind, split="test")


def test_other_kinds_are_refused():
    with pytest.raises(ConfigError, match="sst2 has no ScoredPair examples: it offers Labelled"):
        open_source("sst2", ScoredPair)


def test_published_forms(tmp_path):
    path = tmp_path / "x"
    path.write_text('"4","A ""title""","One\\two, three"\n"1","B","b"\n')
    (first, second) = [*agnews((path,), "test", "train", Labelled), *agnews((path,), "test", "valid", Labelled)]
    assert {first, second} == {Labelled('A "title" One two, three', "Sci/Tech"), Labelled("B b", "World")}
    assert agnews((path,), "test", "test", Pair) == []
    path.write_text("it 's good\t1\nbad \t0\n\n")
    assert sst2((path,), "train", "train", Labelled) == [
        Labelled("it 's good", "positive"),
        Labelled("bad", "negative"),
    ]
    path.write_text('"A, b.",C.,0.25\n')
    assert stsb((path,), "dev", "valid", ScoredPair) == [ScoredPair("A, b.", "C.", 0.25)]
    path.write_bytes(b"2 What is \xe9 ?\n4 Where ?\n")
    assert trec((path,), "test", "test", Labelled) == [
        Labelled("What is \u00e9 ?", "abbreviation"),
        Labelled("Where ?", "location"),
    ]
