"""Statistics of classes that grow batch by batch: counts, sums and, where asked, covariances."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from leaven.adapt.continual.learner import Label, Labels, checked_labels, distinct
from leaven.errors import ConfigError, DataError, ModelError
from leaven.training.checkpoint import replaced

Covariance = Literal["full", "diag", "shared"]
_FORMAT = "leaven class statistics 1"


@dataclass(frozen=True)
class _Class:
    """Rows, their sum (dim,), and the sum of squares or products about their mean: (dim,), (dim, dim) or None."""

    count: int
    total: Tensor
    scatter: Tensor | None = None

    def plus(self, other: _Class) -> _Class:
        scatter = None
        if self.scatter is not None and other.scatter is not None:
            scatter = self.scatter + other.scatter + _between(self, other, self.scatter.ndim)
        return _Class(self.count + other.count, self.total + other.total, scatter)


class ClassStatistics:
    """Count, mean and, where asked, covariance of each class's features; float64, d + 1 numbers per class for means.

    The result does not depend on the order of the rows, nor on how they are cut into batches, but for rounding. No
    feature is kept.

    Args:
        covariance: "full" keeps a matrix per class, "diag" a variance per class and dimension, "shared" one matrix of
            all classes about their own means, None none.

    Source: the sums of arXiv 2210.04428; batches are combined as in Chan, Golub, LeVeque 1983 equation 2.1.
    """

    def __init__(self, covariance: Covariance | None = None) -> None:
        if covariance is not None and covariance not in get_args(Covariance):
            raise ConfigError(f"covariance={covariance!r}; expected one of {', '.join(get_args(Covariance))}, or None")
        self.kind: Covariance | None = covariance
        self._classes: dict[Label, _Class] = {}
        self._shared: Tensor | None = None
        self._means: Tensor | None = None

    @property
    def classes(self) -> list[Label]:
        """Labels in the order in which they came."""
        return list(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def __contains__(self, label: Label) -> bool:
        return label in self._classes

    @property
    def dim(self) -> int | None:
        """Width of the features, None before the first."""
        first = next(iter(self._classes.values()), None)
        return None if first is None else len(first.total)

    def count(self, label: Label) -> int:
        """Rows of a class. Raises: DataError for a label that is not there."""
        return self._of(label).count

    def mean(self, label: Label) -> Tensor:
        """Mean of a class (dim,) float64. Raises: DataError for a label that is not there."""
        found = self._of(label)
        return found.total / found.count

    def means(self) -> Tensor:
        """Means (classes, dim) float64, in the order of `classes`. Raises: DataError before the first class."""
        if not self._classes:
            raise DataError("there are no class statistics yet: update them with labelled features")
        if self._means is None:
            self._means = torch.stack([one.total / one.count for one in self._classes.values()])
        return self._means

    def covariance(self, label: Label) -> Tensor:
        """Unbiased covariance: (dim, dim), the same for all classes if shared, or the variances (dim,) if diagonal.

        Raises: DataError for a label that is not there, or too few rows: 2, or more than there are classes if shared;
        ConfigError when no covariance is kept.
        """
        found = self._of(label)
        if self.kind is None:
            raise ConfigError(
                "these statistics keep no covariance: make them with covariance='full', 'diag' or 'shared'"
            )
        if self._shared is not None:
            free = sum(one.count for one in self._classes.values()) - len(self._classes)
            if free < 1:
                raise DataError("a shared covariance needs a class with at least 2 rows; every class has one")
            return self._shared / free
        if found.count < 2 or found.scatter is None:
            raise DataError(f"class {label!r} has {found.count} row; a covariance needs at least 2")
        return found.scatter / (found.count - 1)

    def update(self, features: Tensor, labels: Labels) -> None:
        """Take in rows of features.

        Shapes: features (rows, dim) floating point, labels (rows,).
        Raises: DataError for other shapes or widths, labels that do not fit, or features that are not finite.
        """
        if features.ndim != 2 or not features.is_floating_point():
            raise DataError(
                f"the features are {features.dtype} of shape {tuple(features.shape)}; expected numbers (rows, dim)"
            )
        self._require_width(features.shape[1])
        names = checked_labels(labels, len(features), self._classes)
        if not names:
            return
        present = distinct(names)
        features = features.detach().cpu()
        if len(present) == 1:
            parts = [features]
        else:
            number = {label: at for at, label in enumerate(present)}
            place = torch.tensor([number[label] for label in names])
            order = place.argsort(stable=True)
            parts = list(torch.split(features[order], place.bincount().tolist()))
        self._join({label: _summary(part, label, self.kind) for label, part in zip(present, parts, strict=True)})

    def merge(self, other: ClassStatistics) -> None:
        """Take in statistics that were made elsewhere, as if their rows had been seen here.

        Raises: DataError when width or labels do not fit; ConfigError when the kind of covariance differs.
        """
        if other.kind != self.kind:
            raise ConfigError(f"statistics with covariance {other.kind} cannot join those with {self.kind}")
        if not other._classes:
            return
        self._require_width(other.dim)
        checked_labels(other.classes, len(other), self._classes)
        self._join(dict(other._classes), other._shared)

    def forget(self, label: Label) -> None:
        """Remove a class without a trace.

        Raises: DataError for a label that is not there; ConfigError with a shared covariance, which mixes all classes.
        """
        self._of(label)
        if self.kind == "shared":
            raise ConfigError(f"a shared covariance cannot forget class {label!r}: keep covariance='full' or 'diag'")
        self._classes = {name: one for name, one in self._classes.items() if name != label}
        self._means = None

    def copy(self) -> ClassStatistics:
        """Statistics that grow on their own from here."""
        twin = ClassStatistics(self.kind)
        twin._classes, twin._shared, twin._means = dict(self._classes), self._shared, self._means
        return twin

    def save(self, path: Path | str, note: Mapping[str, str] | None = None) -> Path:
        """Write one safetensors file, whole or not at all; labels and the note stand in its header as json.

        Raises: DataError before the first class, or for labels that json cannot hold (only text, numbers and booleans).
        """
        path = Path(path)
        labels = self.classes
        odd = next((label for label in labels if type(label) not in (str, int, float, bool)), None)
        if not labels or odd is not None:
            raise DataError(f"{path}: " + ("there is no class to save" if not labels else f"cannot save label {odd!r}"))
        kept = list(self._classes.values())
        tensors = {
            "counts": torch.tensor([one.count for one in kept]),
            "totals": torch.stack([one.total for one in kept]),
        }
        if self._shared is not None:
            tensors["shared"] = self._shared
        elif self.kind is not None:
            tensors["scatters"] = torch.stack([one.scatter for one in kept if one.scatter is not None])
        header = {"format": _FORMAT, "classes": json.dumps(labels), "covariance": self.kind or "", **(note or {})}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as draft:
            save_file(tensors, draft, metadata=header)
        return path

    @classmethod
    def load(cls, path: Path | str) -> tuple[ClassStatistics, dict[str, str]]:
        """Statistics and note of a file that `save` wrote. Raises: ModelError when it is missing or damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                header = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            if header.pop("format", None) != _FORMAT:
                raise ValueError("it has another format")
            labels, kind = json.loads(header.pop("classes")), header.pop("covariance") or None
            statistics = cls(kind)
            statistics._fill(labels, tensors)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, ConfigError, DataError) as error:
            raise ModelError(f"{path}: no class statistics that leaven saved ({error})") from error
        return statistics, header

    def _fill(self, labels: list[Label], tensors: dict[str, Tensor]) -> None:
        counts, totals = tensors["counts"], tensors["totals"]
        checked_labels(labels, len(totals))
        if len(set(labels)) != len(labels) or counts.shape != (len(labels),) or not bool((counts > 0).all()):
            raise ValueError("labels and counts do not fit")
        scatters: list[Any] = [None] * len(labels)
        dim = totals.shape[1]
        if self.kind == "shared":
            self._shared = tensors["shared"].reshape(dim, dim)
        elif self.kind is not None:
            shape = (dim, dim) if self.kind == "full" else (dim,)
            scatters = list(tensors["scatters"].reshape(len(labels), *shape))
        for label, count, total, scatter in zip(labels, counts.tolist(), totals, scatters, strict=True):
            self._classes[label] = _Class(count, total, scatter)

    def _of(self, label: Label) -> _Class:
        try:
            return self._classes[label]
        except (KeyError, TypeError) as error:
            raise DataError(f"there is no class {label!r} among the {len(self._classes)} learnt") from error

    def _require_width(self, width: int | None) -> None:
        if self.dim is not None and width != self.dim:
            raise DataError(f"the features have {width} dimensions, those seen before {self.dim}")

    def _join(self, new: dict[Label, _Class], shared: Tensor | None = None) -> None:
        if self.kind == "shared":
            # What is kept of a class need not hold its own matrix: all of them go into one.
            pairs = [(self._classes[label], one) for label, one in new.items() if label in self._classes]
            own = [one.scatter for one in new.values() if one.scatter is not None]
            terms = [self._shared, shared, *own, *(_between(old, one, 2) for old, one in pairs)]
            self._shared = torch.stack([term for term in terms if term is not None]).sum(0)
            new = {label: _Class(one.count, one.total) for label, one in new.items()}
        for label, one in new.items():
            old = self._classes.get(label)
            self._classes[label] = one if old is None else old.plus(one)
        self._means = None


