"""What coefficients of task vectors are trained on beside ordinary objectives: forgetting, data without labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.contracts import Batch, Loss, Objective
from leaven.errors import ConfigError, DataError

Predict = Callable[[nn.Module, Batch], Tensor]
"""Logits (rows, classes) of a model on a batch."""


def part(batch: Batch, name: str) -> Batch:
    """The fields `NAME/field` of a batch, under their own names. Raises: DataError when there are none."""
    found = {key.removeprefix(f"{name}/"): value for key, value in batch.items() if key.startswith(f"{name}/")}
    if not found:
        raise DataError(f"the batch has no field '{name}/...': expected such fields beside {', '.join(sorted(batch))}")
    return found


class AscentDescent(nn.Module):
    """Forget a target and keep a control: loss of the control minus loss of the target.

    The batch holds fields `target/...` and `control/...`. The loss has no lower bound: stop by the control's figure.

    Args:
        objective: loss of either part.

    Source: arXiv 2407.02880, task negation.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Corrupt each part as the objective does."""
        prepared = {name: self.objective.prepare(part(batch, name), generator) for name in ("target", "control")}
        return {f"{name}/{field}": value for name, fields in prepared.items() for field, value in fields.items()}

    def forward(self, model: nn.Module, batch: Batch) -> Loss:
        """Control minus target; `parts` has both."""
        target, control = (self.objective(model, part(batch, name)) for name in ("target", "control"))
        parts = {"target": target.total.detach(), "control": control.total.detach()}
        return Loss(control.total - target.total, control.count, parts)


class UnsupervisedFixMatch(nn.Module):
    """Agreement of a strongly augmented view with what the model is sure of on the clean one, and trusted rows.

    Batch: `clean/...` and `augmented/...`, two views of the same rows; `trusted` (rows,) bool; `zero_shot` (rows,)
    int64, the label that the base model gave. A trusted row is trained on its zero-shot label; any other on the label
    of its clean view, if that has more than `threshold` of the probability. The loss is the mean over all rows.

    Args:
        predict: logits of a model on one view.
        threshold: in [0, 1).

    Raises: DataError when a view or one of the fields is missing.
    Source: arXiv 2407.02880, test-time adaptation; FixMatch, arXiv 2001.07685 equation 4.
    """

    def __init__(self, predict: Predict, threshold: float = 0.99) -> None:
        super().__init__()
        if not 0 <= threshold < 1:
            raise ConfigError(f"threshold is {threshold}: expected a probability in [0, 1)")
        self.predict, self.threshold = predict, threshold

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Nothing to corrupt."""
        del generator
        return batch

    def forward(self, model: nn.Module, batch: Batch) -> Loss:
        """Weighted cross-entropy; `parts` has the share of rows that were trained on."""
        clean, augmented = part(batch, "clean"), part(batch, "augmented")
        if missing := [name for name in ("trusted", "zero_shot") if name not in batch]:
            raise DataError(f"the batch lacks the fields {', '.join(missing)} of test-time adaptation")
        with torch.no_grad():
            sureness, sure = self.predict(model, clean).softmax(-1).max(-1)
        labels = torch.where(batch["trusted"], batch["zero_shot"], sure)
        weight = (batch["trusted"] | (sureness > self.threshold)).to(sureness.dtype)
        losses = F.cross_entropy(self.predict(model, augmented), labels, reduction="none")
        total = (weight * losses).mean()
        return Loss(total, torch.tensor(len(labels)), {"fixmatch": total.detach(), "used": weight.mean()})


class PredictionEntropy(nn.Module):
    """Mean entropy of the predictions, in nats, of a batch without labels.

    Source: arXiv 2006.10726 section 3.1; arXiv 2407.02880, test-time adaptation.
    """

    def __init__(self, predict: Predict) -> None:
        super().__init__()
        self.predict = predict

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Nothing to corrupt."""
        del generator
        return batch

    def forward(self, model: nn.Module, batch: Batch) -> Loss:
        """Entropy per row."""
        logs = self.predict(model, batch).log_softmax(-1)
        total = -(logs.exp() * logs).sum(-1).mean()
        return Loss(total, torch.tensor(len(logs)), {"entropy": total.detach()})


def trusted_rows(logits: Tensor, share: float = 0.1, most: int = 100) -> tuple[Tensor, Tensor]:
    """The most confident rows of each predicted class: their indices and labels, both (trusted,) int64.

    Per class min(share * rows / classes, most) rows, but at least one where the class is predicted at all.

    Args:
        logits: zero-shot logits (rows, classes).

    Source: arXiv 2407.02880, test-time adaptation.
    """
    rows, classes = logits.shape
    wanted = max(1, min(int(share * rows / classes), most))
    sureness, labels = logits.softmax(-1).max(-1)
    order = sureness.argsort(descending=True, stable=True)
    chosen = torch.cat([order[labels[order] == label][:wanted] for label in range(classes)])
    return chosen, labels[chosen]
