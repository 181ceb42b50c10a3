"""Batch norm after averaging."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from leaven.errors import DataError
from leaven.merge import reestimate_batch_norm


def model() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3)
    )
    with torch.no_grad():
        net(torch.randn(8, 1, 6, 6))
    return net


def images(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(10, 1, 6, 6, generator=generator) * 3 + 1 for _ in range(count)]


def test_statistics_are_those_of_torch() -> None:
    ours, theirs = model().eval(), model()
    assert reestimate_batch_norm(ours, images()) == 2
    update_bn(images(), theirs)
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], tensor, atol=1e-6), name
    assert ours[1].momentum == 0.1 and not any(module.training for module in ours.modules())


def test_dropout_does_not_disturb_and_batches_may_be_anything() -> None:
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2)).train()
    rows = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    reestimate_batch_norm(net, [{"x": rows}], lambda m, batch: m(batch["x"]))
    assert torch.allclose(net[1].running_mean, rows.mean(0), atol=1e-6)
    assert torch.allclose(net[1].running_var, rows.var(0), atol=1e-6)
    assert net.training and net[0].training


def test_nothing_is_changed_without_data_or_when_a_batch_fails() -> None:
    net = model()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(DataError, match="batches is empty"):
        reestimate_batch_norm(net, [])
    with pytest.raises(RuntimeError):
        reestimate_batch_norm(net, [images()[0], torch.zeros(1, 7)])
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net[1].momentum == 0.1 and net.training
    assert reestimate_batch_norm(nn.Linear(2, 2), []) == 0
