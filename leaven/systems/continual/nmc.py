"""Nearest class means on a frozen encoder, updated online: the bar for continual learning (arXiv 2210.04428)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from leaven.adapt.continual import (
    JointTraining,
    Learner,
    LinearProbe,
    NearestMean,
    SequentialFineTuning,
    SimpleCIL,
    TaskTraining,
)
from leaven.adapt.continual.features import Inputs, rows_in
from leaven.adapt.continual.learner import Labels, checked_labels
from leaven.errors import ConfigError
from leaven.evidence.arenas.continual_arena import ContinualSystem
from leaven.evidence.arenas.continual_options import EMBEDDED, STANDARD, ContinualConfig
from leaven.evidence.arenas.continual_stream import Stream, domain_stream, shifted_domains
from leaven.evidence.arenas.image_data import GLYPHS, has_images, open_images
from leaven.evidence.claims import Claim

_TEXTS = {"data": "docstring-packages", "model": "minilm", "tasks": 10, "longest": 32}
"""Which of twenty packages a sentence is from, ten tasks of two, by a model that was pre-trained on a billion pairs."""
_PROTOTYPES = ("nmc", "cosine", "unnormalised", "task-means")


class NMCConfig(ContinualConfig):
    """Options of the nearest mean classifier."""

    method: Literal["nmc", "cosine", "unnormalised", "task-means", "probe", "joint-probe", "sequential"] = Field(
        "nmc",
        description="nearest mean of unit features; by cosine; of features as they are; of a class's last task alone; "
        "linear heads trained task by task, or on all data; all weights trained task by task",
    )
    regime: Literal["class", "domain"] = Field(
        "class", description="tasks of new classes, or of the same classes in another style"
    )


class UnnormalisedMean(NearestMean):
    """An ablation: means and distances of the features as the encoder gives them."""

    rule = "nearest mean of raw features"
    unit_features = False


class TaskMean(NearestMean):
    """An ablation: a class that comes back starts anew, so that its mean is that of its last task."""

    def learn(self, inputs: Inputs, labels: Labels) -> None:
        """Forget the classes that come back, then take in the task."""
        before, labels = self.statistics, checked_labels(labels, rows_in(inputs))
        self.statistics = before.copy()
        try:
            for label in set(labels) & set(before.classes):
                self.statistics.forget(label)
            super().learn(inputs, labels)
        except BaseException:
            self.statistics = before
            raise


class NMC(ContinualSystem[NMCConfig]):
    """Sums and counts of unit features per class; the nearest mean, not normalised again, wins.

    In the domain regime a task has a share of the images of every class, in a style of its own: as many images in all.
    """

    slug = "nmc"
    title = "Nearest mean classifier: running class means on a frozen encoder"
    Config = NMCConfig
    arms: ClassVar[dict[str, dict[str, Any]]] = {
        "nmc": {},
        "cosine": {"method": "cosine"},
        "probe": {"method": "probe"},
        "sequential": {"method": "sequential"},
        "joint-probe": {"method": "joint-probe"},
        "random-net": {"encoder": "random"},
        "raw-pixels": {"encoder": "pixels"},
        "unnormalised": {"method": "unnormalised"},
        "domain-nmc": {"regime": "domain"},
        "domain-task-means": {"regime": "domain", "method": "task-means"},
        "domain-probe": {"regime": "domain", "method": "probe"},
        "domain-joint-probe": {"regime": "domain", "method": "joint-probe"},
        "texts": _TEXTS,
        "texts-random": {**_TEXTS, "encoder": "random"},
        "texts-words": {**_TEXTS, "encoder": "pixels"},
    }
    tiers: ClassVar[dict[str, dict[str, Any]]] = {"embedded": EMBEDDED, "standard": STANDARD}
    seeds: ClassVar[dict[str, int]] = {"embedded": 5, "standard": 3}
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            says="Pre-training is what makes the nearest mean classifier good: a random encoder is behind",
            metric="last_accuracy",
            better="nmc",
            than="random-net",
            by=10.0,
        ),
        Claim(
            says="It beats the nearest mean of the pixels",
            metric="last_accuracy",
            better="nmc",
            than="raw-pixels",
            by=10.0,
        ),
        Claim(
            says="Without any training it beats sequential fine-tuning",
            metric="last_accuracy",
            better="nmc",
            than="sequential",
            by=20.0,
            paper="average accuracy 88.53 on Split CIFAR-100, above the trained methods of its time",
        ),
        Claim(
            says="It is within 10 points of a linear probe trained on all data at once",
            metric="last_accuracy",
            better="nmc",
            than="joint-probe",
            by=-10.0,
        ),
        Claim("Features of length 1 are at least as good as raw ones", "last_accuracy", "nmc", "unnormalised", -1.0),
        Claim(
            says="When classes come back in other styles, running means beat those of the last task",
            metric="last_accuracy",
            better="domain-nmc",
            than="domain-task-means",
            by=3.0,
        ),
        Claim(
            says="On texts too a random encoder is behind the pre-trained one",
            metric="last_accuracy",
            better="texts",
            than="texts-random",
            by=10.0,
            tiers=("standard",),
        ),
        Claim(
            says="On texts it beats the nearest mean of word counts",
            metric="last_accuracy",
            better="texts",
            than="texts-words",
            by=10.0,
            tiers=("standard",),
        ),
        Claim(
            says="It forgets less than sequential fine-tuning",
            metric="forgetting",
            better="nmc",
            than="sequential",
            by=10.0,
            smaller_is_better=True,
        ),
    )

    @property
    def trains(self) -> bool:
        """Means know no learning rate."""
        return self.config.method not in _PROTOTYPES

    def open_stream(self) -> Stream:
        """The tasks of the regime; domains are styles of glyphs, and shifts of other images.

        Raises: ConfigError for domains of texts, or more than there are shifts; DataError for a class with fewer images
        than domains.
        """
        c = self.config
        if c.regime == "class":
            return super().open_stream()
        if not has_images(c.data):
            raise ConfigError(f"regime=domain: domains are styles of images, and data={c.data} are texts")
        if c.data != GLYPHS:
            data = open_images(c.data, size=c.size, classes=c.classes, per_class=c.per_class, gap=c.gap, seed=c.seed)
            return domain_stream(shifted_domains(data, c.tasks, seed=c.seed, spec=c.data), spec=c.data)
        train, valid, test = (max(1, count // c.tasks) for count in c.per_class)
        gaps = [at / max(1, c.tasks - 1) for at in range(c.tasks)]
        domains = {
            f"gap {gap:g}": open_images(
                c.data, size=c.size, classes=c.classes, per_class=(train, valid, test), gap=gap, seed=c.seed
            )
            for gap in gaps
        }
        return domain_stream(domains, spec=c.data)

    def learner(self, encoder: nn.Module, training: TaskTraining) -> Learner:
        """The method, on the encoder."""
        method = self.config.method
        if method in _PROTOTYPES:
            kinds: dict[str, Callable[[nn.Module], Learner]] = {
                "nmc": NearestMean,
                "cosine": SimpleCIL,
                "unnormalised": UnnormalisedMean,
                "task-means": TaskMean,
            }
            return kinds[method](encoder)
        if method == "probe":
            return LinearProbe(encoder, training=training)
        if method == "joint-probe":
            return JointTraining(encoder, slow=0, training=training)
        return SequentialFineTuning(encoder, training=training)
