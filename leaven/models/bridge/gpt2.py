"""GPT-2: learned positions, norms before each part, weights of linear maps stored transposed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from leaven.errors import ModelError
from leaven.models.bridge.family import Family, is_tied
from leaven.models.bridge.names import (
    PLAIN,
    Row,
    affine,
    first_id,
    plain_trunk,
    require_config,
    require_trunk,
    require_whole_heads,
    their_activation,
)
from leaven.models.language_model import LanguageModelConfig


def _read(theirs: Any, state: Mapping[str, Tensor]) -> LanguageModelConfig:
    require_config(
        theirs, "GPT-2", scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False
    )
    eos = first_id(theirs.eos_token_id, 0)
    trunk = plain_trunk(
        theirs.n_embd,
        theirs.n_layer,
        theirs.n_head,
        ffn_dim=theirs.n_inner or 4 * theirs.n_embd,
        activation=theirs.activation_function,
        eps=theirs.layer_norm_epsilon,
        dropout=theirs.resid_pdrop,
    )
    tied = bool(theirs.tie_word_embeddings) and is_tied(state, "lm_head.weight", "wte.weight")
    return LanguageModelConfig(
        vocab=theirs.vocab_size,
        trunk=trunk,
        tied=tied,
        embedding_positions=theirs.n_positions,
        pad_id=first_id(theirs.pad_token_id, eos),
        eos_id=eos,
    )


def _write(ours: LanguageModelConfig) -> dict[str, Any]:
    trunk = ours.trunk
    require_trunk(trunk, "GPT-2", **PLAIN)
    require_whole_heads(trunk, "GPT-2")
    if not ours.embedding_positions:
        raise ModelError(
            "a language model with embedding_positions=0 cannot be written as GPT-2 of transformers, whose embedding "
            "adds positions: save it as a leaven model with save_model"
        )
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": ours.vocab,
        "n_positions": ours.embedding_positions,
        "n_embd": trunk.dim,
        "n_layer": trunk.depth,
        "n_head": trunk.heads,
        "n_inner": trunk.ffn_dim,
        "activation_function": their_activation(trunk.activation),
        "resid_pdrop": trunk.dropout,
        "embd_pdrop": trunk.dropout,
        "attn_pdrop": trunk.dropout,
        "layer_norm_epsilon": trunk.norm_eps,
        "tie_word_embeddings": ours.tied,
        "bos_token_id": ours.eos_id,
        "eos_token_id": ours.eos_id,
        "pad_token_id": ours.pad_id,
    }


def _rows(config: LanguageModelConfig) -> list[Row]:
    rows = [Row("embed.tokens.weight", ("wte.weight",)), Row("embed.positions.weight", ("wpe.weight",))]
    for i in range(config.trunk.depth):
        ours, theirs = f"trunk.blocks.{i}", f"h.{i}"
        rows += affine(f"{ours}.attn_norm", f"{theirs}.ln_1")
        rows += affine(f"{ours}.attn.qkv_proj", f"{theirs}.attn.c_attn", layout="transposed")
        rows += affine(f"{ours}.attn.out_proj", f"{theirs}.attn.c_proj", layout="transposed")
        rows += affine(f"{ours}.ffn_norm", f"{theirs}.ln_2")
        rows += affine(f"{ours}.ffn.up_proj", f"{theirs}.mlp.c_fc", layout="transposed")
        rows += affine(f"{ours}.ffn.down_proj", f"{theirs}.mlp.c_proj", layout="transposed")
    rows += affine("trunk.norm", "ln_f")
    if not config.tied:
        rows.append(Row("head.proj.weight", ("lm_head.weight",)))
    return rows


GPT2 = Family(
    model_type="gpt2",
    architecture="language-model",
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    read_config=_read,
    write_config=_write,
    rows=_rows,
    output="lm_head.weight",
    prefix="transformer.",
    heads=("lm_head.",),
    bare="GPT2Model",
    # Early checkpoints store the causal mask of every layer.
    ignored=(r"\.attn\.(bias|masked_bias)$",),
)
