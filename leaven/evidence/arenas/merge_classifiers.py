"""Image classifiers as the merge arena needs them: any encoder with a linear head, probed, run and judged."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.contracts import Batch
from leaven.data.loader import Loader
from leaven.errors import ModelError
from leaven.evidence.arenas.merge_ground import LazyBatches
from leaven.merge import open_weights
from leaven.modalities.image import pixel_values
from leaven.models.bridge.features import as_features
from leaven.models.bridge.foreign import ForeignEncoder
from leaven.models.loading import load_model_and_tokenizer
from leaven.models.saved import build_model
from leaven.models.vision import DualEncoder, ImageEncoder

ROWS = 256
"""Images that are run at a time."""


@dataclass(frozen=True)
class Pixels:
    """Images (batch, 3, size, size) uint8 as the model reads them: (x / 255 - mean) / std for each channel."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        # From [-1, 1], which is how leaven's own models read them.
        return (pixel_values(images) + 1 - 2 * mean) / (2 * std)


class ForeignClassifier(nn.Module):
    """An image model of transformers with a new linear head on its pooled features, or with its own logits.

    Args:
        head: classes of the new head, of zeros; 0 takes the model's own logits.
        size: side of the images in pixels.
    """

    def __init__(self, inner: Any, head: int, size: int) -> None:
        super().__init__()
        self.inner = inner.base_model if head else inner
        # In a tuple, so that its parameters are not listed twice.
        self._features = (as_features(self.inner),)
        self.head: nn.Linear | None = None
        if head:
            with torch.no_grad():
                width = self.features(torch.zeros(1, 3, size, size)).shape[1]
            self.head = _zero_head(width, head)

    def features(self, pixel_values: Tensor) -> Tensor:
        """Pooled features (batch, dim)."""
        found: Tensor = self._features[0]({"pixel_values": pixel_values})
        return found

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        logits: Tensor = (
            self.inner(pixel_values).logits if self.head is None else self.head(self.features(pixel_values))
        )
        return logits


@dataclass(frozen=True)
class Classifier:
    """A model whose call with `pixel_values` gives logits (batch, classes), and what makes pixel values of images."""

    model: Any
    pixels: Pixels


@dataclass(frozen=True)
class ImageModel:
    """A model that reads images.

    encoder: an `ImageEncoder`, or an image model of transformers. size: side of its images in pixels.
    labels: classes of the head it came with, 0 for none.
    """

    encoder: ImageEncoder | ForeignEncoder
    size: int
    pixels: Pixels
    labels: int

    def classifier(self) -> Classifier:
        """With the head it came with."""
        if isinstance(self.encoder, ImageEncoder):
            return Classifier(self.encoder, self.pixels)
        return Classifier(ForeignClassifier(self.encoder.inner, 0, self.size), self.pixels)

    def with_head(self, classes: int) -> Classifier:
        """A copy with a new head of zeros, to be `probed`."""
        if isinstance(self.encoder, ImageEncoder):
            return Classifier(_with_head(self.encoder, classes), self.pixels)
        return Classifier(ForeignClassifier(copy.deepcopy(self.encoder.inner), classes, self.size), self.pixels)


def open_image_model(spec: str) -> ImageModel:
    """The image model of a name; of an image-text model the image encoder.

    Raises: ModelError for a model that reads no images, and what `load_model_and_tokenizer` raises.
    """
    model = load_model_and_tokenizer(spec).model
    pixels = _pixels(open_weights(spec).folder)
    if isinstance(model, DualEncoder):
        model = model.image
    if isinstance(model, ImageEncoder):
        return ImageModel(model, model.config.size, pixels, model.config.labels)
    if isinstance(model, ForeignEncoder) and model.inner.main_input_name == "pixel_values":
        size = model.config.theirs.get("image_size")
        headed = type(model.inner).__name__.endswith("ForImageClassification")
        labels = int(model.inner.config.num_labels) if headed else 0
        return ImageModel(model, size if isinstance(size, int) else 224, pixels, labels)
    raise ModelError(f"{spec} is a {type(model).__name__}, which reads no images: expected an image encoder")


