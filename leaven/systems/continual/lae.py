"""LAE: learning, accumulation, ensemble of parameter-efficient modules (arXiv 2303.10070)."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from leaven.adapt.continual import JointTraining, Learner, LinearProbe, SimpleCIL, TaskTraining
from leaven.adapt.continual.features import Inputs
from leaven.adapt.continual.learner import Label
from leaven.adapt.peft import Adapter, Method, Prefix, cell
from leaven.adapt.peft.sublayers import attention_layers
from leaven.errors import ConfigError
from leaven.evidence.arenas.continual_arena import ContinualSystem
from leaven.evidence.arenas.continual_kept import SharedLAE
from leaven.evidence.arenas.continual_options import EMBEDDED, STANDARD, ContinualConfig
from leaven.evidence.claims import Claim
from leaven.evidence.system import Figures

_AHEAD = "last accuracy: 1.3 points above the best before on CIFAR-100, 3.6 on ImageNet-R (Adapter)"

_RATES = (2e-4, 1e-3, 5e-3, 2.5e-2)
"""Of modules and heads, the only ones that learn here; the arena's smallest rate is for whole encoders."""
TARGET = 0.25
"""Of the first task's training loss, as a share of the cross-entropy of a guess among its classes."""


class LAEConfig(ContinualConfig):
    """Options of LAE."""

    method: Literal["lae", "frozen", "joint", "simplecil"] = Field(
        "lae",
        description="LAE; heads on the frozen encoder; modules trained on all data so far, the upper bound; prototypes",
    )
    pet: Literal["adapter", "lora", "prefix"] = Field("adapter", description="the parameter-efficient module")
    rank: int = Field(5, ge=1, le=4096, description="width of the adapter, rank of the low-rank change")
    prefix_length: int = Field(10, ge=1, le=1000, description="keys and values of the prefix")
    compensate: bool = Field(True, description="leave the prefix at full strength, as a parallel adapter")
    blocks: int = Field(5, ge=1, le=1000, description="how many of the first blocks get modules, all if there are less")
    answers: Literal["ensemble", "online", "offline"] = Field(
        "ensemble", description="who answers: both experts, or one of them alone"
    )
    vote: Literal["max", "mean"] = Field("max", description="of the experts' probabilities")
    freeze: float = Field(0.6, ge=0, le=1, description="share of a task's steps in which only its head learns")
    decay: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = Field(
        "auto", description="of the average, in [0, 1); auto: 0.9 over the steps of a task"
    )


class OneExpert(SharedLAE):
    """One of the experts answers alone; before the second task there is only the online one."""

    def __init__(self, *args: Any, expert: Literal["online", "offline"], **options: Any) -> None:
        super().__init__(*args, **options)
        self.expert = expert

    def predict(self, inputs: Inputs) -> list[Label]:
        """The expert's likeliest label for each input."""
        scores = self.scores(inputs, "online" if self.offline is None else self.expert)
        return [self.classes[at] for at in scores.argmax(1).tolist()]


