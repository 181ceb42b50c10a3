"""What task vectors are for beside addition: to forget one task, and to adapt to another without its labels."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from leaven.contracts import Batch, Loss, Objective
from leaven.evidence.arenas.merge_classifiers import accuracy, image_batches, in_batches
from leaven.evidence.arenas.merge_ground import Ground, Judge, LazyBatches
from leaven.evidence.arenas.merge_shifts import augmented
from leaven.evidence.arenas.merge_task_images import TASKS, TaskImages
from leaven.evidence.arenas.merge_tasks import FIELDS, TaskGrounds, class_means, save_encoder
from leaven.evidence.selection import Sealed
from leaven.evidence.system import Figures
from leaven.merge import AscentDescent, PredictionEntropy, UnsupervisedFixMatch, trusted_rows
from leaven.merge.composition_objectives import part
from leaven.objectives.classification import Classification
from leaven.training.randomness import mix

KEPT = 95.0
"""Least accuracy of the control that forgetting may leave, in percent of the base's."""

TRUSTED = 0.25
"""Share of a batch without labels that are trusted rows."""


def forgetting(tasks: TaskGrounds, target: int) -> Ground:
    """One task to forget by its own vector, and the other five as the control to keep.

    Figures: `target accuracy`; `control accuracy`, the mean of the others; `control kept`, in percent of the base's;
    `forgetting`, 100 - target accuracy while at least 95% of the control is kept, otherwise minus what it lacks.

    Args:
        target: number of the task, from 0.

    Source: arXiv 2407.02880, task negation.
    """
    names = ("target", "control")

    def split(data: TaskImages) -> dict[str, TaskImages]:
        others = [data.of(task) for task in range(TASKS) if task != target]
        return {"target": data.of(target), "control": TaskImages.joined(others)}

    def judge(data: TaskImages) -> Judge:
        parts = split(data)

        def score(model: nn.Module, name: str) -> float:
            chosen = parts[name]
            return accuracy(model, tasks.pixels, chosen.images, chosen.fields["label"], task=chosen.fields["task"])

        # Of its own, for the ground's model will be the one that is judged.
        at_base = score(tasks.base.into(copy.deepcopy(tasks.model)), "control")

        def summary(scores: dict[str, float]) -> Figures:
            kept = 100 * scores["control"] / max(at_base, 1e-9)
            return {
                "target accuracy": scores["target"],
                "control accuracy": scores["control"],
                "control kept": kept,
                "forgetting": 100 - scores["target"] if kept >= KEPT else kept - KEPT,
            }

        return Judge(names, score, summary)

    valid = TaskImages.joined([task.valid for task in tasks.tasks[:TASKS]])
    halves = max(1, tasks.training.batch_size // 2)
    generator = torch.Generator().manual_seed(tasks.training.seed)
    batches = {}
    for name, data in split(valid).items():
        order = torch.randperm(len(data.images), generator=generator)
        batches[name] = image_batches(data.images, data.fields, tasks.pixels, halves, order)

    def both(at: int) -> Batch:
        # The target has fewer rows: its batches come round again.
        sides = {name: found[at % len(found)] for name, found in batches.items()}
        return {f"{name}/{field}": value for name, side in sides.items() for field, value in side.items()}

    return Ground(
        model=tasks.model,
        base=lambda: tasks.base,
        ingredients=[tasks.specialists[target]],
        objective=AscentDescent(Classification(FIELDS)),
        batches=LazyBatches(len(batches["control"]), both),
        valid=judge(valid),
        test=Sealed(judge(TaskImages.joined([task.test.read() for task in tasks.tasks[:TASKS]])), "the tasks"),
        figure="forgetting",
        budget={"training steps": tasks.steps},
        save=save_encoder,
    )


class TwoViews(nn.Module):
    """An objective on the views `clean` and `augmented` of images, for batches with `pixel_values` and `task`.

    Args:
        strength: of the augmentation, in [0, 1].
    """

    def __init__(self, objective: Objective, strength: float = 0.5) -> None:
        super().__init__()
        self.objective, self.strength = objective, strength

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Make the views; other fields are handed on, a label is not."""
        changed = augmented(batch["pixel_values"], self.strength, generator)
        views: Batch = {"clean/pixel_values": batch["pixel_values"], "augmented/pixel_values": changed}
        views |= {f"{view}/task": batch["task"] for view in ("clean", "augmented")}
        rest = {name: value for name, value in batch.items() if name not in (*FIELDS, "label")}
        return self.objective.prepare({**views, **rest}, generator)

    def forward(self, model: nn.Module, batch: Batch) -> Loss:
        """The objective's."""
        return self.objective(model, batch)


def entropy_of_views() -> TwoViews:
    """The entropy of what a model says of the augmented view."""
    return TwoViews(PredictionEntropy(lambda model, batch: _logits(model, part(batch, "augmented"))))


def unlabelled(tasks: TaskGrounds) -> Ground:
    """A task that no specialist was trained for, with images but no labels of it to adapt to.

    Its head is the mean features of its characters as they are printed plainly, in no style: what the name of a class
    is for CLIP. The images to adapt to are those of the training split; the labels of the validation split are there
    for the report and choose nothing. Figure: `unlabelled accuracy`.

    Source: arXiv 2407.02880, test-time adaptation.
    """
    task = tasks.tasks[TASKS + 1]
    tasks.base.into(tasks.model)
    model = copy.deepcopy(tasks.model)
    features = in_batches(model, model.encoder, tasks.pixels, task.plain.images)
    model.heads = class_means(features, task.plain, model.centre.cpu()).to(model.centre)
    images, place = task.train.images, task.train.fields["task"]
    trusted, labels = trusted_rows(in_batches(model, model, tasks.pixels, images, task=place))

    def judge(data: TaskImages) -> Judge:
        def score(model: nn.Module, name: str) -> float:
            return accuracy(model, tasks.pixels, data.images, data.fields["label"], task=data.fields["task"])

        return Judge(("unlabelled",), score, lambda scores: {"unlabelled accuracy": scores["unlabelled"]})

    size = tasks.training.batch_size
    sure = max(1, round(TRUSTED * size))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(tasks.training.seed))
    parts = torch.split(order, max(1, size - sure))

    def mixed(at: int) -> Batch:
        drawn = torch.randint(len(trusted), (sure,), generator=torch.Generator().manual_seed(mix(0, at)))
        rows = torch.cat([trusted[drawn], parts[at]])
        is_trusted = torch.arange(len(rows)) < sure
        given = torch.cat([labels[drawn], torch.zeros(len(parts[at]), dtype=torch.int64)])
        fields = {"pixel_values": tasks.pixels(images[rows]), "task": place[rows]}
        return {**fields, "trusted": is_trusted, "zero_shot": given}

    return Ground(
        model=model,
        base=lambda: tasks.base,
        ingredients=tasks.specialists,
        objective=TwoViews(UnsupervisedFixMatch(_logits)),
        batches=LazyBatches(len(parts), mixed),
        valid=judge(task.valid),
        test=Sealed(judge(task.test.read()), task.name),
        figure="unlabelled accuracy",
        budget={"training steps": tasks.steps},
        save=save_encoder,
    )


def _logits(model: Callable[..., Tensor], batch: Batch) -> Tensor:
    return model(pixel_values=batch["pixel_values"], task=batch["task"])
