import json
from pathlib import Path

import pytest
import torch
from evidence.small_images import encoder_folder
from torch import nn

from leaven.errors import ConfigError, ModelError
from leaven.evidence.arenas.continual_encoder import PixelEncoder, open_encoder, random_twin, raw_pixels
from leaven.modalities.image import pixel_values
from leaven.models.encoder import TextEncoder, TextEncoderConfig
from leaven.models.loading import load_model_and_tokenizer
from leaven.models.saved import save_model
from leaven.models.trunk import TrunkConfig
from leaven.models.vision import DualEncoder, DualEncoderConfig, ImageEncoderConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return encoder_folder(tmp_path_factory.mktemp("model") / "vit")


def images(count: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_an_encoder_reads_stored_pixels_as_the_model_does(model: str, tmp_path: Path) -> None:
    bare = load_model_and_tokenizer(model).model
    torch.testing.assert_close(open_encoder(model, 32)(images()), bare(pixel_values(images())))
    classifier = encoder_folder(tmp_path / "classifier", labels=3)
    whole = load_model_and_tokenizer(classifier).model
    torch.testing.assert_close(open_encoder(classifier, 32)(images()), whole.features(pixel_values(images())))


def test_the_normalisation_is_that_of_the_models_processor(tmp_path: Path) -> None:
    model = encoder_folder(tmp_path / "vit")
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    file = tmp_path / "vit" / "preprocessor_config.json"
    file.write_text(json.dumps({"image_mean": mean, "image_std": deviation}))
    scaled = (images().float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)
    expected = load_model_and_tokenizer(model).model(scaled)
    torch.testing.assert_close(open_encoder(model, 32)(images()), expected)
    file.write_text(json.dumps({"do_normalize": False}))
    torch.testing.assert_close(
        open_encoder(model, 32)(images()), load_model_and_tokenizer(model).model(images().float() / 255)
    )
    file.write_text(json.dumps({"image_mean": mean, "image_std": [0, 1, 1]}))
    with pytest.raises(ModelError, match=r"preprocessor_config.json: no image_mean"):
        open_encoder(model, 32)


def test_models_of_other_makers_and_both_sides(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    torch.manual_seed(0)
    ResNetModel(config).eval().save_pretrained(tmp_path / "resnet")
    encoder = open_encoder(str(tmp_path / "resnet"), 32)
    assert encoder(images()).shape == (3, 12)
    twin = random_twin(encoder, 3)
    assert twin(images()).shape == (3, 12) and not torch.equal(twin(images()), encoder(images()))
    both = DualEncoderConfig(
        ImageEncoderConfig(TrunkConfig(dim=16, depth=1, heads=2, positions="none"), size=32, patch=8),
        TrunkConfig(dim=16, depth=1, heads=2),
        vocab=20,
        projection=8,
    )
    dual = DualEncoder(both).eval()
    save_model(tmp_path / "clip", dual)
    torch.testing.assert_close(open_encoder(str(tmp_path / "clip"), 32)(images()), dual.image(pixel_values(images())))


def test_a_random_twin_has_weights_of_the_seed_and_draws_nothing_else(model: str) -> None:
    encoder = open_encoder(model, 32)
    state = torch.get_rng_state()
    first, second, other = (random_twin(encoder, seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    moved = [name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, first[name])]
    assert moved and any(not torch.equal(first[name], other[name]) for name in moved)
    with pytest.raises(ModelError, match="a Flatten cannot be built anew"):
        random_twin(raw_pixels(), 0)


def test_models_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    large = encoder_folder(tmp_path / "large", size=64)
    with pytest.raises(ConfigError, match=r"size=32: model=.*large reads images of 64 x 64 pixels.*set size=64"):
        open_encoder(large, 32)
    save_model(tmp_path / "text", TextEncoder(TextEncoderConfig(trunk=TrunkConfig(dim=8, depth=1, heads=1), vocab=9)))
    with pytest.raises(ModelError, match="a TextEncoder, which reads no images"):
        open_encoder(str(tmp_path / "text"), 32)
    with pytest.raises(ModelError, match="no zoo:mini-wit"):
        open_encoder("zoo:mini-wit", 32)
    from transformers import ViTMSNConfig, ViTMSNModel

    vit = ViTMSNConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=48)
    ViTMSNModel(vit).save_pretrained(tmp_path / "msn")
    with pytest.raises(ConfigError, match=r"msn cannot read images of 32 x 32 pixels: .*set size"):
        open_encoder(str(tmp_path / "msn"), 32)


def test_an_encoder_around_any_module() -> None:
    encoder = PixelEncoder(nn.Flatten(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert torch.equal(encoder(images(1)), images(1).float().flatten(1) / 255)
