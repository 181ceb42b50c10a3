import json
import sys
import types

import pytest

from leaven.data.examples import ClonePair, CodeExample, Labelled, Pair, TaggedTokens, Text
from leaven.data.sources import check_source, list_sources, open_source
from leaven.errors import ConfigError, DataError


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{path}"


@pytest.fixture
def pairs(tmp_path):
    return jsonl(tmp_path / "pairs.jsonl", [{"source": f"s{at}", "target": f"t{at}"} for at in range(200)])


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "repo"
    (root / "src" / "deep").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "node_modules").mkdir()
    (root / ".git" / "hook.py").write_text("def hidden(): return 1\n")
    (root / "node_modules" / "x.js").write_text("function hidden() { return 1 }\n")
    for at in range(6):
        (root / "src" / f"m{at}.py").write_text(
            f"def f{at}(x):\n    'Doc {at}.'\n    return x\n\ndef g{at}(x):\n    return x\n"
        )
    (root / "src" / "deep" / "A.java").write_text("class A { int h(int a) { return a; } }\n")
    (root / "README.md").write_text("Read me.\n")
    return root


def test_row_formats_split_by_content_and_share_nothing(pairs):
    splits = {name: open_source(pairs, Pair, split=name) for name in ("train", "valid", "test", "all")}
    parts = [set(splits[name].examples) for name in ("train", "valid", "test")]
    assert set.union(*parts) == set(splits["all"]) and sum(map(len, parts)) == len(splits["all"]) == 200
    assert 140 < len(splits["train"]) < 180
    assert splits["train"].examples == open_source(pairs, Pair).examples
    assert splits["train"].ledger.read_count == 200


def test_equal_inputs_stay_on_one_side(tmp_path):
    spec = jsonl(tmp_path / "x.jsonl", [{"source": f"s{at % 40}", "target": f"t{at}"} for at in range(200)])
    sides = [{pair.source for pair in open_source(spec, Pair, split=name)} for name in ("train", "valid", "test")]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 40


def test_code_folder_is_split_by_file(repository):
    spec = f"code:{repository}"
    everything = open_source(spec, CodeExample, split="all").examples
    assert [example.name for example in everything] == ["h"] + [f"{x}{at}" for at in range(6) for x in "fg"]
    assert {example.language for example in everything} == {"python", "java"}
    files = [
        {example.path for example in open_source(spec, CodeExample, split=name)} for name in ("train", "valid", "test")
    ]
    assert all(files) and sum(map(len, files)) == len(set.union(*files)) == 7
    assert open_source(spec, Text, split="all").examples == [Text(example.code) for example in everything]


def test_single_code_file_is_split_by_function(repository):
    spec = f"code:{repository / 'src' / 'm0.py'}"
    assert len(open_source(spec, CodeExample, split="all")) == 2
    with pytest.raises(DataError, match=r"nothing is left for the split 'valid'.* 2 distinct units"):
        open_source(spec, CodeExample, split="valid")


def test_text_folder_and_file(tmp_path):
    for at in range(4):
        (tmp_path / f"{at}.txt").write_text(f"a{at}\n\nb{at}\n")
    (tmp_path / "x.bin").write_bytes(b"\xff")
    texts = open_source(f"text:{tmp_path}", Text, split="all").examples
    assert texts == [Text(f"{x}{at}") for at in range(4) for x in "ab"]
    train = open_source(f"text:{tmp_path}", Text).examples
    assert {text.text[1] for text in train}.isdisjoint(
        text.text[1] for text in open_source(f"text:{tmp_path}", Text, split="test")
    )
    assert open_source(f"text:{tmp_path / '0.txt'}", Text, split="all").examples == [Text("a0"), Text("b0")]