def _between(a: _Class, b: _Class, order: int) -> Tensor:
    """What the distance of two means adds to the scatter of both together."""
    apart = b.total / b.count - a.total / a.count
    product = torch.outer(apart, apart) if order == 2 else apart.square()
    return product * (a.count * b.count / (a.count + b.count))


def _sum_of_rows(rows: Tensor) -> Tensor:
    """Sum (dim,) float64, a few rows at a time, so that their conversion stays in the cache."""
    total = rows.new_zeros(rows.shape[1], dtype=torch.float64)
    for few in torch.split(rows, 256):
        # A product with ones, unlike sum(), does not lose time where cores are shared.
        total += few.new_ones(len(few), dtype=torch.float64) @ few.double()
    return total


def _summary(part: Tensor, label: Label, kind: Covariance | None) -> _Class:
    total = _sum_of_rows(part)
    if not bool(total.isfinite().all()):
        rows = (~part.isfinite().all(1)).nonzero().flatten().tolist()
        raise DataError(f"class {label!r}: its features in rows {rows[:8]} (counted within the class) are not finite")
    if kind is None:
        return _Class(len(part), total)
    centred = part.double() - total / len(part)
    return _Class(len(part), total, centred.square().sum(0) if kind == "diag" else centred.t() @ centred)
