"""Uniform and greedy soups."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge.nets import Net, near
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from leaven.errors import ConfigError, ModelError
from leaven.merge import greedy_soup, uniform_soup
from leaven.merge.compatibility import kinship
from leaven.merge.soups import select_greedily
from leaven.merge.weights import CHUNK, SafetensorsWeights, open_all


def runs(count: int, size: float = 0.1) -> list[dict[str, Tensor]]:
    return [near(Net().state_dict(), seed, size) for seed in range(count)]


def test_uniform_is_the_average_of_torch() -> None:
    states = runs(5)
    model = Net()
    average = AveragedModel(model)
    for state in states:
        model.load_state_dict(state)
        average.update_parameters(model)
    soup = uniform_soup(states).state()
    for name, tensor in average.module.state_dict().items():
        assert torch.allclose(soup[name], tensor, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(copies=st.integers(2, 9), seed=st.integers(0, 1000))
def test_copies_of_one_model_are_that_model_bit_for_bit(copies: int, seed: int) -> None:
    state = near(Net().state_dict(), seed, 3.0)
    for name, tensor in uniform_soup([state] * copies).state().items():
        assert torch.equal(tensor, state[name])


def test_half_precision_is_summed_in_full() -> None:
    states = [{"w": torch.full((4, 4), 1 + i / 128).bfloat16()} for i in range(8)]
    expected = torch.stack([s["w"].double() for s in states]).mean(0).bfloat16()
    assert torch.equal(uniform_soup(states).state()["w"], expected)


def test_order_does_not_matter() -> None:
    states = runs(4)
    forward, backward = uniform_soup(states).state(), uniform_soup(states[::-1]).state()
    assert all(torch.allclose(forward[name], backward[name], atol=1e-7) for name in forward)


def test_counters_of_batch_norm_are_the_firsts() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    first, second = ({n: t.clone() for n, t in model.state_dict().items()} for _ in range(2))
    first["1.num_batches_tracked"] += 7
    second["1.num_batches_tracked"] += 100
    soup = uniform_soup([first, second]).state()
    assert soup["1.num_batches_tracked"].item() == 7 and soup["1.num_batches_tracked"].dtype == torch.int64


def test_heads_and_bodies_are_averaged() -> None:
    a, b = runs(2)
    soup = uniform_soup([a, b]).state()
    for name in a:
        assert torch.allclose(soup[name], (a[name] + b[name]) / 2, atol=1e-7)


def test_saving_reads_each_file_once_in_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / f"{seed}.safetensors" for seed in range(4)]
    for file in files:
        save_file({"w": torch.ones(500, 400), "count": torch.tensor(3)}, file)
    soup = uniform_soup(files)
    pieces: list[int] = []
    read = SafetensorsWeights.flat

    def watched(self: SafetensorsWeights, name: str, start: int, stop: int) -> Tensor:
        pieces.append(stop - start)
        return read(self, name, start, stop)

    monkeypatch.setattr(SafetensorsWeights, "flat", watched)
    soup.save(tmp_path / "soup.safetensors")
    assert max(pieces) <= CHUNK and sum(pieces) == 4 * 200_000 + 1


def states_with_value(values: list[float]) -> list[dict[str, Tensor]]:
    return [{"w": torch.full((4,), value)} for value in values]


def test_greedy_evaluates_candidate_averages_as_worked_by_hand() -> None:
    # Own scores 4 > 3 > 2 > 1 for the values 10, 4, 20, 0; the target is 8, the score -|mean - 8|.
    values = [4.0, 0.0, 10.0, 20.0]

    def score(state: dict[str, Tensor]) -> float:
        return -abs(float(state["w"][0]) - 8)

    # Alone: -4, -8, -2, -12: order 2, 0, 1, 3. {2,0} -> 7: -1 better. {2,0,1} -> 4.67: worse. {2,0,3} -> 11.3: worse.
    soup = greedy_soup(states_with_value(values), score)
    assert soup.accepted == (2, 0)
    assert [(t.members, round(t.score, 2), t.accepted) for t in soup.trials] == [
        ((0,), -4, False),
        ((1,), -8, False),
        ((2,), -2, True),
        ((3,), -12, False),
        ((2, 0), -1, True),
        ((2, 0, 1), -3.33, False),
        ((2, 0, 3), -3.33, False),
    ]
    assert torch.equal(soup.state()["w"], torch.full((4,), 7.0))


def test_the_best_two_by_rank_are_not_simply_averaged() -> None:
    # The second best alone spoils the average, the worst alone completes it.
    values = {0: 1.0, 1: 1.5, 2: -1.2}

    def score(state: dict[str, Tensor]) -> float:
        return -abs(float(state["w"][0]))

    assert greedy_soup(states_with_value(list(values.values())), score).accepted == (0, 2)


def test_ties_are_rejected_unless_asked_for() -> None:
    states = states_with_value([1.0, 1.0])
    assert greedy_soup(states, lambda s: 0.5).accepted == (0,)
    assert greedy_soup(states, lambda s: 0.5, accept_ties=True).accepted == (0, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.integers(0, 99))
def test_the_selection_is_never_worse_than_the_best_alone(alone: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    noise: dict[tuple[int, ...], float] = {(i,): value for i, value in enumerate(alone)}

    def score(members: tuple[int, ...]) -> float:
        return noise.setdefault(members, float(torch.rand((), generator=generator)) * 10 - 5)

    accepted, trials = select_greedily(len(alone), score)
    assert noise[accepted] >= max(alone)
    assert len(trials) == 2 * len(alone) - 1


def test_the_score_sees_exactly_the_soup_that_is_returned() -> None:
    seen: list[dict[str, Tensor]] = []

    def score(state: dict[str, Tensor]) -> float:
        seen.append(state)
        return float(len(seen))

    soup = greedy_soup(runs(3), score)
    last = soup.state()
    assert all(torch.equal(seen[-1][name], last[name]) for name in last)


def test_saving_a_greedy_soup_keeps_the_log(tmp_path: Path) -> None:
    greedy_soup(states_with_value([4.0, 0.0, 10.0]), lambda s: -abs(float(s["w"][0]) - 8), tmp_path / "soup")
    record = json.loads((tmp_path / "soup" / "merge.json").read_text())
    assert record["recipe"] == "greedy soup" and record["accepted"] == [2, 0] and len(record["trials"]) == 5


def test_differences_are_named_tensor_by_tensor() -> None:
    first, second, third = runs(3)
    second["head.weight"] = torch.zeros(4, 8)
    second["head.bias"] = second["head.bias"].half()
    del second["norm.weight"]
    third["extra"] = torch.zeros(1)
    with pytest.raises(ModelError) as caught:
        uniform_soup([first, second, third])
    for line in (
        "4 differences from source 1",
        "norm.weight: missing from source 2",
        "head.weight: shape (3, 8), but (4, 8) in source 2",
        "head.bias: type torch.float32, but torch.float16 in source 2",
        "extra: only in source 3",
    ):
        assert line in str(caught.value)
    many = [{f"w{i}": torch.zeros(n) for i in range(14)} for n in (1, 2)]
    with pytest.raises(ModelError, match=r"14 differences(?s:.*)w9: (?s:.*)\.\.\. and 4 more"):
        uniform_soup(many)


def test_bad_values_are_named() -> None:
    first, second = runs(2)
    first["first.weight"][0, 0] = float("inf")
    second["head.bias"][:2] = float("nan")
    with pytest.raises(ModelError, match=r"first\.weight of source 1: 1 of 48(?s:.*)head\.bias of source 2: 2 of 3"):
        uniform_soup([first, second]).state()


@pytest.mark.filterwarnings("ignore:no common ancestor")
def test_values_too_large_for_half_precision_are_refused() -> None:
    from leaven.merge import TaskVector

    vector = TaskVector({"w": torch.full((2, 2), 100.0).half()}, {"w": torch.zeros(2, 2).half()})
    assert torch.equal(vector.apply(coefficient=2.0).state()["w"], torch.full((2, 2), 200.0).half())
    with pytest.raises(ModelError, match="w: values beyond 65504"):
        vector.apply(coefficient=1000.0).state()
    with pytest.raises(ModelError, match=r"w: values beyond 3\.4"):
        TaskVector({"w": torch.ones(2)}, {"w": torch.zeros(2)}).apply(coefficient=1e39).state()


def test_wrong_calls(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two or more"):
        uniform_soup([Net()])
    with pytest.raises(ConfigError, match="two or more"):
        uniform_soup(Net().state_dict())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs a score function"):
        greedy_soup(runs(2), None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is NaN"):
        greedy_soup(runs(2), lambda s: float("nan"))


def folder_with(path: Path, **files: object) -> Path:
    path.mkdir()
    save_file(Net().state_dict(), path / "model.safetensors")
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def test_other_tokenizers_and_labels_are_refused(tmp_path: Path) -> None:
    words = {"model": {"vocab": {"a": 0, "b": 1}}, "padding": None}
    first = folder_with(tmp_path / "1", tokenizer=words, config={"id2label": {"0": "cat", "1": "dog"}})
    padded = folder_with(
        tmp_path / "2", tokenizer={**words, "padding": {"length": 9}}, config={"label2id": {"cat": 0, "dog": 1}}
    )
    uniform_soup([first, padded])
    swapped = folder_with(tmp_path / "3", tokenizer={"model": {"vocab": {"b": 0, "a": 1}}})
    with pytest.raises(ModelError, match=r"3 has another tokenizer than .*1"):
        uniform_soup([first, swapped])
    labels = folder_with(tmp_path / "4", tokenizer=words, config={"id2label": {"0": "dog", "1": "cat"}})
    with pytest.raises(ModelError, match=r"4 has another labels .* than .*1"):
        uniform_soup([first, labels])


def test_strangers_are_warned_of_and_relatives_are_not() -> None:
    big = {"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), "gain": torch.ones(64)}
    family = [near(big, seed, 0.3) for seed in range(3)]
    stranger = {"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(9)), "gain": torch.ones(64)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        uniform_soup(family)
    with pytest.warns(UserWarning, match=r"no common ancestor with the other models: source 4 \(cosine -?0\.0"):
        uniform_soup([*family, stranger])
    rows = torch.stack([s["w"].flatten().double() for s in [*family, stranger]])
    others = rows.sum(0) - rows
    expected = torch.cosine_similarity(rows, others, dim=1)
    assert torch.allclose(torch.tensor(kinship(open_all([*family, stranger])), dtype=torch.float64), expected)
    base = kinship(open_all([stranger]), open_all([big])[0])
    assert abs(base[0]) < 0.1
