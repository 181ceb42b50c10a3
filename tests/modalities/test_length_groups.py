import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leaven.modalities.length_groups import groups_of_like_length
from leaven.modalities.text import IGNORE
from leaven.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from leaven.objectives.sequence_to_sequence import SequenceToSequence


def batch_of(lengths: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    width, target = max(a for a, _ in lengths), max(b for _, b in lengths)
    ids = torch.arange(len(lengths) * width).view(len(lengths), width) % 37 + 3
    labels = torch.arange(len(lengths) * target).view(len(lengths), target) % 29 + 3
    mask = torch.arange(width) < torch.tensor([a for a, _ in lengths])[:, None]
    wanted = torch.arange(target) < torch.tensor([b for _, b in lengths])[:, None]
    return {
        "input_ids": ids.masked_fill(~mask, 0),
        "attention_mask": mask,
        "labels": labels.masked_fill(~wanted, IGNORE),
        "language": torch.arange(len(lengths)),
        "step": torch.tensor(3),
    }


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 7)), min_size=1, max_size=12),
    st.integers(1, 5),
)
def test_every_row_is_in_one_group_and_loses_only_padding(lengths: list[tuple[int, int]], groups: int) -> None:
    batch = batch_of(lengths)
    made = groups_of_like_length(batch, groups)
    assert torch.cat([g["language"] for g in made]).sort().values.tolist() == list(range(len(lengths)))
    for group in made:
        assert int(group["step"]) == 3
        for row, index in enumerate(group["language"].tolist()):
            source, target = lengths[index]
            width = group["input_ids"].shape[1]
            assert group["input_ids"][row, :source].equal(batch["input_ids"][index, :source]) and width >= source
            assert group["labels"][row, :target].equal(batch["labels"][index, :target])
            assert int(group["attention_mask"][row].sum()) == source


def test_loss_and_gradient_are_those_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    model = EncoderDecoder(EncoderDecoderConfig.t5(vocab=40, dim=16, depth=2, heads=2))
    batch, objective = batch_of([(9, 3), (2, 5), (7, 1), (3, 3), (5, 4)]), SequenceToSequence()
    loss = objective(model, batch)
    loss.total.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    made = groups_of_like_length(batch, 3)
    padded = sum(group["input_ids"].numel() for group in made)
    assert padded < batch["input_ids"].numel()
    losses = [objective(model, group) for group in made]
    count = sum(part.count for part in losses)
    total = sum(part.total * part.count for part in losses) / count
    total.backward()
    torch.testing.assert_close(total, loss.total)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("fields", [{}, {"x": torch.ones(3, 2)}])
def test_what_has_no_mask_stays_whole(fields: dict[str, torch.Tensor]) -> None:
    assert groups_of_like_length(fields, 4) == [fields]
