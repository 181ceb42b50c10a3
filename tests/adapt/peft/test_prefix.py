"""Prefixes against the gated formula, against true concatenation, and against the compensated formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from adapt.peft.small_models import DIM, HEADS, SMALL, VOCAB, bert, disturb, gpt2, ids, mask, randomised, text_encoder
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.adapt.peft import Delta, LoRA, Prefix, adapter_parameters, save_adapter, settle, trainable_report
from leaven.contracts import Tokens
from leaven.errors import ConfigError, ModelError
from leaven.models.attention import Attention
from leaven.models.language_model import LanguageModel, LanguageModelConfig
from leaven.models.trunk import TrunkConfig

SIZE = DIM // HEADS


class OneAttention(nn.Module):
    """A user's own module: four maps and one call of torch's attention."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(DIM, DIM) for _ in range(4))
        self.causal = causal

    def heads(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1, HEADS, SIZE).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.heads(p(x)) for p in (self.q_proj, self.k_proj, self.v_proj))
        h = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        out: Tensor = self.out_proj(h.transpose(1, 2).flatten(2))
        return out


def by_hand(model: OneAttention, x: Tensor) -> dict[str, Tensor]:
    """Attention h and change of each head, and the share lambda of attention that falls on the prefix."""
    prefix_key, prefix_value = (model.heads(p[None]) for p in model.prefix_tuning.keys_and_values())
    query, key, value = (model.heads(p(x)) for p in (model.q_proj, model.k_proj, model.v_proj))
    on_prefix = query @ prefix_key.transpose(-1, -2) / SIZE**0.5
    on_tokens = query @ key.transpose(-1, -2) / SIZE**0.5
    if model.causal:
        on_tokens = on_tokens.masked_fill(torch.ones(on_tokens.shape[-2:]).triu(1).bool(), -torch.inf)
    share = on_prefix.exp().sum(-1) / (on_prefix.exp().sum(-1) + on_tokens.exp().sum(-1))
    return {
        "h": on_tokens.softmax(-1) @ value,
        "change": on_prefix.softmax(-1) @ prefix_value,
        "share": share[..., None],
    }


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("composition", ["gated", "compensated", "add", "scaled"])
def test_composition_equals_its_formula(causal: bool, composition: str) -> None:
    model = randomised(OneAttention(causal)).double()
    delta = Delta(
        form="softmax", insertion="parallel", place="heads", composition=composition, bottleneck=5,  # type: ignore[arg-type]
        scale=3.0 if composition == "scaled" else 1.0,
    )  # fmt: skip
    delta.apply(model)
    disturb(model, 1.0)
    x = torch.randn(2, 6, DIM, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        parts = by_hand(model, x)
        h, change, share = parts["h"], parts["change"], parts["share"]
        want = {
            "gated": (1 - share) * h + share * change,
            "compensated": (1 - share) * h + change,
            "add": h + change,
            "scaled": h + 3.0 * change,
        }[composition]
        torch.testing.assert_close(model(x), model.out_proj(want.transpose(1, 2).flatten(2)), rtol=0, atol=1e-12)
    assert 0.05 < float(share.mean()) < 0.95


def test_compensation_is_the_softmax_row_divided_by_its_sum() -> None:
    """As LAE computes it: the prefix's entries of the joint softmax over their own sum, the others left alone."""
    model = randomised(OneAttention()).double()
    Prefix(length=4, reparameterize=0, compensate=True, learn_scale=True).apply(model)
    patch = model.prefix_tuning
    assert patch.states.min() >= 0 and patch.states.max() <= 0.01 and patch.scales.tolist() == [1.0, 1.0]
    disturb(model, 1.0)
    x = torch.randn(2, 6, DIM).double()
    with torch.no_grad():
        states = [patch.states[:, :DIM] * patch.scales[0], patch.states[:, DIM:] * patch.scales[1]]
        prefix_key, prefix_value = (model.heads(s[None]).expand(2, -1, -1, -1) for s in states)
        query, key, value = (model.heads(p(x)) for p in (model.q_proj, model.k_proj, model.v_proj))
        weights = (query @ torch.cat([prefix_key, key], 2).transpose(-1, -2) / SIZE**0.5).softmax(-1)
        weights[..., :4] /= weights[..., :4].sum(-1, keepdim=True).clamp(min=1e-12)
        want = weights @ torch.cat([prefix_value, value], 2)
        torch.testing.assert_close(model(x), model.out_proj(want.transpose(1, 2).flatten(2)), rtol=0, atol=1e-12)


def test_gpt2_equals_a_cache_that_holds_the_prefix() -> None:
    model = gpt2()
    Prefix(length=3, reparameterize=0).apply(model)
    disturb(model, 0.5)
    padding = torch.ones(3, 7, dtype=torch.long)
    padding[1, :3] = 0
    positions = torch.arange(7).expand(3, -1)
    with torch.no_grad():
        got = model(ids(), attention_mask=padding, position_ids=positions).logits
        cached = model(ids()[:, :5], use_cache=True)
        step = model(ids()[:, 5:6], past_key_values=cached.past_key_values, use_cache=True).logits
        whole = model(ids()[:, :6]).logits
        states = [block.attn.prefix_tuning.keys_and_values() for block in model.transformer.h]
        plain = gpt2()
        cache = transformers.DynamicCache()
        for layer, pair in enumerate(states):
            key, value = (s.view(3, HEADS, SIZE).transpose(0, 1).expand(3, -1, -1, -1) for s in pair)
            cache.update(key, value, layer)
        want = plain(
            ids(), attention_mask=torch.cat([torch.ones(3, 3, dtype=torch.long), padding], 1), position_ids=positions,
            past_key_values=cache,
        ).logits  # fmt: skip
    seen = padding.bool()
    torch.testing.assert_close(got[seen], want[seen], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(step[:, 0], whole[:, -1], rtol=1e-5, atol=1e-6)


def test_shared_keys_and_rotary_positions() -> None:
    """Llama's grouped queries: the prefix has as many heads as the keys, and is not rotated."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=DIM, num_hidden_layers=2, num_attention_heads=HEADS, num_key_value_heads=2,
        intermediate_size=16, pad_token_id=0,
    )  # fmt: skip
    model, plain = (randomised(transformers.LlamaForCausalLM(config)) for _ in range(2))
    Prefix(length=3, reparameterize=0).apply(model)
    disturb(model, 0.5)
    positions = torch.arange(7).expand(3, -1)
    cache = transformers.DynamicCache()
    for index, layer in enumerate(model.model.layers):
        pair = layer.self_attn.prefix_tuning.keys_and_values()
        key, value = (s.detach().view(3, 2, SIZE).transpose(0, 1).expand(3, -1, -1, -1) for s in pair)
        cache.update(key, value, index)
    with torch.no_grad():
        want = plain(ids(), position_ids=positions, past_key_values=cache).logits
        torch.testing.assert_close(model(ids(), position_ids=positions).logits, want, rtol=1e-5, atol=1e-5)


def test_trunk_equals_its_own_prefix_hook() -> None:
    class Slot(nn.Module):
        def __init__(self, key: Tensor, value: Tensor) -> None:
            super().__init__()
            self.pair = [s.view(-1, HEADS, SIZE).transpose(0, 1) for s in (key, value)]

        def forward(self) -> list[Tensor]:
            return self.pair

    model, plain = text_encoder(), text_encoder()
    Prefix(length=4, reparameterize=0).apply(model)
    disturb(model, 0.5)
    for block, target in zip(model.encoder.blocks, plain.encoder.blocks, strict=True):
        target.attn.prefix = Slot(*(s.detach() for s in block.attn.prefix_tuning.keys_and_values()))
    with torch.no_grad():
        torch.testing.assert_close(model.encode(ids(), mask()).x, plain.encode(ids(), mask()).x)


def test_cached_decoding_with_a_prefix_equals_uncached() -> None:
    config = LanguageModelConfig(VOCAB, TrunkConfig(dim=DIM, depth=2, heads=HEADS))
    model = randomised(LanguageModel(config)).double()
    Prefix(length=3).apply(model)
    disturb(model, 0.5)
    with torch.no_grad():
        whole = model.states(ids())
        cache = model.make_cache()
        parts = [model.states(piece, cache=cache) for piece in ids().split([3, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_reparameterisation_is_the_papers_network_and_leaves_only_its_output(tmp_path: Any) -> None:
    model = bert()
    Prefix(length=4, reparameterize=800).apply(model)
    # embedding length x d, Linear(d, 800), tanh, Linear(800, layers * 2 * d)
    expected = 4 * DIM + DIM * 800 + 800 + 2 * (800 * 2 * DIM + 2 * DIM)
    assert trainable_report(model).adapter == expected
    disturb(model, 0.05)
    first = model.bert.encoder.layer[0].attention.self.prefix_tuning
    hidden = torch.tanh(first.network.embedding @ first.network.weight.t() + first.network.bias)
    want = hidden @ first.out_weight.t() + first.out_bias
    torch.testing.assert_close(torch.cat(first.keys_and_values(), 1), want)
    assert model.bert.encoder.layer[1].attention.self.prefix_tuning.network is first.network
    save_adapter(model, tmp_path)
    assert (tmp_path / "adapter.safetensors").stat().st_size < 4 * 2 * 4 * 2 * DIM + 600
    with torch.no_grad():
        before = model(ids(), mask()).logits
        settle(model)
        torch.testing.assert_close(model(ids(), mask()).logits, before, rtol=0, atol=0)
    assert trainable_report(model).adapter == 2 * 4 * 2 * DIM
    assert trainable_report(model).stored_bytes == 4 * 2 * 4 * 2 * DIM


def test_each_stack_has_a_network_of_its_own() -> None:
    model = Prefix(length=2, reparameterize=8).apply(SMALL["seq2seq"]().model)
    networks = [m.prefix_tuning.network for m in model.modules() if isinstance(m, Attention)]
    assert len(networks) == 6 and len({id(n) for n in networks}) == 3


def test_prefix_is_seen_by_padded_rows_and_none_else_changes() -> None:
    """A row's output does not depend on its padding, with a prefix as without."""
    model = bert()
    Prefix(length=3, reparameterize=0).apply(model)
    disturb(model, 0.5)
    with torch.no_grad():
        padded = model(ids(), mask()).logits[1]
        alone = model(ids()[1:2, :4]).logits[0]
    torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-6)


def test_attention_that_hides_its_keys_is_refused() -> None:
    eager = bert(attn_implementation="eager")
    with pytest.raises(ConfigError, match=r"computes attention with 'eager'.*attn_implementation='sdpa'"):
        Prefix().apply(eager)
    with pytest.raises(ConfigError, match=r"nn.MultiheadAttention, which does not let keys and values be added"):
        Prefix().apply(SMALL["torch"]().model)
    with pytest.raises(ConfigError, match="no attention sub-layer was found"):
        Prefix().apply(nn.Sequential(nn.Linear(4, 4)))

    class Explicit(OneAttention):
        def forward(self, x: Tensor) -> Tensor:
            query, key, value = (self.heads(p(x)) for p in (self.q_proj, self.k_proj, self.v_proj))
            weights = (query @ key.transpose(-1, -2)).softmax(-1)
            out: Tensor = self.out_proj((weights @ value).transpose(1, 2).flatten(2))
            return out

    model = Prefix(length=2).apply(Explicit())
    with pytest.raises(ModelError, match=r"\(Explicit\) did not call torch's scaled_dot_product_attention"):
        model(torch.randn(1, 3, DIM))
    with pytest.raises(RuntimeError, match="shape"):
        model(torch.randn(1, 3, DIM + 1))
    assert not model.prefix_tuning._watching


def test_a_prefix_is_no_input_embedding() -> None:
    """Only attention sees it: every attention module has keys and values of its own."""
    model = Prefix(length=2, reparameterize=0).apply(bert())
    names = adapter_parameters(model)
    assert list(names) == [f"bert.encoder.layer.{i}.attention.self.prefix_tuning.states" for i in range(2)]
    tokens = Tokens(torch.randn(1, 5, DIM))
    trunk = LoRA(rank=2).apply(text_encoder().encoder)
    assert trunk(tokens).shape == (1, 5, DIM)
