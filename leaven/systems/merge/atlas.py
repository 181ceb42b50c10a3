"""aTLAS: task vectors composed with one learned coefficient per vector and parameter tensor (arXiv 2407.02880)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from pydantic import Field
from torch import nn

from leaven.adapt.peft import merge
from leaven.contracts import Objective
from leaven.errors import ConfigError
from leaven.evidence.arenas.merge_arena import SMOKE, MergeSystem
from leaven.evidence.arenas.merge_classifiers import beside
from leaven.evidence.arenas.merge_ground import Ground, Merged, plain_merge
from leaven.evidence.arenas.merge_rivals import HeadProbe, with_low_rank
from leaven.evidence.arenas.merge_sweep import MergeConfig
from leaven.evidence.arenas.merge_task_images import GLYPH_TASKS, OMNIGLOT_TASKS
from leaven.evidence.arenas.merge_tasks import TaskGrounds, TaskTraining
from leaven.evidence.claims import Claim
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

TASK_SETS = (GLYPH_TASKS, OMNIGLOT_TASKS)
Recipe = Literal[
    "atlas",
    "isotropic",
    "task-arithmetic",
    "uniform",
    "specialists",
    "few-shot",
    "few-shot-gradient-blocks",
    "few-shot-random-blocks",
    "linear-probe",
    "lora",
]
FEW_SHOT = ("few-shot", "few-shot-gradient-blocks", "few-shot-random-blocks", "linear-probe", "lora")


class AtlasConfig(MergeConfig):
    """Options of aTLAS."""

    data: str = Field(
        GLYPH_TASKS,
        description="glyph-tasks or omniglot-tasks: six tasks of characters and a seventh; or labelled images: glyphs, "
        "cifar10, omniglot, imagefolder:DIR",
    )
    recipe: Recipe = Field("atlas", description="how the task vectors are composed")
    task_classes: int = Field(
        4, ge=2, le=13, description="characters of each of the tasks: to 4 of glyphs, to 13 of omniglot"
    )
    task_epochs: int = Field(10, ge=1, le=1000, description="epochs of each specialist")
    task_rate: float = Field(1e-3, gt=0, le=1, description="peak learning rate of each specialist")
    steps: int = Field(200, ge=1, description="steps of the coefficients")
    rates: tuple[float, ...] = Field(
        (1e-2, 3e-2), min_length=1, description="learning rates of the coefficients; the validation split picks one"
    )
    decay: float = Field(0.1, ge=0, le=10, description="weight decay of the coefficients")
    shots: int = Field(2, ge=1, description="images of a class to adapt to the seventh task with")
    few_shot_steps: int = Field(100, ge=1, description="steps of an adaptation")
    few_shot_rates: tuple[float, ...] = Field(
        (1e-2, 1e-1), min_length=1, description="learning rates of an adaptation; the validation split picks one"
    )
    block_budget: int = Field(2, ge=1, le=6, description="task vectors' worth of memory, chosen block by block")


class Atlas(MergeSystem[AtlasConfig]):
    """Learn, on a few held-out examples, how much of each task vector goes into each parameter tensor.

    Source: arXiv 2407.02880: task addition, few-shot adaptation, block selection under a memory budget.
    """

    slug = "atlas"
    title = "aTLAS: task vectors composed with learned coefficients per block"
    Config = AtlasConfig
    recipes: ClassVar[tuple[str, ...]] = ("atlas", "isotropic", "task-arithmetic", "uniform", "specialists")
    arms: ClassVar[dict[str, dict[str, Any]]] = {name: {"recipe": name} for name in get_args(Recipe)}
    tiers: ClassVar[dict[str, dict[str, Any]]] = {
        "embedded": {},
        "standard": {
            "data": OMNIGLOT_TASKS,
            "task_classes": 10,
            "task_epochs": 8,
            "steps": 100,
            "few_shot_steps": 50,
        },
    }
    seeds: ClassVar[dict[str, int]] = {"embedded": 5, "standard": 3}
    smoke: ClassVar[dict[str, Any]] = {
        **SMOKE,
        "task_classes": 2,
        "task_epochs": 1,
        "steps": 3,
        "rates": (1e-2,),
        "few_shot_steps": 2,
        "few_shot_rates": (1e-2,),
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            says="A coefficient for each block beats one for each task vector, learned on the same examples",
            metric="normalised accuracy",
            better="atlas",
            than="isotropic",
            by=2.0,
            paper="no such arm",
        ),
        Claim(
            says="Learned coefficients beat the best single factor of the summed task vectors",
            metric="accuracy",
            better="atlas",
            than="task-arithmetic",
            by=2.0,
            paper="mean of 8 tasks, ViT-B/32: 85.0 against 70.1",
        ),
        Claim(
            says="With two images a class, composing other tasks' vectors beats LoRA of no fewer numbers",
            metric="few-shot accuracy",
            better="few-shot",
            than="lora",
            by=1.0,
            paper="no such arm; above Tip-Adapter and LP++ in the mean of 22 sets",
        ),
        Claim(
            says="Under a memory budget, blocks chosen by their gradient beat random ones",
            metric="few-shot accuracy",
            better="few-shot-gradient-blocks",
            than="few-shot-random-blocks",
            by=0.0,
        ),
    )

    def ground(self, place: Path) -> Ground:
        """The six tasks, the seventh for an adaptation, or classifiers of one label set."""
        config = self.config
        if config.data not in TASK_SETS:
            if config.recipe in (*FEW_SHOT, "specialists"):
                raise ConfigError(
                    f"recipe={config.recipe} needs several tasks: leave data={GLYPH_TASKS}, or take another"
                )
            return super().ground(place)
        if config.ingredients:
            raise ConfigError(
                f"ingredients={config.ingredients}: say with data= what the checkpoints were fine-tuned for, such as "
                "data=imagefolder:DIR"
            )
        training = TaskTraining(
            data=config.data,
            model=config.model,
            classes=config.task_classes,
            per_class=config.per_class,
            epochs=config.task_epochs,
            learning_rate=config.task_rate,
            batch_size=config.batch_size,
            seed=config.seed,
        )
        tasks = TaskGrounds(training, place)
        return tasks.adaptation(config.shots) if config.recipe in FEW_SHOT else tasks.addition()

    def shown(self, ground: Ground) -> tuple[str, ...]:
        """The recipes of the same ground."""
        if self.recipe in FEW_SHOT:
            return tuple(dict.fromkeys((self.recipe, *FEW_SHOT)))
        shown = super().shown(ground)
        return shown if self.config.data in TASK_SETS else tuple(name for name in shown if name != "specialists")

    def merged(self, ground: Ground, recipe: str) -> Merged:
        """Compose the task vectors, or what stands beside it."""
        if plain := plain_merge(ground, recipe, self.config.lengths):
            return plain
        if recipe in ("linear-probe", "lora"):
            return self._rival(ground, recipe)
        vectors: Sequence[Weights] = ground.vectors()
        if recipe.endswith("-blocks"):
            vectors = self._chosen_blocks(ground, vectors, random=recipe == "few-shot-random-blocks")
        return self._composed(ground, vectors, recipe)

    def _composed(self, ground: Ground, vectors: Sequence[Weights], recipe: str) -> Merged:
        def attempt(rate: float) -> tuple[float, Any]:
            per: Literal["block", "vector"] = "vector" if recipe == "isotropic" else "block"
            composed = ComposedModel(ground.model, ground.base(), vectors, per=per)
            score, records = self._fit(ground, composed, MixedObjective(ground.objective), rate, recipe)
            return score, (composed, records)

        best = best_of_grid(self._rates(recipe), attempt)
        composed, records = best.result
        return Merged(
            (composed.baked(),),
            chosen={
                "learning_rate": best.value,
                "mean coefficients": composed.coefficients().detach().mean(1).tolist(),
            },
            curves={"coefficients": records},
            used=self._used(recipe, composed),
            files={"coefficients.csv": composed.write_coefficients},
        )

    def _chosen_blocks(self, ground: Ground, vectors: Sequence[Weights], *, random: bool) -> list[Weights]:
        config, model = self.config, ground.model
        blocks = len(dict(model.named_parameters()))
        if random:
            chosen = random_blocks(
                len(vectors), blocks, config.block_budget, torch.Generator().manual_seed(config.seed)
            )
        else:
            batches = [beside(model, batch) for batch in ground.batches]
            scores = block_scores(model, ground.base(), vectors, ground.objective, batches)
            chosen = best_blocks(scores, config.block_budget)
        return composite_vectors(model, vectors, chosen)

    def _rival(self, ground: Ground, recipe: str) -> Merged:
        """The head alone, or low-rank changes with no fewer numbers than there would be coefficients."""
        wanted = len(ground.ingredients) * len(list(ground.model.parameters()))

        def attempt(rate: float) -> tuple[float, Any]:
            model = copy.deepcopy(ground.model)
            trained = HeadProbe(model) if recipe == "linear-probe" else with_low_rank(model, wanted, self.config.seed)
            score, records = self._fit(ground, trained, ground.objective, rate, recipe)
            used = self._used(recipe, trained)
            if isinstance(trained, HeadProbe):
                trained.settle()
            else:
                merge(model)
            return score, (open_weights(model, recipe), records, used)

        best = best_of_grid(self._rates(recipe), attempt)
        weights, records, used = best.result
        return Merged((weights,), chosen={"learning_rate": best.value}, curves={recipe: records}, used=used)

    def _fit(
        self, ground: Ground, model: nn.Module, objective: Objective, rate: float, recipe: str
    ) -> tuple[float, list[dict[str, Any]]]:
        """Train in place and keep the evaluation that is best on the validation split."""
        config = self.config
        adaptation = recipe in FEW_SHOT
        training = TrainingConfig.model_validate(
            {
                "learning_rate": rate,
                "weight_decay": config.decay,
                "schedule": "cosine" if adaptation else "constant",
                "warmup": 0,
                "seed": config.seed,
                "metric": ground.figure,
                "restore_best": True,
                "evaluate_every": None if adaptation else 0.1,
            }
        )
        steps = config.few_shot_steps if adaptation else config.steps
        stream = RepeatedBatches(ground.batches)
        found = fit(model, objective, stream, steps, training, evaluate=ground.valid.figures, label=recipe)
        assert found.best is not None
        return found.best[0], found.records

    def _rates(self, recipe: str) -> tuple[float, ...]:
        return self.config.few_shot_rates if recipe in FEW_SHOT else self.config.rates

    def _used(self, recipe: str, model: nn.Module) -> dict[str, float]:
        steps = self.config.few_shot_steps if recipe in FEW_SHOT else self.config.steps
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return {"fitting steps": float(steps), "trained numbers": float(trained)}
