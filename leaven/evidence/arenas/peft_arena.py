"""The arena of adapters: a pre-trained model, labelled texts or images; what differs between systems is what trains."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import Field, PositiveFloat, field_validator

from leaven.adapt.peft import Method, save_adapter
from leaven.data.loader import Loader
from leaven.evidence.arenas.image_data import has_images, open_images
from leaven.evidence.arenas.peft_data import (
    ClassificationTask,
    ImageRows,
    LabelledTexts,
    Rows,
    TextRows,
    open_texts,
)
from leaven.evidence.arenas.peft_model import (
    Adaptation,
    Backbone,
    Classifier,
    Cost,
    attach,
    judged,
    open_backbone,
    predict,
    settled_cost,
)
from leaven.evidence.arenas.trained import TrainedConfig
from leaven.evidence.selection import Choice, best_of_grid
from leaven.evidence.system import Figures, Measurement, Outcome, System, timed
from leaven.metrics.classification import accuracy
from leaven.objectives.classification import Classification
from leaven.training.budgets import Budget
from leaven.training.distributed import is_main_process
from leaven.training.loop import fit

Curves = dict[str, list[dict[str, Any]]]
COLUMNS = [
    "method", "learning rate", "valid accuracy", "accuracy", "trainable", "% of the model", "stored bytes",
    "frozen basis", "seconds per step",
]  # fmt: skip
_WHOLE = ("steps", "tokens", "examples")
EMBEDDED: dict[str, Any] = {"budget": "150 steps"}
"""The embedded tier."""
STANDARD: dict[str, Any] = {
    "data": "trec",
    "max_tokens": 32,
    "valid_limit": 300,
    "budget": "120 steps",
    "batch_size": 16,
}
"""The standard tier: questions, few and short, since every arm trains on one core.

