"""Soft tokens: true concatenation at the input, peft's prompt tuning, and prompts of every layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adapt.peft.small_models import (
    DEPTH,
    DIM,
    HEADS,
    SMALL,
    VOCAB,
    bert,
    disturb,
    gpt2,
    ids,
    mask,
    pixels,
    randomised,
    roberta,
    text_encoder,
    torch_encoder,
    vit,
)
from torch import nn

from leaven.adapt.peft import PromptTuning, merge, trainable_report
from leaven.contracts import Tokens
from leaven.errors import ConfigError, ModelError
from leaven.models.language_model import LanguageModel, LanguageModelConfig
from leaven.models.trunk import Trunk, TrunkConfig


def trunk(**options: Any) -> Trunk:
    return randomised(Trunk(TrunkConfig(dim=DIM, depth=DEPTH, heads=HEADS, **options)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("positions", ["rotary", "t5", "learned", "none"])
@pytest.mark.parametrize("mode", ["bidirectional", "causal"])
@pytest.mark.parametrize("at", ["start", "after-first"])
def test_trunk_reads_the_prompts_among_its_tokens(positions: str, mode: Any, at: str) -> None:
    model, plain = trunk(positions=positions), trunk(positions=positions)
    PromptTuning(length=3, position=at).apply(model)  # type: ignore[arg-type]
    x = torch.randn(3, 7, DIM, generator=torch.Generator().manual_seed(1))
    soft = model.prompt.prompts[0].detach().expand(3, -1, -1)
    cut = 0 if at == "start" else 1
    joined = torch.cat([x[:, :cut], soft, x[:, cut:]], 1)
    real = torch.cat([torch.ones(3, 3).bool(), mask().bool()], 1)
    with torch.no_grad():
        want = plain(Tokens(joined, real), mode)
        want = torch.cat([want[:, :cut], want[:, cut + 3 :]], 1)
        torch.testing.assert_close(model(Tokens(x, mask().bool()), mode), want)
        given = torch.arange(7).expand(3, -1)
        torch.testing.assert_close(model(tokens=Tokens(x, mask().bool(), given), mode=mode), want)


def test_deep_prompts_replace_those_of_the_layer_before() -> None:
    model, plain = trunk(positions="none"), trunk(positions="none")
    PromptTuning(length=2, deep=True, position="after-first").apply(model)
    disturb(model)
    x = torch.randn(2, 5, DIM)
    state = x
    with torch.no_grad():
        for block, soft in zip(plain.blocks, model.prompt.prompts, strict=True):
            state = torch.cat([state[:, :1], soft.expand(2, -1, -1), state[:, 1:]], 1)
            state = block(state, None, causal=False, angles=None, memory=None, memory_bias=None, cache=None)
            state = torch.cat([state[:, :1], state[:, 3:]], 1)
        torch.testing.assert_close(model(Tokens(x)), plain.norm(state))
    assert trainable_report(model).adapter == DEPTH * 2 * DIM


def test_vision_transformer_prompts_stand_behind_the_class_token() -> None:
    """VPT (arXiv 2203.12119 equations 4 to 8) by hand on the layers of a Hugging Face ViT."""
    for deep in (False, True):
        model, plain = vit(), vit()
        PromptTuning(length=3, deep=deep, position="after-first").apply(model)
        disturb(model)
        body = plain.vit
        prompts = model.vit.layers[0].prompt.prompts.detach()
        with torch.no_grad():
            state = body.embeddings(pixels())
            for index, layer in enumerate(body.layers):
                if index == 0 or deep:
                    soft = prompts[index].expand(3, -1, -1)
                    state = torch.cat([state[:, :1], soft, state[:, 1 if index == 0 else 4 :]], 1)
                state = layer(state)
            want = plain.classifier(body.layernorm(state)[:, 0])
            torch.testing.assert_close(model(pixels()).logits, want, rtol=1e-5, atol=1e-5)
            assert model.vit(pixels()).last_hidden_state.shape == (3, 5, DIM)


def test_gpt2_equals_pefts_prompt_tuning() -> None:
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(
        gpt2(), peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM", num_layers=2, token_dim=DIM)
    ).eval()
    ours = PromptTuning(length=4).apply(gpt2())
    padding = torch.ones(3, 7, dtype=torch.long)
    padding[2, 4:] = 0
    with torch.no_grad():
        ours.transformer.prompt.prompts[0] = theirs.prompt_encoder.default.embedding.weight
        want = theirs(input_ids=ids(), attention_mask=padding).logits[:, 4:]
        got = ours(input_ids=ids(), attention_mask=padding).logits
    seen = padding.bool()
    torch.testing.assert_close(got[seen], want[seen], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [bert, roberta])
def test_encoders_keep_their_first_token(make: Any) -> None:
    model, plain = make(), make()
    PromptTuning(length=2, position="after-first").apply(model)
    body = model.base_model
    soft = body.prompt.prompts[0].detach().expand(3, -1, -1)
    embedded = plain.base_model.get_input_embeddings()(ids())
    with torch.no_grad():
        joined = torch.cat([embedded[:, :1], soft, embedded[:, 1:]], 1)
        wide = torch.cat([mask()[:, :1], torch.ones(3, 2, dtype=torch.long), mask()[:, 1:]], 1)
        want = plain(inputs_embeds=joined, attention_mask=wide, output_hidden_states=True)
        got = model(ids(), mask(), output_hidden_states=True)
    torch.testing.assert_close(got.logits, want.logits)
    assert body(ids(), mask()).last_hidden_state.shape == (3, 7, DIM)


def test_prompts_start_as_words_when_asked() -> None:
    model = PromptTuning(length=5, init="vocabulary").apply(gpt2(), torch.Generator().manual_seed(1))
    table = model.transformer.wte.weight
    assert all(bool((table == soft).all(1).any()) for soft in model.transformer.prompt.prompts[0])


def test_what_does_not_go_with_soft_tokens() -> None:
    with pytest.raises(ConfigError, match="the pooler reads the first state"):
        PromptTuning().apply(bert())
    with pytest.raises(ConfigError, match="in no list of layers"):
        PromptTuning().apply(torch_encoder().layers[0])
    with pytest.raises(ConfigError, match="without batch_first=True"):
        PromptTuning().apply(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 1))
    with pytest.raises(ConfigError, match="embeds no tokens"):
        PromptTuning(init="vocabulary").apply(trunk())
    with pytest.raises(ConfigError, match="length=0"):
        PromptTuning(length=0)
    model = PromptTuning(length=2).apply(gpt2())
    cache = gpt2()(ids(), use_cache=True).past_key_values
    with pytest.raises(ModelError, match="use_cache=False"):
        model(ids()[:, :1], past_key_values=cache)
    with pytest.raises(ModelError, match="position_ids"):
        model(ids(), position_ids=torch.arange(7)[None])
    with pytest.raises(ModelError, match="cannot be merged into weights: it adds tokens"):
        merge(model)
    masked = PromptTuning(length=2).apply(torch_encoder())
    with pytest.raises(ModelError, match="called with masks or positions"):
        masked(torch.randn(2, 5, DIM), mask=torch.zeros(5, 5))
    causal = PromptTuning(length=2).apply(
        randomised(LanguageModel(LanguageModelConfig(VOCAB, TrunkConfig(dim=DIM, depth=1, heads=HEADS))))
    )
    with pytest.raises(ModelError, match="called with cache"):
        causal.states(ids(), cache=causal.make_cache())
    assert causal.states(ids(), mode="prefix", prefix_length=torch.tensor([1, 2, 3])).shape == (3, 7, DIM)


def test_encoder_decoder_has_prompts_in_the_encoder() -> None:
    for name in ("seq2seq", "t5"):
        model = PromptTuning(length=2).apply(SMALL[name]().model)
        assert [n for n, _ in model.named_parameters() if "prompt" in n] == ["encoder.prompt.prompts"]
    assert text_encoder().encode(ids()).x.shape == (3, 7, DIM)
