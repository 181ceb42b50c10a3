"""A folder of fine-tuned checkpoints that are to be merged."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from leaven.errors import ConfigError, ModelError
from leaven.evidence.arenas.image_data import ImageData
from leaven.evidence.arenas.merge_classifiers import Classifier, ImageModel, open_image_model, probed
from leaven.evidence.arenas.merge_sweep import MergeConfig, classifier_data
from leaven.merge import Weights, open_weights
from leaven.merge.compatibility import check_combinable, refuse_nonfinite
from leaven.models.saved import MANIFEST

_FILES = (".safetensors", ".bin", ".pt", ".pth")
_BASE = "base"


@dataclass(frozen=True)
class Checkpoints:
    """Fine-tuned classifiers of one architecture, finite and of one shape.

    classifier: runs any of them. base: gives their common start, with a head.
    """

    classifier: Classifier
    data: ImageData
    weights: Sequence[Weights]
    base: Callable[[], Weights]


def checkpoint_paths(folder: str | Path) -> tuple[list[Path], Path | None]:
    """The checkpoints of a folder in the order of their names, and the one that is called `base`.

    Raises: ConfigError when there is no such folder, or fewer than two checkpoints are in it.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise ConfigError(f"ingredients={folder}: there is no such folder")
    found = [path for path in sorted(place.iterdir()) if path.suffix in _FILES or _is_model(path)]
    bases = [path for path in found if path.name.removesuffix(path.suffix) == _BASE or path.name == _BASE]
    checkpoints = [path for path in found if path not in bases]
    if len(checkpoints) < 2:
        held = f"only one checkpoint, {checkpoints[0].name}" if checkpoints else "no checkpoints"
        raise ConfigError(
            f"ingredients={folder} holds {held}: merging needs two or more, as safetensors files or model folders"
        )
    return checkpoints, bases[0] if bases else None


def _is_model(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in (MANIFEST, "config.json"))


def open_classifiers(config: MergeConfig) -> Checkpoints:
    """The classifiers of `config.ingredients`, with the data that they are judged on.

    The architecture is that of the first model folder, else of `config.model`. The common start is the checkpoint
    called `base`, else the model; if that has no head of its own, one is probed on the training split.

    Raises: ConfigError for fewer than two checkpoints; ModelError when they differ in their tensors from each other or
    from the model, have NaN or infinite weights, or tell other classes apart than the data has.
    """
    paths, base = checkpoint_paths(config.ingredients)
    folder = next((path for path in paths if path.is_dir()), None)
    image_model = open_image_model(config.model if folder is None else str(folder))
    data = classifier_data(config, image_model.size)
    classes = data.classes
    if folder is not None and image_model.labels != len(classes):
        raise ModelError(
            f"{folder} tells {image_model.labels} classes apart, but {config.data} has {len(classes)}: "
            "give the data that the checkpoints were fine-tuned for"
        )
    classifier = image_model.with_head(len(classes)) if folder is None else image_model.classifier()
    weights = [_weights(path) for path in paths]
    check_combinable(weights, same_task=True)
    _check_fits(weights[0], classifier)
    refuse_nonfinite(weights)
    for path in paths:
        _check_classes(path, classes)

    @cache
    def start() -> Weights:
        found = _start(config, base, data)
        try:
            check_combinable([weights[0], found], same_task=False)
        except ModelError as error:
            raise ModelError(
                f"model={config.model} is not what the checkpoints were fine-tuned from: give that model, or put it "
                f"beside them under the name `{_BASE}`. {error}"
            ) from error
        refuse_nonfinite([found])
        return found

    return Checkpoints(classifier, data, weights, start)


def _start(config: MergeConfig, base: Path | None, data: ImageData) -> Weights:
    if base is not None and not base.is_dir():
        return open_weights(base)
    model = open_image_model(config.model if base is None else str(base))
    if model.labels == len(data.classes):
        return _state(model.classifier(), str(base or config.model), base)
    headed = model.with_head(len(data.classes))
    probed(headed, data.train.images, data.train.targets(data.classes))
    return _state(headed, str(base or config.model), base)


def _weights(path: Path) -> Weights:
    """Under the names that leaven's own models have. Files, and leaven's own folders, are read where they lie."""
    if not path.is_dir() or (path / MANIFEST).is_file():
        return open_weights(path)
    model: ImageModel = open_image_model(str(path))
    return _state(model.classifier(), str(path), path)


def _state(classifier: Classifier, label: str, folder: Path | None) -> Weights:
    weights = open_weights(classifier.model, label)
    weights.folder = folder
    return weights


def _check_fits(weights: Weights, classifier: Classifier) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in classifier.model.state_dict().items()}
    found = {name: spec.shape for name, spec in weights.specs.items()}
    wrong = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    if wrong:
        name = wrong[0]
        raise ModelError(
            f"{weights.label} does not fit the model in {len(wrong)} tensors: {name} has shape "
            f"{found.get(name, 'none')}, expected {expected.get(name, 'none')}; give model=, the model that the "
            "checkpoints were fine-tuned from, and the data that they were fine-tuned for"
        )


def _check_classes(path: Path, classes: list[str]) -> None:
    """Classes are told by their place; a checkpoint that names them has to name them in the data's order."""
    named = _class_names(path)
    if named is not None and named != classes:
        raise ModelError(
            f"{path} tells the classes {', '.join(named[:5])}, ... apart ({len(named)}), but those of the data are "
            f"{', '.join(classes[:5])}, ... ({len(classes)}), in this order: give the data that the checkpoints were "
            "fine-tuned for"
        )


def _class_names(path: Path) -> list[str] | None:
    """Names in the order of the head; None where the checkpoint does not tell."""
    if (path / MANIFEST).is_file():
        names = json.loads((path / MANIFEST).read_text(encoding="utf-8")).get("extra", {}).get("classes")
        return None if names is None else list(map(str, names))
    if not (path / "config.json").is_file():
        return None
    labels = json.loads((path / "config.json").read_text(encoding="utf-8")).get("id2label") or {}
    names = [str(labels[key]) for key in sorted(labels, key=int)]
    generic = [f"LABEL_{place}" for place in range(len(names))]
    return None if not names or names == generic else names
