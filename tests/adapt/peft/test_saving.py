"""Adapters on disk: what is refused, and what is left untouched when it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapt.peft.small_models import bert, disturb, ids, mask, text_encoder, torch_encoder
from safetensors.torch import load_file, save_file

from leaven.adapt.peft import (
    MAM,
    Adapter,
    LoRA,
    Prefix,
    adapter_parameters,
    adapter_state,
    detach,
    load_adapter,
    load_adapter_state,
    save_adapter,
)
from leaven.adapt.peft.patches import sha256
from leaven.data.downloads import sha256_of
from leaven.errors import ConfigError, ModelError


def test_head_travels_with_the_adapter(tmp_path: Path) -> None:
    model = Adapter(bottleneck=4, train=("classifier",)).apply(bert())
    disturb(model)
    save_adapter(model, tmp_path)
    loaded = load_adapter(bert(), tmp_path)
    torch.testing.assert_close(loaded(ids(), mask()).logits, model(ids(), mask()).logits, rtol=0, atol=0)
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    stored = load_file(tmp_path / "adapter.safetensors")
    assert {n for n in stored if not n.endswith(("down", "up", "bias"))} == {"classifier.weight"}


@pytest.mark.parametrize(
    "method", [LoRA(rank=2), Prefix(length=2, reparameterize=0), MAM(prefix=2, bottleneck=4), Adapter(4)]
)
def test_another_base_is_named(method: Any, tmp_path: Path) -> None:
    save_adapter(method.apply(text_encoder()), tmp_path)
    other = text_encoder()
    weights = list(json.loads((tmp_path / "adapter.json").read_text())["base"].items())
    name, expected = weights[-1]
    with torch.no_grad():
        other.get_parameter(name)[0, 0] += 1
    before = {n: sha256(p) for n, p in other.named_parameters()}
    with pytest.raises(ModelError, match=rf"another base model: {name} has sha256 {before[name]}, expected {expected}"):
        load_adapter(other, tmp_path)
    assert {n: sha256(p) for n, p in other.named_parameters()} == before
    with pytest.raises(ModelError, match=r"adapts encoder\.blocks.*which this TransformerEncoder does not have"):
        load_adapter(torch_encoder(), tmp_path)


def test_altered_and_incomplete_folders(tmp_path: Path) -> None:
    save_adapter(LoRA(rank=2).apply(text_encoder()), tmp_path / "a")
    model = text_encoder()
    names = model.state_dict().keys()
    with pytest.raises(ModelError, match=r"holds no adapter: expected adapter.json, or peft's adapter_config.json"):
        load_adapter(model, tmp_path)
    tensors = tmp_path / "a" / "adapter.safetensors"
    manifest = tmp_path / "a" / "adapter.json"
    good = json.loads(manifest.read_text())

    def altered(**change: Any) -> None:
        manifest.write_text(json.dumps(good | change))

    state = load_file(tensors)
    save_file(dict(list(state.items())[1:]), tensors)
    with pytest.raises(ModelError, match="was altered: its sha256"):
        load_adapter(model, tmp_path / "a")
    altered(sha256=sha256_of(tensors))
    with pytest.raises(ModelError, match="the adapter's tensors differ from the model's in encoder"):
        load_adapter(model, tmp_path / "a")
    save_file({name: torch.zeros(3) for name in state}, tensors)
    altered(sha256=sha256_of(tensors))
    with pytest.raises(ModelError, match=r"has shape \(3,\), the model's \(2, 32\)"):
        load_adapter(model, tmp_path / "a")
    altered(method={"method": "LoHa"}, sha256=sha256_of(tensors))
    with pytest.raises(ModelError, match="unknown method 'LoHa': expected one of Adapter"):
        load_adapter(model, tmp_path / "a")
    altered(method=good["method"] | {"gamma": 1})
    with pytest.raises(ModelError, match="LoRA was saved with options that this version does not have"):
        load_adapter(model, tmp_path / "a")
    manifest.write_text("{")
    with pytest.raises(ModelError, match="holds no whole adapter: JSONDecodeError"):
        load_adapter(model, tmp_path / "a")
    tensors.unlink()
    manifest.write_text(json.dumps(good))
    with pytest.raises(ModelError, match="holds no whole adapter: FileNotFoundError"):
        load_adapter(model, tmp_path / "a")
    assert model.state_dict().keys() == names and all(p.requires_grad for p in model.parameters())
    with pytest.raises(ConfigError, match="format='onnx'"):
        save_adapter(LoRA().apply(model), tmp_path / "b", format="onnx")  # type: ignore[arg-type]


def test_an_adapted_model_takes_no_second_adapter_from_disk(tmp_path: Path) -> None:
    save_adapter(LoRA(rank=2).apply(text_encoder()), tmp_path)
    model = LoRA(rank=2).apply(text_encoder())
    with pytest.raises(ModelError, match="carries LoRA already"):
        load_adapter(model, tmp_path)


def test_states_are_copies_and_can_be_swapped() -> None:
    """Two experts on one frozen base, as a slow and a fast module need."""
    model = LoRA(rank=2).apply(text_encoder())
    first = adapter_state(model)
    outputs = [model.encode(ids()).x.detach()]
    disturb(model)
    second = adapter_state(model)
    outputs.append(model.encode(ids()).x.detach())
    load_adapter_state(model, first)
    assert torch.equal(model.encode(ids()).x, outputs[0])
    load_adapter_state(model, second)
    assert torch.equal(model.encode(ids()).x, outputs[1]) and not torch.equal(*outputs)
    assert adapter_parameters(model).keys() == first.keys()
    with pytest.raises(ModelError, match="the adapter's tensors differ"):
        load_adapter_state(model, dict(list(first.items())[1:]))


def test_detached_model_can_be_adapted_again() -> None:
    model = text_encoder()
    before = model.encode(ids()).x
    LoRA(rank=2).apply(model)
    disturb(model)
    detach(model)
    Adapter(bottleneck=4).apply(model)
    assert torch.equal(model.encode(ids()).x, before)
    with pytest.raises(ModelError, match="carries no adapter"):
        detach(text_encoder())


def test_modules_that_train_along_in_a_bfloat16_model() -> None:
    model = LoRA(rank=2, train=("classifier",)).apply(bert().to(torch.bfloat16))
    assert {p.dtype for p in adapter_parameters(model).values()} == {torch.float32}
    out = model(ids(), mask()).logits
    assert out.dtype == torch.bfloat16
    out.sum().backward()
