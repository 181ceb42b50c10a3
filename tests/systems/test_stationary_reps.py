from pathlib import Path

import pytest
import torch

from leaven.adapt.continual import Compatibility
from leaven.adapt.continual.simplex_encoder import require_on_simplex
from leaven.errors import ModelError
from leaven.evidence.arenas.continual_search_data import open_search_data
from leaven.systems.continual.stationary_reps import StationaryReps


def test_models_from_elsewhere_share_no_weights_and_lie_on_the_simplex(tmp_path: Path) -> None:
    system = StationaryReps.configured(smoke=True)
    first, second = system._elsewhere(open_search_data(system.config), tmp_path)
    for elsewhere in (first, second):
        slots = {label: at for at, label in enumerate(dict.fromkeys(elsewhere.labels))}
        require_on_simplex(elsewhere.model, elsewhere.images, [slots[label] for label in elsewhere.labels])
    for name in ("encoder.model.layers.0.weight", "projection.weight"):
        weights = [one.model.state_dict()[name].flatten() for one in (first, second)]
        assert torch.nn.functional.cosine_similarity(*weights, dim=0).abs() < 0.3, name
    with pytest.raises(ModelError, match="needs more pretrain_epochs"):
        StationaryReps.configured(smoke=True, pretrain_rate=1e-6).measure(tmp_path / "arm")


def test_arms_share_the_models_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def models(arm: str) -> list[dict[str, torch.Tensor]]:
        system = StationaryReps.configured(smoke=True, arm=arm)
        return [one.model.state_dict() for one in system._elsewhere(open_search_data(system.config), tmp_path)]

    made = {arm: models(arm) for arm in ("hoc", "er")}

    def again(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(StationaryReps, "pretrained", again)
    for arm, like in (("ce-only", "hoc"), ("er-reindexed", "er"), ("er-distilled", "er")):
        for one, other in zip(models(arm), made[like], strict=True):
            assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    with pytest.raises(AssertionError, match="trained again"):
        StationaryReps.configured(smoke=True, slots=32)._elsewhere(
            open_search_data(StationaryReps.configured(smoke=True).config), tmp_path
        )


def test_making_the_gallery_anew_is_searching_ones_own() -> None:
    nan = float("nan")
    matrix = torch.tensor([[50.0, nan, nan], [60.0, 70.0, nan], [10.0, 20.0, 65.0]], dtype=torch.float64)
    kept = StationaryReps.configured(smoke=True, arm="er").judged(Compatibility(matrix))
    anew = StationaryReps.configured(smoke=True, arm="er-reindexed").judged(Compatibility(matrix))
    assert torch.equal(kept.matrix.nan_to_num(), matrix.nan_to_num())
    assert anew.matrix[2].tolist() == [65.0] * 3 and anew.matrix[1, :2].tolist() == [70.0] * 2
    assert kept.compatibility == pytest.approx(1 / 3) and anew.compatibility == pytest.approx(2 / 3)


def test_a_version_is_not_changed_by_what_comes_later(tmp_path: Path) -> None:
    for arm in ("hoc", "er"):
        system = StationaryReps.configured(smoke=True, arm=arm)
        data = open_search_data(system.config)
        elsewhere = system._elsewhere(data, tmp_path)
        given = {name: tensor.clone() for name, tensor in elsewhere[1].model.state_dict().items()}
        versions = system._stream(data, elsewhere, system.config.training(1e-3)).models
        states = [version.state_dict() for version in versions]
        name = next(name for name in states[0] if name.endswith("layers.0.weight"))
        assert all(not torch.equal(states[at][name], states[at + 1][name]) for at in range(2))
        assert all(torch.equal(tensor, given[key]) for key, tensor in elsewhere[1].model.state_dict().items())
