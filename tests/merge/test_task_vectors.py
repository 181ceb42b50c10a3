"""Arithmetic of task vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from merge.nets import Net, near
from safetensors.torch import load_file, save_file
from torch import Tensor

from leaven.errors import ModelError
from leaven.merge import TaskVector
from leaven.merge.combination import gram
from leaven.merge.weights import SafetensorsWeights, open_weights

BASE = Net().state_dict()
TUNED = [near(BASE, seed) for seed in (1, 2, 3)]
VECTORS = [TaskVector(state, BASE) for state in TUNED]


def long(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in state.values()])


def close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-6) -> bool:
    return found.keys() == expected.keys() and all(torch.allclose(found[n], expected[n], atol=atol) for n in expected)


def test_the_algebra_is_that_of_long_vectors() -> None:
    a, b, c = VECTORS
    la, lb, lc = (long(state) - long(BASE) for state in TUNED)
    for found, expected in (
        (a + b, la + lb),
        (a - b, la - lb),
        (-a, -la),
        (2.5 * a, 2.5 * la),
        (a * 2.5, 2.5 * la),
        (sum([a, b, c]), la + lb + lc),
        (a + (b - c), la + lb - lc),
        (a - a, 0 * la),
    ):
        assert isinstance(found, TaskVector)
        assert torch.allclose(long(found.state()), expected, atol=1e-6)
    assert a.dot(b) == pytest.approx(float(la @ lb), rel=1e-5)
    assert a.norm() == pytest.approx(float(la.norm()), rel=1e-5)
    assert a.cosine(b) == pytest.approx(float(torch.cosine_similarity(la, lb, dim=0)), rel=1e-4)
    assert (a - a).cosine(b) == 0.0


def test_gram_holds_all_inner_products() -> None:
    rows = torch.stack([long(v.state()) for v in VECTORS])
    assert torch.allclose(gram(VECTORS), rows @ rows.T, atol=1e-10)


def test_applying_gives_back_the_specialist_and_scales() -> None:
    a, b, _ = VECTORS
    assert close(a.apply().state(), TUNED[0])
    half = {n: BASE[n] + 0.5 * (TUNED[0][n] - BASE[n]) for n in BASE}
    assert close(a.apply(coefficient=0.5).state(), half)
    forgotten = {n: 2 * BASE[n] - TUNED[0][n] for n in BASE}
    assert close(a.apply(coefficient=-1).state(), forgotten)
    other = near(BASE, 9)
    assert close((a + b).apply(other).state(), {n: other[n] + TUNED[0][n] + TUNED[1][n] - 2 * BASE[n] for n in BASE})


def test_the_base_is_one_term_however_many_vectors() -> None:
    merged = (VECTORS[0] + VECTORS[1] - 0.5 * VECTORS[2]).apply()
    assert [round(c, 3) for _, c in merged.terms] == [-0.5, 1.0, 1.0, -0.5]


def test_differences_of_half_precision_models_are_float32() -> None:
    tuned, base = {"w": torch.tensor([1.0078125]).bfloat16()}, {"w": torch.tensor([1.0]).bfloat16()}
    vector = TaskVector(tuned, base)
    assert vector.state()["w"].dtype == torch.float32 and vector.state()["w"].item() == 0.0078125
    assert vector.apply().state()["w"].dtype == torch.bfloat16


def test_integers_are_no_part_of_a_vector_and_stay_the_bases() -> None:
    tuned, base = ({"w": torch.ones(2) * v, "count": torch.tensor(v)} for v in (5, 3))
    vector = TaskVector(tuned, base)
    assert list(vector.specs) == ["w"]
    assert vector.apply().state()["count"].item() == 3


def test_nothing_is_read_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, state in (("base", BASE), ("tuned", TUNED[0])):
        save_file(state, tmp_path / f"{name}.safetensors")
    read = SafetensorsWeights.flat
    count: list[str] = []

    def counted(self: SafetensorsWeights, name: str, start: int, stop: int) -> Tensor:
        count.append(self.label)
        return read(self, name, start, stop)

    monkeypatch.setattr(SafetensorsWeights, "flat", counted)
    vector = TaskVector(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors")
    matrices = sum(tensor.ndim > 1 for tensor in BASE.values())
    assert len(count) == 2 * matrices
    count.clear()
    merged = (vector * 0.3 - vector * 0.1).apply(tmp_path / "base.safetensors")
    assert not count
    merged.save(tmp_path / "out.safetensors")
    assert len(count) == 2 * len(BASE)
    assert close(load_file(tmp_path / "out.safetensors"), VECTORS[0].apply(coefficient=0.2).state())


def test_vectors_can_be_saved_and_read(tmp_path: Path) -> None:
    VECTORS[0].save(tmp_path / "vector.safetensors")
    assert close(open_weights(tmp_path / "vector.safetensors").state(), VECTORS[0].state(), 0)


def test_vectors_of_different_bases_are_refused() -> None:
    stranger = TaskVector(TUNED[0], near(BASE, 50))
    with pytest.raises(ModelError, match="different bases"):
        VECTORS[0] + stranger
    same = TaskVector(TUNED[1], {name: tensor.clone() for name, tensor in BASE.items()})
    assert torch.allclose(long((VECTORS[0] + same).state()), long((VECTORS[0] + VECTORS[1]).state()), atol=1e-6)


def test_a_model_that_does_not_come_from_the_base_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"no common ancestor with the base: the fine-tuned model \(cosine"):
        TaskVector(near(Net(5).state_dict(), 1), BASE)


def test_models_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match=r"head\.weight: missing from the base"):
        TaskVector(TUNED[0], {n: t for n, t in BASE.items() if n != "head.weight"})
    with pytest.raises(ModelError, match="finite number"):
        VECTORS[0] * float("nan")
    with pytest.raises(ModelError, match=r"norm\.bias: missing"):
        VECTORS[0].apply({n: t for n, t in BASE.items() if n != "norm.bias"})