def test_csv_and_columns_by_other_names(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("nl,program,label\n" + "".join(f"n{at},p{at},{at % 2}\n" for at in range(9)))
    spec = f"csv:{path}?source=nl&target=program"
    assert open_source(spec, Pair, split="all").examples[3] == Pair("n3", "p3")
    assert open_source(f"csv:{path}?text=nl", Labelled, split="all", classes=2).examples[1] == Labelled("n1", 1)
    with pytest.raises(ConfigError, match="'source' after the question mark is not of the form field=column"):
        open_source(f"csv:{path}?source", Pair)


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="the parquet extra is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"tokens": [["a"], ["b"]], "tags": [["O"], ["O"]]})
    parquet.write_table(table, tmp_path / "a.parquet")
    source = open_source(f"parquet:{tmp_path / 'a.parquet'}", TaggedTokens, split="all")
    assert source.examples == [TaggedTokens(("a",), ("O",)), TaggedTokens(("b",), ("O",))]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_labels_are_numbers_or_names_by_what_most_rows_have(tmp_path, form):
    def source(labels):
        path = tmp_path / f"x.{form}"
        rows = [{"text": f"t{at}", "label": label} for at, label in enumerate(labels)]
        if form == "jsonl":
            return jsonl(path, rows)
        path.write_text(
            "".join(f"{text},{label}\n" for text, label in [("text", "label"), *(r.values() for r in rows)])
        )
        return f"csv:{path}"

    named = open_source(source(["spam", "ham"] * 20), Labelled, split="all")
    assert {one.label for one in named} == {"spam", "ham"} and named.examples[1].where.endswith(
        ":2" if form == "jsonl" else ":3"
    )
    for labels, reason in (
        ([0, 1] * 20 + ["n/a"], "field 'label' is 'n/a', and most rows have whole numbers there"),
        (["spam", "ham"] * 20 + [7], "field 'label' is 7, and most rows have names there"),
    ):
        spec = source(labels)
        mixed = open_source(spec, Labelled, split="all")
        (row,) = mixed.ledger.bad_rows
        assert len(mixed) == 40 and row.reason == reason and row.line == 41 + (form == "csv")
        assert check_source(spec).bad_count == 1
    with pytest.raises(DataError, match=r"(?s)2 of 4 rows are bad .*'n/a'"):
        open_source(source([0, "n/a", 1, "n/b"]), Labelled, split="all")


def test_embedded():
    source = open_source("stdlib-code", CodeExample, split="valid")
    assert source.ledger.good_count == len(source) > 100 and source.name == "stdlib-code"
    assert open_source("stdlib-code", Text, split="valid").examples[0] == Text(source.examples[0].code)


BAD_ROWS = [
    ('{"code1": "a", "code2": "b"', ClonePair, "broken JSON"),
    ('{"code1": "a", "code2": "b"}', ClonePair, "field 'label' is missing"),
    ('{"code1": "a", "code2": 3, "label": 1}', ClonePair, "field 'code2' is a number"),
    ('{"code1": "a", "code2": "b", "label": 7}', ClonePair, "field 'label' is 7, expected 0 or 1"),
    ('{"code": "a", "label": 7}', Labelled, "field 'label' is 7, expected 0 or 1"),
    ('{"code": "def f(:", "lang": "python"}', CodeExample, "does not parse as python"),
    ('{"code": "x", "lang": "cobol"}', CodeExample, "unknown programming language 'cobol'"),
    ('{"source": "a"}', Pair, "field 'target' is missing"),
]
GOOD_ROWS = {
    ClonePair: {"code1": "a", "code2": "b", "label": 1},
    Labelled: {"code": "a", "label": 1},
    CodeExample: {"code": "x = 1", "lang": "python"},
    Pair: {"source": "a", "target": "b"},
}


@pytest.mark.parametrize(("line", "kind", "reason"), BAD_ROWS)
def test_one_bad_row_is_listed_and_many_stop(tmp_path, line, kind, reason):
    good = json.dumps(GOOD_ROWS[kind])
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join([good] * 29 + [line]) + "\n")
    source = open_source(f"jsonl:{path}", kind, split="all", classes=2)
    assert len(source) == 29
    (row,) = source.ledger.bad_rows
    assert row.file == str(path) and row.line == 30 and reason in row.reason
    path.write_text("\n".join([good] * 9 + [line]) + "\n")
    with pytest.raises(DataError, match=r"1 of 10 rows are bad \(10.0%\)") as error:
        open_source(f"jsonl:{path}", kind, split="all", classes=2)
    assert reason in str(error.value) and ":10:" in str(error.value)
    assert len(open_source(f"jsonl:{path}", kind, split="all", classes=2, max_bad_share=0.1)) == 9


