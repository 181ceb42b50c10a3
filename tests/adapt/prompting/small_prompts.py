"""Small tokenizers and language models with random weights, and a toy task that can be learnt in seconds."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from leaven.modalities.code_tokenizer import CodeTokenizer
from leaven.models.encoder import TextEncoder, TextEncoderConfig
from leaven.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from leaven.models.language_model import LanguageModel, LanguageModelConfig
from leaven.models.trunk import TrunkConfig

DIM, CONTEXT = 24, 40
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<extra_id_0>"]
_KNOWN = """
red green blue warm cold sun ice fire snow rain summer winter it is was about the a this topic of text . , : hot chill
paris lives in john person city x y z n / un ##kind ##ly
"""
WORDS = _KNOWN.split()
COLD = {"cold": "cold", "warm": "warm"}
SENTENCES = {
    "cold": ["ice snow", "snow winter rain", "winter ice", "the snow is ice", "rain ice winter", "snow"],
    "warm": ["sun fire", "fire summer sun", "summer sun", "the sun is fire", "fire sun summer", "summer"],
}
TEXTS = [text for label in SENTENCES for text in SENTENCES[label]]
LABELS = [label for label in SENTENCES for _ in SENTENCES[label]]
CLOZE, PREFIX = "{text} . it is {mask} .", "{text} . it is {mask}"


def word_tokenizer(*, mask: bool = True) -> Any:
    vocabulary = {token: at for at, token in enumerate(SPECIALS + WORDS)}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        additional_special_tokens=["<extra_id_0>"], **({"mask_token": "[MASK]"} if mask else {}),
    )  # fmt: skip


def byte_tokenizer() -> CodeTokenizer:
    """Byte-level BPE, in which a word after a space is another token than without."""
    text = [" ".join(WORDS), "good bad great", " ".join(TEXTS), " good bad great cold warm is about it was."] * 4
    return CodeTokenizer.train(text, vocab_size=600, min_frequency=2)


def randomised(model: nn.Module, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 or name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


VOCAB = len(SPECIALS) + len(WORDS)


def bert(vocab: int = VOCAB, **options: Any) -> Any:
    config = transformers.BertConfig(
        vocab_size=vocab, hidden_size=DIM, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=CONTEXT, pad_token_id=0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        **options,
    )  # fmt: skip
    return randomised(transformers.BertForMaskedLM(config))


def roberta() -> Any:
    config = transformers.RobertaConfig(
        vocab_size=VOCAB, hidden_size=DIM, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=CONTEXT, pad_token_id=0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return randomised(transformers.RobertaForMaskedLM(config))


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=DIM, n_layer=2, n_head=4, n_positions=CONTEXT, bos_token_id=2, eos_token_id=3,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return randomised(transformers.GPT2LMHeadModel(config))


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=DIM, d_kv=6, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0,
        pad_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    return randomised(transformers.T5ForConditionalGeneration(config))


def text_encoder(vocab: int = VOCAB) -> TextEncoder:
    trunk = TrunkConfig(
        DIM, 2, 4, ffn_dim=32, norm="layer", bias=True, pre_norm=False, final_norm=False, positions="none"
    )
    return randomised(TextEncoder(TextEncoderConfig(vocab, trunk, embedding_positions=CONTEXT)))


def language_model(vocab: int = VOCAB) -> LanguageModel:
    return randomised(LanguageModel(LanguageModelConfig(vocab, TrunkConfig(DIM, 2, 4, ffn_dim=32))))


def encoder_decoder() -> EncoderDecoder:
    return randomised(EncoderDecoder(EncoderDecoderConfig.t5(VOCAB, DIM, 2, 4, ffn_dim=32)))


MODELS = {
    "bert": bert, "roberta": roberta, "gpt2": gpt2, "t5": t5, "text-encoder": text_encoder,
    "language-model": language_model, "encoder-decoder": encoder_decoder,
}  # fmt: skip


def checksum(module: nn.Module | None) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items() if module is not None else ()):
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
