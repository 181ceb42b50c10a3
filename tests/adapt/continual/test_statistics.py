from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leaven.adapt.continual import ClassStatistics
from leaven.errors import ConfigError, DataError, ModelError


def data(rows: int = 60, dim: int = 5, offset: float = 3.0) -> tuple[torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(rows, dim, generator=generator) * torch.arange(1.0, dim + 1) + offset
    return features, [f"c{int(at)}" for at in torch.randint(0, 3, (rows,), generator=generator)]


def rows_of(features: torch.Tensor, labels: list[str], label: str) -> np.ndarray:
    return features.double().numpy()[[name == label for name in labels]]


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_mean_and_covariance_equal_numpy(offset: float) -> None:
    features, labels = data(offset=offset)
    full, diag, shared = (ClassStatistics(kind) for kind in ("full", "diag", "shared"))
    for start in range(0, len(features), 7):
        for statistics in (full, diag, shared):
            statistics.update(features[start : start + 7], labels[start : start + 7])
    pooled = np.zeros((5, 5))
    for label in full.classes:
        rows = rows_of(features, labels, label)
        np.testing.assert_allclose(full.mean(label).numpy(), rows.mean(0), atol=1e-9)
        np.testing.assert_allclose(full.covariance(label).numpy(), np.cov(rows.T), atol=1e-8)
        np.testing.assert_allclose(diag.covariance(label).numpy(), rows.var(0, ddof=1), atol=1e-8)
        pooled += np.cov(rows.T) * (len(rows) - 1)
        assert full.count(label) == len(rows)
    np.testing.assert_allclose(shared.covariance("c0").numpy(), pooled / (len(features) - 3), atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from(["full", "diag", "shared", None]))
def test_order_batches_and_merging_do_not_matter(seed: int, batch: int, kind: str | None) -> None:
    features, labels = data()
    whole = ClassStatistics(kind)
    whole.update(features, labels)
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed)).tolist()
    pieces = [ClassStatistics(kind), ClassStatistics(kind)]
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        pieces[start % 2].update(features[rows], [labels[row] for row in rows])
    pieces[0].merge(pieces[1])
    assert set(pieces[0].classes) == set(whole.classes)
    for label in whole.classes:
        torch.testing.assert_close(pieces[0].mean(label), whole.mean(label), atol=1e-10, rtol=1e-10)
        if kind:
            torch.testing.assert_close(pieces[0].covariance(label), whole.covariance(label), atol=1e-9, rtol=1e-9)


def test_a_class_is_forgotten_without_a_trace() -> None:
    features, labels = data()
    statistics, without = ClassStatistics("full"), ClassStatistics("full")
    statistics.update(features, labels)
    others = [at for at, label in enumerate(labels) if label != "c1"]
    without.update(features[others], [labels[at] for at in others])
    statistics.forget("c1")
    assert set(statistics.classes) == {"c0", "c2"}
    torch.testing.assert_close(
        statistics.means(), without.means()[[without.classes.index(c) for c in statistics.classes]]
    )
    with pytest.raises(DataError, match="no class 'c1'"):
        statistics.forget("c1")
    shared = ClassStatistics("shared")
    shared.update(features, labels)
    with pytest.raises(ConfigError, match="cannot forget"):
        shared.forget("c1")


@pytest.mark.parametrize("kind", [None, "full", "diag", "shared"])
def test_files_give_back_the_same_numbers(kind: str | None, tmp_path: Path) -> None:
    features, labels = data()
    statistics = ClassStatistics(kind)
    statistics.update(features, labels)
    again, note = ClassStatistics.load(statistics.save(tmp_path / "deep" / "s.safetensors", {"of": "test"}))
    assert note == {"of": "test"} and again.classes == statistics.classes and again.kind == kind
    assert torch.equal(again.means(), statistics.means())
    more = torch.randn(4, 5), ["c0", "c1", "c0", "new"]
    again.update(*more)
    statistics.update(*more)
    assert torch.equal(again.means(), statistics.means())
    if kind:
        assert torch.equal(again.covariance("c0"), statistics.covariance("c0"))


def test_means_take_d_plus_one_numbers_per_class(tmp_path: Path) -> None:
    statistics = ClassStatistics()
    statistics.update(torch.randn(400, 64), list(range(100)) * 4)
    assert statistics.save(tmp_path / "s.safetensors").stat().st_size < 100 * (64 + 1) * 8 + 2000


def test_bad_files_and_labels_that_json_cannot_hold(tmp_path: Path) -> None:
    statistics = ClassStatistics()
    with pytest.raises(DataError, match="no class to save"):
        statistics.save(tmp_path / "s")
    statistics.update(torch.ones(1, 2), [("a", 1)])
    with pytest.raises(DataError, match=r"cannot save label \('a', 1\)"):
        statistics.save(tmp_path / "s")
    (tmp_path / "broken").write_bytes(b"not safetensors")
    for name in ("missing", "broken"):
        with pytest.raises(ModelError, match=name):
            ClassStatistics.load(tmp_path / name)


def test_a_failed_call_changes_nothing() -> None:
    features, labels = data()
    statistics = ClassStatistics("full")
    statistics.update(features, labels)
    before = statistics.means().clone(), statistics.covariance("c0").clone()
    broken = features.clone()
    broken[3, 2] = float("nan")
    other = ClassStatistics("full")
    other.update(torch.ones(2, 3), ["c0", "c1"])
    numbers = ClassStatistics("full")
    numbers.update(features, [0] * len(features))
    for error, call in (
        (DataError, lambda: statistics.update(broken, labels)),
        (DataError, lambda: statistics.update(features, labels[:-1])),
        (DataError, lambda: statistics.update(features[:, :3], labels)),
        (DataError, lambda: statistics.update(features.long(), labels)),
        (DataError, lambda: statistics.merge(other)),
        (DataError, lambda: statistics.merge(numbers)),
        (ConfigError, lambda: statistics.merge(ClassStatistics("diag"))),
    ):
        with pytest.raises(error):
            call()
    assert torch.equal(before[0], statistics.means()) and torch.equal(before[1], statistics.covariance("c0"))


def test_too_few_rows_for_a_covariance() -> None:
    for kind, message in (("full", "'a' has 1 row"), ("shared", "at least 2 rows")):
        statistics = ClassStatistics(kind)
        statistics.update(torch.eye(2), ["a", "b"])
        with pytest.raises(DataError, match=message):
            statistics.covariance("a")
    with pytest.raises(ConfigError, match="keep no covariance"):
        none = ClassStatistics()
        none.update(torch.ones(1, 2), ["a"])
        none.covariance("a")
    with pytest.raises(ConfigError, match="low-rank"):
        ClassStatistics("low-rank")
    with pytest.raises(DataError, match="no class statistics yet"):
        ClassStatistics().means()
