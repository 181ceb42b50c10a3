"""Adapters of Hugging Face's peft: the same outputs, read and written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapt.peft.small_models import DIM, bert, disturb, gpt2, ids, text_encoder

from leaven.adapt.peft import DSEE, Adapter, Delta, LoRA, adapter_parameters, load_adapter, merge, save_adapter
from leaven.errors import ModelError

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(ids()).logits  # type: ignore[no-any-return]


def randomise_lora(model: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


CONFIGS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "bert": (bert, {"r": 4, "lora_alpha": 6, "target_modules": ["query", "value"]}),
    "bert-head": (bert, {"r": 2, "target_modules": ["dense"], "modules_to_save": ["classifier"]}),
    "bert-patterns": (
        bert,
        {"r": 4, "lora_alpha": 8, "target_modules": ["key", "value"], "rank_pattern": {"layer.1.attention.self.key": 2},
         "alpha_pattern": {"key": 3}, "use_rslora": True},
    ),
    "bert-pissa": (bert, {"r": 3, "lora_alpha": 5, "target_modules": ["query", "value"], "init_lora_weights": "pissa"}),
    "gpt2": (gpt2, {"r": 4, "lora_alpha": 12, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "gpt2-pissa": (gpt2, {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True, "init_lora_weights": "pissa"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_what_peft_wrote_gives_the_same_outputs(name: str, tmp_path: Path) -> None:
    make, options = CONFIGS[name]
    torch.manual_seed(0)
    theirs = peft.get_peft_model(make(), peft.LoraConfig(**options)).eval()
    randomise_lora(theirs)
    theirs.save_pretrained(tmp_path)
    want = logits(theirs)
    assert (want - logits(make())).abs().max() > 0.01
    ours = load_adapter(make(), tmp_path)
    torch.testing.assert_close(logits(ours), want, rtol=0, atol=1e-5)
    merge(ours)
    torch.testing.assert_close(logits(ours), want, rtol=0, atol=1e-5)


OURS: dict[str, tuple[Callable[[], Any], Any]] = {
    "bert": (bert, LoRA(rank=4, alpha=6, dropout=0.1)),
    "bert-head": (bert, LoRA(rank=4, targets="attention", train=("classifier",))),
    "bert-pissa": (bert, LoRA(rank=3, init="pissa")),
    "gpt2-split": (gpt2, LoRA(rank=4, alpha=12, targets="q,v,o")),
    "gpt2-whole": (gpt2, LoRA(rank=4, targets="*.attn.*", split=False)),
    "gpt2-split-pissa": (gpt2, LoRA(rank=2, init="pissa", targets="attention")),
    "gpt2-calibrated": (
        gpt2,
        Delta(form="linear", insertion="parallel", place="k,v", composition="scaled", bottleneck=5, learn_scale=True),
    ),
}


@pytest.mark.parametrize("name", OURS)
def test_peft_reads_what_is_written(name: str, tmp_path: Path) -> None:
    make, method = OURS[name]
    ours = method.apply(make())
    disturb(ours)
    want = logits(ours)
    save_adapter(ours, tmp_path, format="peft")
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path).eval()
    torch.testing.assert_close(logits(theirs), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(load_adapter(make(), tmp_path)), want, rtol=0, atol=1e-5)


def test_pissa_starts_where_peft_starts() -> None:
    theirs = peft.get_peft_model(
        bert(), peft.LoraConfig(r=3, lora_alpha=5, target_modules=["query"], init_lora_weights="pissa")
    )
    ours = LoRA(rank=3, alpha=5, targets="q", init="pissa").apply(bert())
    factors = adapter_parameters(ours)
    for layer in range(2):
        at = f"bert.encoder.layer.{layer}.attention.self.query"
        linear = theirs.get_submodule(f"base_model.model.{at}")
        product = linear.lora_B.default.weight @ linear.lora_A.default.weight
        mine = factors[f"{at}.lora.changes.q.up"] @ factors[f"{at}.lora.changes.q.down"]
        torch.testing.assert_close(mine, product, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            factors[f"{at}.lora.changes.q.down"].abs(), linear.lora_A.default.weight.abs(), rtol=1e-3, atol=1e-5
        )


def test_split_parts_share_nothing_and_leave_keys_alone() -> None:
    model = LoRA(rank=2, targets="q,v").apply(gpt2())
    disturb(model)
    weight = gpt2().transformer.h[0].attn.c_attn.weight
    merge(model)
    change = (model.transformer.h[0].attn.c_attn.weight - weight).detach()
    assert change.shape == (DIM, 3 * DIM) and not change[:, DIM : 2 * DIM].any()
    for part in (change[:, :DIM], change[:, 2 * DIM :]):
        assert torch.linalg.matrix_rank(part, rtol=1e-4) == 2


def test_dropout_is_on_the_input_while_training() -> None:
    model = LoRA(rank=4, dropout=0.5).apply(text_encoder()).train()
    disturb(model)
    outputs = [model.encode(ids()).x for _ in range(2)]
    assert not torch.equal(*outputs)
    model.eval()
    outputs = [model.encode(ids()).x for _ in range(2)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3': only LORA"),
        ({"use_dora": True}, "use_dora=True is not plain LoRA"),
        ({"bias": "all"}, "bias='all' is not plain LoRA"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora' is not plain LoRA"),
    ],
)
def test_other_options_of_peft_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_adapter(LoRA().apply(bert()), tmp_path, format="peft")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        load_adapter(bert(), tmp_path)


def test_adapters_of_another_model_are_refused(tmp_path: Path) -> None:
    save_adapter(LoRA().apply(bert()), tmp_path, format="peft")
    model = gpt2()
    with pytest.raises(ModelError, match=r"adapts bert\.encoder.*which is no linear map of this GPT2LMHeadModel"):
        load_adapter(model, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="no whole adapter of peft"):
        load_adapter(model, tmp_path)


@pytest.mark.parametrize("method", [Adapter(bottleneck=4), DSEE(rank=2)])
def test_peft_cannot_hold_other_changes(method: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is no plain LoRA of a linear module.*format='leaven'"):
        save_adapter(method.apply(bert()), tmp_path, format="peft")
    assert not list(tmp_path.iterdir())
