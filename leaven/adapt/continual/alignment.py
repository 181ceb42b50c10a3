"""Classifier alignment: heads are balanced on features drawn from the Gaussian of each class."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from leaven.adapt.continual.heads import TaskHeads
from leaven.adapt.continual.learner import Label
from leaven.adapt.continual.statistics import ClassStatistics
from leaven.adapt.continual.task_training import TaskTraining, as_batch, train
from leaven.contracts import Batch, Loss
from leaven.errors import ConfigError, DataError
from leaven.objectives.corruption import row_noise
from leaven.training.config import TrainingConfig
from leaven.training.loop import FitResult


@dataclass(frozen=True)
class Alignment:
    """How the heads are aligned after a task.

    Args:
        epochs: passes over freshly drawn features, >= 0; 0 turns alignment off.
        samples: features drawn per class and epoch, and in a batch, >= 1.
        temperature: of the normalised logits, > 0; 0 leaves the logits as they are.
        shrink: a mean learnt in task j of k is multiplied by 1 - shrink + shrink * j / k, in [0, 1].
        ridge: added to the diagonal of the covariances, >= 0.
        config: settings of the loop; None takes those of the tasks' training, but for its learning-rate factors.

    Raises: ConfigError for a value out of its range.
    """

    epochs: int = 5
    samples: int = 256
    temperature: float = 0.1
    shrink: float = 0.1
    ridge: float = 1e-4
    config: TrainingConfig | None = None

    def __post_init__(self) -> None:
        for name, low in (("epochs", 0), ("samples", 1), ("temperature", 0), ("ridge", 0), ("shrink", 0)):
            if not getattr(self, name) >= low:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least {low}")
        if self.shrink > 1:
            raise ConfigError(f"shrink is {self.shrink}; expected at most 1")


def normalised_logits(logits: Tensor, tasks: Sequence[Tensor], temperature: float) -> Tensor:
    """Logits over the mean of their tasks' norms and a temperature; used to align, never to predict.

    Args:
        logits: (batch, classes).
        tasks: for each task the columns of its classes.
        temperature: > 0.

    Source: arXiv 2303.05118 section 3; `_stage2_compact_classifier` of the official code.
    """
    norms = torch.stack([logits[:, columns].norm(dim=1) + 1e-7 for columns in tasks], dim=1)
    return logits / norms.mean(dim=1, keepdim=True) / temperature


class GaussianReplay:
    """Features drawn from N(mean, covariance) of each row's class, and the cross-entropy of the heads on them.

    Args:
        means: (classes, dim) float32.
        factors: for each class its Cholesky factor (dim, dim) or standard deviations (dim,); several may be one tensor.
        tasks: for each task the columns of its classes.
        temperature: of the logit normalisation, 0 for none.

    Shapes: `inputs`, `target` (batch,) int64: the class of each row; `prepare` makes `inputs` (batch, dim).
    """

    def __init__(self, means: Tensor, factors: Sequence[Tensor], tasks: Sequence[Tensor], temperature: float) -> None:
        self.means, self.factors, self.tasks, self.temperature = means, factors, tasks, temperature

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Draw the features of a batch of classes."""
        classes = batch["inputs"]
        uniform = row_noise(batch, self.means.shape[1], generator).clamp(2.0**-54, 1 - 2.0**-53)
        noise = torch.special.ndtri(uniform).float()
        drawn = self.means[classes]
        for one in sorted(set(classes.tolist())):
            rows, factor = classes == one, self.factors[one]
            drawn[rows] += noise[rows] * factor if factor.ndim == 1 else noise[rows] @ factor.t()
        return {**batch, "inputs": drawn}

    def __call__(self, model: Any, batch: Batch) -> Loss:
        """Mean cross-entropy per drawn feature."""
        logits = model(batch["inputs"])
        if self.temperature:
            tasks = [columns.to(logits.device) for columns in self.tasks]
            logits = normalised_logits(logits, tasks, self.temperature)
        total = F.cross_entropy(logits, batch["target"])
        return Loss(total, torch.tensor(len(logits), device=logits.device), {"alignment": total.detach()})


def align(
    heads: TaskHeads,
    statistics: ClassStatistics,
    tasks: Sequence[Sequence[Label]],
    options: Alignment,
    config: TrainingConfig,
) -> tuple[TaskHeads, FitResult | None]:
    """A copy of the heads, all of them trained on features drawn from the statistics of every class.

    Args:
        heads: logits in the order of the classes of `tasks`.
        statistics: of all classes, with a covariance.
        tasks: the classes of each task, whatever their number.
        options: how.
        config: settings of the loop, where the options have none.

    Returns: the aligned heads, and how the training went (None without epochs).
    Raises: DataError for a covariance that is not positive definite even with the ridge.
    Source: arXiv 2303.05118 section 3; `_stage2_compact_classifier` of the official code.
    """
    aligned = copy.deepcopy(heads).requires_grad_(True)
    order = [label for task in tasks for label in task]
    scales = [1 - options.shrink * (1 - (at + 1) / len(tasks)) for at, task in enumerate(tasks) for _ in task]
    means = torch.stack([statistics.mean(label) * scale for label, scale in zip(order, scales, strict=True)]).float()
    columns = torch.split(torch.arange(len(order)), [len(task) for task in tasks])
    objective = GaussianReplay(means, _factors(statistics, order, options.ridge), columns, options.temperature)
    classes = torch.arange(len(order)).repeat_interleave(options.samples)
    config = options.config or config.model_copy(update={"lr_factors": {}})
    training = TaskTraining(f"{options.epochs} epochs", config, options.samples)
    result = train(
        aligned, objective, as_batch(classes, classes), training, seed=len(tasks), label=f"alignment {len(tasks)}"
    )
    return aligned, result


def _factors(statistics: ClassStatistics, order: Sequence[Label], ridge: float) -> list[Tensor]:
    if statistics.kind == "shared":
        return [_factor(statistics.covariance(order[0]), ridge, "all classes")] * len(order)
    return [_factor(statistics.covariance(label), ridge, f"class {label!r}") for label in order]


def _factor(covariance: Tensor, ridge: float, whose: str) -> Tensor:
    if covariance.ndim == 1:
        return (covariance + ridge).sqrt().float()
    factor, wrong = torch.linalg.cholesky_ex(covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype))
    if int(wrong):
        raise DataError(
            f"the covariance of {whose} is not positive definite with a ridge of {ridge:g}: raise the ridge, or use "
            "covariance='shared' or 'diag', which need fewer inputs per class"
        )
    return factor.float()  # type: ignore[no-any-return]
