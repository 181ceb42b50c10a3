"""Logits of the five families equal transformers' own, in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from leaven.models.bridge import load_huggingface, save_huggingface
from leaven.models.encoder_decoder import ModelOutput

TOLERANCE = 1e-4
VOCAB = 61


def randomised(model: Any, seed: int) -> Any:
    """Weights large enough that a swapped or forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.dim() > 1 else 0.5))
    return model.eval()


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def text(seed: int, *, batch: int = 3, length: int = 9, low: int = 3) -> tuple[Tensor, Tensor]:
    """Random ids and a mask with padding on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(low, VOCAB, (batch, length), generator=generator)
    lengths = torch.tensor([length, length - 3, 2][:batch])
    return ids, (torch.arange(length) < lengths[:, None]).long()


def difference(got: Tensor, want: Tensor, mask: Tensor | None = None) -> float:
    assert got.shape == want.shape
    gap = (got - want).detach().abs()
    if mask is not None:
        gap = gap * mask.bool().reshape(*mask.shape, *([1] * (gap.dim() - mask.dim())))
    assert float(want.detach().abs().max()) > 0.05
    return float(gap.max())


def reloaded(kind: Any, folder: Path) -> Any:
    """What transformers makes of a folder that leaven wrote; it must find every weight and no other."""
    model, told = kind.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    return model.eval()


def in_trunk(folder: Path) -> Any:
    model, reason = load_huggingface(folder)
    assert reason is None
    return model


T5_SHAPES: list[dict[str, Any]] = [
    {"feed_forward_proj": "relu", "tie_word_embeddings": True, "num_layers": 2},
    {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_layers": 2, "num_decoder_layers": 1},
    {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False, "num_layers": 1, "d_kv": 5, "num_heads": 3},
    {"feed_forward_proj": "gelu", "tie_word_embeddings": True, "num_layers": 1, "relative_attention_num_buckets": 8,
     "relative_attention_max_distance": 6},
]  # fmt: skip


def t5(shape: dict[str, Any], seed: int, *, separate_head: bool = False) -> Any:
    values = {"vocab_size": VOCAB, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_heads": 3, "decoder_start_token_id": 0}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**{**values, **shape}))
    if separate_head:
        model.lm_head.weight = nn.Parameter(torch.empty(VOCAB, 24))
    return randomised(model, seed)


@pytest.mark.parametrize("shape", T5_SHAPES)
@pytest.mark.parametrize("separate_head", [False, True])
def test_t5(shape: dict[str, Any], separate_head: bool, tmp_path: Path) -> None:
    theirs = t5(shape, seed=1, separate_head=separate_head)
    ours = in_trunk(saved(theirs, tmp_path / "theirs"))
    assert ours.config.tied is not separate_head
    ids, mask = text(2)
    labels, label_mask = text(3, length=6)
    labels = labels.masked_fill(label_mask == 0, -100)
    want = theirs(ids, attention_mask=mask, labels=labels)
    got = ours(ids, mask, labels=labels)
    assert isinstance(got, ModelOutput)
    assert difference(got.logits, want.logits) < TOLERANCE
    torch.testing.assert_close(got.loss, want.loss, atol=1e-5, rtol=1e-5)
    again = reloaded(transformers.AutoModelForSeq2SeqLM, save_huggingface(ours, tmp_path / "ours"))
    back = again(ids, attention_mask=mask, labels=labels)
    assert difference(back.logits, want.logits) < TOLERANCE
    assert difference(in_trunk(tmp_path / "ours")(ids, mask, labels=labels).logits, want.logits) < TOLERANCE


def test_t5_shifts_labels_and_beams_as_transformers(tmp_path: Path) -> None:
    from leaven.modalities.text import shift_right

    theirs = t5({"decoder_start_token_id": 7, "pad_token_id": 2}, seed=4)
    ours = in_trunk(saved(theirs, tmp_path / "theirs"))
    labels = torch.tensor([[5, 6, -100, 8], [9, -100, -100, -100]])
    assert torch.equal(shift_right(labels, ours.config.start_id, ours.config.pad_id), theirs._shift_right(labels))
    ids, mask = text(5)
    decoded = torch.randint(3, VOCAB, (6, 4))
    got = ours.logits(ours.decode(decoded, ours.encode(ids, mask)))
    twice = {"input_ids": ids.repeat_interleave(2, 0), "attention_mask": mask.repeat_interleave(2, 0)}
    assert difference(got, theirs(**twice, decoder_input_ids=decoded).logits) < TOLERANCE


BERT_SHAPES: list[dict[str, Any]] = [
    {"num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 1},
    {"num_hidden_layers": 1, "num_attention_heads": 4, "layer_norm_eps": 1e-3, "pad_token_id": 2},
]


def bert(name: str, head: str, shape: dict[str, Any], seed: int) -> Any:
    values = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 28, "max_position_embeddings": 20}
    if name == "Roberta":
        values["type_vocab_size"] = 1
    config = getattr(transformers, f"{name}Config")(**{**values, **shape})
    return randomised(getattr(transformers, f"{name}{head}")(config), seed)


@pytest.mark.parametrize("shape", BERT_SHAPES)
@pytest.mark.parametrize("name", ["Bert", "Roberta"])
def test_bert_and_roberta_masked_models(name: str, shape: dict[str, Any], tmp_path: Path) -> None:
    theirs = bert(name, "ForMaskedLM", shape, seed=6)
    ours = in_trunk(saved(theirs, tmp_path / "theirs"))
    ids, mask = text(7)
    ids = ids.masked_fill(mask == 0, shape["pad_token_id"])
    want = theirs(ids, attention_mask=mask).logits
    assert difference(ours(ids, mask).logits, want, mask) < TOLERANCE
    again = reloaded(transformers.AutoModelForMaskedLM, save_huggingface(ours, tmp_path / "ours"))
    assert difference(again(ids, attention_mask=mask).logits, want, mask) < TOLERANCE


@pytest.mark.parametrize("shape", BERT_SHAPES)
@pytest.mark.parametrize("name", ["Bert", "Roberta"])
def test_bert_and_roberta_base(name: str, shape: dict[str, Any], tmp_path: Path) -> None:
    theirs = bert(name, "Model", shape, seed=8)
    ours = in_trunk(saved(theirs, tmp_path / "theirs"))
    ids, mask = text(9)
    ids = ids.masked_fill(mask == 0, shape["pad_token_id"])
    types = torch.randint(0, theirs.config.type_vocab_size, ids.shape)
    want = theirs(ids, attention_mask=mask, token_type_ids=types)
    states = ours.encode(ids, mask, types)
    assert difference(states.x, want.last_hidden_state, mask) < TOLERANCE
    assert difference(ours.pooled(states.x), want.pooler_output) < TOLERANCE
    again = reloaded(transformers.AutoModel, save_huggingface(ours, tmp_path / "ours"))
    back = again(ids, attention_mask=mask, token_type_ids=types)
    assert difference(back.last_hidden_state, want.last_hidden_state, mask) < TOLERANCE
    assert difference(back.pooler_output, want.pooler_output) < TOLERANCE


def test_bert_of_early_checkpoints(tmp_path: Path) -> None:
    """gamma and beta for the norms, stored position ids, a pooler and a next-sentence head beside the masked head."""
    theirs = bert("Bert", "ForPreTraining", BERT_SHAPES[0], seed=10)
    folder = saved(theirs, tmp_path / "theirs")
    state = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for n, tensor in load_file(folder / "model.safetensors").items()
    }
    state["bert.embeddings.position_ids"] = torch.arange(20)[None]
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    ours = in_trunk(folder)
    ids, mask = text(11)
    want = theirs(ids, attention_mask=mask)
    assert difference(ours(ids, mask).logits, want.prediction_logits, mask) < TOLERANCE
    pooled = theirs.bert(ids, attention_mask=mask).pooler_output
    assert difference(ours.pooled(ours.encode(ids, mask).x), pooled) < TOLERANCE
    masked = transformers.BertForMaskedLM.from_pretrained(save_huggingface(ours, tmp_path / "ours")).eval()
    assert difference(masked(ids, attention_mask=mask).logits, want.prediction_logits, mask) < TOLERANCE


GPT2_SHAPES: list[dict[str, Any]] = [
    {"n_layer": 2, "n_head": 2, "tie_word_embeddings": True},
    {"n_layer": 1, "n_head": 4, "n_inner": 20, "activation_function": "relu", "tie_word_embeddings": False},
    {"n_layer": 2, "n_head": 1, "activation_function": "silu", "layer_norm_epsilon": 1e-3},
]


def gpt2(shape: dict[str, Any], seed: int, head: str = "LMHeadModel") -> Any:
    values = {"vocab_size": VOCAB, "n_embd": 16, "n_positions": 24, "bos_token_id": 1, "eos_token_id": 2}
    return randomised(getattr(transformers, f"GPT2{head}")(transformers.GPT2Config(**{**values, **shape})), seed)


@pytest.mark.parametrize("shape", GPT2_SHAPES)
def test_gpt2(shape: dict[str, Any], tmp_path: Path) -> None:
    theirs = gpt2(shape, seed=12)
    ours = in_trunk(saved(theirs, tmp_path / "theirs"))
    ids, mask = text(13)
    labels = ids.masked_fill(mask == 0, -100)
    want = theirs(ids, attention_mask=mask, labels=labels)
    got = ours(ids, mask, labels=labels)
    assert difference(got.logits, want.logits, mask) < TOLERANCE
    torch.testing.assert_close(got.loss, want.loss, atol=1e-5, rtol=1e-5)
    again = reloaded(transformers.AutoModelForCausalLM, save_huggingface(ours, tmp_path / "ours"))
    assert difference(again(ids, attention_mask=mask).logits, want.logits, mask) < TOLERANCE


def test_gpt2_without_prefix_and_with_stored_masks(tmp_path: Path) -> None:
    theirs = gpt2(GPT2_SHAPES[0], seed=14, head="Model")
    folder = saved(theirs, tmp_path / "theirs")
    state = load_file(folder / "model.safetensors")
    assert "wte.weight" in state
    state |= {"h.0.attn.bias": torch.ones(1, 1, 24, 24).tril().byte(), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    ids, mask = text(15)
    assert difference(in_trunk(folder).states(ids, mask), theirs(ids, attention_mask=mask)[0], mask) < TOLERANCE


VIT_SHAPES: list[dict[str, Any]] = [
    {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 12, "patch_size": 4},
    {"num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 10, "patch_size": 5, "num_channels": 1,
     "hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
    {"num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 4, "patch_size": 4},
]  # fmt: skip


def vit(shape: dict[str, Any], head: str, seed: int) -> tuple[Any, Tensor]:
    values = {"hidden_size": 16, "intermediate_size": 28, "num_labels": 5}
    config = transformers.ViTConfig(**{**values, **shape})
    images = torch.randn(3, config.num_channels, config.image_size, config.image_size)
    return randomised(getattr(transformers, f"ViT{head}")(config), seed), images


@pytest.mark.parametrize("shape", VIT_SHAPES)
def test_vit(shape: dict[str, Any], tmp_path: Path) -> None:
    theirs, images = vit(shape, "ForImageClassification", seed=16)
    ours = in_trunk(saved(theirs, tmp_path / "theirs"))
    want = theirs(images).logits
    assert difference(ours(images), want) < TOLERANCE
    again = reloaded(transformers.AutoModelForImageClassification, save_huggingface(ours, tmp_path / "ours"))
    assert difference(again(images).logits, want) < TOLERANCE

    theirs, images = vit(shape, "Model", seed=17)
    ours = in_trunk(saved(theirs, tmp_path / "base"))
    want = theirs(images)
    states = ours.encode(images).x
    assert difference(states, want.last_hidden_state) < TOLERANCE
    assert difference(ours.pooled(states), want.pooler_output) < TOLERANCE
    again = reloaded(transformers.AutoModel, save_huggingface(ours, tmp_path / "ours-base"))
    assert difference(again(images).pooler_output, want.pooler_output) < TOLERANCE


def test_vit_without_head_or_pooler_and_with_names_in_memory(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    theirs, images = vit(VIT_SHAPES[0], "Model", seed=18)
    folder = saved(theirs, tmp_path / "theirs")
    save_file(
        {n: tensor.contiguous() for n, tensor in theirs.state_dict().items() if not n.startswith("pooler")},
        folder / "model.safetensors",
    )
    ours = in_trunk(folder)
    want = theirs(images).last_hidden_state[:, 0]
    assert difference(ours(images), want) < TOLERANCE
    again = reloaded(transformers.AutoModelForImageClassification, save_huggingface(ours, tmp_path / "ours"))
    assert difference(again(images).logits, want) < TOLERANCE


@pytest.mark.parametrize("eos", [2, 60])
@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_clip(eos: int, act: str, tmp_path: Path) -> None:
    text_part = {
        "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 12, "eos_token_id": eos, "bos_token_id": 0,
        "hidden_act": act,
    }  # fmt: skip
    vision_part = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 3,
        "image_size": 8, "patch_size": 4, "hidden_act": act,
    }  # fmt: skip
    config = transformers.CLIPConfig(text_config=text_part, vision_config=vision_part, projection_dim=10)
    theirs = randomised(transformers.CLIPModel(config), seed=19)
    ours = in_trunk(saved(theirs, tmp_path / "theirs"))
    assert ours.config.eos_id == (None if eos == 2 else eos)
    ids, mask = text(20, length=9)
    ids = ids.clamp(max=VOCAB - 2)
    ids[torch.arange(3), mask.sum(1) - 1] = VOCAB - 1
    images = torch.randn(2, 3, 8, 8)
    want = theirs(input_ids=ids, attention_mask=mask, pixel_values=images).logits_per_image
    assert difference(ours(ids, images, mask), want) < TOLERANCE
    again = reloaded(transformers.AutoModel, save_huggingface(ours, tmp_path / "ours"))
    assert difference(again(input_ids=ids, attention_mask=mask, pixel_values=images).logits_per_image, want) < TOLERANCE


def test_codet5_configuration_as_published(tmp_path: Path) -> None:
    """The config.json of Salesforce/codet5-small, with fewer layers and ids."""
    values = {
        "_name_or_path": "codet5-small", "architectures": ["T5ForConditionalGeneration"], "bos_token_id": 1,
        "d_ff": 2048, "d_kv": 64, "d_model": 512, "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 2,
        "feed_forward_proj": "relu", "gradient_checkpointing": False, "initializer_factor": 1.0,
        "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512,
        "num_decoder_layers": 1, "num_heads": 8, "num_layers": 1, "output_past": True, "pad_token_id": 0,
        "relative_attention_num_buckets": 32, "torch_dtype": "float32", "transformers_version": "4.10.2",
        "use_cache": True, "vocab_size": 400,
    }  # fmt: skip
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**values)).eval()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(values))
    ours = in_trunk(tmp_path)
    c = ours.config
    assert (c.start_id, c.eos_id, c.pad_id, c.tied, c.scaled_logits, c.encoder.head_dim) == (0, 2, 0, True, True, 64)
    ids, mask = text(21)
    labels = text(22)[0]
    want = theirs(ids, attention_mask=mask, labels=labels).logits
    assert difference(ours(ids, mask, labels=labels).logits, want) < TOLERANCE
