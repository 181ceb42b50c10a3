"""The encoder of the arenas of continual learning: any image model, read from stored pixels to one vector per image."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leaven.errors import ConfigError, LeavenError, ModelError
from leaven.models.bridge import Features, ForeignEncoder, as_features
from leaven.models.loading import load_model_and_tokenizer, model_folder
from leaven.models.vision import DualEncoder, ImageEncoder
from leaven.training.randomness import preserved_rng

_HALF = (0.5, 0.5, 0.5)


class PixelEncoder(nn.Module):
    """A model behind the normalisation of its pixels, so that no learner can read two tasks in two ways.

    Args:
        model: pixel values (rows, 3, size, size) -> features (rows, dim).
        mean, deviation: of each channel of pixels in [0, 1]; a half each gives [-1, 1].

    Shapes: images (rows, 3, size, size) uint8 -> features (rows, dim).
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float] = _HALF, deviation: Sequence[float] = _HALF) -> None:
        super().__init__()
        self.model = model
        for name, values in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features."""
        features: Tensor = self.model((images.float() / 255 - self.mean) / self.deviation)
        return features


def raw_pixels() -> PixelEncoder:
    """The control without a model: the normalised pixels themselves (rows, 3 * size * size)."""
    return PixelEncoder(nn.Flatten()).eval()


def open_encoder(spec: str, size: int) -> PixelEncoder:
    """The image encoder that a name stands for, in evaluation mode; a classifier or a projection on it is left out.

    Args:
        spec: `zoo:NAME`, `hf:ID` or a folder.
        size: side of the images in pixels.

    Raises: ModelError for an unknown model or one that reads no images; ConfigError for images of another size than it
    reads.
    """
    model = _image_model(load_model_and_tokenizer(spec).model, spec)
    if isinstance(model, ImageEncoder) and (model.config.size, model.config.channels) != (size, 3):
        side = model.config.size
        raise ConfigError(
            f"size={size}: model={spec} reads images of {side} x {side} pixels in {model.config.channels} channels; "
            f"set size={side}, or take another model"
        )
    encoder = PixelEncoder(model, *_normalisation(spec)).eval()
    try:
        features_width(encoder, size)
    except (LeavenError, RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"model={spec} cannot read images of {size} x {size} pixels: {error}; set size to what it was trained on"
        ) from error
    return encoder


def features_width(encoder: nn.Module, size: int) -> int:
    """Dimensions of the features of an encoder in evaluation mode."""
    with torch.no_grad():
        return int(encoder(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape[1])


def random_twin(encoder: PixelEncoder, seed: int) -> PixelEncoder:
    """The same architecture with fresh weights that the seed decides; the global random state stays as it was.

    Raises: ModelError for a model that has no configuration to be built from.
    """
    twin = PixelEncoder(
        fresh_model(encoder.model, seed), encoder.mean.flatten().tolist(), encoder.deviation.flatten().tolist()
    )
    return twin.eval()


def fresh_model(model: nn.Module, seed: int) -> nn.Module:
    """A model of the same configuration with fresh weights that the seed decides, in evaluation mode.

    Raises: ModelError for a model that has no configuration to be built from.
    """
    wrapped = isinstance(model, Features)
    inner: Any = model.module if wrapped else model
    config = getattr(inner, "config", None)
    if config is None:
        raise ModelError(f"a {type(inner).__name__} cannot be built anew: it has no config")
    with preserved_rng():
        torch.manual_seed(seed)
        fresh: nn.Module = type(inner)(config).eval()
    return as_features(fresh) if wrapped else fresh


def _image_model(model: nn.Module, spec: str) -> nn.Module:
    if isinstance(model, DualEncoder):
        model = model.image
    if isinstance(model, ImageEncoder):
        model.head, model.config = None, dataclasses.replace(model.config, labels=0)
        return model
    body = model.inner.base_model if isinstance(model, ForeignEncoder) else model
    reads = getattr(body, "main_input_name", None)
    if reads != "pixel_values":
        raise ModelError(
            f"model={spec} is a {type(body).__name__}, which reads {reads or 'no images'}; expected an image encoder"
        )
    return as_features(body)


def _normalisation(spec: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of the channels, as the model's image processor has them."""
    file = model_folder(spec) / "preprocessor_config.json"
    if not file.is_file():
        return _HALF, _HALF
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not values.get("do_normalize", True):
            return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        mean, deviation = ([float(one) for one in values[key]] for key in ("image_mean", "image_std"))
        if len(mean) != 3 or len(deviation) != 3 or min(deviation) <= 0:
            raise ValueError(f"mean {mean}, deviation {deviation}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{file}: no image_mean and image_std of three channels ({error}); repair or remove it"
        ) from error
    return mean, deviation
