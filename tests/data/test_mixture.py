import itertools
import json

import numpy as np
import pytest
import torch

from leaven.data.loader import Loader
from leaven.data.mixture import Mixture
from leaven.data.splits import sample_rates
from leaven.errors import CheckpointError, ConfigError

SIZES = {"summarize": 300, "defect": 40, "refine": 90}


def mixture(seed=0, rates=None, **options):
    loaders = {
        task: Loader(
            [{"id": at} for at in range(size)],
            lambda xs: {"id": torch.tensor([x["id"] for x in xs])},
            batch_size=4,
            **options,
        )
        for task, size in SIZES.items()
    }
    return Mixture(loaders, rates or sample_rates(list(SIZES.values())), seed)


def drawn(stream, count):
    return [int(batch["task"]) for batch in itertools.islice(stream, count)]


def test_draw_rates_are_size_to_the_power_of_0_7():
    count = 4000
    tasks = np.bincount(drawn(mixture(), count), minlength=3) / count
    expected = np.array(sample_rates(list(SIZES.values()), 0.7))
    # Four standard deviations; uniform and proportional sampling both lie outside.
    bound = 4 * np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(tasks - expected) < bound).all()
    for other in (np.full(3, 1 / 3), np.array(sample_rates(list(SIZES.values()), 1.0))):
        assert (np.abs(tasks - other) > bound).any()


def test_names_fields_and_seeds():
    stream = mixture(seed=3)
    for batch in itertools.islice(stream, 20):
        assert batch["task"].dtype == torch.int64 and batch["task"].ndim == 0 and "row" in batch
        assert stream.tasks[int(batch["task"])] == stream.last_task
    assert drawn(mixture(seed=3), 40) == drawn(mixture(seed=3), 40) != drawn(mixture(seed=4), 40)


def test_all_processes_draw_the_same_task():
    ranks = [mixture() for _ in range(2)]
    for rank, stream in enumerate(ranks):
        stream.set_shard(rank, 2)
    for first, second in zip(itertools.islice(ranks[0], 30), itertools.islice(ranks[1], 30), strict=True):
        assert first["task"] == second["task"] and first["row"].tolist() == [0, 1, 2, 3]
        assert second["row"].tolist() == [4, 5, 6, 7] and not set(first["id"].tolist()) & set(second["id"].tolist())


def test_a_stopped_task_is_drawn_no_more_and_the_others_share_its_rate():
    stream = mixture()
    stream.stop("summarize")
    tasks = np.bincount(drawn(stream, 2000), minlength=3) / 2000
    expected = sample_rates([40, 90])
    assert tasks[0] == 0 and abs(tasks[1] - expected[0]) < 4 * 0.5 / 2000**0.5
    stream.stop("defect")
    assert set(drawn(stream, 20)) == {2}
    stream.stop("refine")
    with pytest.raises(StopIteration):
        next(stream)


def test_saved_position_goes_on_exactly():
    straight = mixture()
    drawn(straight, 17)
    straight.stop("defect")
    state = json.loads(json.dumps(straight.state_dict()))
    resumed = mixture()
    drawn(resumed, 5)
    resumed.load_state_dict(state)
    for expected, found in zip(itertools.islice(straight, 60), itertools.islice(resumed, 60), strict=True):
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_rates_by_name():
    stream = mixture(rates={"refine": 0.0, "summarize": 0.0, "defect": 2.0})
    assert set(drawn(stream, 30)) == {1}


@pytest.mark.parametrize(
    ("rates", "says"),
    [
        ([1.0], "1 rates for 3 tasks"),
        ([1.0, -1.0, 1.0], "expected numbers >= 0"),
        ([0.0, 0.0, 0.0], "sum above 0"),
        ([1.0, float("nan"), 1.0], "expected numbers"),
        ({"summarize": 1.0}, "rates are for summarize"),
    ],
)
def test_bad_rates(rates, says):
    with pytest.raises(ConfigError, match=says):
        mixture(rates=rates)


def test_other_bad_uses():
    with pytest.raises(ConfigError, match="no tasks"):
        Mixture({}, [])
    with pytest.raises(ConfigError, match="seed"):
        mixture(seed=-1)
    with pytest.raises(ConfigError, match="no task 'clone'; the tasks are summarize, defect, refine"):
        mixture().stop("clone")
    with pytest.raises(CheckpointError, match=r"with seed 1; here are .* with seed 0"):
        mixture().load_state_dict(mixture(seed=1).state_dict())
    with pytest.raises(CheckpointError, match="of the tasks nothing"):
        mixture().load_state_dict({"step": 1})
