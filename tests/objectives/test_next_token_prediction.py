import torch

from leaven.models.language_model import LanguageModel, LanguageModelConfig
from leaven.models.trunk import TrunkConfig
from leaven.objectives.next_token_prediction import NextTokenPrediction


def test_the_loss_is_the_models_own_and_padding_costs_nothing() -> None:
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(30, TrunkConfig(16, 2, 2)))
    ids = torch.randint(5, 30, (4, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(9) < torch.tensor([9, 5, 3, 2])[:, None]
    loss = NextTokenPrediction()(model, {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask})
    own = model(ids, labels=ids.masked_fill(~mask, -100)).loss
    torch.testing.assert_close(loss.total, own, rtol=1e-6, atol=1e-6)
    assert int(loss.count) == 8 + 4 + 2 + 1
    other = NextTokenPrediction()(model, {"input_ids": ids.masked_fill(~mask, 7), "attention_mask": mask})
    assert torch.equal(loss.total, other.total)


def test_nothing_is_corrupted() -> None:
    batch = {"input_ids": torch.ones(1, 2, dtype=torch.long)}
    assert NextTokenPrediction().prepare(batch, torch.Generator()) is batch