def _with_head(encoder: ImageEncoder, classes: int) -> ImageEncoder:
    """A copy with a new head, and without a pooler, which a classifier leaves unread."""
    made = build_model(dataclasses.replace(encoder.config, labels=classes, pooler=False))
    assert isinstance(made, ImageEncoder)
    made.head = _zero_head(encoder.config.trunk.dim, classes)
    kept = {n: t for n, t in encoder.state_dict().items() if not n.startswith(("head.", "pooler."))}
    made.load_state_dict({**made.state_dict(), **kept})
    return made.eval()


def _zero_head(width: int, classes: int) -> nn.Linear:
    head: nn.Linear = nn.Linear(width, classes, device="meta").to_empty(device="cpu")
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _pixels(folder: Path | None) -> Pixels:
    """Mean and deviation of the folder's image processor; leaven's own where there is none."""
    path = None if folder is None else folder / "preprocessor_config.json"
    if path is None or not path.is_file():
        return Pixels()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        mean, std = (tuple(float(value) for value in found[name]) for name in ("image_mean", "image_std"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} gives no image_mean and image_std, lists of three numbers: {error!r}") from error
    return Pixels(mean, std)


def probed(classifier: Classifier, images: Tensor, targets: Tensor) -> None:
    """Fit the head to the frozen features (a linear probe), in place."""
    model = classifier.model
    features = in_batches(model, model.features, classifier.pixels, images)
    weight, bias = linear_probe(features, targets, model.head.out_features)
    with torch.no_grad():
        model.head.weight.copy_(weight)
        model.head.bias.copy_(bias)


def linear_probe(features: Tensor, targets: Tensor, classes: int, *, decay: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Weight (classes, dim) and bias (classes,) of the logistic regression on features (rows, dim).

    decay: factor of half the squared weight, which is added to the mean cross-entropy; the bias is free.
    """
    x = features.double()
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = F.cross_entropy(x @ weight.T + bias, targets) + 0.5 * decay * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach().float(), bias.detach().float()


@torch.no_grad()
def in_batches(
    model: nn.Module, call: Callable[..., Tensor], pixels: Pixels, images: Tensor, **fields: Tensor
) -> Tensor:
    """What `call(pixel_values=..., **fields)`, the model or a method of it, gives for images in eval mode.

    fields: (count,) each, handed over with the images.
    """
    model.eval()
    found = []
    for start in range(0, len(images), ROWS):
        rows = slice(start, start + ROWS)
        batch = {"pixel_values": pixels(images[rows]), **{name: value[rows] for name, value in fields.items()}}
        found.append(call(**beside(model, batch)).float().cpu())
    return torch.cat(found)


def beside(model: nn.Module, batch: Batch) -> Batch:
    """The batch on the model's device."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return {name: value.to(device) for name, value in batch.items()}


def accuracy(model: nn.Module, pixels: Pixels, images: Tensor, targets: Tensor, **fields: Tensor) -> float:
    """Share of images whose class the model tells, in [0, 100]. fields: what else its call takes, (count,) each."""
    logits = in_batches(model, model, pixels, images, **fields)
    return 100 * float((logits.argmax(1) == targets).double().mean())


def image_batches(
    images: Tensor, fields: Mapping[str, Tensor], pixels: Pixels, batch_size: int, order: Tensor
) -> LazyBatches:
    """Batches of images in a fixed order; the last one may be smaller.

    Fields: `pixel_values`, and those of `fields`, such as `label`, with a row for each image.
    order: of the images, (count,) int64.
    """
    parts = torch.split(order, batch_size)
    return LazyBatches(len(parts), lambda at: _rows(images, fields, pixels, parts[at]))


def image_loader(images: Tensor, fields: Mapping[str, Tensor], pixels: Pixels, batch_size: int, seed: int) -> Loader:
    """Endless batches with the field `pixel_values` and those of `fields`, in an order that the seed decides."""

    def collate(items: list[Any]) -> Batch:
        return _rows(images, fields, pixels, torch.tensor([item["at"] for item in items]))

    items = [{"at": at} for at in range(len(images))]
    return Loader(items, collate, batch_size=batch_size, seed=seed, drop_last=len(items) >= batch_size)


def _rows(images: Tensor, fields: Mapping[str, Tensor], pixels: Pixels, rows: Tensor) -> Batch:
    return {"pixel_values": pixels(images[rows]), **{name: value[rows] for name, value in fields.items()}}
