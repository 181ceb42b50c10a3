import random

from hypothesis import given, settings
from hypothesis import strategies as st

from leaven.data.near_duplicates import NearDuplicateIndex, token_set
from leaven.data.stdlib_code import stdlib_code


def jaccard(first, second):
    one, two = token_set(first), token_set(second)
    return len(one & two) / len(one | two) if one | two else 1.0


def brute_force(texts, threshold):
    kept = []
    for text in texts:
        flat = " ".join(text.split())
        repeat = any(flat == " ".join(other.split()) or jaccard(text, other) >= threshold for other in kept)
        if not repeat:
            kept.append(text)
    return kept


words = st.lists(st.sampled_from([f"w{i}" for i in range(14)]), min_size=1, max_size=14).map(" ".join)


@settings(max_examples=200)
@given(st.lists(words, max_size=25), st.sampled_from([0.5, 0.7, 0.8, 0.9, 1.0]), st.booleans())
def test_answers_equal_brute_force(texts, threshold, with_reference):
    index = NearDuplicateIndex(threshold, reference=texts if with_reference else ())
    assert [text for text in texts if index.add(text)] == brute_force(texts, threshold)


def test_answers_equal_brute_force_on_real_functions():
    texts = [example.code for example in stdlib_code("train")[:250]]
    generator = random.Random(0)
    altered = []
    for text in generator.sample(texts, 80):
        altered.append(text.replace("self", "this", 1) if generator.random() < 0.5 else text + "\n    return value")
    index = NearDuplicateIndex(0.9, reference=texts)
    assert [text for text in texts + altered if index.add(text)] == brute_force(texts + altered, 0.9)


def test_white_space_alone_makes_no_difference():
    index = NearDuplicateIndex()
    assert index.add("a  b\nc") and not index.add("a b c") and index.seen(" a b\tc ") and not index.seen("x y z")
