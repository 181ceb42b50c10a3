"""Small models with random weights large enough that a mistake shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from leaven.models.encoder import TextEncoder, TextEncoderConfig
from leaven.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from leaven.models.trunk import TrunkConfig
from leaven.models.vision import ImageEncoder, ImageEncoderConfig

VOCAB, DIM, DEPTH, HEADS, FFN = 61, 32, 2, 4, 48


class Small(NamedTuple):
    model: Any
    run: Callable[[Any], Tensor]


def randomised(model: nn.Module, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def ids(seed: int = 1, length: int = 7) -> Tensor:
    return torch.randint(3, VOCAB, (3, length), generator=torch.Generator().manual_seed(seed))


def mask() -> Tensor:
    return (torch.arange(7) < torch.tensor([7, 4, 2])[:, None]).long()


def pixels() -> Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def text_encoder(**trunk: Any) -> TextEncoder:
    options = {"norm": "layer", "bias": True, "pre_norm": False, "final_norm": False, "positions": "none", **trunk}
    config = TrunkConfig(dim=DIM, depth=DEPTH, heads=HEADS, ffn_dim=FFN, **options)
    return randomised(TextEncoder(TextEncoderConfig(VOCAB, config, embedding_positions=40)))


def bert(**options: Any) -> Any:
    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=FFN,
        max_position_embeddings=40, num_labels=3, **options,
    )  # fmt: skip
    return randomised(transformers.BertForSequenceClassification(config))


def roberta() -> Any:
    config = transformers.RobertaConfig(
        vocab_size=VOCAB, hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=FFN,
        max_position_embeddings=40, num_labels=3,
    )  # fmt: skip
    return randomised(transformers.RobertaForSequenceClassification(config))


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=DIM, n_layer=DEPTH, n_head=HEADS, n_positions=40, bos_token_id=1, eos_token_id=2
    )
    return randomised(transformers.GPT2LMHeadModel(config))


def vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=FFN, image_size=8,
        patch_size=4, num_labels=3,
    )  # fmt: skip
    return randomised(transformers.ViTForImageClassification(config))


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=DIM, d_kv=8, d_ff=FFN, num_layers=DEPTH, num_heads=HEADS, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return randomised(transformers.T5ForConditionalGeneration(config))


def torch_encoder() -> Any:
    layer = nn.TransformerEncoderLayer(DIM, HEADS, FFN, batch_first=True)
    return randomised(nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False))


def trunk_text() -> Small:
    return Small(text_encoder(), lambda m: m.encode(ids(), mask()).x[:, :2])


def seq2seq() -> Small:
    model = randomised(EncoderDecoder(EncoderDecoderConfig.t5(VOCAB, DIM, DEPTH, HEADS, ffn_dim=FFN)))
    return Small(model, lambda m: m(ids(), mask(), labels=ids(5, 4)).logits)


def trunk_image() -> Small:
    config = TrunkConfig(dim=DIM, depth=DEPTH, heads=HEADS, ffn_dim=FFN, norm="layer", bias=True, positions="none")
    return Small(randomised(ImageEncoder(ImageEncoderConfig(config, size=8, patch=4, labels=3))), lambda m: m(pixels()))


SMALL: dict[str, Callable[[], Small]] = {
    "trunk": trunk_text,
    "seq2seq": seq2seq,
    "image": trunk_image,
    "bert": lambda: Small(bert(), lambda m: m(ids(), attention_mask=mask()).logits),
    "roberta": lambda: Small(roberta(), lambda m: m(ids(), attention_mask=mask()).logits),
    "gpt2": lambda: Small(gpt2(), lambda m: m(ids()).logits),
    "vit": lambda: Small(vit(), lambda m: m(pixels()).logits),
    "t5": lambda: Small(t5(), lambda m: m(ids(), attention_mask=mask(), labels=ids(5, 4)).logits),
    "torch": lambda: Small(
        torch_encoder(), lambda m: m(torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(3)))
    ),
}


def disturb(model: nn.Module, size: float = 0.1, seed: int = 9) -> None:
    """Change everything that trains, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
