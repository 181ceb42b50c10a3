"""aTLAS: task vectors composed with one learned coefficient per vector and parameter tensor (arXiv 2407.02880)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, get_args

from leaven.errors import ConfigError
from leaven.evidence.arenas.merge_arena import SMOKE, MergeSystem
from leaven.evidence.arenas.merge_ground import Ground, Merged, best_length, plain_merge
from leaven.evidence.arenas.merge_task_fitting import composed, rival, unchanged
from leaven.evidence.arenas.merge_task_images import GLYPH_TASKS, OMNIGLOT_TASKS
from leaven.evidence.arenas.merge_task_options import FEW_SHOT, NEGATION, TASK_SETS, TEST_TIME, AtlasConfig, Recipe
from leaven.evidence.arenas.merge_task_uses import forgetting, unlabelled
from leaven.evidence.arenas.merge_tasks import TaskGrounds, TaskTraining
from leaven.evidence.claims import Claim

OTHER_GROUNDS = (FEW_SHOT, NEGATION, TEST_TIME)
"""Recipes by the ground that they share, beside those of addition."""


class Atlas(MergeSystem[AtlasConfig]):
    """Learn, on a few held-out examples, how much of each task vector goes into each parameter tensor.

    Source: arXiv 2407.02880: task addition and negation, few-shot and test-time adaptation, block selection under a
    memory budget, aTLAS x K.
    """

    slug = "atlas"
    title = "aTLAS: task vectors composed with learned coefficients per block"
    Config = AtlasConfig
    recipes: ClassVar[tuple[str, ...]] = ("atlas", "isotropic", "task-arithmetic", "uniform", "specialists")
    arms: ClassVar[dict[str, dict[str, Any]]] = {
        **{name: {"recipe": name} for name in get_args(Recipe) if name != "few-shot-groups"},
        "few-shot-of-8": {"recipe": "few-shot", "shots": 8},
        "few-shot-groups-of-8": {"recipe": "few-shot-groups", "shots": 8},
    }
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
        "forget_steps": 2,
        "forget_rates": (1e-2,),
        "forget_lengths": (0.1,),
        "unlabelled_steps": 2,
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
        Claim(
            says="With eight images a class, several coefficients for each block are no worse than one",
            metric="few-shot accuracy",
            better="few-shot-groups-of-8",
            than="few-shot-of-8",
            by=-1.0,
            paper="aTLAS x K gains on aTLAS as the data grow",
        ),
        Claim(
            says="Learned coefficients forget a task more than its negated vector does",
            metric="target accuracy",
            better="negation",
            than="negated-arithmetic",
            by=2.0,
            paper="mean of 8 tasks, ViT-B/32: 18.8 against 23.2",
            smaller_is_better=True,
        ),
        Claim(
            says="They keep the other tasks as well while doing so",
            metric="control accuracy",
            better="negation",
            than="negated-arithmetic",
            by=-2.0,
            paper="ImageNet: 61.2 against 60.7",
        ),
        Claim(
            says="Without labels, composing other tasks' vectors beats the model as it is",
            metric="unlabelled accuracy",
            better="test-time",
            than="zero-shot",
            by=1.0,
            paper="above zero-shot in the mean of 22 sets",
        ),
    )

    def ground(self, place: Path) -> Ground:
        """The six tasks, the seventh for an adaptation, or classifiers of one label set."""
        config = self.config
        if config.data not in TASK_SETS:
            if config.recipe == "specialists" or beside_addition(config.recipe):
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
        if config.recipe in NEGATION:
            return forgetting(tasks, config.forget)
        if config.recipe in TEST_TIME:
            return unlabelled(tasks)
        return tasks.adaptation(config.shots) if config.recipe in FEW_SHOT else tasks.addition()

    def shown(self, ground: Ground) -> tuple[str, ...]:
        """The recipes of the same ground."""
        if alike := beside_addition(self.recipe):
            return tuple(dict.fromkeys((self.recipe, *alike)))
        shown = super().shown(ground)
        return shown if self.config.data in TASK_SETS else tuple(name for name in shown if name != "specialists")

    def merged(self, ground: Ground, recipe: str) -> Merged:
        """Compose the task vectors, or what stands beside it."""
        if plain := plain_merge(ground, recipe, self.config.lengths):
            return plain
        if recipe == "negated-arithmetic":
            (vector,) = ground.vectors()
            return best_length(ground, -vector, self.config.forget_lengths)
        if recipe == "zero-shot":
            return unchanged(ground)
        if recipe in ("linear-probe", "lora"):
            return rival(self.config, ground, recipe)
        return composed(self.config, ground, recipe)


def beside_addition(recipe: str) -> tuple[str, ...]:
    """The recipes on the ground of this one; none where that is addition."""
    return next((alike for alike in OTHER_GROUNDS if recipe in alike), ())
