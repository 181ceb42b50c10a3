import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leaven.errors import ConfigError, DataError
from leaven.generation.beam_search import _top, beam_search
from leaven.generation.greedy import greedy
from leaven.generation.sampling import sample


def sources(vocab: int, batch: int = 6, width: int = 11, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(width) < torch.randint(3, width + 1, (batch, 1), generator=generator)).long()
    return torch.randint(3, vocab, (batch, width), generator=generator) * mask, mask


def until_end(ids: torch.Tensor, eos_id: int = 2) -> list[int]:
    tokens = ids.tolist()
    return tokens[: tokens.index(eos_id) + 1] if eos_id in tokens else tokens


@pytest.mark.parametrize("beams", [1, 4, 5])
@pytest.mark.parametrize(
    ("end", "options"),
    [
        (1.0, {}),
        (3.0, {}),
        (3.0, {"length_penalty": 0.0, "early_stopping": "never"}),
        (3.0, {"length_penalty": 2.0, "early_stopping": True}),
        (2.0, {"length_penalty": -0.5, "early_stopping": "never"}),
        (3.0, {"length_penalty": 1.5, "early_stopping": "never"}),
    ],
)
def test_equals_transformers(t5_pair: Any, beams: int, end: float, options: dict[str, Any]) -> None:
    theirs, ours = t5_pair(end=end, seed=5)
    ids, mask = sources(90)
    n_best = min(beams, 3)
    if beams == 1:
        reference = theirs.generate(ids, attention_mask=mask, max_new_tokens=20, num_beams=1, do_sample=False)[:, None]
        got = greedy(ours, ids, mask, max_length=20)
        expected_scores = None
        # One beam is greedy search as long as a sequence that has ended stops it.
        torch.testing.assert_close(
            beam_search(ours, ids, mask, beams=1, max_length=20, early_stopping=True, length_penalty=0.0).ids, got.ids
        )
    else:
        out = theirs.generate(
            ids, attention_mask=mask, max_new_tokens=20, num_beams=beams, num_return_sequences=n_best,
            return_dict_in_generate=True, output_scores=True, **options,
        )  # fmt: skip
        reference, expected_scores = out.sequences.view(len(ids), n_best, -1), out.sequences_scores.view(-1, n_best)
        got = beam_search(ours, ids, mask, beams=beams, n_best=n_best, max_length=20, **options)
    for row in range(len(ids)):
        for rank in range(n_best):
            assert until_end(got.ids[row, rank]) == until_end(reference[row, rank, 1:])
    if expected_scores is not None:
        torch.testing.assert_close(got.scores, expected_scores, atol=1e-4, rtol=0)


def test_sequences_of_the_comparison_end_at_different_lengths(t5_pair: Any) -> None:
    _, ours = t5_pair(end=3.0, seed=5)
    got = beam_search(ours, *sources(90), beams=5, max_length=20)
    assert len({len(until_end(row)) for row in got.ids[:, 0]}) >= 3


@pytest.mark.parametrize("options", [{"min_length": 6}, {"prefix": [7, 8]}, {"banned_ids": [3, 4, 5, 6, 9, 30, 31]}])
def test_constraints_equal_those_of_transformers(t5_pair: Any, options: dict[str, Any]) -> None:
    theirs, ours = t5_pair(end=3.0, seed=2)
    ids, mask = sources(90)
    names = {"min_length": "min_new_tokens", "banned_ids": "suppress_tokens"}
    given_options = {names[name]: value for name, value in options.items() if name in names}
    if "prefix" in options:
        given_options["decoder_input_ids"] = torch.tensor([[0, *options["prefix"]]]).expand(len(ids), -1)
    out = theirs.generate(
        ids, attention_mask=mask, max_new_tokens=16, num_beams=4, return_dict_in_generate=True, output_scores=True,
        **given_options,
    )  # fmt: skip
    got = beam_search(ours, ids, mask, beams=4, max_length=16, **options)
    skip = 1 + len(options.get("prefix", ()))
    for row in range(len(ids)):
        assert until_end(got.ids[row, 0]) == until_end(out.sequences[row, skip:])
    torch.testing.assert_close(got.scores[:, 0], out.sequences_scores, atol=1e-4, rtol=0)


