"""T5 and CodeT5: relative positions, RMS norms before each part, no biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from leaven.models.bridge.family import Family, is_tied
from leaven.models.bridge.names import (
    Row,
    affine,
    first_id,
    our_activation,
    require_config,
    require_trunk,
    their_activation,
)
from leaven.models.encoder_decoder import EncoderDecoderConfig
from leaven.models.trunk import TrunkConfig


def _read(theirs: Any, state: Mapping[str, Tensor]) -> EncoderDecoderConfig:
    require_config(theirs, "T5", is_encoder_decoder=True, is_decoder=False)

    def trunk(depth: int, decoder: bool) -> TrunkConfig:
        return TrunkConfig(
            dim=theirs.d_model,
            depth=depth,
            heads=theirs.num_heads,
            head_dim=theirs.d_kv,
            ffn_dim=theirs.d_ff,
            positions="t5",
            norm="rms",
            norm_eps=float(theirs.layer_norm_epsilon),
            feed_forward="gated" if theirs.is_gated_act else "dense",
            activation=our_activation(theirs.dense_act_fn),
            scaled_attention=False,
            cross_attention=decoder,
            bidirectional_bias=not decoder,
            relative_buckets=theirs.relative_attention_num_buckets,
            relative_distance=theirs.relative_attention_max_distance,
            dropout=float(theirs.dropout_rate),
        )

    pad = first_id(theirs.pad_token_id, 0)
    return EncoderDecoderConfig(
        vocab=theirs.vocab_size,
        encoder=trunk(theirs.num_layers, False),
        decoder=trunk(theirs.num_decoder_layers, True),
        tied=is_tied(state, "lm_head.weight", "shared.weight"),
        # transformers 4 has no such field and scales where the matrices are tied.
        scaled_logits=bool(getattr(theirs, "scale_decoder_outputs", theirs.tie_word_embeddings)),
        pad_id=pad,
        eos_id=first_id(theirs.eos_token_id, 1),
        start_id=first_id(getattr(theirs, "decoder_start_token_id", None), pad),
    )


def _write(ours: EncoderDecoderConfig) -> dict[str, Any]:
    e, d = ours.encoder, ours.decoder
    for trunk, decoder in ((e, False), (d, True)):
        require_trunk(
            trunk,
            "T5",
            positions="t5",
            norm="rms",
            pre_norm=True,
            final_norm=True,
            bias=False,
            scaled_attention=False,
            cross_attention=decoder,
            bidirectional_bias=not decoder,
            feed_forward=e.feed_forward if e.feed_forward != "experts" else "dense",
        )
    same = ("dim", "heads", "head_dim", "ffn_dim", "activation", "norm_eps", "relative_buckets", "relative_distance")
    require_trunk(d, "T5", **{name: getattr(e, name) for name in same})
    gated = e.feed_forward == "gated"
    if gated:
        # "gated-gelu" means the tanh form in T5, so that the exact form has no name there.
        require_trunk(e, "T5", activation="gelu_tanh" if e.activation == "gelu" else e.activation)
    activation = "gelu" if gated and e.activation == "gelu_tanh" else their_activation(e.activation)
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": ours.vocab,
        "d_model": e.dim,
        "d_kv": e.head_dim,
        "d_ff": e.ffn_dim,
        "num_layers": e.depth,
        "num_decoder_layers": d.depth,
        "num_heads": e.heads,
        "relative_attention_num_buckets": e.relative_buckets,
        "relative_attention_max_distance": e.relative_distance,
        "dropout_rate": e.dropout,
        "layer_norm_epsilon": e.norm_eps,
        "feed_forward_proj": f"gated-{activation}" if gated else activation,
        # In T5 this one field says both whether the matrices are tied and whether the states are scaled.
        "tie_word_embeddings": ours.tied and ours.scaled_logits,
        "pad_token_id": ours.pad_id,
        "eos_token_id": ours.eos_id,
        "decoder_start_token_id": ours.start_id,
    }


def _rows(config: EncoderDecoderConfig) -> list[Row]:
    rows = [Row("embed.tokens.weight", ("shared.weight",))]
    for stack, trunk in (("encoder", config.encoder), ("decoder", config.decoder)):
        for i in range(trunk.depth):
            ours, theirs = f"{stack}.blocks.{i}", f"{stack}.block.{i}.layer"
            attention, last = f"{theirs}.0.SelfAttention", 2 if trunk.cross_attention else 1
            rows += affine(f"{ours}.attn.qkv_proj", *(f"{attention}.{p}" for p in "qkv"), bias=False)
            rows += affine(f"{ours}.attn.out_proj", f"{attention}.o", bias=False)
            rows += affine(f"{ours}.attn_norm", f"{theirs}.0.layer_norm", bias=False)
            if trunk.cross_attention:
                cross = f"{theirs}.1.EncDecAttention"
                rows += affine(f"{ours}.cross_attn.q_proj", f"{cross}.q", bias=False)
                rows += affine(f"{ours}.cross_attn.kv_proj", f"{cross}.k", f"{cross}.v", bias=False)
                rows += affine(f"{ours}.cross_attn.out_proj", f"{cross}.o", bias=False)
                rows += affine(f"{ours}.cross_norm", f"{theirs}.1.layer_norm", bias=False)
            dense = f"{theirs}.{last}.DenseReluDense"
            if trunk.feed_forward == "gated":
                rows += affine(f"{ours}.ffn.gate_proj", f"{dense}.wi_0", bias=False)
                rows += affine(f"{ours}.ffn.up_proj", f"{dense}.wi_1", bias=False)
            else:
                rows += affine(f"{ours}.ffn.up_proj", f"{dense}.wi", bias=False)
            rows += affine(f"{ours}.ffn.down_proj", f"{dense}.wo", bias=False)
            rows += affine(f"{ours}.ffn_norm", f"{theirs}.{last}.layer_norm", bias=False)
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        rows.append(Row(f"{stack}.relative_bias.weight", (bias,)))
        rows += affine(f"{stack}.norm", f"{stack}.final_layer_norm", bias=False)
    if not config.tied:
        rows.append(Row("head.proj.weight", ("lm_head.weight",)))
    return rows


def _finish(ours: EncoderDecoderConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An unscaled tied model stores its output matrix as well, a scaled untied one with the scale multiplied in.

    Either way the one field that T5 has for both says "untied and unscaled", and every version reads it alike.
    """
    if ours.tied and not ours.scaled_logits:
        state["lm_head.weight"] = state["shared.weight"].clone()
    elif ours.scaled_logits and not ours.tied:
        state["lm_head.weight"] = state["lm_head.weight"] * ours.encoder.dim**-0.5
    return state


T5 = Family(
    model_type="t5",
    architecture="encoder-decoder",
    architectures=("T5ForConditionalGeneration", "T5WithLMHeadModel"),
    read_config=_read,
    write_config=_write,
    rows=_rows,
    finish=_finish,
    output="lm_head.weight",
    ignored=(r"EncDecAttention\.relative_attention_bias",),
    aliases={"shared.weight": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")},
    duplicates={"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"},
)
