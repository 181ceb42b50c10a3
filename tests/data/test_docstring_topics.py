from collections import Counter

import pytest

from leaven.data.docstring_topics import TOPICS, topic_texts
from leaven.errors import ConfigError, DataError


def test_splits_are_disjoint_and_every_topic_is_there() -> None:
    splits = {name: topic_texts(name, source=True) for name in ("train", "valid", "test")}
    counts = Counter(one.label for one in splits["train"])
    assert sorted(counts) == list(range(len(TOPICS)))
    assert min(counts.values()) > 100
    texts = {name: {one.text for one in found} for name, found in splits.items()}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["valid"]
    assert len(splits["test"]) == pytest.approx(0.1 * sum(map(len, splits.values())), rel=0.2)


def test_names_of_packages_are_struck_out() -> None:
    for one in topic_texts("valid"):
        words = {word.lower() for word in one.text.replace("_", " ").split()}
        assert not words & {"tkinter", "asyncio", "email", "pathlib", "unittest", "datetime"}


def test_own_topics() -> None:
    found = topic_texts("all", topics={"mail": ("email",), "numbers": ("fractions",)})
    assert {one.label for one in found} == {0, 1}
    with pytest.raises(ConfigError, match="every package in one of them"):
        topic_texts("all", topics={"a": ("email",), "b": ("email",)})
    with pytest.raises(DataError, match=r"topic 'b': this Python's library has no function of nothing"):
        topic_texts("all", topics={"a": ("email",), "b": ("nothing",)})