class LAE(ContinualSystem[LAEConfig]):
    """A module learns each task online, its average over all steps stays offline, and the surer of both answers.

    Modules start as the identity and have a learned scale, so that one learning rate does for all of them. The rate is
    constant. Source: section 3.
    """

    slug = "lae"
    title = "LAE: a fast module learns, a slow average remembers, both vote"
    Config = LAEConfig
    arms: ClassVar[dict[str, dict[str, Any]]] = {
        "lae": {"pet": "adapter"},
        "sequential": {"pet": "adapter", "answers": "online", "freeze": 0.0},
        "online": {"pet": "adapter", "answers": "online"},
        "offline": {"pet": "adapter", "answers": "offline"},
        "lae-lora": {"pet": "lora"},
        "sequential-lora": {"pet": "lora", "answers": "online", "freeze": 0.0},
        "lae-prefix": {"pet": "prefix"},
        "sequential-prefix": {"pet": "prefix", "answers": "online", "freeze": 0.0},
        "frozen-heads": {"method": "frozen"},
        "joint": {"method": "joint"},
        "simplecil": {"method": "simplecil"},
        "mean-vote": {"pet": "adapter", "vote": "mean"},
        "no-freezing": {"pet": "adapter", "freeze": 0.0},
        "uncompensated": {"pet": "prefix", "compensate": False},
    }
    tiers: ClassVar[dict[str, dict[str, Any]]] = {
        "embedded": {**EMBEDDED, "learning_rates": _RATES},
        "standard": {**STANDARD, "learning_rates": _RATES},
    }
    seeds: ClassVar[dict[str, int]] = {"embedded": 5, "standard": 3}
    smoke: ClassVar[dict[str, Any]] = {**ContinualSystem.smoke, "rank": 2, "prefix_length": 2}
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("With adapters it beats tuning them in sequence", "last_accuracy", "lae", "sequential", 3.0, _AHEAD),
        Claim("With LoRA it beats tuning in sequence", "last_accuracy", "lae-lora", "sequential-lora", 3.0),
        Claim("With prefixes it beats tuning in sequence", "last_accuracy", "lae-prefix", "sequential-prefix", 3.0),
        Claim("On the newest task the online expert is better", "newest_task", "online", "offline", 0.0),
        Claim("On the oldest task the offline expert is better", "oldest_task", "offline", "online", 0.0),
        Claim("It beats heads on the frozen encoder", "last_accuracy", "lae", "frozen-heads", 0.0),
        Claim(
            says="It forgets less than tuning adapters in sequence",
            metric="forgetting",
            better="lae",
            than="sequential",
            by=3.0,
            smaller_is_better=True,
        ),
        Claim(
            says="To the first task's target loss a prefix takes at most 1.5 times an adapter's steps",
            metric="log2_steps_to_loss",
            better="lae-prefix",
            than="lae",
            by=-math.log2(1.5),
            smaller_is_better=True,
            tiers=("embedded",),
        ),
        Claim(
            says="Compensation spares a prefix steps to that loss",
            metric="steps_to_loss",
            better="lae-prefix",
            than="uncompensated",
            by=0.0,
            smaller_is_better=True,
            tiers=("embedded",),
        ),
    )

    @property
    def trains(self) -> bool:
        """Prototypes know no learning rate."""
        return self.config.method != "simplecil"

    def figures(self, matrix: Tensor, sizes: Sequence[int]) -> Figures:
        """Those of the arena, and the accuracies at the end on the first task and on the last."""
        ends = {"oldest_task": float(matrix[-1, 0]), "newest_task": float(matrix[-1, -1])}
        return {**super().figures(matrix, sizes), **ends}

    def untrained(self) -> frozenset[str]:
        """Who answers."""
        return frozenset({"answers", "vote"})

    def training_figures(self, learner: Learner) -> Figures:
        """Of the experts, how many steps the first task took them to the target loss, and its binary logarithm."""
        if not (isinstance(learner, SharedLAE) and learner.fits):
            return {}
        losses = [one["cross_entropy"] for one in learner.fits[0].records if "cross_entropy" in one]
        steps = steps_to_loss(losses, TARGET * math.log(learner.heads.sizes[0]))
        return {"steps_to_loss": float(steps), "log2_steps_to_loss": math.log2(steps)}

    def learner(self, encoder: nn.Module, training: TaskTraining) -> Learner:
        """LAE, or one of the methods that it is compared with."""
        config = self.config
        if config.method == "simplecil":
            return SimpleCIL(encoder)
        constant = training.config.model_copy(update={"schedule": "constant", "weight_decay": 0.0, "log_every": 1})
        training = replace(training, config=constant)
        if config.method == "frozen":
            return LinearProbe(encoder, training=training)
        if config.method == "joint":
            return JointTraining(self.attach(copy.deepcopy(encoder).requires_grad_(False)), training=training)
        options: dict[str, Any] = {
            "decay": config.decay,
            "freeze": config.freeze,
            "vote": config.vote,
            "training": training,
        }
        if config.answers == "ensemble":
            return SharedLAE(encoder, self.attach, **options)
        return OneExpert(encoder, self.attach, expert=config.answers, **options)

    def attach(self, encoder: nn.Module) -> nn.Module:
        """Put the modules into the first blocks of an encoder, in place.

        Raises: ConfigError for an encoder without attention.
        """
        try:
            layers = attention_layers(encoder)
        except ConfigError as error:
            raise ConfigError(
                f"pet={self.config.pet} goes to attention, of which model={self.config.model} has none: {error}"
            ) from error
        blocks = list(dict.fromkeys(_block_of(layer.core) for layer in layers))
        generator = torch.Generator().manual_seed(self.config.seed)
        for name in blocks[: self.config.blocks]:
            self._module().apply(encoder.get_submodule(name), generator)
        return encoder

    def _module(self) -> Method:
        config = self.config
        if config.pet == "adapter":
            return Adapter(
                bottleneck=config.rank, insertion="parallel", places=("attention",), form="gelu", learn_scale=True
            )
        if config.pet == "lora":
            return cell("lora", config.rank, place="k,v", learn_scale=True)
        return Prefix(
            length=config.prefix_length, reparameterize=0, compensate=config.compensate, learn_scale=True, init="lae"
        )


def steps_to_loss(losses: Sequence[float], target: float, window: int = 3) -> int:
    """The first step at which the mean loss of it and those before it, `window` in all, is at most the target.

    Args:
        losses: training loss of each step, from the first on.

    Returns: one step more than were taken, where none is.
    """
    means = (math.fsum(losses[at - window : at]) / window for at in range(window, len(losses) + 1))
    return next((at for at, mean in enumerate(means, window) if mean <= target), len(losses) + 1)


def _block_of(attention: str) -> str:
    """The innermost numbered module that an attention module lies in, or ""."""
    found = re.match(r"(?:.*\.)?\d+(?=\.|$)", attention)
    return found[0] if found else ""
