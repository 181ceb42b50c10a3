"""Models that the trunk does not express, used as they are; and any module as features."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from leaven.contracts import Tokens
from leaven.errors import ModelError
from leaven.models.bridge import (
    ForeignEncoder,
    ForeignEncoderDecoder,
    ForeignLanguageModel,
    as_features,
    load_huggingface,
    wrap,
)
from leaven.models.bridge.foreign_cache import KeptCache, RecomputedCache

VOCAB = 53


def randomised(model: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def bart() -> Any:
    config = transformers.BartConfig(
        vocab_size=VOCAB, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=20, decoder_ffn_dim=20, max_position_embeddings=40,
    )  # fmt: skip
    model = randomised(transformers.BartForConditionalGeneration(config))
    model.final_logits_bias.copy_(torch.linspace(-1, 1, VOCAB)[None])
    return model


def umt5() -> Any:
    """Divides its states by the root of the width before the output matrix."""
    config = transformers.UMT5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=20, num_layers=1, num_heads=2)
    return randomised(transformers.UMT5ForConditionalGeneration(config))


def two_towers() -> Any:
    """An encoder-decoder of two models, whose decoder gives scores alone."""
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 20, "pad_token_id": 1}  # fmt: skip
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.BertConfig(**sizes), transformers.BertConfig(**sizes)
    )
    config.decoder_start_token_id, config.pad_token_id = 4, 1
    return randomised(transformers.EncoderDecoderModel(config=config))


@pytest.fixture
def source() -> tuple[Tensor, Tensor]:
    ids = torch.randint(3, VOCAB, (2, 7), generator=torch.Generator().manual_seed(5))
    return ids, torch.tensor([[1] * 7, [1] * 4 + [0] * 3])


@pytest.mark.parametrize(("make", "scale"), [(bart, 1.0), (umt5, 0.25), (two_towers, None)])
def test_encoder_decoder_as_it_is(make: Any, scale: float | None, source: tuple[Tensor, Tensor]) -> None:
    theirs = make()
    ours = wrap(theirs)
    assert isinstance(ours, ForeignEncoderDecoder)
    assert ours.scores.scale == scale
    assert isinstance(ours.make_cache(), KeptCache)
    assert not any(module.training for module in ours.modules())
    ids, mask = source
    decoded = torch.randint(3, VOCAB, (6, 5), generator=torch.Generator().manual_seed(6))
    memory = ours.encode(ids, mask)
    whole = ours.logits(ours.decode(decoded, memory))
    many = {"input_ids": ids.repeat_interleave(3, 0), "attention_mask": mask.repeat_interleave(3, 0)}
    torch.testing.assert_close(whole, theirs(**many, decoder_input_ids=decoded).logits, atol=1e-4, rtol=1e-4)
    cache = ours.make_cache()
    parts = [ours.logits(ours.decode(part, memory, cache)) for part in decoded.split([2, 1, 1, 1], dim=1)]
    assert cache.length == 5
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)
    labels = decoded[:2].masked_fill(torch.tensor([[False] * 5, [False, False, True, True, True]]), -100)
    want = theirs(input_ids=ids, attention_mask=mask, labels=labels)
    got = ours(ids, mask, labels=labels)
    torch.testing.assert_close((got.loss, got.logits), (want.loss, want.logits))
    assert {"start_id", "eos_id", "pad_id", "vocab"} <= set(vars(ours.config))
    assert ours.config.vocab == VOCAB


@pytest.mark.parametrize("make", [bart, two_towers])
def test_cache_keeps_the_rows_that_are_selected(make: Any, source: tuple[Tensor, Tensor]) -> None:
    """One start token per source, then three rows each, reordered, then the first source drops out."""
    ours: Any = wrap(make())
    ids, mask = source
    memory, cache = ours.encode(ids, mask), ours.make_cache()
    ours.decode(torch.full((2, 1), 4), memory, cache)
    cache.select(torch.tensor([0, 0, 0, 1, 1, 1]))
    second = torch.arange(10, 16)[:, None]
    ours.decode(second, memory, cache)
    order = torch.tensor([2, 0, 0, 5, 4, 3])
    cache.select(order)
    third = torch.arange(20, 26)[:, None]
    got = ours.logits(ours.decode(third, memory, cache))
    history = torch.cat([torch.full((6, 1), 4), second[order], third], 1)
    torch.testing.assert_close(got, ours.logits(ours.decode(history, memory))[:, -1:], atol=1e-4, rtol=1e-4)
    cache.select(torch.tensor([3, 4, 5]))
    cache.select_memory(torch.tensor([1]))
    memory = Tokens(memory.x[1:], memory.mask[1:])
    last = torch.arange(30, 33)[:, None]
    got = ours.logits(ours.decode(last, memory, cache))
    history = torch.cat([history[3:], last], 1)
    torch.testing.assert_close(got, ours.logits(ours.decode(history, memory))[:, -1:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("recomputed", [False, True])
def test_cache_follows_beams(recomputed: bool, source: tuple[Tensor, Tensor]) -> None:
    ours: Any = wrap(bart())
    ours._caches = not recomputed
    ids, mask = source
    memory, cache = ours.encode(ids, mask), ours.make_cache()
    with pytest.raises(ModelError, match="the cache is empty"):
        cache.branch(3)
    ours.decode(torch.full((2, 1), 2), memory, cache)
    cache.branch(3)
    second, parents = torch.arange(10, 16).view(2, 3), torch.tensor([[2, 0, 0], [1, 1, 2]])
    assert ours.decode(second, memory, cache).shape == (2, 3, 16)
    cache.follow(parents)
    cache.select(torch.tensor([1]))
    cache.select_memory(torch.tensor([1]))
    memory = Tokens(memory.x[1:], memory.mask[1:])
    third = torch.tensor([[30, 31, 32]])
    got = ours.logits(ours.decode(third, memory, cache))
    history = torch.stack([torch.full((3,), 2), second[1][parents[1]], third[0]], 1)
    want = ours.logits(ours.decode(history, memory))[:, -1]
    torch.testing.assert_close(got[0], want, atol=1e-4, rtol=1e-4)


def test_beam_search_finds_what_transformers_finds(source: tuple[Tensor, Tensor]) -> None:
    from leaven.generation.beam_search import beam_search

    theirs = bart()
    ids, mask = source
    want = theirs.generate(
        ids, attention_mask=mask, num_beams=3, num_return_sequences=2, max_new_tokens=12, do_sample=False,
        return_dict_in_generate=True, output_scores=True, forced_eos_token_id=None,
    )  # fmt: skip
    got = beam_search(wrap(theirs), ids, mask, beams=3, n_best=2, max_length=12)
    assert torch.equal(got.ids.flatten(0, 1), want.sequences[:, 1:])
    torch.testing.assert_close(got.scores.flatten(), want.sequences_scores, atol=1e-5, rtol=1e-5)


def opt() -> Any:
    config = transformers.OPTConfig(
        vocab_size=VOCAB, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=2, num_attention_heads=2,
        ffn_dim=20, max_position_embeddings=40,
    )  # fmt: skip
    return randomised(transformers.OPTForCausalLM(config))


def gemma2() -> Any:
    """Caps its scores, so that no matrix turns its states into them."""
    config = transformers.Gemma2Config(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, intermediate_size=20, final_logit_softcapping=2.0, max_position_embeddings=40,
    )  # fmt: skip
    return randomised(transformers.Gemma2ForCausalLM(config))


def mamba() -> Any:
    """Has a state instead of keys, which transformers' cache cannot reorder."""
    config = transformers.MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4)
    return randomised(transformers.MambaForCausalLM(config))


