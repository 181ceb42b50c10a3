"""Training on the data of one task: the settings, the loss over some classes, and the way back when it fails."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.adapt.continual.features import Inputs, take
from leaven.contracts import Batch, Loss, Objective
from leaven.data.loader import Loader
from leaven.errors import ConfigError, DataError, ModelError
from leaven.training.budgets import Budget
from leaven.training.config import TrainingConfig
from leaven.training.loop import FitResult, fit
from leaven.training.randomness import mix, preserved_rng

Augment = Callable[[Inputs, torch.Generator], Inputs]
"""Changes a batch of inputs at random; features that are stored or predicted from are read without it."""

_EPOCHS = re.compile(r"(\d+(?:\.\d+)?)\s*epochs?")
_RESERVED = {"inputs", "target", "row", "step"}


def _default_config() -> TrainingConfig:
    return TrainingConfig(learning_rate=1e-3, weight_decay=5e-4, schedule="cosine", warmup=0)


@dataclass(frozen=True)
class TaskTraining:
    """How to train on each task.

    The papers train with SGD and momentum at a rate of about 0.01; the loop's AdamW wants about a tenth of that.

    Args:
        budget: per task, any budget of the loop ("200 steps", "30s") or "5 epochs"; "0 epochs" does not train.
        config: settings of the loop; the task's number is mixed into its seed.
        batch_size: inputs per step and process.
        augment: applied to training batches only.

    Raises: ConfigError for a budget that cannot be read or a batch size below 1.
    """

    budget: Budget | str | int = "5 epochs"
    config: TrainingConfig = field(default_factory=_default_config)
    batch_size: int = 32
    augment: Augment | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; expected at least 1")
        if self._epochs is None:
            Budget.parse(self.budget)

    @property
    def _epochs(self) -> float | None:
        found = _EPOCHS.fullmatch(self.budget.strip()) if isinstance(self.budget, str) else None
        return None if found is None else float(found[1])

    def budget_for(self, rows: int) -> Budget | None:
        """The budget of a task with so many inputs, None for no training; the last batch of an epoch counts as full."""
        epochs = self._epochs
        if epochs is None:
            return Budget.parse(self.budget)
        batch = min(self.batch_size, rows)
        examples = math.ceil(epochs * math.ceil(rows / batch) * batch)
        return Budget(examples=examples) if examples else None

    def steps_for(self, rows: int) -> int | None:
        """Steps that a task with so many inputs takes on one process, None where only the run will tell."""
        budget = self.budget_for(rows)
        if budget is None:
            return 0
        per_step = {"steps": 1, "examples": min(self.batch_size, rows) * self.config.accumulate}
        if not budget.limits.keys() <= per_step.keys():
            return None
        return min(math.ceil(limit / per_step[unit]) for unit, limit in budget.limits.items())


class ClassCrossEntropy:
    """Cross-entropy over some of the classes alone: the local softmax, if they are those of the current task.

    Args:
        columns: places of these classes in the model's logits; targets are places in this list.
        fields: names of the inputs' fields, None where the inputs are one tensor.
        augment: changes the inputs of a batch.
        exemplars: earlier inputs and their targets; as many as the batch has join it, drawn anew for each.

    Shapes: `inputs` or the named fields (batch, ...), `target` (batch,) int64.
    Source: the local form is `_run` of the official code of arXiv 2303.05118, and `train_step` of arXiv 2303.10070's.
    """

    def __init__(
        self,
        columns: Sequence[int],
        fields: Sequence[str] | None = None,
        *,
        augment: Augment | None = None,
        exemplars: Batch | None = None,
    ) -> None:
        self.columns, self.fields = torch.tensor(columns), fields
        self.augment, self.exemplars = augment, exemplars

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Join exemplars and augment, both drawn from the generator."""
        if self.exemplars is not None:
            stored, count = len(self.exemplars["target"]), len(batch["target"])
            drawn = torch.randint(stored, (count,), generator=generator)
            batch = {
                name: torch.cat([value, self.exemplars[name][drawn]]) if name in self.exemplars else value
                for name, value in batch.items()
                if name != "row"
            }
        if self.augment is not None:
            batch = {**batch, **_fields(self.augment(self.inputs(batch), generator))}
        return batch

    def inputs(self, batch: Batch) -> Tensor | Batch:
        """The inputs of a batch, as the encoder reads them."""
        return batch["inputs"] if self.fields is None else {name: batch[name] for name in self.fields}

    def __call__(self, model: Any, batch: Batch) -> Loss:
        """Mean cross-entropy per input."""
        return self.loss(model(self.inputs(batch)), batch)

    def loss(self, logits: Tensor, batch: Batch) -> Loss:
        """Mean cross-entropy of logits (batch, all classes)."""
        total = F.cross_entropy(logits[:, self.columns.to(logits.device)].float(), batch["target"])
        count = torch.tensor(len(logits), device=logits.device)
        return Loss(total, count, {"cross_entropy": total.detach()})