def test_unparsable_share_of_a_code_folder(repository):
    (repository / "src" / "bad.py").write_bytes(b"\xff\xfe")
    (repository / "src" / "empty.py").write_text("")
    with pytest.raises(DataError, match=r"2 of 15 rows are bad") as error:
        open_source(f"code:{repository}", CodeExample)
    assert "bad.py:1: not UTF-8" in str(error.value) and "empty.py: empty file" in str(error.value)


@pytest.mark.parametrize("scheme", ["code", "text", "jsonl", "csv", "parquet"])
def test_missing_path_names_what_exists(tmp_path, scheme):
    (tmp_path / "traindata").mkdir()
    with pytest.raises(DataError, match=r"no such file or folder; did you mean '.*traindata'"):
        open_source(f"{scheme}:{tmp_path}/traindat", Text)
    with pytest.raises(DataError, match="names no path"):
        open_source(f"{scheme}:", Text)


@pytest.mark.parametrize("scheme", ["code", "text"])
def test_empty_folder_and_folder_of_other_files(tmp_path, scheme):
    with pytest.raises(DataError, match=r"the folder '.*' is empty"):
        open_source(f"{scheme}:{tmp_path}", Text)
    (tmp_path / "x.bin").write_bytes(b"1")
    with pytest.raises(DataError, match=r"no usable file in .*expected .*found \.bin"):
        open_source(f"{scheme}:{tmp_path}", Text)


@pytest.mark.parametrize("scheme", ["jsonl", "csv", "parquet"])
def test_empty_file_and_folder_where_a_file_is_expected(tmp_path, scheme):
    (tmp_path / f"x.{scheme}").write_text("")
    with pytest.raises(DataError, match="is empty"):
        open_source(f"{scheme}:{tmp_path / f'x.{scheme}'}", Text)
    with pytest.raises(DataError, match=rf"is a folder, expected a file; it has x\.{scheme}"):
        open_source(f"{scheme}:{tmp_path}", Text)


def test_file_of_another_language(tmp_path):
    (tmp_path / "x.rs").write_text("fn f() {}")
    with pytest.raises(DataError, match=r"'.rs' belongs to none of the languages python"):
        open_source(f"code:{tmp_path / 'x.rs'}", CodeExample)


def test_only_blank_lines_is_no_data(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="there are no rows in it"):
        open_source(f"jsonl:{tmp_path / 'x.jsonl'}", Text)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("stdlib", "Did you mean 'stdlib-code'"),
        ("java2c", "Did you mean 'java2cs'"),
        ("json:x.jsonl", "Did you mean 'jsonl:x.jsonl'"),
        ("zzz", "there are stdlib-code, installed-code, java2cs"),
        ("s3://bucket", "unknown data source"),
        ("", "unknown data source"),
    ],
)
def test_unknown_source(spec, says):
    with pytest.raises(ConfigError, match=says):
        open_source(spec, Text)
    with pytest.raises(ConfigError, match=says):
        check_source(spec)


def test_path_without_a_scheme(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"is a file: did you mean jsonl:"):
        open_source(str(tmp_path / "a.jsonl"), Text)
    with pytest.raises(ConfigError, match=r"is a folder: code:"):
        open_source(str(tmp_path), Text)


def test_wrong_kind_and_wrong_split(pairs, tmp_path):
    with pytest.raises(ConfigError, match="stdlib-code has no Pair examples: it offers CodeExample, Text"):
        open_source("stdlib-code", Pair)
    with pytest.raises(ConfigError, match="offers CodeExample, Text"):
        open_source(f"code:{tmp_path}", Labelled)
    with pytest.raises(ConfigError, match="java2cs has no Text examples: it offers Pair"):
        open_source("java2cs", Text)
    with pytest.raises(ConfigError, match="unknown split 'dev'"):
        open_source(pairs, Pair, split="dev")
    with pytest.raises(ConfigError, match="max_bad_share"):
        open_source(pairs, Pair, max_bad_share=2)


