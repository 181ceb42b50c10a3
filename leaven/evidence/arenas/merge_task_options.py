"""Options of aTLAS, and which of its recipes stand on the same ground."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from leaven.evidence.arenas.merge_sweep import MergeConfig
from leaven.evidence.arenas.merge_task_images import GLYPH_TASKS, OMNIGLOT_TASKS, TASKS

TASK_SETS = (GLYPH_TASKS, OMNIGLOT_TASKS)
FewShot = Literal[
    "few-shot",
    "few-shot-gradient-blocks",
    "few-shot-random-blocks",
    "few-shot-groups",
    "linear-probe",
    "lora",
]
Negation = Literal["negation", "negated-arithmetic"]
TestTime = Literal["test-time", "test-time-entropy", "zero-shot"]
Recipe = Literal["atlas", "isotropic", "task-arithmetic", "uniform", "specialists", FewShot, Negation, TestTime]
FEW_SHOT: tuple[str, ...] = get_args(FewShot)
NEGATION: tuple[str, ...] = get_args(Negation)
TEST_TIME: tuple[str, ...] = get_args(TestTime)


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
        (1e-2, 3e-2, 1e-1), min_length=1, description="learning rates of an adaptation; the validation split picks one"
    )
    groups: int = Field(4, ge=2, le=1000, description="coefficients of a vector and tensor, each for random entries")
    forget: int = Field(3, ge=0, lt=TASKS, description="number of the task to forget")
    forget_steps: int = Field(60, ge=1, description="steps of the coefficients that forget")
    forget_rates: tuple[float, ...] = Field(
        (3e-3, 1e-2), min_length=1, description="learning rates that forget; the validation split picks one"
    )
    forget_lengths: tuple[float, ...] = Field(
        (0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0),
        min_length=1,
        description="factors that the negated task vector tries on held-out data",
    )
    unlabelled_steps: int = Field(50, ge=1, description="steps of an adaptation without labels")
    unlabelled_rate: float = Field(
        1e-2, gt=0, le=1, description="learning rate of an adaptation without labels, by which nothing can be picked"
    )
    block_budget: int = Field(2, ge=1, le=6, description="task vectors' worth of memory, chosen block by block")
