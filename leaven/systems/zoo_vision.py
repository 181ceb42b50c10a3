"""How the zoo's image models are made.

The encoder: masked autoencoding on rendered and photographed images, then class labels. The pair of encoders for images
and texts: contrastive learning on rendered scenes and their captions.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leaven.contracts import Batch
from leaven.data.loader import Loader
from leaven.data.rendered.captions import caption
from leaven.data.rendered.glyphs import LETTERS, GlyphStyle, render_glyphs
from leaven.data.rendered.scenes import SceneWorld, render
from leaven.data.rendered.shapes import COLOURS, SHAPES
from leaven.modalities.code_tokenizer import CodeTokenizer
from leaven.modalities.image import pixel_values
from leaven.modalities.pairs import padded
from leaven.models.trunk import TrunkConfig
from leaven.models.vision import DualEncoder, DualEncoderConfig, ImageEncoder, ImageEncoderConfig
from leaven.objectives.classification import Classification
from leaven.objectives.contrastive import ImageTextContrast
from leaven.objectives.masked_autoencoding import MaskedAutoencoding
from leaven.systems.zoo_made import Made
from leaven.training.config import TrainingConfig
from leaven.training.loop import fit

SIZE = 32
CLASSES = len(LETTERS) + len(SHAPES)
UNSEEN_PAIRS = frozenset(
    (shape, colour)
    for at, shape in enumerate(SHAPES)
    for step, colour in enumerate(COLOURS)
    if (at + step) % 10 in (0, 5)
)
"""Every fifth pair: each shape lacks two colours, and each colour two shapes."""


def mini_vit(
    work: Path,
    *,
    dim: int,
    depth: int,
    heads: int,
    patch: int,
    scenes: int,
    per_letter: int,
    crops: int,
    pretrain: str,
    label: str,
    batch_size: int,
    seed: int,
) -> Made:
    """Pre-train on all images without labels, then on the letters and on the shapes of scenes with one object.

    Letters are those of the Latin alphabet alone, so that other alphabets stay unseen.
    """
    started = time.perf_counter()
    unlabelled, labelled, labels = _images(scenes, per_letter, crops, seed)
    data_seconds = time.perf_counter() - started
    config = ImageEncoderConfig(
        TrunkConfig(dim=dim, depth=depth, heads=heads, positions="none"), size=SIZE, patch=patch, labels=CLASSES
    )
    torch.manual_seed(seed)
    model = ImageEncoder(config)
    objective = MaskedAutoencoding(model)
    training = TrainingConfig(
        optimizer="muon", learning_rate=2e-3, seed=seed, checkpoint_seconds=60, checkpoint_every=None, keep=1
    )
    batches = _loader(unlabelled, None, batch_size, seed)
    first = fit(model, objective, batches, pretrain, training, out=work / "masked", label="masked autoencoding")
    batches = _loader(labelled, labels, batch_size, seed)
    slower = training.model_copy(update={"learning_rate": 1e-3})
    second = fit(model, Classification(smoothing=0.1), batches, label, slower, out=work / "labelled", label="labels")
    encoder = ImageEncoder(dataclasses.replace(config, labels=0))
    encoder.load_state_dict({name: t for name, t in model.state_dict().items() if not name.startswith("head.")})
    return Made(
        model=encoder,
        tokenizer=None,
        extra={"pixel_values": "leaven.modalities.image.pixel_values: [-1, 1]"},
        data={
            "source": "rendered scenes and Latin letters, crops of the two photographs in scikit-learn",
            "unlabelled images": len(unlabelled),
            "labelled images": len(labelled),
            "classes": CLASSES,
        },
        results=[{"masked": _last(first.records, "mae"), "train accuracy": _last(second.records, "accuracy")}],
        seconds={"data": data_seconds, "masked": first.used.seconds, "labels": second.used.seconds},
    )


def mini_clip(
    work: Path,
    *,
    dim: int,
    depth: int,
    text_depth: int,
    heads: int,
    patch: int,
    projection: int,
    vocab: int,
    scenes: int,
    train: str,
    batch_size: int,
    seed: int,
) -> Made:
    """Contrastive learning on scenes of one to three objects with captions that leave things out.

    `UNSEEN_PAIRS` of shape and colour never occur, for tests of unseen combinations.
    """
    started = time.perf_counter()
    world = SceneWorld(excluded=UNSEEN_PAIRS, seed=seed)
    drawn = [world.scene(index) for index in range(scenes + 256)]
    images = torch.stack([torch.from_numpy(render(one, SIZE).image).permute(2, 0, 1) for one in drawn])
    captions = [[caption(one, 4 * index + variant) for variant in range(4)] for index, one in enumerate(drawn)]
    tokenizer = CodeTokenizer.train((text for texts in captions[:scenes] for text in texts), vocab)
    encoded = [[[*encoding.ids, tokenizer.end_id] for encoding in tokenizer.encode(texts)] for texts in captions]
    longest = max(len(ids) for texts in encoded for ids in texts)
    trunk = TrunkConfig(dim=dim, depth=depth, heads=heads, positions="none")
    config = DualEncoderConfig(
        ImageEncoderConfig(trunk, size=SIZE, patch=patch),
        dataclasses.replace(trunk, depth=text_depth),
        vocab=len(tokenizer),
        embedding_positions=max(longest, 32),
        projection=projection,
        eos_id=tokenizer.end_id,
    )
    torch.manual_seed(seed)
    model = DualEncoder(config)

    def collate(items: list[Any]) -> Batch:
        texts = [encoded[item["at"]][item["variant"]] for item in items]
        ids = padded(texts, tokenizer.pad_id)
        rows = torch.tensor([item["at"] for item in items])
        return {
            "pixel_values": pixel_values(images[rows]),
            "input_ids": ids,
            "attention_mask": ids != tokenizer.pad_id,
        }

    items = [{"at": at, "variant": variant} for at in range(scenes) for variant in range(4)]
    training = TrainingConfig(
        optimizer="muon", learning_rate=1e-3, seed=seed, checkpoint_seconds=60, checkpoint_every=None, keep=1
    )
    data_seconds = time.perf_counter() - started
    loader = Loader(items, collate, batch_size=batch_size, seed=seed)
    result = fit(model, ImageTextContrast(), loader, train, training, out=work / "contrast", label="contrast")
    with torch.no_grad():
        held_out = [{"at": at, "variant": 0} for at in range(scenes, scenes + 256)]
        unseen = ImageTextContrast()(model.eval(), collate(held_out))
    return Made(
        model=model,
        tokenizer=tokenizer,
        extra={"pixel_values": "leaven.modalities.image.pixel_values: [-1, 1]"},
        data={
            "source": "rendered scenes and captions of a grammar, four of each",
            "scenes": scenes,
            "shape and colour pairs that never occur": sorted(" ".join(reversed(pair)) for pair in UNSEEN_PAIRS),
        },
        results=[
            {
                "train": _last(result.records, "contrast"),
                "own caption among 256 of new scenes": float(unseen.parts["found"]),
            }
        ],
        seconds={"data": data_seconds, "contrast": result.used.seconds},
    )


def _last(records: list[dict[str, Any]], name: str) -> float:
    return float(np.mean([record[name] for record in records if name in record][-10:]))


def _images(scenes: int, per_letter: int, crops: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unlabelled images, labelled images, labels; images (count, 3, 32, 32) uint8."""
    many = SceneWorld(seed=seed)
    crowded = torch.stack([_scene(many, index) for index in range(scenes // 2)])
    alone = SceneWorld(objects=(1, 1), sizes=("medium", "large"), seed=seed + 1)
    single = torch.stack([_scene(alone, index) for index in range(scenes // 2)])
    shapes = [list(SHAPES).index(alone.scene(index).objects[0].shape) for index in range(scenes // 2)]
    drawn = [
        render_glyphs(LETTERS, per_letter // 2, size=SIZE, style=GlyphStyle(gap), seed=seed + at)
        for at, gap in enumerate((0.0, 0.3))
    ]
    letters = torch.cat([one.rgb() for one in drawn])
    labels = torch.cat([*(one.labels for one in drawn), torch.tensor(shapes) + len(LETTERS)])
    return torch.cat([crowded, single, letters, _crops(crops, seed)]), torch.cat([letters, single]), labels


def _scene(world: SceneWorld, index: int) -> Tensor:
    return torch.from_numpy(render(world.scene(index), SIZE).image).permute(2, 0, 1)


def _crops(count: int, seed: int) -> Tensor:
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    photographs = load_sample_images().images
    found = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        side = int(rng.integers(SIZE, min(photograph.shape[:2]) // 2))
        top, left = (int(rng.integers(0, length - side)) for length in photograph.shape[:2])
        crop = Image.fromarray(photograph[top : top + side, left : left + side]).resize((SIZE, SIZE))
        found.append(torch.from_numpy(np.asarray(crop).copy()).permute(2, 0, 1))
    return torch.stack(found)


def _loader(images: Tensor, labels: Tensor | None, batch_size: int, seed: int) -> Loader:
    def collate(items: list[Any]) -> Batch:
        rows = torch.tensor([item["at"] for item in items])
        batch = {"pixel_values": pixel_values(images[rows])}
        return batch if labels is None else {**batch, "label": labels[rows]}

    return Loader([{"at": at} for at in range(len(images))], collate, batch_size=batch_size, seed=seed)
