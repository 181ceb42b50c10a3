from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaven.data.splits import assign_splits, check_split, hash_share, hash_split, sample_rates, some_by_hash
from leaven.errors import ConfigError


def test_hash_split_is_80_10_10_and_fixed():
    counts = Counter(hash_split(str(number)) for number in range(20_000))
    # Four standard deviations of a binomial.
    assert abs(counts["train"] - 16_000) < 4 * (20_000 * 0.8 * 0.2) ** 0.5
    assert abs(counts["valid"] - 2_000) < 4 * (20_000 * 0.1 * 0.9) ** 0.5
    assert [hash_split(key) for key in "abcdefghijklmno"] == [hash_split(key) for key in "abcdefghijklmno"]
    assert hash_share("a") != hash_share("a", seed=1)


def test_hash_share_is_the_first_53_bits_of_sha256():
    import hashlib

    digest = hashlib.sha256(b"7:key").hexdigest()
    assert hash_share("key", 7) == int(digest[:16], 16) // 2**11 / 2**53


@given(st.lists(st.text(max_size=4), max_size=30), st.integers(0, 5))
def test_every_key_is_assigned_and_no_split_is_empty_from_three_on(keys, seed):
    assigned = assign_splits(keys, seed)
    assert set(assigned) == set(keys) and assigned == assign_splits(reversed(keys), seed)
    if len(assigned) >= 3:
        assert set(assigned.values()) == {"train", "valid", "test"}
    else:
        assert set(assigned.values()) <= {"train"}


def test_large_sets_follow_the_hash_alone():
    keys = [str(number) for number in range(500)]
    assert assign_splits(keys) == {key: hash_split(key) for key in keys}


def test_unknown_split():
    with pytest.raises(ConfigError, match=r"x: unknown split 'dev'; expected one of train, valid, test, all"):
        check_split("dev", "x")


def test_rates_equal_the_closed_form():
    sizes = [100, 2000, 51]
    weights = [size**0.7 for size in sizes]
    assert sample_rates(sizes) == pytest.approx([weight / sum(weights) for weight in weights])
    assert sample_rates(sizes, 1.0) == pytest.approx([size / 2151 for size in sizes])
    assert sample_rates(sizes, 0.0) == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("sizes", "alpha", "says"), [([], 0.7, "no task"), ([5, 0], 0.7, "task 1 has 0"), ([5], 1.5, "alpha is 1.5")]
)
def test_bad_rates(sizes, alpha, says):
    with pytest.raises(ConfigError, match=says):
        sample_rates(sizes, alpha)


def test_some_are_drawn_by_hash_in_their_old_order():
    items = [f"item {n}" for n in range(500)]
    some = some_by_hash(items, 100)
    assert len(some) == 100 and some == sorted(some, key=items.index)
    assert set(some_by_hash(items[:250], 250)) == set(items[:250])
    # What is drawn of a part of the items is drawn whatever the others are.
    assert set(some_by_hash(items, 50)) < set(some)
    assert abs(sum(items.index(one) for one in some) / 100 - 250) < 50
