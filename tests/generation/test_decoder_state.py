from typing import Any

import pytest
import torch
from torch import Tensor

from leaven.errors import ModelError
from leaven.generation.decoder_state import DecoderState

BATCH, BEAMS, STEPS = 3, 4, 22


def branched_logits(model: Any, ids: Tensor, mask: Tensor | None) -> tuple[list[list[list[int]]], list[Tensor]]:
    """Feed random tokens to random beams; what each beam has read, and its logits after every step."""
    generator = torch.Generator().manual_seed(5)
    state = DecoderState(model, ids, mask, prefix=[7, 8])
    state.begin()
    state.branch(BEAMS)
    read: list[list[list[int]]] = [[[] for _ in range(BEAMS)] for _ in range(len(ids))]
    pasts, logits = [], []
    for step in range(STEPS):
        if step:
            # Mostly the first beams survive, as in a search, so that the cache has something to prune.
            parents = torch.randint(0, 2, (len(read), BEAMS), generator=generator)
            state.cache.follow(parents)
            read = [[row[p] for p in chosen] for row, chosen in zip(read, parents.tolist(), strict=True)]
        if step == STEPS // 2:
            state.keep(torch.tensor([2, 0]))
            read = [read[2], read[0]]
        tokens = torch.randint(3, 12, (len(read), BEAMS), generator=generator)
        logits.append(state.step(tokens))
        read = [
            [[*past, token] for past, token in zip(row, new, strict=True)]
            for row, new in zip(read, tokens.tolist(), strict=True)
        ]
        pasts.append(read)
    return pasts, logits


@torch.no_grad()
def test_branched_cache_equals_no_cache_in_an_encoder_decoder(t5_pair: Any) -> None:
    model = t5_pair()[1].double()
    ids = torch.randint(3, 90, (BATCH, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]])
    pasts, logits = branched_logits(model, ids, mask)
    for step, (read, got) in enumerate(zip(pasts, logits, strict=True)):
        rows = torch.tensor([2, 0]) if step >= STEPS // 2 else torch.arange(BATCH)
        memory = model.encode(ids[rows], mask[rows])
        whole = torch.tensor([[[0, 7, 8, *past] for past in row] for row in read]).flatten(0, 1)
        want = model.logits(model.decode(whole, memory)[:, -1]).view(len(rows), BEAMS, -1)
        torch.testing.assert_close(got, want.float())
    assert step == STEPS - 1


@torch.no_grad()
@pytest.mark.parametrize("positions", ["rotary", "t5", "learned", "sinusoidal", "none"])
@pytest.mark.parametrize("padded", [False, True])
def test_branched_cache_equals_no_cache_in_a_decoder_only_model(
    language_model: Any, positions: str, padded: bool
) -> None:
    model = language_model(12, positions).double()
    ids = torch.randint(3, 12, (BATCH, 5), generator=torch.Generator().manual_seed(1))
    lengths = [5, 2, 4] if padded else [5, 5, 5]
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long() if padded else None
    pasts, logits = branched_logits(model, ids, mask)
    for step, (read, got) in enumerate(zip(pasts, logits, strict=True)):
        rows = [2, 0] if step >= STEPS // 2 else list(range(BATCH))
        for row, beams, scores in zip(rows, read, got, strict=True):
            prompt = [*ids[row, : lengths[row]].tolist(), 7, 8]
            want = model(torch.tensor([prompt + past for past in beams])).logits[:, -1]
            torch.testing.assert_close(scores, want.float())


@torch.no_grad()
def test_cache_is_pruned_to_what_the_beams_descend_from(t5_pair: Any) -> None:
    model = t5_pair()[1]
    state = DecoderState(model, torch.full((2, 4), 5))
    state.begin()
    state.branch(BEAMS)
    for step in range(40):
        if step:
            state.cache.follow(torch.zeros(2, BEAMS, dtype=torch.long))
        state.step(torch.full((2, BEAMS), 6))
    assert state.cache.length == 1 + 39
    assert state.cache.layers[0].length < 40 + 10 * BEAMS


@torch.no_grad()
def test_cache_that_has_not_branched_says_so(t5_pair: Any) -> None:
    cache = t5_pair()[1].make_cache()
    with pytest.raises(ModelError, match="cache is empty"):
        cache.branch(2)
    with pytest.raises(ModelError, match=r"call branch\(beams\)"):
        cache.follow(torch.zeros(1, 2, dtype=torch.long))
