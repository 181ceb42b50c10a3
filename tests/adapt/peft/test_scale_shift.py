"""SSF against its formula and merged weights, BitFit against the training of biases."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from adapt.peft.small_models import DEPTH, DIM, SMALL, bert, disturb, ids, mask, text_encoder
from torch import nn

from leaven.adapt.peft import SSF, BitFit, adapter_parameters, merge, trainable_report
from leaven.errors import ConfigError, ModelError


def convolutional() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def test_every_output_is_scaled_and_shifted_by_feature() -> None:
    model = SSF().apply(convolutional().eval())
    disturb(model)
    x = torch.randn(2, 3, 8, 8)
    conv, norm, _, _, linear = model
    h = nn.functional.conv2d(x, conv.weight)
    h = h * conv.ssf.scale[None, :, None, None] + conv.ssf.shift[None, :, None, None]
    h = h / (1 + norm.eps) ** 0.5 * norm.ssf.scale[None, :, None, None] + norm.ssf.shift[None, :, None, None]
    h = (h.relu().flatten(1) @ linear.weight.t() + linear.bias) * linear.ssf.scale + linear.ssf.shift
    torch.testing.assert_close(model(x), h)
    undo = merge(model)
    torch.testing.assert_close(model(x), h)
    assert undo.replaced["0.bias"] is None and model[0].bias is not None


def test_initial_values_are_the_identity_or_the_papers() -> None:
    exact = SSF().apply(bert())
    assert all(bool((p == float("scale" in n)).all()) for n, p in adapter_parameters(exact).items())
    noisy = SSF(init_std=0.02).apply(bert(), torch.Generator().manual_seed(0))
    scales = torch.cat([p.detach() for n, p in adapter_parameters(noisy).items() if "scale" in n])
    assert float(scales.mean()) == pytest.approx(1, abs=0.003) and float(scales.std()) == pytest.approx(0.02, rel=0.1)


def test_norms_without_a_bias_are_only_scaled_and_tied_heads_left() -> None:
    small, run = SMALL["seq2seq"]()
    SSF().apply(small)
    names = adapter_parameters(small)
    assert "encoder.norm.ssf.scale" in names and "encoder.norm.ssf.shift" not in names
    assert not any("head" in name for name in names)
    disturb(small)
    before = run(small).detach()
    merge(small)
    torch.testing.assert_close(run(small).detach(), before, rtol=1e-4, atol=1e-5)


def test_bitfit_is_training_of_the_biases() -> None:
    """Same gradients, and after the same steps of Adam the same biases."""
    direct = bert()
    for name, parameter in direct.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    ours = BitFit().apply(bert())
    shifts = adapter_parameters(ours)
    biases = {name: p for name, p in direct.named_parameters() if p.requires_grad}
    assert {f"{name.removesuffix('bias')}bitfit.shift" for name in biases} == set(shifts)
    optimizers = [torch.optim.Adam(list(of.values()), lr=0.02) for of in (biases, shifts)]
    for _ in range(4):
        for model, optimizer in zip((direct, ours), optimizers, strict=True):
            optimizer.zero_grad()
            model(ids(), mask(), labels=torch.tensor([0, 1, 2])).loss.backward()
            optimizer.step()
    merge(ours)
    for (name, want), (_, got) in zip(direct.named_parameters(), ours.named_parameters(), strict=True):
        if "key.bias" not in name:  # it moves no score: its gradient is rounding, which Adam enlarges
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, msg=name)


def test_counts() -> None:
    report = trainable_report(BitFit(targets="bert.encoder.*").apply(bert()))
    assert report.adapter == DEPTH * (4 * DIM + 48 + DIM + 2 * DIM)


@pytest.mark.parametrize(
    ("method", "make", "message"),
    [
        (SSF(targets="*.normm"), text_encoder, "matches no linear map, convolution or norm with a weight"),
        (BitFit(), lambda: nn.Sequential(nn.Linear(3, 3, bias=False)), "matches no module with a bias"),
        (SSF(), lambda: nn.Sequential(nn.ConvTranspose2d(3, 3, 2)), "features on another axis"),
    ],
)
def test_bad_targets(method: Any, make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        method.apply(make())


def test_unmerge_notices_a_changed_weight() -> None:
    from leaven.adapt.peft import unmerge

    model = SSF(targets="*.query").apply(bert())
    disturb(model)
    undo = merge(model)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.bert.encoder.layer[1].attention.self.query.bias += 1
    with pytest.raises(ModelError, match=r"layer\.1\.attention\.self\.query\.bias has changed since the merge"):
        unmerge(changed, undo)
    unmerge(model, undo)
    with pytest.raises(ModelError, match="carries SSF already"):
        unmerge(model, undo)
