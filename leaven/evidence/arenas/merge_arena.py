"""The merge arena: models fine-tuned from one start become one; what differs between systems is how."""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from leaven.evidence.arenas.merge_ground import Ground, Merged, judged
from leaven.evidence.arenas.merge_images import classifier_ground
from leaven.evidence.arenas.merge_sweep import MergeConfig
from leaven.evidence.system import Measurement, Outcome, System, timed
from leaven.training.distributed import is_main_process

SMOKE: dict[str, Any] = {
    "classes": 3,
    "per_class": (12, 4, 6),
    "runs": 3,
    "epochs": (1, 2),
    "batch_size": 12,
    "lengths": (0.7,),
}
"""Size of a run of a few seconds; all systems of the arena have the same, so that they can be compared at it."""

C = TypeVar("C", bound=MergeConfig)


class MergeSystem(System[C]):
    """Ingredients by the arena, the merging by the system. recipes: those that `run` puts side by side."""

    title = ""
    recipes: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def merged(self, ground: Ground, recipe: str) -> Merged:
        """What a recipe makes of the ingredients."""

    @property
    def recipe(self) -> str:
        """The recipe that the configuration asks for."""
        return self.config.recipe

    def ground(self, place: Path) -> Ground:
        """What is merged; trained ingredients are kept under `place`."""
        return classifier_ground(self.config, place)

    def shown(self, ground: Ground) -> tuple[str, ...]:
        """The recipes that `run` compares, the configured one first."""
        del ground
        return tuple(dict.fromkeys((self.recipe, *self.recipes)))

    def run(self, out: Path) -> Outcome:
        """Merge by the configured recipe, save the result, and put the other recipes beside it."""
        timings: dict[str, float] = {}
        with timed(timings, "ingredients"):
            ground = self.ground(out)
        results: dict[str, Merged] = {}
        for recipe in self.shown(ground):
            with timed(timings, recipe):
                results[recipe] = self.merged(ground, recipe)
        valid = {recipe: judged(ground, merged, ground.valid) for recipe, merged in results.items()}
        judge = ground.test.read()
        figures = {recipe: judged(ground, merged, judge) for recipe, merged in results.items()}
        names = list(figures[self.recipe])
        outcome = Outcome(
            system=self.slug,
            title=self.title,
            config=self.config.model_dump(mode="json"),
            columns=["recipe", f"{ground.figure}, validation", *names],
            rows=[[r, valid[r][ground.figure], *(found[name] for name in names)] for r, found in figures.items()],
            curves={**ground.records, **{f"{r} {k}": v for r, m in results.items() for k, v in m.curves.items()}},
            timings=timings,
            notes=self.notes(ground, results),
        )
        best = results[self.recipe]
        if len(best.weights) == 1:
            outcome.model = copy.deepcopy(ground.filled(best.weights[0]))
            if is_main_process():
                outcome.artefacts["merged model"] = ground.save(out / "merged", outcome.model).name
        if is_main_process():
            for name, write in best.files.items():
                write(out / name)
                outcome.artefacts[name] = name
        return outcome

    def notes(self, ground: Ground, results: dict[str, Merged]) -> list[str]:
        """What there is to say beside the table: the numbers that each recipe picked."""
        del ground
        picked = {
            recipe: [f"{name} {value:.4g}" for name, value in merged.chosen.items() if isinstance(value, int | float)]
            for recipe, merged in results.items()
        }
        return [f"{recipe}: {', '.join(numbers)}" for recipe, numbers in picked.items() if numbers]

    def measure(self, out: Path) -> Measurement:
        """One recipe under one seed; the ingredients are those of the other arms of the seed."""
        started = time.perf_counter()
        ground = self.ground(out.parent)
        merged = self.merged(ground, self.recipe)
        valid = judged(ground, merged, ground.valid)
        return Measurement(
            metrics=judged(ground, merged, ground.test.read()),
            validation=valid,
            budget={**ground.budget, **merged.used},
            equal=tuple(ground.budget),
            chosen=merged.chosen,
            curves=merged.curves,
            seconds=time.perf_counter() - started,
        )
