import pytest
import torch

from leaven.contracts import Tokens
from leaven.errors import ConfigError
from leaven.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from leaven.models.masks import visibility
from leaven.models.positions import RelativeBias, relative_bucket
from leaven.models.trunk import Trunk, TrunkConfig

KINDS = ("none", "learned", "sinusoidal", "t5", "rotary")


@pytest.mark.parametrize("positions", KINDS)
@pytest.mark.parametrize("feed_forward", ["dense", "gated", "experts"])
def test_cached_decoding_equals_uncached(positions: str, feed_forward: str) -> None:
    torch.manual_seed(0)
    trunk = Trunk(
        TrunkConfig(
            dim=16, depth=2, heads=2, positions=positions, feed_forward=feed_forward, cross_attention=True,
            bidirectional_bias=False,
        )
    ).double()  # fmt: skip
    x, memory = torch.randn(2, 7, 16).double(), Tokens(torch.randn(2, 5, 16).double(), torch.ones(2, 5).bool())
    whole = trunk(Tokens(x), "causal", memory=memory)
    cache = trunk.make_cache()
    parts = [trunk(Tokens(piece), "causal", memory=memory, cache=cache) for piece in x.split([3, 1, 1, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("mode", ["bidirectional", "causal", "prefix"])
def test_visibility_equals_the_definition(mode: str) -> None:
    key_mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    segments, prefix = torch.tensor([[1, 1, 2, 2, 2], [1, 1, 1, 0, 0]]), torch.tensor([3, 1])
    got = visibility(mode, 5, 5, key_mask=key_mask, prefix_length=prefix, segments=segments)
    assert got is not None
    for row in range(2):
        for q in range(5):
            for k in range(5):
                order = mode == "bidirectional" or k <= q or (mode == "prefix" and k < prefix[row])
                want = bool(order and key_mask[row, k] and segments[row, q] == segments[row, k])
                assert bool(got.expand(2, 1, 5, 5)[row, 0, q, k]) == want


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    model = EncoderDecoder(EncoderDecoderConfig.t5(vocab=50, dim=16, depth=2, heads=2)).eval()
    ids, labels = torch.randint(3, 50, (1, 6)), torch.randint(3, 50, (1, 4))
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], 1)
    a = model(ids, labels=labels).logits
    b = model(padded, attention_mask=padded != 0, labels=labels).logits
    torch.testing.assert_close(a, b)


def test_beams_share_a_memory() -> None:
    torch.manual_seed(0)
    model = EncoderDecoder(EncoderDecoderConfig.t5(vocab=50, dim=16, depth=2, heads=2)).double()
    ids, decoded = torch.randint(3, 50, (2, 6)), torch.randint(3, 50, (6, 4))
    shared = model.decode(decoded, model.encode(ids))
    repeated = model.decode(decoded, model.encode(ids.repeat_interleave(3, 0)))
    torch.testing.assert_close(shared, repeated)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_bias_equals_a_lookup_per_pair(bidirectional: bool) -> None:
    bias = RelativeBias(3, bidirectional=bidirectional, buckets=8, max_distance=16)
    got = bias(4, 9, 5)
    for q in range(4):
        for k in range(9):
            bucket = relative_bucket(torch.tensor(k - q - 5), bidirectional=bidirectional, buckets=8, max_distance=16)
            torch.testing.assert_close(got[0, :, q, k], bias.weight[bucket])


def test_wrong_switches_are_named() -> None:
    with pytest.raises(ConfigError, match="norm='batch'"):
        TrunkConfig(dim=8, depth=1, heads=2, norm="batch")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not a multiple"):
        TrunkConfig(dim=9, depth=1, heads=2)
    trunk = Trunk(TrunkConfig(dim=8, depth=1, heads=2, positions="learned", max_positions=4))
    with pytest.raises(ConfigError, match="learned positions for 4"):
        trunk(Tokens(torch.zeros(1, 5, 8)))
