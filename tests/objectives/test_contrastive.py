import torch
from torch.nn import functional as F

from leaven.models.trunk import TrunkConfig
from leaven.models.vision import DualEncoder, DualEncoderConfig, ImageEncoderConfig
from leaven.objectives.contrastive import ImageTextContrast


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
