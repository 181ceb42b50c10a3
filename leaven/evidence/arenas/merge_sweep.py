"""A sweep of fine-tunings from one start, kept on disk so that all arms of a seed share it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from leaven.contracts import Batch
from leaven.data.loader import Loader
from leaven.data.rendered.glyphs import LETTERS, render_glyphs
from leaven.errors import ConfigError
from leaven.evidence.arenas.image_data import GLYPHS, ImageData, open_images
from leaven.evidence.arenas.kept_weights import KeptWeights, Records, Trained
from leaven.evidence.arenas.merge_classifiers import Classifier, accuracy, image_loader, open_image_model, probed
from leaven.evidence.arenas.merge_shifts import augmented
from leaven.evidence.system import SystemConfig
from leaven.merge import Weights
from leaven.models.vision import ImageEncoder
from leaven.objectives.classification import Classification
from leaven.training.budgets import Budget
from leaven.training.config import TrainingConfig
from leaven.training.loop import fit
from leaven.training.randomness import mix, preserved_rng

Range = tuple[float, float]


class MergeConfig(SystemConfig):
    """Options that the systems of the merge arena share: where fine-tuned image classifiers come from."""

    recipe: str = Field("uniform", description="how the ingredients become one model")
    data: str = Field(GLYPHS, description="labelled images: glyphs, cifar10, omniglot, or imagefolder:DIR")
    model: str = Field("zoo:mini-vit", description="what the fine-tuned models start from: zoo:NAME, hf:ID or a folder")
    ingredients: str = Field(
        "",
        description="folder of fine-tuned checkpoints (safetensors files or model folders) to merge instead of "
        "training some; one named `base` is their common start, which is the model otherwise",
    )
    classes: int = Field(20, ge=2, le=24, description="classes of glyphs; a folder keeps its own")
    per_class: tuple[int, int, int] = Field((40, 20, 50), description="glyphs of a class to train, choose and test on")
    image_limit: int = Field(500, ge=1, description="most images of a class that a folder gives to each split")
    gap: float = Field(0.5, ge=0, le=1, description="distance of the glyphs from plain print")
    label_noise: float = Field(0.15, ge=0, lt=1, description="share of the glyphs' training labels that are wrong")
    runs: int = Field(12, ge=2, le=1000, description="fine-tunings of the sweep")
    learning_rates: Range = Field((1e-4, 3e-3), description="smallest and largest rate of a run, drawn log-uniformly")
    weight_decays: Range = Field((1e-4, 0.5), description="smallest and largest decay of a run, drawn log-uniformly")
    smoothing: float = Field(0.25, ge=0, lt=1, description="largest label smoothing of a run")
    epochs: tuple[int, int] = Field((3, 8), description="fewest and most epochs of a run")
    batch_size: int = Field(32, ge=1, le=65536, description="images per step and process")
    severity: float = Field(1.0, ge=0, le=10, description="strength of the shifts that the test images are put under")
    lengths: tuple[float, ...] = Field(
        (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0),
        min_length=1,
        description="factors of task vectors that plain task arithmetic tries on held-out data",
    )

    @field_validator("learning_rates", "weight_decays", "epochs")
    @classmethod
    def _ordered(cls, ends: Range) -> Range:
        if not 0 < ends[0] <= ends[1]:
            raise ConfigError(f"range {ends}: expected two positive numbers, the smaller one first")
        return ends


@dataclass(frozen=True)
class RunPlan:
    """The settings of one run. augment: strength in [0, 1]."""

    learning_rate: float
    weight_decay: float
    augment: float
    smoothing: float
    epochs: int
    seed: int


def draw_plans(config: MergeConfig) -> list[RunPlan]:
    """The settings of every run of the sweep. They depend on the seed and the place of the run alone."""
    plans = []
    for place in range(config.runs):
        rng = np.random.default_rng([config.seed, place])
        rate, decay = (
            math.exp(rng.uniform(math.log(low), math.log(high)))
            for low, high in (config.learning_rates, config.weight_decays)
        )
        augment = float(rng.uniform(0.2, 1.0)) * int(rng.integers(2))
        smoothing, epochs = float(rng.uniform(0, config.smoothing)), int(rng.integers(*config.epochs, endpoint=True))
        plans.append(RunPlan(rate, decay, augment, smoothing, epochs, mix(config.seed, place)))
    return plans


def classifier_data(config: MergeConfig, size: int) -> ImageData:
    """The images of the configuration, size by size pixels."""
    glyphs = config.data == GLYPHS
    per_class = config.per_class if glyphs else (config.image_limit,) * 3
    return open_images(
        config.data, size=size, classes=config.classes, per_class=per_class, gap=config.gap, seed=config.seed
    )


def with_wrong_labels(targets: Tensor, classes: int, share: float, seed: int) -> Tensor:
    """Targets of which a share, drawn by the seed, is replaced by another class."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(targets), generator=generator)[: round(share * len(targets))]
    wrong = targets.clone()
    wrong[chosen] += torch.randint(1, classes, chosen.shape, generator=generator)
    return wrong % classes


