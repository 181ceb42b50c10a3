"""SLCA: a slow learner with classifier alignment (arXiv 2303.05118)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from leaven.adapt import continual
from leaven.adapt.continual import Alignment, JointTraining, Learner, SimpleCIL, TaskTraining
from leaven.adapt.continual.statistics import Covariance
from leaven.evidence.arenas.continual_arena import ContinualSystem
from leaven.evidence.arenas.continual_kept import SharedFineTuning
from leaven.evidence.arenas.continual_options import EMBEDDED, STANDARD, ContinualConfig
from leaven.evidence.claims import Claim

Factor = Annotated[float, Field(ge=0, le=1)]


_RATES = (2e-4, 1e-3, 5e-3)
"""Without the ends of the arena's grid, which no arm chose: two factors of the encoder's rate go with each."""


class SLCAConfig(ContinualConfig):
    """Options of SLCA."""

    method: Literal["slca", "simplecil", "joint"] = Field(
        "slca", description="SLCA; prototypes of the encoder as it is; training on all data so far, the upper bound"
    )
    slow: Factor | Annotated[tuple[Factor, ...], Field(min_length=1)] = Field(
        0.01,
        description="learning-rate factor of the encoder, 0 freezes it; of several the validation stream picks one",
    )
    align_epochs: int = Field(5, ge=0, le=10_000, description="epochs of classifier alignment after each task")
    samples: int = Field(256, ge=1, le=1_000_000, description="features drawn per class and epoch to align on")
    logit_norm: float = Field(0.1, ge=0, description="temperature of normalised logits in alignment; 0: as they are")
    covariance: Covariance = Field("full", description="of each class, full or diag, or one shared by all")
    cumulative: bool = Field(False, description="go on from the aligned heads instead of those before alignment")


class SharedSLCA(continual.SLCA, SharedFineTuning):
    """SLCA on trainings that may be shared: statistics and alignment, which come after them, are its own."""


class SLCA(ContinualSystem[SLCAConfig]):
    """All weights learn, the encoder slowly; after each task the heads are balanced on features drawn from Gaussians.

    Source: section 3.
    """

    slug = "slca"
    title = "SLCA: a slow encoder and aligned classifiers"
    Config = SLCAConfig
    arms: ClassVar[dict[str, dict[str, Any]]] = {
        "sequential": {"slow": 1.0, "align_epochs": 0},
        "slow": {"align_epochs": 0},
        "slca": {},
        "frozen-ca": {"slow": 0.0},
        "uniform-ca": {"slow": 1.0},
        "simplecil": {"method": "simplecil"},
        "joint": {"method": "joint", "slow": 1.0},
        "no-logit-norm": {"logit_norm": 0.0},
        "cumulative-heads": {"cumulative": True},
        "slca-strong-gap": {"gap": 0.9},
        "frozen-ca-strong-gap": {"slow": 0.0, "gap": 0.9},
    }
    tiers: ClassVar[dict[str, dict[str, Any]]] = {
        "embedded": {**EMBEDDED, "slow": (0.01, 0.05), "learning_rates": _RATES},
        "standard": {**STANDARD, "slow": 0.05, "learning_rates": _RATES},
    }
    seeds: ClassVar[dict[str, int]] = {"embedded": 5, "standard": 3}
    smoke: ClassVar[dict[str, Any]] = {
        **ContinualSystem.smoke,
        "align_epochs": 1,
        "samples": 8,
        "slow": 0.01,
    }
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            says="A slow encoder and aligned classifiers beat sequential fine-tuning",
            metric="last_accuracy",
            better="slca",
            than="sequential",
            by=10.0,
            paper="Split CIFAR-100 91.53 against 41.77, ImageNet-R 77.00 against 26.95",
        ),
        Claim(
            says="Alignment adds to a slow encoder",
            metric="last_accuracy",
            better="slca",
            than="slow",
            by=4.0,
        ),
        Claim(
            says="Under a strong gap to the pre-training, a slow encoder is better than a frozen one",
            metric="last_accuracy",
            better="slca-strong-gap",
            than="frozen-ca-strong-gap",
            by=3.0,
            tiers=("embedded",),
        ),
        Claim(
            says="Under a moderate gap too",
            metric="last_accuracy",
            better="slca",
            than="frozen-ca",
            by=3.0,
            tiers=("embedded",),
        ),
        Claim(
            says="On handwriting, which the pre-training never saw, a slow encoder is better than a frozen one",
            metric="last_accuracy",
            better="slca",
            than="frozen-ca",
            by=3.0,
            tiers=("standard",),
        ),
        Claim(
            says="Alignment cannot save an encoder that learns at the full rate: its statistics are stale",
            metric="last_accuracy",
            better="slca",
            than="uniform-ca",
            by=10.0,
        ),
        Claim(
            says="It forgets less than sequential fine-tuning",
            metric="forgetting",
            better="slca",
            than="sequential",
            by=10.0,
            smaller_is_better=True,
        ),
    )

    @property
    def trains(self) -> bool:
        """Prototypes know no learning rate."""
        return self.config.method != "simplecil"

    def variants(self) -> list[dict[str, float]]:
        """The factors of the encoder's learning rate."""
        slow = self.config.slow
        return [{"slow": one} for one in slow] if isinstance(slow, tuple) else [{}]

    def untrained(self) -> frozenset[str]:
        """Those of the alignment: a task trains the encoder and its own head, whatever the other heads are."""
        return frozenset({"align_epochs", "samples", "logit_norm", "covariance", "cumulative"})

    def learner(self, encoder: nn.Module, training: TaskTraining) -> Learner:
        """SLCA, or one of the methods that it is compared with."""
        config, slow = self.config, self.config.slow
        if isinstance(slow, tuple):
            slow = slow[0]
        if config.method == "simplecil":
            return SimpleCIL(encoder)
        if config.method == "joint":
            return JointTraining(encoder, slow=slow, training=training)
        alignment = Alignment(epochs=config.align_epochs, samples=config.samples, temperature=config.logit_norm)
        return SharedSLCA(
            encoder,
            slow=slow,
            covariance=config.covariance,
            alignment=alignment,
            cumulative=config.cumulative,
            training=training,
        )
