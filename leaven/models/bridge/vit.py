"""ViT: patches and a class token through the plain stack; a linear head or a pooler on the class token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from leaven.errors import ModelError
from leaven.models.bridge.family import Family
from leaven.models.bridge.names import (
    PLAIN,
    InexpressibleError,
    Row,
    affine,
    plain_trunk,
    require_config,
    require_trunk,
    require_whole_heads,
    their_activation,
)
from leaven.models.vision import ImageEncoderConfig


def square(value: Any, what: str) -> int:
    """The side of an image or patch. Raises: InexpressibleError when it is not square."""
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise InexpressibleError(f"{what}={value} is not square")
    return int(sides.pop())


def _read(theirs: Any, state: Mapping[str, Tensor]) -> ImageEncoderConfig:
    require_config(theirs, "ViT", qkv_bias=True)
    pooler = "pooler.dense.weight" in state
    if pooler:
        require_config(theirs, "ViT", pooler_act="tanh", pooler_output_size=theirs.hidden_size)
    trunk = plain_trunk(
        theirs.hidden_size,
        theirs.num_hidden_layers,
        theirs.num_attention_heads,
        ffn_dim=theirs.intermediate_size,
        activation=theirs.hidden_act,
        eps=theirs.layer_norm_eps,
        dropout=theirs.hidden_dropout_prob,
    )
    return ImageEncoderConfig(
        trunk=trunk,
        size=square(theirs.image_size, "image_size"),
        patch=square(theirs.patch_size, "patch_size"),
        channels=theirs.num_channels,
        labels=len(state["classifier.bias"]) if "classifier.bias" in state else 0,
        pooler=pooler,
    )


def _write(ours: ImageEncoderConfig) -> dict[str, Any]:
    trunk = ours.trunk
    require_trunk(trunk, "ViT", **PLAIN)
    require_whole_heads(trunk, "ViT")
    if ours.embedding_norm or not ours.patch_bias:
        raise ModelError(
            f"an image encoder with embedding_norm={ours.embedding_norm} and patch_bias={ours.patch_bias} cannot be "
            "written as ViT of transformers, which has no norm before the blocks and a bias on its patches: "
            "save it as a leaven model with save_model"
        )
    # Without a pooler, ViTModel would make one up; a classifier of no classes gives the class token itself.
    bare = ours.pooler and not ours.labels
    names = {str(i): f"LABEL_{i}" for i in range(ours.labels)}
    return {
        "model_type": "vit",
        "architectures": ["ViTModel" if bare else "ViTForImageClassification"],
        "hidden_size": trunk.dim,
        "num_hidden_layers": trunk.depth,
        "num_attention_heads": trunk.heads,
        "intermediate_size": trunk.ffn_dim,
        "hidden_act": their_activation(trunk.activation),
        "hidden_dropout_prob": trunk.dropout,
        "attention_probs_dropout_prob": trunk.dropout,
        "layer_norm_eps": trunk.norm_eps,
        "image_size": ours.size,
        "patch_size": ours.patch,
        "num_channels": ours.channels,
        "qkv_bias": True,
        **({} if bare else {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}),
    }


def _rows(config: ImageEncoderConfig) -> list[Row]:
    rows = [
        Row("embed.class_token", ("embeddings.cls_token",), "batched"),
        Row("embed.positions", ("embeddings.position_embeddings",), "batched"),
        *affine("embed.proj", "embeddings.patch_embeddings.projection"),
    ]
    for i in range(config.trunk.depth):
        ours, theirs = f"encoder.blocks.{i}", f"encoder.layer.{i}"
        attention = f"{theirs}.attention"
        rows += affine(f"{ours}.attn_norm", f"{theirs}.layernorm_before")
        rows += affine(f"{ours}.attn.qkv_proj", *(f"{attention}.attention.{p}" for p in ("query", "key", "value")))
        rows += affine(f"{ours}.attn.out_proj", f"{attention}.output.dense")
        rows += affine(f"{ours}.ffn_norm", f"{theirs}.layernorm_after")
        rows += affine(f"{ours}.ffn.up_proj", f"{theirs}.intermediate.dense")
        rows += affine(f"{ours}.ffn.down_proj", f"{theirs}.output.dense")
    rows += affine("encoder.norm", "layernorm")
    if config.pooler:
        rows += affine("pooler", "pooler.dense")
    if config.labels:
        rows += affine("head", "classifier")
    return rows


VIT = Family(
    model_type="vit",
    architecture="image-encoder",
    architectures=("ViTForImageClassification", "ViTModel"),
    read_config=_read,
    write_config=_write,
    rows=_rows,
    prefix="vit.",
    heads=("classifier.",),
    bare="ViTModel",
    # transformers 5 keeps other names in memory than in its files.
    renames=(
        (r"^layers\.(\d+)\.", r"encoder.layer.\1."),
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ),
)
