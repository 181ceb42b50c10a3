from collections.abc import Callable
from typing import Any

import pytest
import torch

from leaven.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from leaven.models.language_model import LanguageModel, LanguageModelConfig
from leaven.models.trunk import TrunkConfig


def _copied(theirs: Any, depth: int) -> dict[str, torch.Tensor]:
    state = theirs.state_dict()
    ours = {"embed.tokens.weight": state["shared.weight"], "head.proj.weight": state["shared.weight"]}
    for side in ("encoder", "decoder"):
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        ours[f"{side}.relative_bias.weight"] = state[bias]
        ours[f"{side}.norm.weight"] = state[f"{side}.final_layer_norm.weight"]
        for i in range(depth):
            own, layer = f"{side}.blocks.{i}", f"{side}.block.{i}.layer"
            attention = f"{layer}.0.SelfAttention"
            ours[f"{own}.attn.qkv_proj.weight"] = torch.cat([state[f"{attention}.{part}.weight"] for part in "qkv"])
            ours[f"{own}.attn.out_proj.weight"] = state[f"{attention}.o.weight"]
            ours[f"{own}.attn_norm.weight"] = state[f"{layer}.0.layer_norm.weight"]
            if side == "decoder":
                attention = f"{layer}.1.EncDecAttention"
                ours[f"{own}.cross_attn.q_proj.weight"] = state[f"{attention}.q.weight"]
                memory = [state[f"{attention}.{part}.weight"] for part in "kv"]
                ours[f"{own}.cross_attn.kv_proj.weight"] = torch.cat(memory)
                ours[f"{own}.cross_attn.out_proj.weight"] = state[f"{attention}.o.weight"]
                ours[f"{own}.cross_norm.weight"] = state[f"{layer}.1.layer_norm.weight"]
            ffn = f"{layer}.{2 if side == 'decoder' else 1}"
            ours[f"{own}.ffn.up_proj.weight"] = state[f"{ffn}.DenseReluDense.wi.weight"]
            ours[f"{own}.ffn.down_proj.weight"] = state[f"{ffn}.DenseReluDense.wo.weight"]
            ours[f"{own}.ffn_norm.weight"] = state[f"{ffn}.layer_norm.weight"]
    return ours


@pytest.fixture(scope="session")
def t5_pair() -> Callable[..., tuple[Any, EncoderDecoder]]:
    """A random T5 of transformers and the same weights in the trunk."""

    def build(vocab: int = 90, dim: int = 32, depth: int = 2, *, seed: int = 0, end: float = 1.0) -> Any:
        from transformers import T5Config, T5ForConditionalGeneration

        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=vocab, d_model=dim, d_kv=dim // 4, d_ff=2 * dim, num_layers=depth, num_decoder_layers=depth,
            num_heads=4, dropout_rate=0.0, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0,
        )  # fmt: skip
        theirs = T5ForConditionalGeneration(config).eval()
        with torch.no_grad():
            # Random weights repeat what they read, as the input's vector lives on in the residual. A small embedding
            # and a large last norm make varied sequences, a long end token makes some of them end.
            theirs.shared.weight.mul_(0.1)
            theirs.decoder.final_layer_norm.weight.mul_(10.0)
            theirs.shared.weight[2] *= end
        ours = EncoderDecoder(EncoderDecoderConfig.t5(vocab, dim, depth, 4, ffn_dim=2 * dim)).eval()
        ours.load_state_dict(_copied(theirs, depth))
        return theirs, ours

    return build


@pytest.fixture(scope="session")
def language_model() -> Callable[..., LanguageModel]:
    """A random decoder-only model, sharpened so that its distributions are not flat."""

    def build(vocab: int = 12, positions: str = "rotary", *, seed: int = 0) -> LanguageModel:
        torch.manual_seed(seed)
        trunk = TrunkConfig(dim=16, depth=2, heads=2, positions=positions, bidirectional_bias=False)  # type: ignore[arg-type]
        learned = 0 if positions != "none" else 32
        model = LanguageModel(LanguageModelConfig(vocab, trunk, tied=False, embedding_positions=learned)).eval()
        for weight in model.parameters():
            if weight.dim() == 2:
                torch.nn.init.normal_(weight, std=0.4)
        return model

    return build
