import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leaven.data.loader import Loader
from leaven.errors import CheckpointError, ConfigError, DataError


def items(count):
    generator = np.random.default_rng(0)
    return [{"id": at, "length": int(generator.integers(1, 20))} for at in range(count)]


def collate(chosen):
    return {name: torch.tensor([item[name] for item in chosen]) for name in ("id", "length")}


def length(item):
    return item["length"]


def take(loader, count):
    return list(itertools.islice(loader, count))


MODES = [
    {"batch_size": 4},
    {"batch_size": 4, "bucket": 3, "length": length},
    {"batch_size": 4, "drop_last": False},
    {"batch_size": 4, "shuffle": False},
    {"max_tokens": 80, "length": length, "round_to": 4},
    {"max_tokens": 80, "length": length, "round_to": 4, "bucket": 2},
    {"max_tokens": 80, "length": length, "round_to": 4, "drop_last": False},
]


def scaled(mode, factor):
    return {name: value * factor if name in ("batch_size", "max_tokens") else value for name, value in mode.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_see_what_one_process_sees(mode, world_size):
    one = Loader(items(53), collate, **scaled(mode, world_size))
    many = [Loader(items(53), collate, rank=rank, world_size=world_size, **mode) for rank in range(world_size)]
    for _ in range(20):
        whole, parts = next(one), [next(loader) for loader in many]
        for name in whole:
            assert torch.equal(whole[name], torch.cat([part[name] for part in parts])), name
        assert whole["row"].tolist() == list(range(len(whole["id"])))
        assert len({len(part["row"]) for part in parts}) == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 40), st.integers(1, 4), st.integers(0, 3), st.integers(0, 9))
def test_an_epoch_holds_every_example_once(count, batch_size, bucket, seed):
    loader = Loader(
        items(count), collate, batch_size=batch_size, bucket=bucket, length=length, seed=seed, drop_last=False
    )
    epoch = take(loader, loader.batches_per_epoch)
    ids = [int(at) for batch in epoch for at in batch["id"]]
    assert set(ids) == set(range(count)) and len(ids) == -(-count // batch_size) * batch_size
    loader = Loader(items(count), collate, batch_size=batch_size, bucket=bucket, length=length, seed=seed)
    epoch = take(loader, loader.batches_per_epoch)
    ids = [int(at) for batch in epoch for at in batch["id"]]
    assert len(set(ids)) == len(ids) == count // batch_size * batch_size


def test_epochs_differ_and_a_seed_repeats_them():
    first = [batch["id"].tolist() for batch in take(Loader(items(20), collate, batch_size=5), 8)]
    assert first == [batch["id"].tolist() for batch in take(Loader(items(20), collate, batch_size=5), 8)]
    flat = list(itertools.chain.from_iterable(first))
    assert flat[:20] != flat[20:] and sorted(flat[:20]) == sorted(flat[20:]) == list(range(20))
    assert first != [batch["id"].tolist() for batch in take(Loader(items(20), collate, batch_size=5, seed=1), 8)]


def test_without_shuffle_the_order_is_that_of_the_items():
    loader = Loader(items(6), collate, batch_size=2, shuffle=False)
    assert [batch["id"].tolist() for batch in take(loader, 4)] == [[0, 1], [2, 3], [4, 5], [0, 1]]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [0, 1, 7, 30])
def test_a_saved_position_goes_on_exactly(mode, steps):
    straight = Loader(items(37), collate, **mode)
    take(straight, steps)
    state = json.loads(json.dumps(straight.state_dict()))
    resumed = Loader(items(37), collate, **mode)
    take(resumed, 3)
    resumed.load_state_dict(state)
    for expected, found in zip(take(straight, 25), take(resumed, 25), strict=True):
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_position_survives_another_number_of_processes():
    one = Loader(items(40), collate, batch_size=8)
    take(one, 7)
    state, expected = one.state_dict(), next(one)
    parts = []
    for rank in range(2):
        loader = Loader(items(40), collate, batch_size=4)
        loader.set_shard(rank, 2)
        loader.load_state_dict(state)
        parts.append(next(loader))
    assert torch.equal(expected["id"], torch.cat([part["id"] for part in parts]))


@pytest.mark.parametrize("bucket", [0, 4])
def test_max_tokens_is_kept_and_used(bucket):
    loader = Loader(items(200), collate, max_tokens=100, length=length, round_to=2, bucket=bucket)
    costs = [len(batch["id"]) * int(batch["length"].max()) for batch in take(loader, loader.batches_per_epoch)]
    assert max(costs) <= 100 and np.mean(costs) > 70


def test_buckets_reduce_padding():
    def padding(bucket):
        loader = Loader(items(400), collate, batch_size=8, bucket=bucket, length=length)
        batches = take(loader, loader.batches_per_epoch)
        padded = sum(len(batch["id"]) * int(batch["length"].max()) for batch in batches)
        return 1 - sum(int(batch["length"].sum()) for batch in batches) / padded

    assert padding(10) < 0.4 * padding(0)


def test_bucket_order_is_shuffled():
    loader = Loader(items(200), collate, batch_size=8, bucket=100, length=length)
    widths = [int(batch["length"].max()) for batch in take(loader, loader.batches_per_epoch)]
    assert widths != sorted(widths)


def test_few_examples_fill_a_batch_only_when_asked():
    with pytest.raises(DataError, match="3 examples do not fill one batch of 4"):
        Loader(items(3), collate, batch_size=4)
    batch = next(Loader(items(3), collate, batch_size=8, drop_last=False))
    assert sorted(np.bincount(batch["id"].numpy()).tolist()) == [2, 3, 3]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "either batch_size or max_tokens"),
        ({"batch_size": 2, "max_tokens": 9, "length": length}, "either batch_size or max_tokens"),
        ({"batch_size": 0}, "expected at least 1"),
        ({"max_tokens": 50}, "need length"),
        ({"batch_size": 2, "bucket": 2}, "need length"),
        ({"batch_size": 2, "seed": -1}, "seed -1"),
        ({"batch_size": 2, "rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"batch_size": 2, "rank": 0, "world_size": 0}, "rank 0 of 0"),
        ({"max_tokens": 100, "length": length, "round_to": 3, "world_size": 2}, "round_to is 3, expected a multiple"),
        ({"max_tokens": 20, "length": length}, "8 examples of 19 tokens do not fit max_tokens 20"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(ConfigError, match=says):
        Loader(items(40), collate, **options)


def test_bad_items():
    with pytest.raises(DataError, match="no examples"):
        Loader([], collate, batch_size=1)
    with pytest.raises(DataError, match="item 1 has 0 tokens"):
        Loader([{"length": 2}, {"length": 0}], collate, max_tokens=9, length=length, round_to=1)


@pytest.mark.parametrize(
    ("change", "says"), [({"seed": 5}, "seed 5"), ({"items": 9}, "items 9"), ({"global_size": 64}, "global_size 64")]
)
def test_a_position_of_other_data_is_refused(change, says):
    loader = Loader(items(20), collate, batch_size=2)
    with pytest.raises(CheckpointError, match=says):
        loader.load_state_dict({**loader.state_dict(), **change})
    with pytest.raises(CheckpointError, match="lacks epoch"):
        loader.load_state_dict({"batch": 0, "seed": 0, "items": 20, "global_size": 2})
