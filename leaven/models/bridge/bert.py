"""BERT and RoBERTa: norms after each part, learned positions, a masked-token head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from leaven.errors import ModelError
from leaven.models.bridge.family import Family, is_tied
from leaven.models.bridge.names import (
    InexpressibleError,
    Row,
    affine,
    first_id,
    our_activation,
    require_config,
    require_trunk,
    require_whole_heads,
    their_activation,
)
from leaven.models.encoder import TextEncoderConfig
from leaven.models.trunk import TrunkConfig

_POST_NORM: dict[str, Any] = {
    "positions": "none",
    "norm": "layer",
    "pre_norm": False,
    "final_norm": False,
    "feed_forward": "dense",
    "bias": True,
    "scaled_attention": True,
    "cross_attention": False,
}
_EMBEDDING = "embeddings.word_embeddings.weight"


def _reader(family: str, transform: str, output: str) -> Callable[[Any, Mapping[str, Tensor]], TextEncoderConfig]:
    def read(theirs: Any, state: Mapping[str, Tensor]) -> TextEncoderConfig:
        require_config(theirs, family, is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
        head = f"{transform}.weight" in state
        if head and not (theirs.tie_word_embeddings and is_tied(state, output, _EMBEDDING)):
            raise InexpressibleError(
                f"a {family} whose output matrix is not its embedding is not one the trunk expresses"
            )
        if head and family == "RoBERTa" and theirs.hidden_act != "gelu":
            raise InexpressibleError(f"the masked-token head of a RoBERTa is gelu, its blocks are {theirs.hidden_act}")
        pad = first_id(theirs.pad_token_id, 0)
        return TextEncoderConfig(
            vocab=theirs.vocab_size,
            trunk=TrunkConfig(
                dim=theirs.hidden_size,
                depth=theirs.num_hidden_layers,
                heads=theirs.num_attention_heads,
                ffn_dim=theirs.intermediate_size,
                activation=our_activation(theirs.hidden_act),
                norm_eps=float(theirs.layer_norm_eps),
                dropout=float(theirs.hidden_dropout_prob),
                **_POST_NORM,
            ),
            embedding_positions=theirs.max_position_embeddings,
            position_offset=pad + 1 if family == "RoBERTa" else 0,
            types=theirs.type_vocab_size,
            pad_id=pad,
            pooler="pooler.dense.weight" in state,
            head=head,
        )

    return read


def _writer(family: str) -> Callable[[TextEncoderConfig], dict[str, Any]]:
    prefix, model_type = ("Roberta", "roberta") if family == "RoBERTa" else ("Bert", "bert")

    def write(ours: TextEncoderConfig) -> dict[str, Any]:
        trunk = ours.trunk
        require_trunk(trunk, family, **_POST_NORM)
        require_whole_heads(trunk, family)
        if family == "RoBERTa" and ours.head:
            require_trunk(trunk, family, activation="gelu")
        if ours.position_offset not in (0, ours.pad_id + 1):
            raise ModelError(
                f"position_offset={ours.position_offset} with pad_id={ours.pad_id}: RoBERTa counts from pad_id + 1, "
                "BERT from 0; save it as a leaven model with save_model"
            )
        return {
            "model_type": model_type,
            "architectures": [f"{prefix}ForMaskedLM" if ours.head else f"{prefix}Model"],
            "vocab_size": ours.vocab,
            "hidden_size": trunk.dim,
            "num_hidden_layers": trunk.depth,
            "num_attention_heads": trunk.heads,
            "intermediate_size": trunk.ffn_dim,
            "hidden_act": their_activation(trunk.activation),
            "hidden_dropout_prob": trunk.dropout,
            "attention_probs_dropout_prob": trunk.dropout,
            "max_position_embeddings": ours.embedding_positions,
            "type_vocab_size": ours.types,
            "layer_norm_eps": trunk.norm_eps,
            "pad_token_id": ours.pad_id,
            "tie_word_embeddings": True,
        }

    return write


def _rows(transform: str, norm: str, bias: str) -> Callable[[TextEncoderConfig], list[Row]]:
    def rows(config: TextEncoderConfig) -> list[Row]:
        table = [
            Row("embed.tokens.weight", (_EMBEDDING,)),
            Row("embed.positions.weight", ("embeddings.position_embeddings.weight",)),
            Row("embed.types.weight", ("embeddings.token_type_embeddings.weight",)),
            *affine("embed.norm", "embeddings.LayerNorm"),
        ]
        for i in range(config.trunk.depth):
            ours, theirs = f"encoder.blocks.{i}", f"encoder.layer.{i}"
            attention = f"{theirs}.attention"
            table += affine(f"{ours}.attn.qkv_proj", *(f"{attention}.self.{p}" for p in ("query", "key", "value")))
            table += affine(f"{ours}.attn.out_proj", f"{attention}.output.dense")
            table += affine(f"{ours}.attn_norm", f"{attention}.output.LayerNorm")
            table += affine(f"{ours}.ffn.up_proj", f"{theirs}.intermediate.dense")
            table += affine(f"{ours}.ffn.down_proj", f"{theirs}.output.dense")
            table += affine(f"{ours}.ffn_norm", f"{theirs}.output.LayerNorm")
        if config.pooler:
            table += affine("pooler", "pooler.dense")
        if config.head:
            table += affine("head.transform.dense", transform)
            table += affine("head.transform.norm", norm)
            table.append(Row("head.proj.bias", (bias,)))
        return table

    return rows


# Early checkpoints name the parts of a norm as TensorFlow did, and store the positions' own indices.
_RENAMES = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
_IGNORED = (r"embeddings\.position_ids$", r"embeddings\.token_type_ids$")

BERT = Family(
    model_type="bert",
    architecture="text-encoder",
    architectures=("BertForMaskedLM", "BertModel", "BertForPreTraining"),
    read_config=_reader("BERT", "cls.predictions.transform.dense", "cls.predictions.decoder.weight"),
    write_config=_writer("BERT"),
    rows=_rows("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
    output="cls.predictions.decoder.weight",
    prefix="bert.",
    heads=("cls.",),
    bare="BertModel",
    renames=_RENAMES,
    # The next-sentence head is no part of the trunk's model; nothing else reads it.
    ignored=(*_IGNORED, r"^cls\.seq_relationship\."),
    aliases={"cls.predictions.bias": ("cls.predictions.decoder.bias",)},
    duplicates={"cls.predictions.decoder.bias": "cls.predictions.bias"},
)

ROBERTA = Family(
    model_type="roberta",
    architecture="text-encoder",
    architectures=("RobertaForMaskedLM", "RobertaModel"),
    read_config=_reader("RoBERTa", "lm_head.dense", "lm_head.decoder.weight"),
    write_config=_writer("RoBERTa"),
    rows=_rows("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    output="lm_head.decoder.weight",
    prefix="roberta.",
    heads=("lm_head.",),
    bare="RobertaModel",
    renames=_RENAMES,
    ignored=_IGNORED,
    aliases={"lm_head.bias": ("lm_head.decoder.bias",)},
    duplicates={"lm_head.decoder.bias": "lm_head.bias"},
)
