"""CLIP: an image and a text encoder, projected into one space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from leaven.errors import ModelError
from leaven.models.bridge.family import Family
from leaven.models.bridge.names import (
    PLAIN,
    Row,
    affine,
    first_id,
    plain_trunk,
    require_trunk,
    require_whole_heads,
    their_activation,
)
from leaven.models.bridge.vit import square
from leaven.models.trunk import TrunkConfig
from leaven.models.vision import DualEncoderConfig, ImageEncoderConfig

_FIRST_CHECKPOINTS_EOS = 2
"""What the first checkpoints say of their end-of-text token; transformers then takes the highest id instead."""


def _trunk(theirs: Any) -> TrunkConfig:
    return plain_trunk(
        theirs.hidden_size,
        theirs.num_hidden_layers,
        theirs.num_attention_heads,
        ffn_dim=theirs.intermediate_size,
        activation=theirs.hidden_act,
        eps=theirs.layer_norm_eps,
        dropout=theirs.attention_dropout or 0.0,
    )


def _read(theirs: Any, state: Mapping[str, Tensor]) -> DualEncoderConfig:
    text, vision = theirs.text_config, theirs.vision_config
    eos = first_id(text.eos_token_id, _FIRST_CHECKPOINTS_EOS)
    return DualEncoderConfig(
        image=ImageEncoderConfig(
            trunk=_trunk(vision),
            size=square(vision.image_size, "image_size"),
            patch=square(vision.patch_size, "patch_size"),
            channels=vision.num_channels,
            patch_bias=False,
            embedding_norm=True,
        ),
        text=_trunk(text),
        vocab=text.vocab_size,
        embedding_positions=text.max_position_embeddings,
        projection=theirs.projection_dim,
        eos_id=None if eos == _FIRST_CHECKPOINTS_EOS else eos,
    )


def _sizes(trunk: TrunkConfig) -> dict[str, Any]:
    require_trunk(trunk, "CLIP", **PLAIN)
    require_whole_heads(trunk, "CLIP")
    return {
        "hidden_size": trunk.dim,
        "num_hidden_layers": trunk.depth,
        "num_attention_heads": trunk.heads,
        "intermediate_size": trunk.ffn_dim,
        "hidden_act": their_activation(trunk.activation),
        "layer_norm_eps": trunk.norm_eps,
        "attention_dropout": trunk.dropout,
    }


def _write(ours: DualEncoderConfig) -> dict[str, Any]:
    image = ours.image
    if not image.embedding_norm or image.patch_bias or image.labels or image.pooler:
        raise ModelError(
            f"an image encoder with embedding_norm={image.embedding_norm}, patch_bias={image.patch_bias}, "
            f"labels={image.labels}, pooler={image.pooler} cannot be written as CLIP of transformers, which has a norm "
            "before the blocks, no bias on its patches and no head: save it as a leaven model with save_model"
        )
    if ours.eos_id == _FIRST_CHECKPOINTS_EOS:
        raise ModelError(
            f"a dual encoder with eos_id={_FIRST_CHECKPOINTS_EOS} cannot be written as CLIP of transformers, which "
            "reads that value as 'the highest id': save it as a leaven model with save_model"
        )
    eos = _FIRST_CHECKPOINTS_EOS if ours.eos_id is None else ours.eos_id
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": ours.projection,
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": ours.vocab,
            "max_position_embeddings": ours.embedding_positions,
            "projection_dim": ours.projection,
            "eos_token_id": eos,
            "bos_token_id": 0,
            **_sizes(ours.text),
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": image.size,
            "patch_size": image.patch,
            "num_channels": image.channels,
            "projection_dim": ours.projection,
            **_sizes(image.trunk),
        },
    }


def _stack(ours: str, theirs: str, depth: int) -> list[Row]:
    rows = []
    for i in range(depth):
        here, there = f"{ours}.blocks.{i}", f"{theirs}.encoder.layers.{i}"
        rows += affine(f"{here}.attn_norm", f"{there}.layer_norm1")
        rows += affine(f"{here}.attn.qkv_proj", *(f"{there}.self_attn.{p}_proj" for p in "qkv"))
        rows += affine(f"{here}.attn.out_proj", f"{there}.self_attn.out_proj")
        rows += affine(f"{here}.ffn_norm", f"{there}.layer_norm2")
        rows += affine(f"{here}.ffn.up_proj", f"{there}.mlp.fc1")
        rows += affine(f"{here}.ffn.down_proj", f"{there}.mlp.fc2")
    return rows


def _rows(config: DualEncoderConfig) -> list[Row]:
    text, vision = "text_model.embeddings", "vision_model.embeddings"
    return [
        Row("embed.tokens.weight", (f"{text}.token_embedding.weight",)),
        Row("embed.positions.weight", (f"{text}.position_embedding.weight",)),
        *_stack("text", "text_model", config.text.depth),
        *affine("text.norm", "text_model.final_layer_norm"),
        Row("image.embed.class_token", (f"{vision}.class_embedding",)),
        Row("image.embed.positions", (f"{vision}.position_embedding.weight",)),
        Row("image.embed.proj.weight", (f"{vision}.patch_embedding.weight",)),
        *affine("image.embed.norm", "vision_model.pre_layrnorm"),
        *_stack("image.encoder", "vision_model", config.image.trunk.depth),
        *affine("image.encoder.norm", "vision_model.post_layernorm"),
        *affine("image_proj", "visual_projection", bias=False),
        *affine("text_proj", "text_projection", bias=False),
        Row("logit_scale", ("logit_scale",)),
    ]


CLIP = Family(
    model_type="clip",
    architecture="dual-encoder",
    architectures=("CLIPModel",),
    read_config=_read,
    write_config=_write,
    rows=_rows,
    ignored=(r"\.embeddings\.position_ids$",),
)
