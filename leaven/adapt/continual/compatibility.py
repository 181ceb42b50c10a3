"""Can queries of a new model search the gallery of an older one?"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from leaven.adapt.continual.features import Encoder, Inputs, read_features, rows_in
from leaven.adapt.continual.learner import Labels, checked_labels, distinct
from leaven.adapt.continual.statistics import ClassStatistics
from leaven.errors import DataError, ModelError
from leaven.metrics.continual import average_compatibility, average_multi_model_accuracy
from leaven.training.checkpoint import replaced


@dataclass(frozen=True)
class Compatibility:
    """Search accuracies of all versions of a model, oldest first.

    matrix: (models, models) float64 in [0, 100]; row t, column s: queries by model t in the gallery of model s; NaN for
        galleries that are newer than the query's model.
    """

    matrix: Tensor

    @property
    def compatibility(self) -> float:
        """AC: share in [0, 1] of pairs in which the newer model finds more in the older gallery than the older one."""
        return average_compatibility(self.matrix.numpy())

    @property
    def accuracy(self) -> float:
        """AA: mean accuracy in [0, 100] over the lower triangle. Read it beside AC, which bad models can reach too."""
        return average_multi_model_accuracy(self.matrix.numpy())

    def gallery_may_be_kept(self, new: int, old: int) -> bool:
        """Whether queries of the newer model find more in the older model's gallery than the older model did."""
        return bool(self.matrix[new, old] > self.matrix[old, old])

    def save_csv(self, path: Path | str) -> Path:
        """Write the matrix, one row per query model, empty where the gallery is newer."""
        path = Path(path)
        with replaced(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["query model", *(f"gallery {at}" for at in range(len(self.matrix)))])
            for at, row in enumerate(self.matrix.tolist()):
                rows.writerow([at, *(f"{value:.4f}" if value == value else "" for value in row)])  # noqa: PLR0124  # NaN
        return path


def compatibility_matrix(
    models: Sequence[Encoder], query: tuple[Inputs, Labels], gallery: tuple[Inputs, Labels], *, chunk: int = 256
) -> Compatibility:
    """Search by the nearest class template, with every pair of a newer and an older model.

    A gallery is made once, by its own model: the mean of the normalised features of each class. Classes should be ones
    that no model was trained on.

    Args:
        models: versions of a model, oldest first; features of equal width.
        query: inputs and labels that search.
        gallery: inputs and labels that are found.
        chunk: inputs encoded at a time.

    Raises: ModelError for no models or features of different widths; DataError for a class of the queries that the
    gallery lacks; what `read_features` raises.
    Source: arXiv 2405.02581; `identification` of the official code.
    """
    if not models:
        raise ModelError("no models to compare; expected at least one")
    found = checked_labels(gallery[1], rows_in(gallery[0]))
    wanted = checked_labels(query[1], rows_in(query[0]), found[:1])
    place = {label: at for at, label in enumerate(distinct(found))}
    missing = next((label for label in wanted if label not in place), None)
    if missing is not None:
        raise DataError(f"the queries have class {missing!r}, of which the gallery has no example")
    truth = torch.tensor([place[label] for label in wanted])
    templates: list[Tensor] = []
    queries: list[Tensor] = []
    width: int | None = None
    for at, model in enumerate(models):
        statistics = ClassStatistics()
        features = read_features(model, gallery[0], chunk=chunk, nonzero=True)
        if width is not None and features.shape[1] != width:
            raise ModelError(f"model {at} gives {features.shape[1]} dimensions, model 0 {width}: they share no space")
        width = features.shape[1]
        statistics.update(F.normalize(features, dim=1), found)
        templates.append(F.normalize(statistics.means(), dim=1))
        queries.append(F.normalize(read_features(model, query[0], chunk=chunk, nonzero=True), dim=1).double())
    matrix = torch.full((len(models), len(models)), float("nan"), dtype=torch.float64)
    for new, asked in enumerate(queries):
        for old, known in enumerate(templates[: new + 1]):
            matrix[new, old] = 100 * ((asked @ known.t()).argmax(1) == truth).double().mean()
    return Compatibility(matrix)
