from types import SimpleNamespace

import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from leaven.errors import ConfigError
from leaven.models.trunk import TrunkConfig
from leaven.models.vision import ImageEncoder, ImageEncoderConfig
from leaven.objectives.masked_autoencoding import MaskedAutoencoding, patchify


def encoder(size: int = 16, patch: int = 4) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(ImageEncoderConfig(TrunkConfig(dim=16, depth=2, heads=2), size=size, patch=patch))


class Answers(torch.nn.Module):
    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.answer, hidden_states=None, attentions=None)


@pytest.mark.parametrize("normalize", [True, False])
def test_loss_equals_that_of_transformers_on_the_same_predictions(normalize: bool) -> None:
    model = encoder()
    objective = MaskedAutoencoding(model, normalize=normalize)
    batch = objective.prepare({"pixel_values": torch.randn(5, 3, 16, 16)}, torch.Generator().manual_seed(1))
    predicted = objective.reconstruct(model, batch["pixel_values"], batch["kept"])
    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=16,
            patch_size=4,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=16,
            norm_pix_loss=normalize,
        )
    )
    # Their encoder keeps the patches of the lowest noise; their decoder is made to answer what ours does.
    noise = torch.ones(5, 16).scatter(1, batch["kept"], 0.0)
    theirs.decoder = Answers(predicted)
    expected = theirs(batch["pixel_values"], noise=noise).loss
    torch.testing.assert_close(objective(model, batch).total, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(patchify(batch["pixel_values"], 4), theirs.patchify(batch["pixel_values"]))


def test_hidden_pixels_never_reach_the_prediction() -> None:
    model = encoder()
    objective = MaskedAutoencoding(model)
    images = torch.randn(3, 3, 16, 16)
    batch = objective.prepare({"pixel_values": images}, torch.Generator().manual_seed(1))
    first = objective.reconstruct(model, images, batch["kept"])
    hidden = torch.ones(3, 16).scatter(1, batch["kept"], 0.0)
    noise = torch.randn_like(images) * hidden.view(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(objective.reconstruct(model, images + noise, batch["kept"]), first)
    changed = objective.reconstruct(model, images + 1, batch["kept"])
    assert not torch.allclose(changed, first)


def test_every_patch_is_hidden_equally_often_and_three_of_four_at_a_time() -> None:
    objective = MaskedAutoencoding(encoder())
    batch = objective.prepare({"pixel_values": torch.zeros(4000, 3, 16, 16)}, torch.Generator().manual_seed(0))
    assert batch["kept"].shape == (4000, 4)
    assert (batch["kept"].diff(dim=1) > 0).all()
    shares = torch.bincount(batch["kept"].flatten(), minlength=16) / 4000
    assert (shares - 0.25).abs().max() < 0.03


def test_a_position_tells_patches_apart() -> None:
    """Predictions of two hidden places differ, and depend on where the seen patches lie."""
    model = encoder()
    objective = MaskedAutoencoding(model)
    images, kept = torch.randn(1, 3, 16, 16), torch.tensor([[0, 5, 6, 9]])
    predicted = objective.reconstruct(model, images, kept)
    assert not torch.allclose(predicted[0, 1], predicted[0, 2])


def test_a_ratio_must_hide_some_and_show_some() -> None:
    with pytest.raises(ConfigError, match=r"ratio=0.99: of 16 patches 16 would be hidden"):
        MaskedAutoencoding(encoder(), ratio=0.99)