def _fields(inputs: Inputs) -> Batch:
    if isinstance(inputs, Tensor):
        return {"inputs": inputs}
    if not isinstance(inputs, dict):
        raise DataError(f"training needs tensors, got a {type(inputs).__name__}: tokenise or stack the inputs first")
    if clash := _RESERVED & inputs.keys():
        raise DataError(f"the inputs have a field {min(clash)!r}, a name that the training needs: call it otherwise")
    return inputs


def as_batch(inputs: Inputs, targets: Tensor) -> Batch:
    """Inputs and targets as one batch. Raises: DataError for inputs that are no tensors or have a reserved name."""
    return {**_fields(inputs), "target": targets}


def train(
    model: nn.Module,
    objective: Objective,
    data: Batch,
    training: TaskTraining,
    *,
    seed: int,
    label: str,
    lr_factors: Mapping[str, float] | None = None,
) -> FitResult | None:
    """Train a model in place on the rows of a batch, by the one loop; None when the budget is "0 epochs".

    The global random state stays as it was. The model ends in evaluation mode.

    Args:
        data: all rows of the task; each epoch goes through them in another order, and the last batch is filled up.
        seed: number of the task, mixed into the seed of the settings.
        lr_factors: learning-rate factors by pattern, after those of the settings.

    Raises: what `leaven.training.loop.fit` raises; DataError for a single row under batch normalisation.
    """
    rows = len(data["target"])
    budget = training.budget_for(rows)
    if budget is None:
        model.eval()
        return None
    if rows == 1 and any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules()):
        raise DataError("the task has one input, which batch normalisation cannot train on: give at least 2")
    seed = mix(training.config.seed, seed)
    factors = {**training.config.lr_factors, **(lr_factors or {})}
    config = training.config.model_copy(update={"seed": seed, "lr_factors": factors})
    loader = Loader(
        [{"at": at} for at in range(rows)],
        lambda items: take(data, [item["at"] for item in items]),  # type: ignore[arg-type, return-value]
        batch_size=min(training.batch_size, rows),
        seed=seed,
        drop_last=False,
    )
    with preserved_rng():
        result = fit(model, objective, loader, budget, config, label=label)
    model.eval()
    return result


def require_module(encoder: Any, where: str) -> nn.Module:
    """The encoder, if it can be trained. Raises: ModelError when it is no module."""
    if not isinstance(encoder, nn.Module):
        raise ModelError(f"{where}: a {type(encoder).__name__} cannot be trained; expected a torch.nn.Module")
    return encoder


@contextmanager
def unchanged_on_failure(learner: object, trained: nn.Module | None) -> Iterator[None]:
    """Give a learner its attributes and the trained module its weights back when the block raises."""
    before = dict(vars(learner))
    weights = {} if trained is None else {name: t.detach().clone() for name, t in trained.state_dict().items()}
    try:
        yield
    except BaseException:
        vars(learner).clear()
        vars(learner).update(before)
        if trained is not None:
            trained.load_state_dict(weights)
            trained.eval()
        raise
