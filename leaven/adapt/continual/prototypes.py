"""Classes as the mean of their features on a frozen encoder: no training, constant time and memory per class."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from leaven.adapt.continual.features import Encoder, Inputs, read_features, rows_in
from leaven.adapt.continual.learner import Label, Labels, Learner, checked_labels, require_classes
from leaven.adapt.continual.statistics import ClassStatistics
from leaven.errors import ConfigError, ModelError


class _Prototypes(Learner):
    """Running means of classes; a class may come back, and order and size of the batches do not matter.

    Args:
        encoder: turns inputs into features (rows, dim); used as it is, in evaluation mode.
        chunk: inputs encoded at a time.
    """

    rule: ClassVar[str]
    unit_features: ClassVar[bool]

    def __init__(self, encoder: Encoder, *, chunk: int = 256) -> None:
        if chunk < 1:
            raise ConfigError(f"chunk is {chunk}; expected at least 1")
        self.encoder, self.chunk = encoder, chunk
        self.statistics = ClassStatistics()

    @property
    def classes(self) -> list[Label]:
        """Labels in the order in which they came."""
        return self.statistics.classes

    def features(self, inputs: Inputs) -> Tensor:
        """What the rule compares (rows, dim): the encoder's features, of length 1 if the rule wants that.

        Raises: what `read_features` raises, for a zero feature too.
        """
        width = self.statistics.dim
        features = read_features(self.encoder, inputs, chunk=self.chunk, width=width, nonzero=True)
        return F.normalize(features, dim=1) if self.unit_features else features

    def learn(self, inputs: Inputs, labels: Labels) -> None:
        """Add labelled inputs to the means of their classes, whether these are new or not.

        Raises: DataError for labels or features that cannot be used, naming the row; ModelError for an encoder in
        training mode or of another width.
        """
        names = checked_labels(labels, rows_in(inputs), self.statistics.classes[:1])
        self.statistics.update(self.features(inputs), names)

    def partial_fit(self, inputs: Inputs, labels: Labels) -> Self:
        """`learn` under the name that scikit-learn gives it."""
        self.learn(inputs, labels)
        return self

    def scores(self, inputs: Inputs) -> Tensor:
        """How near each class is (rows, classes), float64, in the order of `classes`.

        Raises: ModelError before the first class; what `features` raises.
        """
        require_classes(self.statistics.classes[:1])
        return self._compare(self.features(inputs).double(), self.statistics.means())

    @abstractmethod
    def _compare(self, features: Tensor, means: Tensor) -> Tensor:
        """Scores (rows, classes) of features (rows, dim) against class means (classes, dim)."""

    def merge(self, other: Self) -> None:
        """Take in what another learner of the same rule and encoder has learnt, as if its inputs had come here.

        Raises: ConfigError for a learner of another rule; DataError when widths or labels do not fit.
        """
        if type(other) is not type(self):
            raise ConfigError(
                f"a {type(other).__name__} cannot join a {type(self).__name__}: their means are of different features"
            )
        self.statistics.merge(other.statistics)

    def forget(self, label: Label) -> None:
        """Remove a class without a trace. Raises: DataError for a label that was not learnt."""
        self.statistics.forget(label)

    def save(self, path: Path | str) -> Path:
        """Write counts and sums, d + 1 numbers per class, as one safetensors file; the encoder is not in it.

        Raises: DataError before the first class, or for labels other than text, numbers and booleans.
        """
        return self.statistics.save(path, {"rule": self.rule})

    @classmethod
    def load(cls, path: Path | str, encoder: Encoder, *, chunk: int = 256) -> Self:
        """The learner that `save` wrote, on the same encoder.

        Raises: ModelError when the file is missing, damaged or of another rule.
        """
        statistics, note = ClassStatistics.load(path)
        if note.get("rule") != cls.rule:
            raise ModelError(
                f"{path}: holds prototypes of the rule {note.get('rule')!r}, {cls.__name__} is {cls.rule!r}"
            )
        learner = cls(encoder, chunk=chunk)
        learner.statistics = statistics
        return learner


class NearestMean(_Prototypes):
    """The nearest class mean by Euclidean distance: means of features of length 1, themselves not normalised again.

    A class whose features lie apart has a shorter mean, which the distance takes into account; the cosine rule of
    `SimpleCIL` does not. `scores` are negative distances.

    Example:
        >>> learner = NearestMean(torch.nn.Identity()).partial_fit(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), ["a", "b"])
        >>> learner.predict(torch.tensor([[1.0, 0.1]]))
        ['a']

    Source: arXiv 2210.04428.
    """

    rule = "nearest mean of unit features"
    unit_features = True

    def _compare(self, features: Tensor, means: Tensor) -> Tensor:
        return -torch.cdist(features, means)


class SimpleCIL(_Prototypes):
    """The class mean with the largest cosine: means of the features as the encoder gives them.

    `scores` are cosines in [-1, 1].

    Source: arXiv 2303.07338 section 4.
    """

    rule = "cosine to the mean of raw features"
    unit_features = False

    def _compare(self, features: Tensor, means: Tensor) -> Tensor:
        return F.normalize(features, dim=1) @ F.normalize(means, dim=1).t()
