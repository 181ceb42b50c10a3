"""Self Positioning: specialists of one embedding model merged in a learned direction and length (arXiv 2410.15035)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field

from leaven.errors import ConfigError
from leaven.evidence.arenas.merge_arena import SMOKE, MergeSystem
from leaven.evidence.arenas.merge_ground import Ground, Merged, best_length, plain_merge
from leaven.evidence.arenas.merge_images import classifier_ground
from leaven.evidence.arenas.merge_text_ground import TEXTS, TextGround, TextMergeConfig
from leaven.evidence.arenas.merge_texts import STANDARD
from leaven.evidence.claims import Claim
from leaven.merge import PositionedModel, self_position

Recipe = Literal[
    "self-positioning", "slerp-equal", "uniform", "task-arithmetic", "specialists", "joint", "joint-uniform"
]
TEXT_ONLY = ("specialists", "joint", "joint-uniform")
IMAGE_MODEL = "zoo:mini-vit"


class SelfPositioningConfig(TextMergeConfig):
    """Options of Self Positioning."""

    recipe: Recipe = Field("self-positioning", description="how the specialists become one model")
    share_of_sum: bool = Field(
        False, description="each step of the chain weighs a task against the sum of those before"
    )


class SelfPositioning(MergeSystem[SelfPositioningConfig]):
    """Search direction and length of the step from the base model by the loss on a small balanced probe set.

    The direction is a chain of spherical interpolations of the task vectors, each seen as one vector over all weights.
    STS pairs are trained as the retrieval pairs are, by contrast: a mild edit against heavy ones, in the
    standard tier a sentence of score 4 up against those of score 2 at most.
    Source: arXiv 2410.15035 section 5.1.
    """

    slug = "self-positioning"
    title = "Self Positioning: specialists of one embedding model, merged in a learned direction and length"
    Config = SelfPositioningConfig
    recipes: ClassVar[tuple[str, ...]] = get_args(Recipe)
    arms: ClassVar[dict[str, dict[str, Any]]] = {
        "joint": {"recipe": "joint"},
        "joint-uniform": {"recipe": "joint-uniform"},
        "specialists": {"recipe": "specialists"},
        "uniform": {"recipe": "uniform"},
        "task-arithmetic": {"recipe": "task-arithmetic"},
        "slerp-equal": {"recipe": "slerp-equal"},
        "self-positioning": {"recipe": "self-positioning"},
        "unbalanced-probe": {"recipe": "self-positioning", "probe": (32, 256)},
        "no-penalty": {"recipe": "self-positioning", "penalty": 0.0},
        "double-penalty": {"recipe": "self-positioning", "penalty": 0.1},
    }
    tiers: ClassVar[dict[str, dict[str, Any]]] = {
        "embedded": {"longest": 48, "text_batch": 8, "task_steps": 80, "search_steps": 40, "exam_rows": 200},
        "standard": {
            "data": STANDARD,
            "tasks": ("sts", "headlines"),
            "rows": (30, 240),
            "probe": (144, 144),
            "exam_rows": 100,
            "longest": 32,
            "text_batch": 8,
            "hard_negatives": (1, 2),
            "task_steps": 30,
            "search_steps": 20,
        },
    }
    seeds: ClassVar[dict[str, int]] = {"embedded": 5, "standard": 3}
    smoke: ClassVar[dict[str, Any]] = {
        **SMOKE,
        "rows": (8, 16),
        "probe": (8, 8),
        "exam_rows": 20,
        "longest": 16,
        "layers": 1,
        "text_batch": 4,
        "task_steps": 2,
        "search_steps": 2,
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            says="Merged specialists beat joint training by size of the data",
            metric="score",
            better="self-positioning",
            than="joint",
            by=0.5,
            paper="MTEB: +0.7 on average over the tasks",
        ),
        Claim(
            says="Merged specialists beat joint training on tasks drawn uniformly",
            metric="score",
            better="self-positioning",
            than="joint-uniform",
            by=0.5,
            paper="better than resampling, at lower cost",
        ),
        Claim(
            says="Self Positioning is at least as good as task arithmetic with the best length",
            metric="score",
            better="self-positioning",
            than="task-arithmetic",
            by=0.0,
        ),
        Claim(
            says="The task that loses most against its specialist loses less than in joint training",
            metric="worst drop",
            better="self-positioning",
            than="joint",
            by=0.0,
            smaller_is_better=True,
        ),
        Claim(
            says="A probe set with few edits costs the edits",
            metric="edits",
            better="self-positioning",
            than="unbalanced-probe",
            by=0.0,
            tiers=("embedded",),
        ),
        Claim(
            says="A probe set with few pairs of sentences costs these",
            metric="sts",
            better="self-positioning",
            than="unbalanced-probe",
            by=0.0,
            tiers=("standard",),
        ),
    )

    def ground(self, place: Path) -> Ground:
        """Text encoders; or image classifiers, with their loss on the validation images as the probe's."""
        config = self.config
        if config.data in TEXTS:
            self.texts = TextGround(config, place)
            return self.texts.ground()
        if config.recipe in TEXT_ONLY:
            raise ConfigError(
                f"recipe={config.recipe} needs several tasks: give data={' or '.join(TEXTS)}, or take another recipe"
            )
        return classifier_ground(config.model_copy(update={"model": config.model or IMAGE_MODEL}), place)

    def shown(self, ground: Ground) -> tuple[str, ...]:
        """Without those that need several tasks where there is one."""
        shown = super().shown(ground)
        if self.config.data not in TEXTS:
            return tuple(name for name in shown if name not in TEXT_ONLY)
        return tuple(name for name in shown if name != "specialists" or self.texts.paired)

    def merged(self, ground: Ground, recipe: str) -> Merged:
        """Merge the specialists, or do what stands beside it."""
        if recipe in ("joint", "joint-uniform"):
            return self.texts.joint(1.0 if recipe == "joint" else 0.0)
        if recipe == "specialists" and not self.texts.paired:
            raise ConfigError(
                f"recipe=specialists: name the checkpoints of {self.config.ingredients} as the tasks are, "
                f"{', '.join(self.config.tasks)}, so that each can be judged on its own"
            )
        if plain := plain_merge(ground, recipe, self.config.lengths):
            return plain
        if recipe == "slerp-equal":
            return self._equal(ground)
        config = self.config
        found = self_position(
            ground.model,
            ground.base(),
            ground.ingredients,
            ground.objective,
            ground.batches,
            penalty=config.penalty,
            steps=config.search_steps,
            learning_rate=config.search_rate,
            share_of_sum=config.share_of_sum,
        )
        return Merged(
            (found.model.merged(),),
            chosen={
                "order": [Path(weights.label).stem for weights in ground.ingredients],
                "length": float(found.model.length.detach()),
                "proportions": found.model.proportions.detach().tolist(),
                "factor of each task vector": found.model.per_vector().detach().tolist(),
                "cosines of the task vectors": found.cosines.tolist(),
                "lengths of the task vectors": found.norms.tolist(),
            },
            curves={"search": found.trace},
            used={"search steps": float(config.search_steps)},
        )

    def _equal(self, ground: Ground) -> Merged:
        """The chain with equal proportions; its length is picked as that of plain task arithmetic is."""
        vectors = ground.vectors()
        start = PositionedModel(ground.model, vectors, share_of_sum=self.config.share_of_sum)
        scaled = [vector * factor for factor, vector in zip(start.per_vector().tolist(), vectors, strict=True)]
        return best_length(ground, sum(scaled[1:], scaled[0]), self.config.lengths)
