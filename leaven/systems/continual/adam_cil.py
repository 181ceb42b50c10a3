"""ADAM, later APER: adapt a copy of the encoder on the first task, then only add prototypes (arXiv 2303.07338)."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from leaven.adapt.continual import (
    APER,
    BatchNormReestimation,
    CosineTuning,
    Learner,
    SequentialFineTuning,
    SimpleCIL,
    TaskTraining,
)
from leaven.adapt.peft import SSF, Adapter, Method, PromptTuning
from leaven.evidence.arenas.continual_arena import ContinualSystem
from leaven.evidence.arenas.continual_options import EMBEDDED, STANDARD, ContinualConfig
from leaven.evidence.claims import Claim


class AdamCILConfig(ContinualConfig):
    """Options of ADAM."""

    method: Literal["adam", "simplecil", "sequential"] = Field(
        "adam", description="adapt and merge; prototypes of the encoder as it is; fine-tuning on one task after another"
    )
    adapt: Literal["adapter", "ssf", "vpt-shallow", "vpt-deep", "finetune", "batch-norm"] = Field(
        "adapter", description="how the copy is adapted on the first task"
    )
    merge: bool = Field(True, description="join the features of encoder and copy; False: those of the copy alone")
    bottleneck: int = Field(64, ge=1, le=65_536, description="width of the adapter")
    prompts: int = Field(5, ge=1, le=1000, description="soft tokens, of the first layer or of each")


class AdamCIL(ContinualSystem[AdamCILConfig]):
    """Adapt on the first task, freeze, join both features, and classify by the cosine to class means.

    The adapter is AdaptFormer's: beside the feed-forward part, ReLU, scale 0.1. Source: section 4.
    """

    slug = "adam-cil"
    title = "ADAM: adapt on the first task, then prototypes in the features of both encoders"
    Config = AdamCILConfig
    arms: ClassVar[dict[str, dict[str, Any]]] = {
        "simplecil": {"method": "simplecil"},
        "adam-adapter": {"adapt": "adapter"},
        "adam-ssf": {"adapt": "ssf"},
        "adam-finetune": {"adapt": "finetune"},
        "adapted-alone": {"adapt": "adapter", "merge": False},
        "sequential": {"method": "sequential"},
        "random-net": {"method": "simplecil", "encoder": "random"},
        "raw-pixels": {"method": "simplecil", "encoder": "pixels"},
        "simplecil-no-gap": {"method": "simplecil", "gap": 0.0},
        "adam-adapter-no-gap": {"adapt": "adapter", "gap": 0.0},
        "large-first-task": {"adapt": "adapter", "first": 12},
    }
    tiers: ClassVar[dict[str, dict[str, Any]]] = {"embedded": EMBEDDED, "standard": STANDARD}
    seeds: ClassVar[dict[str, int]] = {"embedded": 5, "standard": 3}
    smoke: ClassVar[dict[str, Any]] = {**ContinualSystem.smoke, "bottleneck": 4}
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            says="An adapter tuned on the first task adds to prototypes of the encoder as it is",
            metric="last_accuracy",
            better="adam-adapter",
            than="simplecil",
            by=3.0,
            paper="CIFAR-100 85.14 against 81.28, ImageNet-R 63.73 against 54.55, VTAB 84.35 against 84.37",
        ),
        Claim(
            says="So does fine-tuning on the first task",
            metric="last_accuracy",
            better="adam-finetune",
            than="simplecil",
            by=3.0,
            paper="ImageNet-R, average: 70.95 against 62.57; ObjectNet 61.60 against 65.44",
        ),
        Claim(
            says="So do scales and shifts",
            metric="last_accuracy",
            better="adam-ssf",
            than="simplecil",
            by=3.0,
            paper="ImageNet-R, average: 68.88 against 62.57",
        ),
        Claim(
            says="Both encoders together are better than the adapted one alone",
            metric="last_accuracy",
            better="adam-adapter",
            than="adapted-alone",
            by=1.0,
        ),
        Claim(
            says="Prototypes without any training beat sequential fine-tuning",
            metric="last_accuracy",
            better="simplecil",
            than="sequential",
            by=20.0,
        ),
        Claim(
            says="Prototypes of the pre-trained encoder beat those of a random one",
            metric="last_accuracy",
            better="simplecil",
            than="random-net",
            by=10.0,
        ),
        Claim(
            says="Prototypes of the pre-trained encoder beat those of the pixels",
            metric="last_accuracy",
            better="simplecil",
            than="raw-pixels",
            by=10.0,
        ),
        Claim(
            says="Without a gap to the pre-training, adapting gains less than 3 points",
            metric="last_accuracy",
            better="simplecil-no-gap",
            than="adam-adapter-no-gap",
            by=-3.0,
            paper="CUB, average: 92.24 against 92.21",
            tiers=("embedded",),
        ),
        Claim(
            says="With more classes in the first task the adapter serves the others better",
            metric="last_accuracy",
            better="large-first-task",
            than="adam-adapter",
            by=0.0,
            paper="no such arm",
            tiers=("embedded",),
        ),
        Claim(
            says="It forgets less than sequential fine-tuning",
            metric="forgetting",
            better="adam-adapter",
            than="sequential",
            by=10.0,
            smaller_is_better=True,
        ),
    )

    @property
    def trains(self) -> bool:
        """Prototypes and batch statistics know no learning rate."""
        return self.config.method != "simplecil" and not (
            self.config.method == "adam" and self.config.adapt == "batch-norm"
        )

    def learner(self, encoder: nn.Module, training: TaskTraining) -> Learner:
        """ADAM, or one of the methods that it is compared with."""
        config = self.config
        if config.method == "simplecil":
            return SimpleCIL(encoder)
        if config.method == "sequential":
            return SequentialFineTuning(encoder, training=training)
        if config.adapt == "batch-norm":
            return APER(encoder, BatchNormReestimation(seed=config.seed), merge=config.merge)
        attach = None if config.adapt == "finetune" else partial(self._attach, self._modules())
        return APER(encoder, CosineTuning(attach, training), merge=config.merge)

    def _modules(self) -> Method:
        config = self.config
        if config.adapt == "adapter":
            return Adapter(bottleneck=config.bottleneck, insertion="parallel", scale=0.1)
        if config.adapt == "ssf":
            return SSF()
        return PromptTuning(length=config.prompts, deep=config.adapt == "vpt-deep", position="after-first")

    def _attach(self, method: Method, encoder: torch.nn.Module) -> torch.nn.Module:
        return method.apply(encoder, torch.Generator().manual_seed(self.config.seed))
