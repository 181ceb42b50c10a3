"""Coefficients of task vectors, and their rivals, fitted to what a ground gives to fit on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from leaven.adapt.peft import merge
from leaven.contracts import Objective
from leaven.evidence.arenas.merge_classifiers import beside
from leaven.evidence.arenas.merge_ground import Ground, Merged
from leaven.evidence.arenas.merge_rivals import HeadProbe, with_low_rank
from leaven.evidence.arenas.merge_task_options import FEW_SHOT, NEGATION, TEST_TIME, AtlasConfig
from leaven.evidence.arenas.merge_task_uses import entropy_of_views
from leaven.evidence.selection import best_of_grid
from leaven.merge import (
    ComposedModel,
    MixedObjective,
    RepeatedBatches,
    Weights,
    best_blocks,
    block_scores,
    composite_vectors,
    open_weights,
    random_blocks,
)
from leaven.training.config import TrainingConfig
from leaven.training.loop import fit


@dataclass(frozen=True)
class Plan:
    """How a recipe is trained.

    picked: whether the validation split picks the rate and the evaluation; otherwise there is one rate, and the last
    step counts. evaluate_every: see `TrainingConfig`.
    """

    rates: tuple[float, ...]
    steps: int
    schedule: Literal["constant", "cosine"]
    evaluate_every: float | None
    picked: bool = True


def plan_of(config: AtlasConfig, recipe: str) -> Plan:
    """The plan of a recipe."""
    if recipe in TEST_TIME:
        return Plan((config.unlabelled_rate,), config.unlabelled_steps, "cosine", None, picked=False)
    if recipe in NEGATION:
        return Plan(config.forget_rates, config.forget_steps, "constant", 0.1)
    if recipe in FEW_SHOT:
        return Plan(config.few_shot_rates, config.few_shot_steps, "cosine", None)
    return Plan(config.rates, config.steps, "constant", 0.1)


def composed(config: AtlasConfig, ground: Ground, recipe: str) -> Merged:
    """The task vectors of a ground, or chosen blocks of them, with fitted coefficients."""
    plan, vectors = plan_of(config, recipe), _vectors(config, ground, recipe)
    objective = entropy_of_views() if recipe == "test-time-entropy" else ground.objective
    groups = config.groups if recipe == "few-shot-groups" else 1

    def attempt(rate: float) -> tuple[float, Any]:
        per: Literal["block", "vector"] = "vector" if recipe == "isotropic" else "block"
        generator = torch.Generator().manual_seed(config.seed) if groups > 1 else None
        model = ComposedModel(ground.model, ground.base(), vectors, per=per, groups=groups, generator=generator)
        score, records = _fit(config, ground, model, MixedObjective(objective), rate=rate, recipe=recipe)
        return score, (model, records)

    best = best_of_grid(plan.rates, attempt)
    model, records = best.result
    means = model.coefficients().detach().flatten(1).mean(1)
    return Merged(
        (model.baked(),),
        chosen={"learning_rate": best.value, "mean coefficients": means.tolist()} if plan.picked else {},
        curves={"coefficients": records},
        used=_used(plan, model),
        files={"coefficients.csv": model.write_coefficients},
    )


def rival(config: AtlasConfig, ground: Ground, recipe: str) -> Merged:
    """The head alone, or low-rank changes with no fewer numbers than there would be coefficients."""
    plan = plan_of(config, recipe)
    # The ground's model may hold weights that were judged last.
    (start,) = unchanged(ground).weights
    wanted = len(ground.ingredients) * len(list(ground.model.parameters()))

    def attempt(rate: float) -> tuple[float, Any]:
        model = start.into(copy.deepcopy(ground.model))
        trained = HeadProbe(model) if recipe == "linear-probe" else with_low_rank(model, wanted, config.seed)
        score, records = _fit(config, ground, trained, ground.objective, rate=rate, recipe=recipe)
        used = _used(plan, trained)
        if isinstance(trained, HeadProbe):
            trained.settle()
        else:
            merge(model)
        return score, (open_weights(model, recipe), records, used)

    best = best_of_grid(plan.rates, attempt)
    weights, records, used = best.result
    return Merged((weights,), chosen={"learning_rate": best.value}, curves={recipe: records}, used=used)


def unchanged(ground: Ground) -> Merged:
    """The base with the heads of the ground's model."""
    return Merged((ComposedModel(ground.model, ground.base(), ground.vectors()).baked(),))


def _vectors(config: AtlasConfig, ground: Ground, recipe: str) -> Sequence[Weights]:
    vectors, model = ground.vectors(), ground.model
    if not recipe.endswith("-blocks"):
        return vectors
    if recipe == "few-shot-random-blocks":
        blocks = len(dict(model.named_parameters()))
        chosen = random_blocks(len(vectors), blocks, config.block_budget, torch.Generator().manual_seed(config.seed))
    else:
        batches = [beside(model, batch) for batch in ground.batches]
        scores = block_scores(model, ground.base(), vectors, ground.objective, batches)
        chosen = best_blocks(scores, config.block_budget)
    return composite_vectors(model, vectors, chosen)


def _fit(
    config: AtlasConfig, ground: Ground, model: nn.Module, objective: Objective, *, rate: float, recipe: str
) -> tuple[float, list[dict[str, Any]]]:
    """Train in place; where the validation split may pick, keep the evaluation that is best on it."""
    plan = plan_of(config, recipe)
    picking = {"metric": ground.figure, "restore_best": True, "evaluate_every": plan.evaluate_every}
    training = TrainingConfig.model_validate(
        {
            "learning_rate": rate,
            "weight_decay": config.decay,
            "schedule": plan.schedule,
            "warmup": 0,
            "seed": config.seed,
            **(picking if plan.picked else {}),
        }
    )
    evaluate = ground.valid.figures if plan.picked else None
    stream = RepeatedBatches(ground.batches)
    found = fit(model, objective, stream, plan.steps, training, evaluate=evaluate, label=recipe)
    return found.best[0] if found.best else 0.0, found.records


def _used(plan: Plan, model: nn.Module) -> dict[str, float]:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"fitting steps": float(plan.steps), "trained numbers": float(trained)}
