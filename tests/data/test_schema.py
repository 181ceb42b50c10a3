import pytest

from leaven.data.examples import ClonePair, CodeExample, Labelled, Pair, ScoredPair, TaggedTokens, Text
from leaven.data.schema import Fields, RowError, example_from, infer_kind, split_key
from leaven.errors import DataError

GOOD = [
    (
        {"code": "def f():\n    '''Doc.\n\n    More.'''\n    return 1", "lang": "py"},
        CodeExample,
        CodeExample("def f():\n    return 1", "python", name="f", docstring="Doc."),
    ),
    (
        {"code": "def f(): return 1", "lang": "python", "docstring": "Given."},
        CodeExample,
        CodeExample("def f(): return 1", "python", name="f", docstring="Given."),
    ),
    (
        {"code": "x = 1", "language": "python", "docstring": None},
        CodeExample,
        CodeExample("x = 1", "python"),
    ),
    ({"source": "a", "target": "b", "other": 1}, Pair, Pair("a", "b")),
    ({"code": "a", "label": 3}, Labelled, Labelled("a", 3)),
    ({"text": "a", "label": 0}, Labelled, Labelled("a", 0)),
    ({"text": "a", "label": " mail "}, Labelled, Labelled("a", "mail")),
    ({"text": "a", "label": "1"}, Labelled, Labelled("a", "1")),
    ({"text1": "a", "text2": "b", "score": 3}, ScoredPair, ScoredPair("a", "b", 3.0)),
    ({"code1": "a", "code2": "b", "label": 1}, ClonePair, ClonePair("a", "b", 1)),
    ({"text": "a"}, Text, Text("a")),
    ({"tokens": ["a", "b"], "tags": ["O", "B-X"]}, TaggedTokens, TaggedTokens(("a", "b"), ("O", "B-X"))),
]


@pytest.mark.parametrize(("values", "kind", "expected"), GOOD)
def test_rows_become_examples(values, kind, expected):
    assert example_from(Fields(values), kind) == expected


BAD = [
    ({"source": "a"}, Pair, "field 'target' is missing .fields: source"),
    ({}, Text, "field 'text' is missing .fields: none"),
    ({"source": "a", "target": None}, Pair, "field 'target' is missing"),
    ({"source": 3, "target": "b"}, Pair, r"field 'source' is a number \(3\), expected text"),
    ({"source": "a", "target": ["b"]}, Pair, "field 'target' is a list"),
    ({"text": "  \n"}, Text, "field 'text' is empty"),
    ({"text": "a", "label": "  "}, Labelled, "field 'label' is empty"),
    ({"code1": "a", "code2": "b", "label": "1"}, ClonePair, r"field 'label' is text \('1'\), expected 0 or 1"),
    ({"text1": "a", "text2": "b", "score": "3"}, ScoredPair, r"field 'score' is text \('3'\), expected a finite"),
    ({"text1": "a", "text2": "b", "score": float("nan")}, ScoredPair, "expected a finite number"),
    ({"text1": "a", "text2": "b", "score": True}, ScoredPair, "field 'score' is true/false"),
    ({"text1": "a", "text2": "b"}, ScoredPair, "field 'score' is missing"),
    ({"text": "a", "label": 1.5}, Labelled, "a number with a fraction"),
    ({"text": "a", "label": True}, Labelled, "true/false"),
    ({"text": "a", "label": -1}, Labelled, "is -1, expected 0 or more"),
    ({"label": 1}, Labelled, "field 'code' or 'text' is missing"),
    ({"code1": "a", "code2": "b", "label": 2}, ClonePair, "is 2, expected 0 or 1"),
    ({"code1": "a", "label": 1}, ClonePair, "field 'code2' is missing"),
    ({"code": "x = 1"}, CodeExample, "field 'lang' or 'language' is missing"),
    (
        {"code": "x = 1", "lang": "pyton"},
        CodeExample,
        "field 'lang': unknown programming language 'pyton'.*did you mean",
    ),
    ({"code": "def f(:", "lang": "python"}, CodeExample, "does not parse as python"),
    ({"code": "x = 1", "lang": "python", "docstring": 4}, CodeExample, "field 'docstring' is a number"),
    ({"tokens": ["a"], "tags": []}, TaggedTokens, "1 tokens but 0 tags"),
    ({"tokens": [], "tags": []}, TaggedTokens, "'tokens' is empty"),
    ({"tokens": "a", "tags": ["O"]}, TaggedTokens, "expected a list of texts"),
    ({"tokens": ["a"]}, TaggedTokens, "'tags' is missing"),
]


@pytest.mark.parametrize(("values", "kind", "reason"), BAD)
def test_bad_rows_say_field_value_and_expectation(values, kind, reason):
    with pytest.raises(RowError, match=reason):
        example_from(Fields(values), kind)


def test_labels_of_untyped_formats_and_bounds():
    assert example_from(Fields({"text": "a", "label": " 1"}, typed=False), Labelled) == Labelled("a", 1)
    assert example_from(Fields({"text": "a", "label": "1a"}, typed=False), Labelled) == Labelled("a", "1a")
    scored = {"text1": "a", "text2": "b", "score": "2.5"}
    assert example_from(Fields(scored, typed=False), ScoredPair) == ScoredPair("a", "b", 2.5)
    with pytest.raises(RowError, match=r"text .'yes'., expected 0 or 1"):
        example_from(Fields({"text": "a", "label": "yes"}, typed=False), Labelled, classes=2)
    with pytest.raises(RowError, match="is 3, expected a whole number from 0 to 2"):
        example_from(Fields({"text": "a", "label": 3}), Labelled, classes=3)


@pytest.mark.parametrize(("values", "kind", "expected"), GOOD)
def test_kind_is_inferred_from_the_fields(values, kind, expected):
    assert infer_kind(values, "x") is kind


def test_unknown_fields_name_the_schemas():
    with pytest.raises(
        DataError, match=r"file:1: no kind of example has the fields a, b; known are .*\{source, target\} for pair"
    ):
        infer_kind(["b", "a"], "file:1")


def test_split_key_is_the_input():
    assert split_key(Pair("a", "b")) == split_key(Pair("a", "c")) == split_key(Labelled("a", 1)) == "a"
    assert split_key(ClonePair("a", "b", 0)) != split_key(ClonePair("ab", "", 0))
    assert split_key(TaggedTokens(("a", "b"), ("O", "O"))) == "a\0b"