def test_check_infers_the_kind_and_does_not_stop(tmp_path, repository, pairs):
    ledger = check_source(pairs)
    assert ledger.ok and ledger.good_count == 200
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a", "label": 0}\n{"text": 1, "label": 0}\nnonsense\n')
    ledger = check_source(f"jsonl:{path}")
    assert not ledger.ok and [row.line for row in ledger.bad_rows] == [2, 3] and ledger.good_count == 1
    assert check_source(f"code:{repository}").good_count == 13
    assert check_source("stdlib-code").good_count > 5000
    (tmp_path / "y.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="no kind of example has the fields a"):
        check_source(f"jsonl:{tmp_path / 'y.jsonl'}")


def test_list_names_tier_kinds_and_availability(monkeypatch):
    monkeypatch.delenv("LEAVEN_DATA", raising=False)
    monkeypatch.setenv("LEAVEN_OFFLINE", "1")
    listed = {info.name: info for info in list_sources()}
    assert listed["stdlib-code"].tier == "embedded" and listed["stdlib-code"].available
    assert not listed["java2cs"].available and "LEAVEN_DATA" in listed["java2cs"].where
    assert listed["cosqa"].kinds == ("pair", "clone") and listed["code:"].tier == "yours"
    monkeypatch.setenv("LEAVEN_OFFLINE", "0")
    assert "downloaded from microsoft/CodeXGLUE" in {info.name: info for info in list_sources()}["java2cs"].where


class FakeHub(types.ModuleType):
    def __init__(self, splits=None, error=None):
        super().__init__("datasets")
        self.splits, self.error = splits, error

    def load_dataset(self, name, configuration):
        if self.error:
            raise self.error
        assert (name, configuration) == ("owner/name", "python")
        return self.splits


def rows(mark, count):
    return [{"text": f"{mark}{at}"} for at in range(count)]


def test_hub_splits_are_used_by_their_names(monkeypatch):
    hub = FakeHub({"train": rows("a", 5), "validation": rows("b", 3), "test": rows("c", 2)})
    monkeypatch.setitem(sys.modules, "datasets", hub)
    spec = "hf:owner/name:python"
    assert open_source(spec, Text, split="valid").examples == [Text(f"b{at}") for at in range(3)]
    assert len(open_source(spec, Text, split="all")) == 10
    hub.splits = {"train": rows("a", 50)}
    sizes = [len(open_source(spec, Text, split=name)) for name in ("train", "valid", "test")]
    assert sum(sizes) == 50 and min(sizes) >= 1
    hub.splits = {"train": rows("a", 5), "testing": rows("b", 5)}
    with pytest.raises(DataError, match="no 'test' split: it has train, testing; did you mean 'testing'"):
        open_source(spec, Text, split="test")


def test_hub_without_library_or_network(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"hf:owner/name needs the library datasets.*leaven\[hub\]"):
        open_source("hf:owner/name", Text)
    monkeypatch.setitem(sys.modules, "datasets", FakeHub(error=ConnectionError("no route")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"the machine is set offline.*no route"):
        open_source("hf:owner/name", Text)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("LEAVEN_OFFLINE", "")
    with pytest.raises(DataError, match=r"check the name and the network.*no route"):
        open_source("hf:owner/name", Text)
    with pytest.raises(DataError, match="names no data set"):
        open_source("hf:", Text)


def test_every_label_has_texts_in_every_split_however_few_there_are(tmp_path):
    rows = [{"text": f"text {at} of {label}", "label": label} for label in "abcdefghijkl" for at in range(5)]
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    splits = [open_source(f"jsonl:{path}", Labelled, split=split).examples for split in ("train", "valid", "test")]
    assert sum(map(len, splits)) == 60
    assert all({one.label for one in part} == set("abcdefghijkl") for part in splits)
    # A label of its own for each text, and one text under two labels: as they come.
    odd = [{"text": f"text {at}", "label": f"name {at}"} for at in range(40)] + [
        {"text": "text 1", "label": "name 2"}
    ] * 3
    path.write_text("\n".join(map(json.dumps, odd)))
    splits = [open_source(f"jsonl:{path}", Labelled, split=split).examples for split in ("train", "valid", "test")]
    assert sum(map(len, splits)) == 43 and all(splits)
    texts = [{one.text for one in part} for part in splits]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
