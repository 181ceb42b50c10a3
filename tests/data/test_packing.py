import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaven.data.packing import pack, pack_tokens
from leaven.errors import ConfigError, DataError


def naive_first_fit_decreasing(lengths, capacity):
    rows, room = [], []
    for index in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        for row, free in enumerate(room):
            if free >= lengths[index]:
                rows[row].append(index)
                room[row] -= lengths[index]
                break
        else:
            rows.append([index])
            room.append(capacity - lengths[index])
    return rows


@given(st.integers(1, 40).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=60))))
def test_pack_equals_the_naive_algorithm_loses_nothing_and_fits(case):
    capacity, lengths = case
    rows = pack(lengths, capacity)
    assert rows == naive_first_fit_decreasing(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= capacity for row in rows)


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=8), max_size=20), st.integers(8, 12))
def test_tokens_segments_and_positions(documents, capacity):
    packed = pack_tokens([np.array(document) for document in documents], capacity, pad=-1)
    tokens, segments, positions = (packed[name].numpy() for name in ("tokens", "segment_ids", "positions"))
    assert tokens.shape == segments.shape == positions.shape and tokens.shape[1:] == (capacity,)
    restored = []
    for row in range(len(tokens)):
        used = segments[row] > 0
        assert (tokens[row][~used] == -1).all() and (positions[row][~used] == 0).all()
        for segment in range(1, segments[row].max(initial=0) + 1):
            at = segments[row] == segment
            assert np.flatnonzero(at).tolist() == list(range(np.flatnonzero(at)[0], np.flatnonzero(at)[-1] + 1))
            assert positions[row][at].tolist() == list(range(at.sum()))
            restored.append(tokens[row][at].tolist())
    assert sorted(restored) == sorted(documents)


def test_perfect_fit():
    assert len(pack([5, 5, 4, 6, 10], 10)) == 3


@pytest.mark.parametrize(("lengths", "says"), [([3, 11], "document 1 has 11"), ([0], "document 0 has 0")])
def test_documents_that_cannot_be_packed(lengths, says):
    with pytest.raises(DataError, match=says):
        pack(lengths, 10)


def test_capacity_below_one():
    with pytest.raises(ConfigError, match="capacity is 0"):
        pack([1], 0)
