import pytest
import torch
from torch import Tensor

from leaven.contracts import Batch
from leaven.errors import ConfigError
from leaven.modalities.text import IGNORE
from leaven.models.encoder import TextEncoder, TextEncoderConfig
from leaven.models.trunk import TrunkConfig
from leaven.objectives.masked_language_modeling import MaskedLanguageModeling

MASK, PLAIN = 4, range(10, 60)


def batch(rows: int = 400, words: int = 12) -> Batch:
    """Words of two tokens each between a start and an end token, every other row half as long."""
    generator = torch.Generator().manual_seed(0)
    width = 2 * words + 2
    ids = torch.randint(10, 60, (rows, width), generator=generator)
    word = torch.arange(-1, width - 1).div(2, rounding_mode="floor").repeat(rows, 1)
    word[:, 0] = -1
    lengths = torch.where(torch.arange(rows) % 2 == 0, width, words + 2)
    mask = torch.arange(width) < lengths[:, None]
    word = word.masked_fill(torch.arange(width) >= lengths[:, None] - 1, -1)
    ids[:, 0] = 1
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask, "word_ids": word, "row": torch.arange(rows)}


def prepared(given: Batch, seed: int = 3, **options: float) -> Batch:
    return MaskedLanguageModeling(MASK, PLAIN, **options).prepare(given, torch.Generator().manual_seed(seed))


def test_whole_words_are_hidden_and_nothing_else() -> None:
    given = batch()
    made = prepared(given)
    hidden = made["labels"] != IGNORE
    assert torch.equal(made["labels"][hidden], given["input_ids"][hidden])
    assert torch.equal(made["input_ids"][~hidden], given["input_ids"][~hidden])
    assert not hidden[given["word_ids"] < 0].any()
    pairs = hidden[:, 1:-1].view(len(hidden), -1, 2)
    assert torch.equal(pairs[..., 0], pairs[..., 1])
    assert hidden.any(1).all()


def test_shares_are_those_asked_for() -> None:
    given = batch(rows=3000)
    made = prepared(given, density=0.3)
    word = given["word_ids"] >= 0
    hidden = made["labels"] != IGNORE
    # Rows of n words hide one at least, which adds (1 - density)^n of a word to the expected number.
    expected = (1500 * (0.3 * 12 + 0.7**12) + 1500 * (0.3 * 6 + 0.7**6)) / (1500 * 18)
    assert float(hidden.sum() / word.sum()) == pytest.approx(expected, abs=0.01)
    inputs, labels = made["input_ids"][hidden], made["labels"][hidden]
    masked = inputs == MASK
    assert float(masked.float().mean()) == pytest.approx(0.8, abs=0.01)
    # A random token is the old one in one of 50 cases.
    changed = ~masked & (inputs != labels)
    assert float(changed.float().mean()) == pytest.approx(0.1 * 49 / 50, abs=0.01)
    assert set(inputs[changed].tolist()) <= set(PLAIN)


def test_a_row_is_hidden_alike_whoever_holds_it_and_however_wide_the_batch_is() -> None:
    given = batch(rows=8)
    whole = prepared(given)
    shorter = {name: field[1::2, :14] if field.ndim == 2 else field[1::2] for name, field in given.items()}
    part = prepared(shorter)
    for name in ("input_ids", "labels"):
        assert torch.equal(part[name], whole[name][1::2, :14])
    assert not torch.equal(prepared(given, seed=4)["labels"], whole["labels"])


def model() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(TextEncoderConfig(60, TrunkConfig(16, 1, 2), embedding_positions=0, types=0, pooler=False))


def test_the_loss_is_the_models_own_at_the_hidden_tokens() -> None:
    encoder, made = model(), prepared(batch(rows=6))
    loss = MaskedLanguageModeling(MASK, PLAIN)(encoder, made)
    own: Tensor | None = encoder(made["input_ids"], made["attention_mask"], labels=made["labels"]).loss
    torch.testing.assert_close(loss.total, own, rtol=1e-6, atol=1e-6)
    assert int(loss.count) == int((made["labels"] != IGNORE).sum())


def test_every_real_token_is_a_word_without_word_ids() -> None:
    given = {name: field for name, field in batch(rows=50).items() if name != "word_ids"}
    made = prepared(given, density=0.99)
    assert float((made["labels"] != IGNORE)[given["attention_mask"]].float().mean()) > 0.97
    assert not (made["labels"] != IGNORE)[~given["attention_mask"]].any()


@pytest.mark.parametrize("options", [{"density": 0.0}, {"density": 1.0}, {"masked": 0.9, "random": 0.2}])
def test_shares_out_of_range_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        MaskedLanguageModeling(MASK, PLAIN, **options)
    with pytest.raises(ConfigError, match="plain_ids is empty"):
        MaskedLanguageModeling(MASK, [])
