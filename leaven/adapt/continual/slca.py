"""SLCA: a slow encoder, local losses, and heads aligned on remembered class Gaussians."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from leaven.adapt.continual.alignment import Alignment, align
from leaven.adapt.continual.features import Encoder, Inputs, rows_in
from leaven.adapt.continual.fine_tuning import SequentialFineTuning, logits_of
from leaven.adapt.continual.heads import TaskHeads
from leaven.adapt.continual.learner import Label, Labels, checked_labels, distinct, require_classes
from leaven.adapt.continual.statistics import ClassStatistics, Covariance
from leaven.adapt.continual.task_training import TaskTraining
from leaven.errors import DataError


class SLCA(SequentialFineTuning):
    """Slow learner with classifier alignment; keeps a mean and a covariance per class, no exemplars.

    Each task trains a new head and, at a small share of its rate, the whole encoder. Then mean and covariance of the
    new classes are stored (features of the inputs as they are, never augmented) and never refreshed, and a copy of all
    heads is aligned on features drawn from them. Predictions come from the aligned copy; the next task goes on from the
    heads as they were before alignment.

    Args:
        encoder: a module, of which a copy is trained; with `slow` 0 any encoder, used as it is.
        slow: learning-rate factor of the encoder's weights, in [0, 1]; running statistics of batch normalisation, which
            know no learning rate, move as in any training (not at 0).
        covariance: "full" (dim x dim float64 numbers per class), "diag" or "shared".
        alignment: how the heads are aligned, from the second task on.
        cumulative: go on from the aligned heads instead: an ablation.
        training: how to train on a task.
        chunk: inputs encoded at a time where nothing is trained.

    Source: arXiv 2303.05118.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        slow: float = 0.01,
        covariance: Covariance = "full",
        alignment: Alignment | None = None,
        cumulative: bool = False,
        training: TaskTraining | None = None,
        chunk: int = 256,
    ) -> None:
        super().__init__(encoder, slow=slow, training=training, chunk=chunk)
        self.statistics = ClassStatistics(covariance)
        self.alignment, self.cumulative = alignment or Alignment(), cumulative
        self.aligned: TaskHeads = self.heads
        self.task_classes: tuple[tuple[Label, ...], ...] = ()

    def _check_task(self, labels: list[Label]) -> None:
        super()._check_task(labels)
        for label in distinct(labels):
            if label in self.columns:
                raise DataError(
                    f"class {label!r} was learnt in an earlier task, and its statistics are not refreshed: give each "
                    "task new classes, or use NearestMean, which keeps a running mean"
                )
            if labels.count(label) < 2:
                raise DataError(f"class {label!r} has 1 input; its covariance needs at least 2")

    def _learn(self, inputs: Inputs, labels: list[Label]) -> None:
        if self.cumulative:
            self.heads = self.aligned
        super()._learn(inputs, labels)
        self.statistics = self.statistics.copy()
        self.statistics.update(self.features(inputs), labels)
        self.task_classes = (*self.task_classes, tuple(distinct(labels)))
        self.aligned = self.heads
        if self.tasks > 1 and self.alignment.epochs:
            config = self.training.config
            self.aligned, result = align(self.heads, self.statistics, self.task_classes, self.alignment, config)
            self.fits = self.fits if result is None else (*self.fits, result)

    def scores(self, inputs: Inputs) -> Tensor:
        """Logits (rows, classes) of the aligned heads, not normalised.

        Raises: ModelError before the first task; what `read_features` raises.
        """
        require_classes(self.columns)
        return logits_of(self.aligned, self.features(inputs))

    def drift(self, inputs: Inputs, labels: Labels) -> dict[Label, float]:
        """Cosine of each class's stored mean and its mean under the encoder of now, if old inputs are still at hand.

        Raises: DataError for a label that was not learnt, or inputs that cannot be used.
        """
        now = ClassStatistics()
        now.update(self.features(inputs), checked_labels(labels, rows_in(inputs), self.columns))
        return {
            label: float(F.cosine_similarity(self.statistics.mean(label), now.mean(label), dim=0))
            for label in now.classes
        }
