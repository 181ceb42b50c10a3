"""The merge arena for image classifiers of one label set, judged on clean and on mildly shifted images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from leaven.evidence.arenas.image_data import ImageData
from leaven.evidence.arenas.merge_classifiers import Classifier, accuracy, beside, image_batches
from leaven.evidence.arenas.merge_folder import open_classifiers
from leaven.evidence.arenas.merge_ground import Curves, Ground, Judge
from leaven.evidence.arenas.merge_shifts import SHIFTS, shifted
from leaven.evidence.arenas.merge_sweep import MergeConfig, Sweep
from leaven.evidence.selection import Sealed
from leaven.evidence.system import Figures
from leaven.merge import Weights, open_weights, reestimate_batch_norm
from leaven.models.saved import save_model
from leaven.models.vision import ImageEncoder
from leaven.objectives.classification import Classification

STATISTICS = 512
"""Training images that running statistics of averaged weights are taken from."""


def classifier_ground(
    config: MergeConfig, place: Path, sweep: Sweep | None = None, other: Sweep | None = None
) -> Ground:
    """Image classifiers of one label set: those of the configured folder, else of a sweep.

    Figures: `accuracy` on the test images, one for each of the shifts, and their mean, `shifted`.

    Args:
        place: where trained ingredients are kept.
        sweep: where they come from; the configuration's where None. other: where every second one comes from.
    """
    if config.ingredients:
        found = open_classifiers(config)
        return _images(config, found.classifier, found.data, base=found.base, ingredients=found.weights)
    sweep = sweep or Sweep(config, place)
    runs = [(other if other is not None and at % 2 else sweep).ingredient(at) for at in range(config.runs)]
    return _images(
        config,
        sweep.classifier,
        sweep.data,
        base=lambda: sweep.base,
        ingredients=[run.weights for run in runs],
        budget={"training steps": float(sweep.steps)},
        records={f"run {at}": run.records for at, run in enumerate(runs)},
    )


def _images(
    config: MergeConfig,
    classifier: Classifier,
    data: ImageData,
    *,
    base: Callable[[], Weights],
    ingredients: Sequence[Weights],
    budget: Figures | None = None,
    records: Curves | None = None,
) -> Ground:
    pixels, classes, valid = classifier.pixels, data.classes, data.valid
    targets = valid.targets(classes)
    order = torch.randperm(len(valid), generator=torch.Generator().manual_seed(config.seed))
    test = data.test.read()
    test_targets = test.targets(classes)

    @cache
    def images(task: str) -> Tensor:
        return (
            test.images if task == "clean" else shifted(test.images, task, severity=config.severity, seed=config.seed)
        )

    def save(path: Path, model: nn.Module) -> Path:
        if isinstance(model, ImageEncoder):
            return save_model(path, model, extra={"classes": classes})
        return open_weights(model).save(path.with_suffix(".safetensors"))

    def refresh(model: nn.Module) -> None:
        chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(config.seed))[:STATISTICS]
        batches = image_batches(data.train.images, {}, pixels, config.batch_size, chosen)
        reestimate_batch_norm(model, batches, lambda model, batch: model(**beside(model, batch)))

    return Ground(
        model=classifier.model,
        base=base,
        ingredients=ingredients,
        objective=Classification(),
        batches=image_batches(valid.images, {"label": targets}, pixels, config.batch_size, order),
        valid=Judge(
            ("clean",),
            lambda model, task: accuracy(model, pixels, valid.images, targets),
            lambda scores: {"accuracy": scores["clean"]},
        ),
        test=Sealed(
            Judge(
                ("clean", *SHIFTS),
                lambda model, task: accuracy(model, pixels, images(task), test_targets),
                _with_shifts,
            ),
            config.data,
        ),
        figure="accuracy",
        budget=budget or {},
        records=records or {},
        refresh=refresh,
        save=save,
    )


def _with_shifts(scores: dict[str, float]) -> Figures:
    shifts = {name: scores[name] for name in SHIFTS}
    return {"accuracy": scores["clean"], "shifted": sum(shifts.values()) / len(shifts), **shifts}