def log_probability(model: Any, prompt: list[int], tokens: list[int], source: torch.Tensor | None) -> float:
    """Without any cache."""
    with torch.no_grad():
        if source is None:
            logits = model(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :]
        else:
            read = torch.tensor([[model.config.start_id, *tokens[:-1]]])
            logits = model.logits(model.decode(read, model.encode(source)))[0]
    return float(logits.log_softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)].sum())


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("positions", ["rotary", "t5", "none", None])
def test_wide_beam_finds_what_exhaustive_search_finds(
    t5_pair: Any, language_model: Any, positions: str | None, length_penalty: float
) -> None:
    vocab, length = 6, 3
    if positions is None:
        model, source = t5_pair(vocab=vocab, dim=16, end=1.2)[1], torch.tensor([[3, 5, 4, 3]])
    else:
        model, source = language_model(vocab, positions), None
    prompt = [3, 4, 5]
    every = []
    for size in range(1, length + 1):
        for tokens in itertools.product(range(vocab), repeat=size):
            ends = tokens[-1] == model.config.eos_id
            if model.config.eos_id in tokens[:-1] or not (ends or size == length):
                continue
            every.append((log_probability(model, prompt, list(tokens), source) / size**length_penalty, list(tokens)))
    every.sort(reverse=True)
    got = beam_search(
        model, torch.tensor([prompt]) if source is None else source, beams=vocab**2 * 2, n_best=8, max_length=length,
        length_penalty=length_penalty, early_stopping="never",
    )  # fmt: skip
    for rank in range(8):
        assert until_end(got.ids[0, rank]) == every[rank][1]
        assert float(got.scores[0, rank]) == pytest.approx(every[rank][0], abs=1e-4)


def naive_beam_search(model: Any, prompt: list[int], beams: int, length: int) -> list[tuple[float, list[int]]]:
    """Length penalty 1, no cache, no early end: the textbook's."""
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for size in range(1, length + 1):
        candidates = []
        for score, tokens in running:
            with torch.no_grad():
                scores = model(torch.tensor([prompt + tokens])).logits[0, -1].log_softmax(-1)
            candidates += [(score + float(scores[token]), [*tokens, token]) for token in range(len(scores))]
        candidates.sort(reverse=True)
        for score, tokens in candidates[:beams]:
            if tokens[-1] == model.config.eos_id or size == length:
                ended.append((score / size, tokens))
        running = [c for c in candidates[: 2 * beams] if c[1][-1] != model.config.eos_id][:beams]
    return sorted(ended, reverse=True)[:beams]


@pytest.mark.parametrize("positions", ["rotary", "t5", "learned", "sinusoidal", "none"])
def test_equals_a_naive_search_on_padded_prompts(language_model: Any, positions: str) -> None:
    model = language_model(70, positions, seed=1)
    prompts = [[5, 9, 4], [7], [3, 3, 8, 60, 11]]
    width = max(map(len, prompts))
    padded = torch.tensor([p + [0] * (width - len(p)) for p in prompts])
    mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in prompts])
    got = beam_search(model, padded, mask, beams=3, n_best=3, max_length=26, early_stopping="never")
    for row, prompt in enumerate(prompts):
        for rank, (score, tokens) in enumerate(naive_beam_search(model, prompt, 3, 26)):
            assert until_end(got.ids[row, rank]) == tokens
            assert float(got.scores[row, rank]) == pytest.approx(score, abs=1e-4)