class AugmentedClassification(Classification):
    """Classification of images that are changed at random (`augmented`)."""

    def __init__(self, strength: float, *, smoothing: float = 0.0, fields: Sequence[str] = ("pixel_values",)) -> None:
        super().__init__(fields, smoothing=smoothing)
        self.strength = strength

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Augment."""
        return {**batch, "pixel_values": augmented(batch["pixel_values"], self.strength, generator)}


class Sweep:
    """Fine-tunings of one encoder with a head that was probed first (LP-FT), each made when it is asked for.

    What was made is kept in a folder under `place`, whose name changes with the configuration; a run that was
    interrupted is made again, those before it are not.

    Args:
        pretrain: budget of a pre-training on Latin letters from random weights, so that the start is another one than
            the model's; empty for the model itself.

    Source: arXiv 2203.05482; arXiv 2202.10054 section 3 (LP-FT).
    """

    def __init__(self, config: MergeConfig, place: Path, *, pretrain: str = "") -> None:
        self.config, self.pretrain = config, pretrain
        fields = set(MergeConfig.model_fields) - {"recipe", "ingredients", "runs", "severity", "lengths"}
        values = {**config.model_dump(mode="json", include=fields), "pretrain": pretrain}
        self.kept = KeptWeights(place, "ingredients", values)
        self.plans = draw_plans(config)
        image_model = open_image_model(config.model)
        self.size = image_model.size
        self.data = classifier_data(config, self.size)
        classes = self.data.classes
        self.classifier: Classifier = image_model.with_head(len(classes))
        noise = config.label_noise if config.data == GLYPHS else 0.0
        self.targets = with_wrong_labels(self.data.train.targets(classes), len(classes), noise, config.seed)

    @cached_property
    def base(self) -> Weights:
        """The start of all runs, its head probed."""

        def train() -> Records:
            if self.pretrain:
                self._pretrain()
            probed(self.classifier, self.data.train.images, self.targets)
            return []

        return self.kept.get("base", self.classifier.model, train, {}).weights

    def ingredient(self, at: int) -> Trained:
        """The weights after run `at`."""
        plan = self.plans[at]
        return self._trained(f"run-{at:02d}", plan, self.steps_of(plan))

    def long_run(self, at: int) -> Trained:
        """One run with the steps of the whole sweep and the settings of run `at`; of as many evaluations on the
        validation split as the sweep has runs, the best one's weights.
        """
        return self._trained(f"long-run-{at:02d}-{self.steps}", self.plans[at], self.steps, select=True)

    def steps_of(self, plan: RunPlan) -> int:
        """Steps of a run."""
        return plan.epochs * self._loader(plan.seed).batches_per_epoch

    @property
    def steps(self) -> int:
        """Steps of the whole sweep."""
        return sum(map(self.steps_of, self.plans))

    def valid_accuracy(self, model: torch.nn.Module) -> float:
        """Accuracy in [0, 100] on the validation split."""
        valid = self.data.valid
        return accuracy(model, self.classifier.pixels, valid.images, valid.targets(self.data.classes))

    def _loader(self, seed: int) -> Loader:
        images, pixels = self.data.train.images, self.classifier.pixels
        return image_loader(images, {"label": self.targets}, pixels, self.config.batch_size, seed)

    def _trained(self, name: str, plan: RunPlan, steps: int, *, select: bool = False) -> Trained:
        def train() -> Records:
            return self._train(plan, steps, name, select=select)

        return self.kept.get(name, self.classifier.model, train, asdict(plan))

    def _train(self, plan: RunPlan, steps: int, label: str, *, select: bool) -> Records:
        self.base.into(self.classifier.model)
        chosen = {"metric": "accuracy", "restore_best": True, "evaluate_every": 1 / len(self.plans)} if select else {}
        training = TrainingConfig.model_validate(
            {
                "learning_rate": plan.learning_rate,
                "weight_decay": plan.weight_decay,
                "schedule": "cosine",
                "warmup": 0.1,
                "seed": plan.seed,
                **chosen,
            }
        )
        objective = AugmentedClassification(plan.augment, smoothing=plan.smoothing)
        return fit(
            self.classifier.model,
            objective,
            self._loader(plan.seed),
            Budget(steps=steps),
            training,
            evaluate=(lambda model: {"accuracy": self.valid_accuracy(model)}) if select else None,
            label=label,
        ).records

    def _pretrain(self) -> None:
        """Train the classifier's encoder on letters from random weights; its head stays zero."""
        model, config = self.classifier.model, self.config
        if not isinstance(model, ImageEncoder):
            raise ConfigError(f"model={config.model}: only an image encoder of leaven can be pre-trained from scratch")
        with preserved_rng():
            torch.manual_seed(mix(config.seed, 1))
            other = ImageEncoder(replace(model.config, labels=len(LETTERS)))
        drawn = render_glyphs(LETTERS, config.per_class[0], size=self.size, seed=config.seed + 1)
        images = drawn.rgb()
        loader = image_loader(images, {"label": drawn.labels}, self.classifier.pixels, config.batch_size, config.seed)
        training = TrainingConfig(optimizer="muon", learning_rate=2e-3, seed=config.seed)
        fit(other, AugmentedClassification(0.5), loader, self.pretrain, training, label="another start")
        encoder = {name: t for name, t in other.state_dict().items() if not name.startswith("head.")}
        model.load_state_dict({**model.state_dict(), **encoder})
