"""Muon against its closed form, torch's own, SGD against its formula, and resuming."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training.toy import Corrupted, Model, loader

from leaven.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from leaven.training.config import TrainingConfig
from leaven.training.loop import fit
from leaven.training.muon import COEFFICIENTS, Muon, hidden_matrices, orthogonalized
from leaven.training.parameter_groups import build_optimizer, parameter_groups


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (3, 5, 7)])
def test_singular_vectors_stay_and_singular_values_follow_the_polynomial(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    values = values / matrix.norm(dim=(-2, -1))[..., None]
    a, b, c = COEFFICIENTS
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(orthogonalized(matrix), u * values[..., None, :] @ v, atol=1e-6, rtol=0)
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_updates_equal_those_of_torch() -> None:
    torch.manual_seed(0)
    mine, theirs = nn.Parameter(torch.randn(32, 48)), nn.Parameter(torch.empty(32, 48))
    theirs.data.copy_(mine.data)
    group = {"params": [mine], "weight_decay": 0.1, "muon": True, "parts": 1}
    optimizer = Muon([group], lr=0.02, momentum=0.9)
    oracle = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        start = mine.detach().clone()
        mine.grad = torch.randn(32, 48)
        theirs.grad = mine.grad.clone()
        optimizer.step()
        oracle.step()
        # Torch iterates in bfloat16.
        size = float((mine - start).detach().norm())
        assert float((mine - theirs).detach().norm()) < 0.02 * size
        theirs.data.copy_(mine.data)


def test_each_matrix_of_a_fused_projection_is_made_orthogonal_by_itself() -> None:
    torch.manual_seed(0)
    fused, gradient = nn.Parameter(torch.zeros(12, 6)), torch.randn(12, 6)
    optimizer = Muon([{"params": [fused], "weight_decay": 0.0, "muon": True, "parts": 3}], lr=1.0, momentum=0.0)
    fused.grad = gradient.clone()
    optimizer.step()
    expected = torch.cat([orthogonalized(part) for part in gradient.chunk(3)]) * 0.2 * 6**0.5
    torch.testing.assert_close(fused.detach(), -expected, atol=1e-5, rtol=0)


def test_only_matrices_of_the_blocks_are_muons() -> None:
    model = EncoderDecoder(EncoderDecoderConfig.t5(vocab=50, dim=16, depth=1, heads=2))
    found = hidden_matrices(model)
    assert all(name.startswith(("encoder.blocks.0.", "decoder.blocks.0.")) for name in found)
    inside = {n for n, p in model.named_parameters() if p.ndim == 2 and ".blocks." in n}
    assert set(found) == inside
    assert {parts for name, parts in found.items() if name.endswith("qkv_proj.weight")} == {3}
    assert {parts for name, parts in found.items() if name.endswith("kv_proj.weight") and "qkv" not in name} == {2}
    tables = nn.ModuleList([nn.Embedding(5, 4), nn.Linear(4, 4)])
    assert hidden_matrices(tables) == {"1.weight": 1}


def test_sgd_is_its_formula_with_rates_and_decay_by_group() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    config = TrainingConfig(
        optimizer="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.2, lr_factors={"0.*": 0.01}, progress=False
    )
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    buffers = {name: torch.zeros_like(parameter) for name, parameter in expected.items()}
    optimizer = build_optimizer(parameter_groups(model.named_parameters(), config), config)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(6, 4)).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            decay = 0.2 if parameter.ndim == 2 else 0.0
            buffers[name] = 0.9 * buffers[name] + parameter.grad + decay * expected[name]
            expected[name] = expected[name] - 0.1 * (0.01 if name.startswith("0.") else 1.0) * buffers[name]
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name])


@pytest.mark.parametrize(
    "options", [{"optimizer": "muon"}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.0}]
)
def test_resuming_is_bit_exact(options: dict[str, Any], tmp_path: Path) -> None:
    config = TrainingConfig(**options, checkpoint_every=7, progress=False)

    class Ending(Corrupted):
        def prepare(self, batch, generator):
            if int(batch["step"]) == 10:
                raise KeyboardInterrupt
            return super().prepare(batch, generator)

    with pytest.raises(KeyboardInterrupt):
        fit(Model(), Ending(), loader(), "16 steps", config, out=tmp_path)
    resumed, whole = Model(), Model()
    fit(resumed, Corrupted(), loader(), "16 steps", config, out=tmp_path)
    fit(whole, Corrupted(), loader(), "16 steps", config)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
