"""What is merged, on what coefficients are fitted, and how the result is judged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from leaven.contracts import Batch, Objective
from leaven.evidence.selection import Sealed, best_of_grid
from leaven.evidence.system import Figures
from leaven.merge import TaskVector, Weights, open_weights, uniform_soup

Curves = dict[str, list[dict[str, Any]]]


class LazyBatches(Sequence[Batch]):
    """So many batches in a fixed order, each made by its place when it is asked for."""

    def __init__(self, count: int, make: Callable[[int], Batch]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> Batch: ...
    @overload
    def __getitem__(self, at: slice) -> list[Batch]: ...
    def __getitem__(self, at: int | slice) -> Batch | list[Batch]:
        places = range(self._count)[at]
        return self._make(places) if isinstance(places, int) else [self._make(place) for place in places]


@dataclass(frozen=True)
class Judge:
    """What a model is worth on one split.

    score: figure of a model on one of the tasks, in [0, 100]. summary: the figures that follow from those of all tasks.
    """

    tasks: tuple[str, ...]
    score: Callable[[nn.Module, str], float]
    summary: Callable[[dict[str, float]], Figures]

    def figures(self, model: nn.Module) -> Figures:
        """Of one model for all tasks."""
        return self.summary({task: self.score(model, task) for task in self.tasks})


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What is merged, what coefficients may be fitted on, and how the result is judged.

    model: runs any of the weights. base: gives the common start. ingredients: fine-tuned from it.
    objective, batches: loss and held-out batches. figure: the one by which the validation split chooses.
    budget: figures that all arms share. records: of the trainings of the ingredients.
    refresh: called with a model that holds averaged weights, to make its running statistics anew.
    save: writes a model that holds merged weights under a path, and returns where it is.
    """

    model: nn.Module
    base: Callable[[], Weights]
    ingredients: Sequence[Weights]
    objective: Objective
    batches: Sequence[Batch]
    valid: Judge
    test: Sealed[Judge]
    figure: str
    budget: Figures = field(default_factory=dict)
    records: Curves = field(default_factory=dict)
    refresh: Callable[[nn.Module], Any] = lambda model: None
    save: Callable[[Path, nn.Module], Path]

    def vectors(self) -> list[TaskVector]:
        """The task vectors of the ingredients."""
        base = self.base()
        return [TaskVector(weights, base) for weights in self.ingredients]

    def filled(self, weights: Weights, model: nn.Module | None = None) -> nn.Module:
        """The model, or a copy of it, with these weights; statistics are made anew for all but the ingredients."""
        model = weights.into(self.model if model is None else model)
        if not any(weights is one for one in self.ingredients):
            self.refresh(model)
        return model

    def score(self, state: dict[str, Tensor]) -> float:
        """The validation figure of a state dict."""
        return self.valid.figures(self.filled(open_weights(state, "the merged weights")))[self.figure]


@dataclass(frozen=True)
class Merged:
    """What a recipe made of the ingredients.

    weights: one model; or several, to be judged as `reading` says: "mean" of the figures of each, an "ensemble" of
    their logits, or each on its "own" task.
    chosen, curves, used: what the validation split picked, records of trainings, further figures of the budget.
    files: what to write beside the merged model, by the name of the file.
    """

    weights: tuple[Weights, ...]
    reading: str = "mean"
    chosen: dict[str, Any] = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)
    used: Figures = field(default_factory=dict)
    files: dict[str, Callable[[Path], Any]] = field(default_factory=dict)


class LogitEnsemble(nn.Module):
    """Mean of the logits of several models, one forward pass of each. Source: arXiv 2203.05482 section 2."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        return torch.stack([model(**inputs) for model in self.models]).mean(0)


def judged(ground: Ground, merged: Merged, judge: Judge) -> Figures:
    """The figures of what a recipe made, one model in memory at a time but for ensembles."""
    if merged.reading == "ensemble":
        return judge.figures(LogitEnsemble([ground.filled(w, copy.deepcopy(ground.model)) for w in merged.weights]))
    models = (ground.filled(weights) for weights in merged.weights)
    if merged.reading == "own":
        return judge.summary({t: judge.score(model, t) for t, model in zip(judge.tasks, models, strict=True)})
    each = [judge.figures(model) for model in models]
    return {name: sum(figures[name] for figures in each) / len(each) for name in each[0]}


def best_length(ground: Ground, direction: TaskVector, lengths: Sequence[float]) -> Merged:
    """base + length * direction, the length picked on the validation split."""

    def attempt(length: float) -> tuple[float, Weights]:
        weights = direction.apply(coefficient=length)
        return ground.score(weights.state()), weights

    best = best_of_grid(lengths, attempt)
    scores = {f"{length:g}": score for length, score in best.scores.items()}
    return Merged((best.result,), chosen={"length": best.value, "scores": scores})


def plain_merge(ground: Ground, recipe: str, lengths: Sequence[float]) -> Merged | None:
    """The baselines that stand beside every way to merge: "uniform", "task-arithmetic", "specialists"; else None."""
    if recipe == "uniform":
        return Merged((uniform_soup(ground.ingredients),))
    if recipe == "task-arithmetic":
        return task_arithmetic(ground, lengths)
    if recipe == "specialists":
        return Merged(tuple(ground.ingredients), "own")
    return None


def task_arithmetic(ground: Ground, lengths: Sequence[float]) -> Merged:
    """base + length * sum of the task vectors; the mean of the ingredients is always among the candidates.

    Source: arXiv 2212.04089 section 4.
    """
    vectors = ground.vectors()
    total: TaskVector = sum(vectors[1:], vectors[0])
    return best_length(ground, total, tuple(dict.fromkeys((1 / len(vectors), *lengths))))