@pytest.mark.parametrize(
    ("make", "scale", "cache"), [(opt, 1.0, KeptCache), (gemma2, None, KeptCache), (mamba, 1.0, RecomputedCache)]
)
def test_language_model_as_it_is(make: Any, scale: float | None, cache: type, source: tuple[Tensor, Tensor]) -> None:
    theirs = make()
    ours = wrap(theirs)
    assert isinstance(ours, ForeignLanguageModel)
    assert ours.scores.scale == scale and isinstance(ours.make_cache(), cache)
    ids, mask = source
    labels = ids.masked_fill(mask == 0, -100)
    want = theirs(ids, attention_mask=mask, labels=labels)
    got = ours(ids, mask, labels=labels)
    torch.testing.assert_close((got.loss, got.logits), (want.loss, want.logits))
    torch.testing.assert_close(ours.logits(ours.states(ids, mask)), want.logits, atol=1e-4, rtol=1e-4)
    cache = ours.make_cache()
    whole = theirs(ids).logits
    parts = [ours.logits(ours.states(part, cache=cache)) for part in ids.split([3, 1, 2, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("recomputed", [False, True])
def test_language_model_follows_beams_behind_a_padded_prompt(recomputed: bool, source: tuple[Tensor, Tensor]) -> None:
    theirs = opt()
    ours: Any = wrap(theirs)
    ours._caches = not recomputed
    ids, mask = source[0], source[1].flip(1)
    cache = ours.make_cache()
    ours.states(ids, mask, positions=(mask.cumsum(1) - 1).clamp(min=0), cache=cache)
    cache.branch(2, mask.bool())
    second, parents, third = (
        torch.tensor([[5, 6], [7, 8]]),
        torch.tensor([[1, 1], [1, 0]]),
        torch.tensor([[9, 3], [4, 5]]),
    )
    positions = mask.sum(1, keepdim=True)
    ours.states(second, positions=positions.expand(2, 2), cache=cache)
    cache.follow(parents)
    got = ours.logits(ours.states(third, positions=positions.expand(2, 2) + 1, cache=cache))
    for row in range(2):
        for beam in range(2):
            line = torch.cat([ids[row][mask[row] == 1], second[row, parents[row, beam]][None], third[row, beam][None]])
            want = theirs(line[None]).logits[0, -1]
            torch.testing.assert_close(got[row, beam], want, atol=1e-4, rtol=1e-4)


def test_folder_of_a_model_that_is_used_as_it_is(tmp_path: Path, source: tuple[Tensor, Tensor]) -> None:
    theirs = bart()
    theirs.save_pretrained(tmp_path)
    ours: Any
    ours, reason = load_huggingface(tmp_path)
    assert "bart is not one of the families" in str(reason)
    assert ours.reason == reason
    ids, mask = source
    labels = torch.randint(3, VOCAB, (2, 5))
    want = theirs(ids, attention_mask=mask, labels=labels).logits
    torch.testing.assert_close(ours(ids, mask, labels=labels).logits, want)


def config_of(kind: str, **values: Any) -> Any:
    sizes: dict[str, dict[str, Any]] = {
        "Bert": {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                 "intermediate_size": 20},
        "T5": {"vocab_size": VOCAB, "d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 1, "num_heads": 2,
               "decoder_start_token_id": 0},
        "GPT2": {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 20, "bos_token_id": 1,
                 "eos_token_id": 2},
        "ViT": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20,
                "image_size": 8, "patch_size": 4},
    }  # fmt: skip
    sizes["Roberta"] = sizes["Bert"]
    return getattr(transformers, f"{kind}Config")(**{**sizes[kind], **values})


INEXPRESSIBLE = [
    ("Bert", "LMHeadModel", {"is_decoder": True}, "BertLMHeadModel is not one of"),
    ("Bert", "Model", {"is_decoder": True}, "is_decoder=True"),
    ("Bert", "Model", {"hidden_act": "mish"}, "no activation 'mish'"),
    ("Bert", "ForSequenceClassification", {}, "BertForSequenceClassification is not one of"),
    ("Bert", "ForMaskedLM", {"tie_word_embeddings": False}, "to which the trunk ties it"),
    ("Roberta", "ForMaskedLM", {"hidden_act": "relu"}, "masked-token head of a RoBERTa is gelu"),
    ("T5", "ForConditionalGeneration", {"feed_forward_proj": "gated-mish"}, "no activation 'mish'"),
    ("T5", "EncoderModel", {}, "T5EncoderModel is not one of"),
    ("GPT2", "LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ("ViT", "Model", {"qkv_bias": False}, "qkv_bias=False"),
    ("ViT", "Model", {"pooler_act": "gelu"}, "pooler_act='gelu'"),
    ("ViT", "Model", {"image_size": [8, 12]}, "image_size=\\[8, 12\\] is not square"),
    ("ViT", "ForMaskedImageModeling", {}, "ViTForMaskedImageModeling is not one of"),
]


@pytest.mark.parametrize("case", INEXPRESSIBLE, ids=lambda case: case[3])
def test_switches_the_trunk_does_not_have(
    case: tuple[str, str, dict[str, Any], str], tmp_path: Path, source: tuple[Tensor, Tensor]
) -> None:
    """The model is used as it is, with the reason, and gives transformers' own numbers."""
    kind, head, values, reason = case
    theirs = randomised(getattr(transformers, f"{kind}{head}")(config_of(kind, **values)))
    theirs.save_pretrained(tmp_path)
    ours: Any
    ours, why = load_huggingface(tmp_path)
    assert why is not None
    assert re.search(reason, why)
    size = values.get("image_size", [8, 8])
    inputs = torch.randn(1, 3, *size) if kind == "ViT" else source[0]
    if isinstance(ours, ForeignEncoder):
        want = theirs.base_model(inputs).last_hidden_state
        torch.testing.assert_close(ours.encode(inputs).x, want)
    elif isinstance(ours, ForeignLanguageModel):
        torch.testing.assert_close(ours.logits(ours.states(inputs)), theirs(inputs).logits, atol=1e-4, rtol=1e-4)
    else:
        want = theirs(input_ids=inputs, labels=inputs).logits
        torch.testing.assert_close(ours(inputs, labels=inputs).logits, want)


def test_any_module_as_features() -> None:
    batch = {"input_ids": torch.randint(3, VOCAB, (2, 6)), "attention_mask": torch.tensor([[1] * 6, [1] * 2 + [0] * 4])}

    class States(nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            return input_ids[..., None].float().expand(-1, -1, 4)

    mean = as_features(States())(batch)
    torch.testing.assert_close(mean[1], batch["input_ids"][1, :2].float().mean().expand(4))
    torch.testing.assert_close(
        as_features(States(), pool="first")(batch)[1], batch["input_ids"][1, 0].float().expand(4)
    )
    pooled = transformers.BertModel(config_of("Bert")).eval()
    assert not as_features(pooled).training
    torch.testing.assert_close(as_features(pooled)(batch), pooled(**batch).pooler_output)
    taken = as_features(pooled, take=lambda out: out.last_hidden_state)(batch)
    torch.testing.assert_close(taken[1], pooled(**batch).last_hidden_state[1, :2].mean(0))
    maps = as_features(nn.Conv2d(3, 5, 3))(torch.randn(2, 3, 8, 8))
    assert maps.shape == (2, 5)


def test_modules_that_give_no_features() -> None:
    class Nothing(nn.Module):
        def forward(self, pixels: Tensor) -> dict[str, int]:
            return {}

    with pytest.raises(ModelError, match="Nothing takes pixels, but the batch has input_ids"):
        as_features(Nothing())({"input_ids": torch.zeros(1)})
    with pytest.raises(ModelError, match="Nothing gives a dict: say what to take"):
        as_features(Nothing())(torch.zeros(1))
    with pytest.raises(ModelError, match=r"got \(4,\)"):
        as_features(nn.Identity())(torch.zeros(4))
    with pytest.raises(ModelError, match="pool='max'"):
        as_features(nn.Identity(), pool="max")  # type: ignore[arg-type]
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 20}
    towers = transformers.SiglipConfig(
        text_config={**sizes, "vocab_size": VOCAB}, vision_config={**sizes, "image_size": 8, "patch_size": 4}
    )
    with pytest.raises(ModelError, match="a siglip cannot encode its input_ids alone"):
        wrap(transformers.SiglipModel(towers)).encode(torch.ones(1, 3, dtype=torch.long))
