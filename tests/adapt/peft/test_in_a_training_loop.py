"""Adapted models under the things that training loops do: steps with decay, copies, checkpointing, mixed precision."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from adapt.peft.small_models import DIM, HEADS, SMALL, bert, disturb, ids, mask, randomised, text_encoder
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from leaven.adapt.peft import (
    DSEE,
    MAM,
    SSF,
    Adapter,
    BitFit,
    LoRA,
    Method,
    Prefix,
    PromptTuning,
    SVFit,
    adapter_state,
    detach,
    load_adapter,
    save_adapter,
)
from leaven.adapt.peft.patches import sha256
from leaven.contracts import Tokens
from leaven.models.trunk import Trunk, TrunkConfig

METHODS: list[Method] = [
    LoRA(rank=2, dropout=0.1),
    SVFit(energy=0.9),
    DSEE(rank=2, sparse=4),
    Adapter(bottleneck=4),
    Prefix(length=2, reparameterize=8),
    MAM(prefix=2, bottleneck=4, reparameterize=8),
    PromptTuning(length=2, position="after-first"),
    SSF(),
    BitFit(),
]
NAMES = [type(method).__name__ for method in METHODS]


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_only_the_new_part_and_the_head_move(method: Method) -> None:
    object.__setattr__(method, "train", ("classifier*",) if not isinstance(method, SSF | BitFit) else ())
    torch.manual_seed(0)
    model = method.apply(bert()).train()
    frozen = {name: sha256(p) for name, p in model.named_parameters() if not p.requires_grad}
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(ids(), mask(), labels=torch.tensor([0, 1, 2])).loss.backward()
        optimizer.step()
    assert {name: sha256(p) for name, p in model.named_parameters() if not p.requires_grad} == frozen
    assert {name.split(".")[0] for name in frozen} <= {"bert", "classifier"}
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_is_adapted_by_patches_of_its_own(method: Method, how: str) -> None:
    small, run = SMALL["image"]()
    with torch.no_grad():
        base = run(small)
        method = type(method)(**{**method.__dict__, "train": ()})
        method.apply(small)
        disturb(small)
        trained = run(small)
        other = copy.deepcopy(small) if how == "deepcopy" else pickle.loads(pickle.dumps(small))
        disturb(small, seed=3)
        torch.testing.assert_close(run(other), trained, rtol=0, atol=0)
        detach(other)
        assert torch.equal(run(other), base)
        assert not torch.allclose(run(small), base)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_with_activation_checkpointing(method: Method, reentrant: bool) -> None:
    method = type(method)(**{**method.__dict__, "train": ()})
    if isinstance(method, LoRA):
        method = LoRA(rank=2)

    class Stepwise(Trunk):
        saving = False

        def forward(self, tokens: Tokens, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
            x = tokens.x
            for block in self.blocks:

                def run(x: Tensor, block: Any = block) -> Tensor:
                    out: Tensor = block(x, None, causal=False, angles=None, memory=None, memory_bias=None, cache=None)
                    return out

                x = checkpoint(run, x, use_reentrant=reentrant) if self.saving else run(x)
            return x

    trunk = randomised(
        Stepwise(
            TrunkConfig(dim=DIM, depth=2, heads=HEADS, positions="none", norm="layer", bias=True, final_norm=False)
        )
    )
    method.apply(trunk)
    disturb(trunk)
    x = torch.randn(2, 5, DIM, requires_grad=True)
    gradients = []
    for trunk.saving in (False, True):
        trunk.zero_grad()
        trunk(Tokens(x)).square().sum().backward()
        gradients.append([p.grad.clone() for p in trunk.parameters() if p.requires_grad])
    assert gradients[0]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_autocast_and_half_precision_bases(method: Method) -> None:
    method = type(method)(**{**method.__dict__, "train": ()})
    model = method.apply(text_encoder())
    disturb(model)
    with torch.no_grad():
        exact = model.encode(ids(), mask()).x
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model.encode(ids(), mask()).x
    torch.testing.assert_close(mixed[:, :2].float(), exact[:, :2], rtol=0.1, atol=0.2)
    half = type(method)(**method.__dict__).apply(text_encoder().to(torch.bfloat16))
    out = half.encode(ids(), mask()).x
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()


def test_experts_are_adapted_one_by_one() -> None:
    config = TrunkConfig(dim=DIM, depth=1, heads=HEADS, feed_forward="experts", experts=3, experts_per_token=2)
    trunk = randomised(Trunk(config))
    x = Tokens(torch.randn(2, 5, DIM))
    with torch.no_grad():
        base = trunk(x)
        Adapter(bottleneck=4).apply(trunk)
        assert torch.equal(trunk(x), base)
        disturb(trunk)
        assert not torch.allclose(trunk(x), base)
    assert len({name.split(".adapter.")[0] for name in adapter_state(trunk)}) == 3


def test_controls_of_svfit(tmp_path: Any) -> None:
    """Random vectors and those of the smallest values start at the base model too, and survive the disk."""
    small, run = SMALL["bert"]()
    with torch.no_grad():
        base = run(small)
        for basis in ("bottom", "random"):
            model = SVFit(rank=5, basis=basis).apply(bert())  # type: ignore[arg-type]
            assert torch.equal(run(model), base)
            change = model.bert.encoder.layer[0].attention.self.query.svfit.changes["q"]
            torch.testing.assert_close(change.u.t() @ change.u, torch.eye(5), rtol=0, atol=1e-5)
            values = torch.linalg.svdvals(model.bert.encoder.layer[0].attention.self.query.weight)
            torch.testing.assert_close(change.values, values[-5:] if basis == "bottom" else values[:5])
            disturb(model)
            save_adapter(model, tmp_path / basis)
            torch.testing.assert_close(run(load_adapter(bert(), tmp_path / basis)), run(model), rtol=0, atol=1e-5)


def test_compiled_models_give_the_same() -> None:
    for method in (LoRA(rank=2), Prefix(length=2, reparameterize=0), Adapter(bottleneck=4)):
        model = method.apply(text_encoder())
        disturb(model)
        with torch.no_grad():
            want = model.encode(ids()).x
            compiled = torch.compile(model.encoder, backend="eager")
            got = compiled(model.embed(ids()))
        torch.testing.assert_close(got, want)
