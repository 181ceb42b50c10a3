from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from leaven.errors import ConfigError
from leaven.generation.greedy import greedy
from leaven.generation.sampling import draw, filter_logits, sample


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.6}, {"top_k": 4}, {"top_p": 0.7}, {"temperature": 1.7, "top_k": 6, "top_p": 0.8}]
)
def test_first_two_tokens_follow_the_distribution(language_model: Any, options: dict[str, Any]) -> None:
    vocab, count = 9, 6000
    model, prompt = language_model(vocab), torch.tensor([[3, 5]])
    got = sample(model, prompt, generator=seeded(0), samples=count, max_length=2, **options).ids[0]

    def expected(read: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits = model(torch.tensor([read])).logits[:, -1]
        return filter_logits(logits, **options).double().softmax(-1)[0]

    first = expected([3, 5])
    joint = torch.zeros(vocab, vocab, dtype=torch.float64)
    for token in range(vocab):
        after = expected([3, 5, token])
        joint[token] = first[token] * (after if token != 2 else torch.eye(vocab, dtype=torch.float64)[0])
    observed = torch.bincount(got[:, 0] * vocab + got[:, 1], minlength=vocab**2).double()
    want = joint.flatten() * count
    assert observed[want == 0].sum() == 0
    common, rare = want >= 5, (want < 5) & (want > 0)
    if rare.any():
        observed = torch.cat([observed[common], observed[rare].sum()[None]])
        want = torch.cat([want[common], want[rare].sum()[None]])
    else:
        observed, want = observed[common], want[common]
    assert chisquare(observed.numpy(), want.numpy()).pvalue > 0.001


def test_same_seed_same_ids_another_seed_others(t5_pair: Any) -> None:
    _, model = t5_pair(end=2.0, seed=5)
    ids = torch.randint(3, 90, (5, 7), generator=seeded(1))
    first, again, other = (sample(model, ids, generator=seeded(s), samples=3, max_length=12) for s in (4, 4, 5))
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.scores, again.scores)
    assert first.ids.shape[:2] == (5, 3)
    assert not torch.equal(first.ids, other.ids[:, :, : first.ids.shape[2]])


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_limits_are_greedy(t5_pair: Any, options: dict[str, Any]) -> None:
    _, model = t5_pair(end=3.0, seed=5)
    ids = torch.randint(3, 90, (6, 7), generator=seeded(1))
    want = greedy(model, ids, max_length=15)
    got = sample(model, ids, generator=seeded(0), max_length=15, **options)
    assert torch.equal(got.ids, want.ids)
    torch.testing.assert_close(got.scores, want.scores)


def test_scores_are_those_of_the_model(t5_pair: Any) -> None:
    _, model = t5_pair(end=2.0, seed=5)
    ids = torch.randint(3, 90, (6, 7), generator=seeded(1))
    mask = (torch.arange(7) < torch.tensor([7, 3, 5, 7, 2, 6])[:, None]).long()
    got = sample(model, ids, mask, generator=seeded(2), samples=2, max_length=18, top_k=20, prefix=[9])
    for row in range(6):
        for number in range(2):
            tokens = got.ids[row, number].tolist()
            tokens = tokens[: tokens.index(2) + 1] if 2 in tokens else tokens
            with torch.no_grad():
                memory = model.encode(ids[row : row + 1], mask[row : row + 1])
                logits = model.logits(model.decode(torch.tensor([[0, 9, *tokens[:-1]]]), memory))[0, 1:]
            want = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).sum()
            assert float(got.scores[row, number]) == pytest.approx(float(want), abs=1e-3)


def test_constraints_hold(language_model: Any) -> None:
    model = language_model(12)
    got = sample(
        model, torch.tensor([[3], [4]]), generator=seeded(0), samples=40, max_length=9, min_length=4,
        allowed_ids=[5, 6, 7], banned_ids=[7],
    )  # fmt: skip
    assert set(got.ids.unique().tolist()) <= {0, 2, 5, 6}
    assert (got.ids[:, :, :4] > 2).all()


@given(st.integers(0, 2**31), st.floats(0.05, 1.0), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_filters_equal_their_definitions(seed: int, top_p: float, top_k: int) -> None:
    logits = torch.randn(3, 10, generator=seeded(seed)).double() * 2
    for row, kept in zip(logits, filter_logits(logits, top_p=top_p).isfinite(), strict=True):
        probability = row.softmax(-1)
        order = probability.argsort(descending=True).tolist()
        size = 1
        while top_p < 1 and probability[order[:size]].sum() < top_p - 1e-12:
            size += 1
        assert set(kept.nonzero()[:, 0].tolist()) == set(order[: size if top_p < 1 else 10])
    kept = filter_logits(logits, top_k=top_k).isfinite()
    assert (kept.sum(1) == min(top_k, 10)).all()
    assert (logits.argmax(1)[:, None] == kept.nonzero()[:, 1].view(3, -1)).any(1).all()


def test_draw_never_gives_an_impossible_token() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]] * 4)
    assert draw(logits, torch.tensor([0.0, 0.49, 0.51, 1 - 1e-16], dtype=torch.float64)).tolist() == [1, 1, 3, 3]


def test_filters_equal_those_of_transformers() -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(50, 40, generator=seeded(3)) * 3
    want = logits
    for warper in (TemperatureLogitsWarper(0.8), TopKLogitsWarper(15), TopPLogitsWarper(0.9)):
        want = warper(None, want)
    torch.testing.assert_close(filter_logits(logits, 0.8, 15, 0.9), want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, r"top_p=0.0: expected in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"samples": 0}, "samples=0"),
        ({"max_length": 0}, "max_length=0"),
    ],
)
def test_bad_arguments_are_named(language_model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sample(language_model(), torch.tensor([[3]]), generator=seeded(0), **options)