def test_batch_equals_one_by_one(t5_pair: Any) -> None:
    _, ours = t5_pair(end=3.0, seed=5)
    ids, mask = sources(90, batch=12)
    together = beam_search(ours, ids, mask, beams=4, n_best=2, max_length=24)
    for row in range(len(ids)):
        alone = beam_search(ours, ids[row : row + 1], mask[row : row + 1], beams=4, n_best=2, max_length=24)
        for rank in range(2):
            assert until_end(alone.ids[0, rank]) == until_end(together.ids[row, rank])
        torch.testing.assert_close(alone.scores[0], together.scores[row], atol=1e-4, rtol=0)


def test_only_allowed_ids_appear_and_missing_sequences_are_marked(t5_pair: Any) -> None:
    _, ours = t5_pair()
    got = beam_search(ours, *sources(90), beams=4, n_best=4, max_length=2, allowed_ids=[11, 12])
    assert set(got.ids.unique().tolist()) <= {0, 2, 11, 12}
    single = beam_search(ours, *sources(90), beams=4, n_best=4, max_length=1, allowed_ids=[11])
    assert single.scores[:, :2].isfinite().all()
    assert single.scores[:, 2:].isneginf().all()
    assert (single.ids[:, 2:] == 0).all()


def test_model_mode_is_restored_and_dropout_is_off(t5_pair: Any) -> None:
    _, ours = t5_pair()
    for module in ours.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    ours.train()
    first, second = (beam_search(ours, *sources(90), beams=2, max_length=6) for _ in range(2))
    assert ours.training
    torch.testing.assert_close(first.scores, second.scores)


def test_what_was_decoded_can_be_trained_on(t5_pair: Any) -> None:
    _, ours = t5_pair()
    ids, mask = sources(90)
    generator = torch.Generator().manual_seed(0)
    for found in (
        beam_search(ours, ids, mask, beams=2, max_length=4),
        greedy(ours, ids, mask, max_length=4),
        sample(ours, ids, mask, generator=generator, max_length=4),
    ):
        loss = ours(ids, mask, labels=found.ids[:, 0]).loss
        loss.backward()
        assert not found.scores.is_inference()


@given(st.integers(1, 3), st.integers(1, 400), st.integers(1, 12), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_top_equals_topk(rows: int, columns: int, count: int, seed: int) -> None:
    scores = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values, index = _top(scores, count)
    kept = min(count, columns)
    expected = scores.topk(kept)
    torch.testing.assert_close(values[:, :kept], expected[0])
    assert (index[:, :kept] == expected[1]).all()
    assert values[:, kept:].isneginf().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams=0"),
        ({"max_length": 0}, "max_length=0"),
        ({"n_best": 6}, "n_best=6"),
        ({"n_best": 0}, "n_best=0"),
        ({"min_length": 128}, "min_length=128 leaves no room"),
        ({"min_length": -1}, "min_length=-1"),
        ({"early_stopping": "often"}, "early_stopping='often'"),
        ({"banned_ids": [90]}, "banned_ids holds 90"),
        ({"allowed_ids": [-1]}, "allowed_ids holds -1"),
        ({"allowed_ids": [4], "banned_ids": [4, 2]}, "leave no token"),
        ({"allowed_ids": [], "min_length": 1}, "leave no token"),
        ({"prefix": torch.zeros(2, 3, 4)}, "prefix has shape"),
        ({"prefix": torch.zeros(5, 3)}, "prefix has shape"),
        ({"attention_mask": torch.ones(6, 3)}, "attention_mask has shape"),
    ],
)
def test_bad_arguments_are_named(t5_pair: Any, options: dict[str, Any], message: str) -> None:
    _, ours = t5_pair()
    with pytest.raises(ConfigError, match=message):
        beam_search(ours, sources(90)[0], **options)


def test_bad_batches_are_named(t5_pair: Any) -> None:
    _, ours = t5_pair()
    for shape in ((0, 4), (2, 0), (4,)):
        with pytest.raises(ConfigError, match="neither empty"):
            beam_search(ours, torch.zeros(shape, dtype=torch.long))
    with pytest.raises(DataError, match=r"row 1 .* padding alone"):
        beam_search(ours, torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, 1, 0], [0, 0, 0]]))
