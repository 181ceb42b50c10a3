from typing import Any

import pytest
import torch

from leaven.errors import ConfigError
from leaven.generation.greedy import greedy


@pytest.mark.parametrize("positions", ["rotary", "t5", "learned", "sinusoidal", "none"])
def test_equals_the_loop_without_cache(language_model: Any, positions: str) -> None:
    model = language_model(12, positions, seed=3)
    prompts = [[5, 9, 4], [7], [3, 3, 8, 6, 11], [10, 4]]
    left = torch.tensor([[0] * (5 - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (5 - len(p)) + [1] * len(p) for p in prompts])
    got = greedy(model, left, mask, max_length=14, prefix=[4])
    for row, prompt in enumerate(prompts):
        read, score = [*prompt, 4], 0.0
        while len(read) < len(prompt) + 15 and (read[-1] != 2 or len(read) == len(prompt) + 1):
            with torch.no_grad():
                scores = model(torch.tensor([read])).logits[0, -1].log_softmax(-1)
            read.append(int(scores.argmax()))
            score += float(scores.max())
        tokens = read[len(prompt) + 1 :]
        assert got.ids[row, 0].tolist() == (tokens + [0] * 14)[: got.ids.shape[2]]
        assert float(got.scores[row, 0]) == pytest.approx(score, abs=1e-4)


def test_entries_end_alone(t5_pair: Any) -> None:
    theirs, ours = t5_pair(end=3.0, seed=5)
    ids = torch.randint(3, 90, (16, 9), generator=torch.Generator().manual_seed(0))
    want = theirs.generate(ids, max_new_tokens=25, num_beams=1, do_sample=False)[:, 1:]
    got = greedy(ours, ids, max_length=25).ids[:, 0]
    lengths = ((want == 2).cumsum(1) == 0).sum(1)
    assert len(set(lengths.tolist())) >= 3
    for row, length in enumerate(lengths.tolist()):
        assert got[row, : length + 1].tolist() == want[row, : length + 1].tolist()
        assert (got[row, length + 1 :] == 0).all()


def test_bad_arguments_are_named(t5_pair: Any) -> None:
    _, model = t5_pair()
    with pytest.raises(ConfigError, match="max_length=0"):
        greedy(model, torch.tensor([[3]]), max_length=0)
    with pytest.raises(ConfigError, match="neither empty"):
        greedy(model, torch.zeros(0, 3, dtype=torch.long))
