"""SVFit against numpy's decomposition, against the gradient of a dense weight, and in its limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from adapt.peft.small_models import DIM, bert, gpt2, ids, mask, text_encoder
from torch import nn

from leaven.adapt.peft import SVFit, adapter_parameters, load_adapter, merge, save_adapter, spectra, trainable_report
from leaven.adapt.peft.patches import sha256
from leaven.adapt.peft.spectra import rank_for, signed_svd
from leaven.adapt.peft.targets import select
from leaven.errors import ConfigError, ModelError
from leaven.training.config import TrainingConfig
from leaven.training.parameter_groups import parameter_groups


def test_decomposition_equals_numpys_with_fixed_signs() -> None:
    weight = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    u, values, v = signed_svd(weight)
    np.testing.assert_allclose(values, np.linalg.svd(weight.numpy(), compute_uv=False), rtol=1e-5)
    torch.testing.assert_close(u * values @ v.t(), weight, rtol=0, atol=1e-5)
    assert bool((u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all())
    torch.testing.assert_close(signed_svd(-weight).u, u, rtol=0, atol=1e-5)


def test_rank_holds_the_share() -> None:
    values = torch.tensor([3.0, 2.0, 1.0, 1.0])
    for share in (0.1, 0.5, 0.6, 0.61, 0.9, 0.94, 1.0):
        for criterion, sizes in (("energy", [9, 4, 1, 1]), ("nuclear", [3, 2, 1, 1])):
            want = next(r for r in range(1, 5) if sum(sizes[:r]) / sum(sizes) >= share - 1e-12)
            assert rank_for(values, share, criterion) == want
    assert rank_for(torch.zeros(3), 0.5, "energy") == 3


def test_gradient_is_the_diagonal_of_the_dense_gradient_between_the_vectors() -> None:
    dense = nn.Sequential(nn.Linear(6, 5)).double()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).double()
    dense(x).square().sum().backward()
    gradient = dense[0].weight.grad
    u, values, v = signed_svd(dense[0].weight.detach())
    SVFit(rank=3, targets="0").apply(dense)
    dense(x).square().sum().backward()
    (s,) = adapter_parameters(dense).values()
    torch.testing.assert_close(s.grad, (u.t() @ gradient @ v).diagonal()[:3])
    with torch.no_grad():
        s.mul_(torch.tensor([2.0, -1.0, 0.5]))
    factors = torch.tensor([2.0, -1.0, 0.5, 1.0, 1.0]).double()
    want = x @ (u * values * factors @ v.t()).t() + dense[0].bias
    torch.testing.assert_close(dense(x), want)
    merge(dense)
    torch.testing.assert_close(dense(x), want)


def test_full_rank_on_a_diagonal_weight_is_fine_tuning_of_the_diagonal() -> None:
    diagonal = torch.tensor([4.0, 3.0, 2.0, 1.0])
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    model[0].weight = nn.Parameter(diagonal.diag())
    direct = diagonal.clone().requires_grad_()
    SVFit(energy=1.0, targets="*").apply(model)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    ours = torch.optim.Adam(adapter_parameters(model).values(), lr=0.05)
    theirs = torch.optim.Adam([direct], lr=0.05)
    for _ in range(20):
        for optimizer, out in ((ours, model(x)), (theirs, x * direct)):
            optimizer.zero_grad()
            (out - 1).square().mean().backward()
            optimizer.step()
    merge(model)
    torch.testing.assert_close(model[0].weight.detach(), direct.detach().diag(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [text_encoder, gpt2])
def test_each_part_of_a_fused_matrix_has_its_own_spectrum(make: Any) -> None:
    model = make()
    parts = select(model, "q,k,v")
    want = {f"{p.module}:{p.role}": torch.linalg.svdvals(p.weight(model).detach()) for p in parts}
    SVFit(rank=DIM, targets="q,k,v").apply(model)
    found = spectra(model)
    assert found.keys() == want.keys() and len(found) == 6
    for name, (before, after) in found.items():
        torch.testing.assert_close(before, want[name], rtol=1e-4, atol=1e-5)
        assert torch.equal(before, after)


def test_the_smallest_values_keep_their_part_of_the_weight() -> None:
    """The untrained rest is not truncated: setting the trained values to zero leaves it."""
    model = nn.Sequential(nn.Linear(6, 6, bias=False))
    weight = model[0].weight.detach().clone()
    SVFit(rank=2, targets="*").apply(model)
    with torch.no_grad():
        next(iter(adapter_parameters(model).values())).zero_()
    merge(model)
    u, values, v = signed_svd(weight)
    torch.testing.assert_close(model[0].weight.detach(), u[:, 2:] * values[2:] @ v[:, 2:].t(), rtol=0, atol=1e-6)


def test_half_precision_is_decomposed_in_float32() -> None:
    model = bert().to(torch.bfloat16)
    with torch.no_grad():
        base = model(ids(), mask()).logits
        hashes = {name: sha256(p) for name, p in model.named_parameters()}
        SVFit(energy=0.99).apply(model)
        assert torch.equal(model(ids(), mask()).logits, base)
    assert all(p.dtype == torch.float32 for p in adapter_parameters(model).values())
    weight = model.bert.encoder.layer[0].attention.self.key.weight
    before, _ = spectra(model)["bert.encoder.layer.0.attention.self.key:k"]
    torch.testing.assert_close(before, torch.linalg.svdvals(weight.float())[: len(before)])
    assert {name: sha256(p) for name, p in model.named_parameters() if "svfit" not in name} == hashes
    assert all(p.dtype == torch.bfloat16 for n, p in model.named_parameters() if "svfit" not in n)


def test_counts_bytes_and_decay(tmp_path: Any) -> None:
    model = SVFit(energy=0.99, train=("classifier",)).apply(bert())
    report = trainable_report(model)
    ranks = [len(before) for before, _ in spectra(model).values()]
    assert report.adapter == sum(ranks) and report.stored_bytes == 4 * sum(ranks)
    # u and v of each matrix, and the initial values
    assert report.frozen_basis == sum(r * (2 * DIM + 1) for r in ranks)
    assert 0.6 * DIM < np.mean(ranks) < DIM
    config = TrainingConfig(weight_decay=0.1)
    groups = parameter_groups(model.named_parameters(), config)
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    assert decayed == {"classifier.weight"}
    save_adapter(model, tmp_path)
    assert sum(f.stat().st_size for f in tmp_path.glob("*.safetensors")) < 4 * sum(ranks) + 2000
    other = bert()
    with torch.no_grad():
        other.bert.encoder.layer[1].attention.self.value.weight[0, 0] += 1e-3
    expected = sha256(model.bert.encoder.layer[1].attention.self.value.weight)
    found = sha256(other.bert.encoder.layer[1].attention.self.value.weight)
    with pytest.raises(
        ModelError, match=rf"layer\.1\.attention\.self\.value\.weight has sha256 {found}, expected {expected}"
    ):
        load_adapter(other, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of the two"),
        ({"energy": 0.9, "rank": 4}, "give one of the two"),
        ({"energy": 1.5}, "energy=1.5: expected a share"),
        ({"energy": 0.9, "criterion": "trace"}, "criterion='trace'"),
        ({"rank": DIM + 1}, rf"rank={DIM + 1} for .*expected 1 to {DIM}"),
        ({"rank": 2, "targets": "*norm"}, "LayerNorm., no linear map"),
    ],
)
def test_bad_descriptions(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SVFit(**options).apply(text_encoder())


def test_spectra_of_another_method() -> None:
    with pytest.raises(ModelError, match="this TextEncoder carries no adapter: apply a method"):
        spectra(text_encoder())
    model = SVFit(rank=2).apply(text_encoder())
    with pytest.raises(ModelError, match="carries no adapter; its part 'inner' does"):
        spectra(nn.ModuleDict({"inner": model}))
