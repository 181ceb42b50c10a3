"""Roles of projections, fused matrices by part, sub-layers, and what is said when nothing matches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from adapt.peft.small_models import DIM, SMALL, bert, gpt2, text_encoder
from torch import nn

from leaven.adapt.peft import LoRA
from leaven.adapt.peft.sites import projections
from leaven.adapt.peft.sublayers import attention_layers, feed_forward_layers
from leaven.adapt.peft.targets import select
from leaven.errors import ConfigError

LAYERS = {"trunk": 2, "seq2seq": 6, "image": 2, "bert": 2, "roberta": 2, "gpt2": 2, "vit": 2, "t5": 6, "torch": 2}


@pytest.mark.parametrize("name", SMALL)
def test_every_sub_layer_is_found_once(name: str) -> None:
    model = SMALL[name]().model
    attention, dense = attention_layers(model), feed_forward_layers(model)
    assert len(attention) == LAYERS[name] and len({a.core for a in attention}) == LAYERS[name]
    assert len(dense) == (4 if name in ("seq2seq", "t5") else 2)
    for layer in attention:
        assert set(layer.parts) == {"q", "k", "v", "o"}
        assert all(part.weight(model).shape == (DIM, DIM) for part in layer.parts.values())
    heads = [p.module for p in projections(model) if any(h in p.module for h in ("classifier", "lm_head", "pooler"))]
    assert all(p.role == "" for p in projections(model) if p.module in heads)


def test_fused_parts_are_the_rows_that_the_model_reads() -> None:
    """Zeroing the query part makes attention uniform, zeroing the values makes it zero."""
    for model, host, out in (
        (text_encoder(), "encoder.blocks.0.attn", "out_proj"),
        (gpt2(), "transformer.h.0.attn", "c_proj"),
    ):
        parts = attention_layers(model)[0].parts
        x = torch.randn(1, 3, DIM)
        attention: Any = model.get_submodule(host)
        seen: list[torch.Tensor] = []
        getattr(attention, out).register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            parts["q"].weight(model).zero_()
            value = x[0] @ parts["v"].weight(model).t()
            bias = (attention.qkv_proj if out == "out_proj" else attention.c_attn).bias
            bias[:DIM] = 0
            attention(x)
            torch.testing.assert_close(seen[-1][0, 2], (value + bias[2 * DIM :]).mean(0))
            parts["v"].weight(model).zero_()
            attention(x)
            torch.testing.assert_close(seen[-1][0, 0], bias[2 * DIM :])


def test_grouped_queries_have_parts_of_two_sizes() -> None:
    config = transformers.Phi3Config(
        vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=1,
        intermediate_size=16, pad_token_id=0,
    )  # fmt: skip
    model = transformers.Phi3Model(config)
    assert [(p.role, p.start, p.stop) for p in select(model, "q,k,v")] == [("q", 0, 32), ("k", 32, 40), ("v", 40, 48)]


def test_targets() -> None:
    model = text_encoder()
    assert {p.module for p in select(model, "*.attn.*_proj")} == {
        f"encoder.blocks.{i}.attn.{name}" for i in range(2) for name in ("qkv_proj", "out_proj")
    }
    assert [(p.module, p.role) for p in select(model, "*blocks.[1-4].*:k,v")] == [
        ("encoder.blocks.1.attn.qkv_proj", "k"),
        ("encoder.blocks.1.attn.qkv_proj", "v"),
    ]
    assert select(model, ("attention", "ffn")) == select(model, "attention,ffn")
    assert {p.role for p in select(model, "attention,ffn")} == {"q", "k", "v", "o", "up", "down"}


def test_nothing_matched_names_the_nearest() -> None:
    model = text_encoder()
    before = model.state_dict().keys()
    with pytest.raises(ConfigError, match=r"'\*\.atn\.\*' names no module.*encoder\.blocks\.\*\.attn\.out_proj \(o\)"):
        LoRA(targets="*.atn.*").apply(model)
    with pytest.raises(ConfigError, match=r"ffn_norm .LayerNorm., no linear map of that role; the nearest"):
        LoRA(targets="*.ffn_norm").apply(model)
    with pytest.raises(ConfigError, match="lists no roles: expected some of q, k"):
        LoRA(targets="*:query").apply(model)
    with pytest.raises(ConfigError, match="the model has no linear layer"):
        LoRA().apply(nn.Sequential(nn.Conv2d(3, 4, 3)))
    assert model.state_dict().keys() == before and all(p.requires_grad for p in model.parameters())


def test_unknown_layout_of_a_fused_matrix_is_refused() -> None:
    config = transformers.GPTNeoXConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with pytest.raises(
        ConfigError, match=r"layout of the fused matrix 'layers.0.attention.query_key_value' is not known"
    ):
        LoRA(targets="q,v").apply(transformers.GPTNeoXModel(config))


def test_quantised_and_empty_weights_are_refused() -> None:
    model = bert()
    linear = model.bert.encoder.layer[0].attention.self.query
    linear.weight = nn.Parameter(linear.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"query\.weight has type torch.int8: a quantised weight"):
        LoRA().apply(model)
    with torch.device("meta"):
        empty = nn.TransformerEncoderLayer(8, 2, 8)
    with pytest.raises(ConfigError, match="meta device"):
        LoRA().apply(empty)