Film reviews (`data=sst2`) do not discriminate on the zoo's model, which has read documentation alone: a trained head
finds 58 of 100, LoRA 61, full tuning 61; of questions 57, 69 and 71 (one seed, which no claim is tested on)."""


class PeftConfig(TrainedConfig):
    """Options that the systems of the arena share."""

    data: str = Field(
        "docstring-topics",
        description="docstring-topics, sst2, agnews, trec, or rows of {text, label} such as jsonl:FILE; glyphs, or "
        "imagefolder:DIR",
    )
    model: str = Field(
        "", description="zoo:NAME, hf:ID or a folder; empty: zoo:mini-mlm for texts, zoo:mini-vit for images"
    )
    max_tokens: int = Field(64, ge=8, le=8192, description="texts: tokens to which they are cut")
    train_limit: int = Field(4000, ge=2, description="texts: most to train on")
    valid_limit: int = Field(500, ge=1, description="texts: most to pick the learning rate on")
    test_limit: int = Field(1000, ge=1, description="texts: most to test on")
    classes: int = Field(20, ge=2, le=200, description="glyphs: how many characters, drawn by the seed")
    per_class: tuple[int, int, int] = Field((40, 10, 30), description="images: most of a class in train, valid, test")
    gap: float = Field(0.5, ge=0, le=1, description="glyphs: distance of their style from plain print")
    budget: str = Field("200 steps", description="of each training")
    batch_size: int = Field(32, ge=1, le=4096, description="examples per step and process")
    learning_rates: tuple[PositiveFloat, ...] = Field(
        (4e-4, 2e-3, 1e-2, 5e-2),
        min_length=1,
        description="peak rates to try; the validation split picks one",
    )
    weight_decay: float = Field(0.01, ge=0, le=10, description="decoupled, of matrices alone")

    @field_validator("budget")
    @classmethod
    def _readable(cls, text: str) -> str:
        Budget.parse(text)
        return text


@dataclass
class Tuned:
    """A trained classifier. used: steps, tokens, examples and seconds. figures: what the system counts of its own."""

    model: Classifier
    adaptation: Adaptation
    curves: Curves
    used: Figures
    cost: Cost
    figures: Figures = field(default_factory=dict)


C = TypeVar("C", bound=PeftConfig)


class PeftSystem(System[C]):
    """What trains by the system, everything else by the arena: the same data, steps, head and rates for every arm."""

    title = ""
    smoke: ClassVar[dict[str, Any]] = {
        "max_tokens": 24,
        "train_limit": 64,
        "valid_limit": 24,
        "test_limit": 24,
        "classes": 3,
        "per_class": (6, 3, 4),
        "budget": "4 steps",
        "batch_size": 8,
        "learning_rates": (1e-3, 1e-2),
    }

    @abstractmethod
    def adaptation(self, model: Classifier) -> Adaptation:
        """What trains beside the head; `model` has nothing attached yet."""

    def named(self) -> str:
        """The configured method, for tables."""
        return str(getattr(self.config, "method", self.slug))

    def train(self, model: Classifier, task: ClassificationTask, rate: float, out: Path) -> Tuned:
        """Adapt and train in one stage."""
        adaptation = self.adaptation(model)
        attach(model, adaptation, self.config.seed)
        used = Figures()
        curves = {"training": self.tune(model, task, rate, Budget.parse(self.config.budget), out=out, used=used)}
        return Tuned(model, adaptation, curves, used, settled_cost(model, adaptation))

    def run(self, out: Path) -> Outcome:
        """Train with every rate, keep the best on the validation split, judge it on the test split."""
        timings: dict[str, float] = {}
        with timed(timings, "data and model"):
            backbone = self.backbone()
            task = self.task(backbone)
        with timed(timings, "training"):
            best = self.best(backbone, task, out)
        tuned, test = best.result, task.read_test()
        answers = predict(tuned.model, test)
        score, cost = accuracy(answers, test.targets.tolist()), tuned.cost
        outcome = Outcome(
            system=self.slug,
            title=self.title,
            config=self.config.model_dump(mode="json"),
            columns=[*COLUMNS, *(name.replace("_", " ") for name in tuned.figures)],
            rows=[
                [
                    self.named(), f"{best.value:g}", best.score, score, cost.trainable, cost.percent, cost.stored_bytes,
                    cost.frozen_basis, f"{_per_step(tuned):.3g}", *tuned.figures.values(),
                ]
            ],
            samples=_samples(answers, test, task.classes),
            curves=tuned.curves,
            timings=timings,
            model=tuned.model,
        )  # fmt: skip
        if isinstance(tuned.adaptation, Method) and is_main_process():
            save_adapter(tuned.model, out / "adapter")
            outcome.artefacts["adapter and head"] = "adapter"
        return outcome

    def measure(self, out: Path) -> Measurement:
        """One arm: the rate is picked on the validation split, the test split is read once."""
        started = time.perf_counter()
        backbone = self.backbone()
        task = self.task(backbone)
        best = self.best(backbone, task, out)
        tuned, test = best.result, task.read_test()
        metrics = {"accuracy": judged(tuned.model, test), **tuned.figures}
        if tuned.cost.trainable:
            metrics["log10_trainable"] = math.log10(tuned.cost.trainable)
        limited = [name for name in _WHOLE if name in Budget.parse(self.config.budget).limits]
        return Measurement(
            metrics=metrics,
            validation={"accuracy": best.score},
            budget={
                "steps": tuned.used["steps"],
                **{name: tuned.used[name] for name in limited},
                "trials": float(best.trials),
                "head": float(tuned.cost.head),
                "trainable": float(tuned.cost.trainable),
                "trainable_percent": tuned.cost.percent,
                "stored_bytes": float(tuned.cost.stored_bytes),
                "frozen_basis": float(tuned.cost.frozen_basis),
                "seconds_per_step": _per_step(tuned),
            },
            equal=("trials", "head", *limited),
            chosen={"learning_rate": best.value, "scores": {f"{r:g}": s for r, s in best.scores.items()}},
            curves=tuned.curves,
            seconds=time.perf_counter() - started,
        )

    def best(self, backbone: Backbone, task: ClassificationTask, out: Path) -> Choice[Tuned]:
        """The training whose learning rate does best on the validation split."""

        def attempt(rate: float) -> tuple[float, Tuned]:
            model = backbone.classifier(len(task.classes), self.config.seed)
            tuned = self.train(model, task, rate, out / f"rate-{rate:g}")
            return judged(tuned.model, task.valid), tuned

        return best_of_grid(self.config.learning_rates, attempt)

    def backbone(self) -> Backbone:
        """The pre-trained model."""
        return open_backbone(self.config.model, images=has_images(self.config.data))

    def task(self, backbone: Backbone) -> ClassificationTask:
        """The data, as the model reads them."""
        config = self.config
        if backbone.size is not None:
            images = open_images(
                config.data, size=backbone.size, classes=config.classes, per_class=config.per_class, gap=config.gap,
                seed=config.seed,
            )  # fmt: skip
            names = images.classes
            return ClassificationTask(
                names, ImageRows(images.train, names), ImageRows(images.valid, names),
                lambda: ImageRows(images.test.read(), names),
            )  # fmt: skip
        limits = (config.train_limit, config.valid_limit, config.test_limit)
        texts = open_texts(config.data, limits=limits, source=True)
        longest = min(config.max_tokens, backbone.longest or config.max_tokens)

        def rows(of: LabelledTexts) -> TextRows:
            assert backbone.tokenizer is not None
            return TextRows(of, texts.classes, backbone.tokenizer, longest)

        return ClassificationTask(texts.classes, rows(texts.train), rows(texts.valid), lambda: rows(texts.test.read()))

    def tune(
        self, model: Classifier, task: ClassificationTask, rate: float, budget: Budget, *, out: Path, used: Figures
    ) -> list[dict[str, Any]]:
        """Train in place what requires gradients; what that takes is added to `used`."""
        config, rows = self.config, task.train
        count = len(rows.targets)

        def collate(items: list[Any]) -> dict[str, torch.Tensor]:
            at = [int(item["at"]) for item in items]
            return {**rows.batch(at), "label": rows.targets[at]}

        loader = Loader(
            [{"at": at} for at in range(count)],
            collate,
            batch_size=min(config.batch_size, count),
            length=lambda item: rows.length(int(item["at"])),
            bucket=20,
            seed=config.seed,
            drop_last=count >= config.batch_size,
        )
        training = config.training(rate, weight_decay=config.weight_decay, warmup=0.06)
        objective = Classification(tuple(rows.batch([0])))
        result = fit(model, objective, loader, budget, training, out=out, label=f"{self.named()}, rate {rate:g}")
        for name, value in result.used.as_dict().items():
            if name != "flops":
                used[name] = used.get(name, 0.0) + float(value)
        return result.records


def _samples(answers: list[int], rows: Rows, classes: list[str]) -> list[dict[str, str]]:
    """Three texts with what the model answers; none of images."""
    places = range(0, len(rows.inputs), max(1, len(rows.inputs) // 3))[:3]
    return [
        {"task": "classify", "input": rows.inputs[at], "answer": classes[answers[at]],
         "reference": classes[int(rows.targets[at])]}
        for at in places
    ]  # fmt: skip


def _per_step(tuned: Tuned) -> float:
    return tuned.used["seconds"] / max(tuned.used["steps"], 1.0)
