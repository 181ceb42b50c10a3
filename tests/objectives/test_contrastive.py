import pytest
import torch
from torch.nn import functional as F

from leaven.errors import ConfigError
from leaven.models.encoder import TextEncoder, TextEncoderConfig
from leaven.models.trunk import TrunkConfig
from leaven.models.vision import DualEncoder, DualEncoderConfig, ImageEncoderConfig
from leaven.objectives.contrastive import CroppedTextContrast, ImageTextContrast


def towers() -> DualEncoder:
    torch.manual_seed(0)
    trunk = TrunkConfig(dim=16, depth=1, heads=2, positions="none")
    image = ImageEncoderConfig(trunk, size=8, patch=4)
    return DualEncoder(DualEncoderConfig(image, trunk, vocab=20, embedding_positions=6, projection=8))


def batch(rows: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 20, (rows, 6), generator=generator)
    ids[:, -1] = 2
    images = torch.randn(rows, 3, 8, 8, generator=generator)
    return {"pixel_values": images, "input_ids": ids, "attention_mask": torch.ones_like(ids, dtype=torch.bool)}


def test_loss_equals_a_loop_over_pairs() -> None:
    model, given = towers(), batch()
    loss = ImageTextContrast()(model, given)
    images = F.normalize(model.image_features(given["pixel_values"]), dim=1)
    texts = F.normalize(model.text_features(given["input_ids"], given["attention_mask"]), dim=1)
    scale = model.logit_scale.exp()
    total = 0.0
    for at in range(5):
        to_texts = torch.stack([scale * images[at] @ text for text in texts])
        to_images = torch.stack([scale * image @ texts[at] for image in images])
        total -= to_texts.log_softmax(0)[at] + to_images.log_softmax(0)[at]
    torch.testing.assert_close(loss.total, total / 10)
    assert int(loss.count) == 5


def test_it_does_not_depend_on_the_order_of_the_pairs_and_is_symmetric_at_chance() -> None:
    model, given = towers(), batch()
    order = torch.tensor([3, 1, 4, 0, 2])
    shuffled = {name: value[order] for name, value in given.items()}
    torch.testing.assert_close(ImageTextContrast()(model, shuffled).total, ImageTextContrast()(model, given).total)

    class Same(torch.nn.Module):
        def forward(self, ids: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(ids), len(ids))

    torch.testing.assert_close(ImageTextContrast()(Same(), given).total, torch.tensor(5.0).log())


def texts() -> tuple[TextEncoder, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    trunk = TrunkConfig(dim=16, depth=1, heads=2)
    model = TextEncoder(TextEncoderConfig(40, trunk, embedding_positions=0, types=0, pooler=False)).eval()
    lengths = torch.tensor([30, 12, 1, 20])
    mask = torch.arange(30) < lengths[:, None]
    ids = torch.randint(3, 40, (4, 30), generator=torch.Generator().manual_seed(1))
    return model, {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask}


def test_spans_are_of_their_text_and_of_lengths_in_range() -> None:
    _, given = texts()
    objective, generator = CroppedTextContrast(shortest=0.2, longest=0.5), torch.Generator().manual_seed(0)
    starts, ends = set(), set()
    for _ in range(300):
        drawn = objective.prepare(given, generator)
        for name in ("query", "positive"):
            for row, (span, mask) in enumerate(zip(drawn[name], drawn[f"{name}_attention_mask"], strict=True)):
                text = given["input_ids"][row][given["attention_mask"][row]].tolist()
                found, size = span[mask].tolist(), int(mask.sum())
                assert max(1, int(0.2 * len(text))) <= size <= max(1, 0.5 * len(text))
                at = next(at for at in range(len(text)) if text[at : at + size] == found)
                if row == 1:
                    starts.add(at)
                    ends.add(at + size)
    assert min(starts) == 0 and max(ends) == 12
    again = objective.prepare(given, torch.Generator().manual_seed(5))
    same = objective.prepare(given, torch.Generator().manual_seed(5))
    assert all(torch.equal(again[name], same[name]) for name in again)


def test_the_loss_of_spans_equals_a_loop_over_texts() -> None:
    model, given = texts()
    objective = CroppedTextContrast(temperature=0.1)
    drawn = objective.prepare(given, torch.Generator().manual_seed(3))
    loss = objective(model, drawn)
    vectors = {}
    for name in ("query", "positive"):
        rows = zip(drawn[name], drawn[f"{name}_attention_mask"], strict=True)
        spans = [span[mask][None] for span, mask in rows]
        vectors[name] = [model.encode(one, torch.ones_like(one, dtype=torch.bool)).x[0].mean(0) for one in spans]
    total = torch.zeros(())
    for at in range(4):
        for one, other in (("query", "positive"), ("positive", "query")):
            cosines = torch.stack([F.cosine_similarity(vectors[one][at], vector, dim=0) for vector in vectors[other]])
            total = total - (cosines / 0.1).log_softmax(0)[at]
    torch.testing.assert_close(loss.total, total / 8, rtol=1e-4, atol=1e-5)
    assert int(loss.count) == 4


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"shortest": 0.0}, {"shortest": 0.6}, {"longest": 1.5}])
def test_spans_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected a positive temperature and shares of the text"):
        CroppedTextContrast(**options)
