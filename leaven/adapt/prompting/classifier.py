"""A classifier made of a template, a verbalizer, a language model and a tuning strategy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.adapt.continual.task_training import unchanged_on_failure
from leaven.adapt.prompting.automatic_verbalizers import PrototypeVerbalizer
from leaven.adapt.prompting.multi_prompt import Demonstrations, predicted
from leaven.adapt.prompting.slots import SlotReader, Slots, SoftTokens
from leaven.adapt.prompting.strategies import PromptedModel, check, training
from leaven.adapt.prompting.template import Encoded, Fields, Kind, Template
from leaven.adapt.prompting.verbalizers import ManualVerbalizer, MultiToken, Verbalizer, Words
from leaven.contracts import Batch, Loss
from leaven.data.loader import Loader
from leaven.errors import ConfigError, DataError
from leaven.training.budgets import Budget
from leaven.training.config import TrainingConfig
from leaven.training.loop import FitResult, fit
from leaven.training.randomness import preserved_rng

T = TypeVar("T")
CONTENT_FREE = ("N/A", "", "[MASK]")
"""Inputs that say nothing (arXiv 2102.09690 section 5)."""


class Prediction(NamedTuple):
    """A label, the probabilities of all labels and, where labels have words, of the words among each other.

    cut: tokens of the input that the context had no room for.
    """

    label: str
    probabilities: dict[str, float]
    words: dict[str, float]
    cut: int


class LabelCrossEntropy:
    """Cross-entropy of a prompted model's scores; `target` (batch,) int64, or (batch, 1, labels) probabilities."""

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Nothing is corrupted."""
        return batch

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """The mean over inputs."""
        target = batch["target"] if batch["target"].ndim == 1 else batch["target"][:, 0]
        total = F.cross_entropy(model(batch), target)
        return Loss(total, torch.tensor(len(target), device=total.device), {"cross_entropy": total.detach()})


class PromptedClassifier:
    """Labels texts by what a language model writes into a prompt; trains what the strategy says.

    Args:
        model: masked, causal or sequence-to-sequence, of transformers or on the trunk. It is used in place. For a
            learned prefix, apply `leaven.adapt.peft.Prefix` or `PromptTuning` to it first.
        tokenizer: the model's.
        template: a `Template` or its text.
        verbalizer: label words by label, or a `Verbalizer`; a `TaskHead` with a promptless template.
        strategy: a row of `STRATEGIES`.
        demonstrations: answered examples before each prompt.
        multi_token: what to do with label words of several tokens, as in `ManualVerbalizer`.
        kind, max_length: as in `SlotReader`.
        batch_size: inputs per step of training and of prediction.
        generator: for the initial values of soft tokens; one with seed 0 when None.

    Example:
        >>> sorter = PromptedClassifier(model, tokenizer, "{text} This is about {mask}.",
        ...                             {"files": "disk", "mail": ["mail", "letters"]})  # doctest: +SKIP
        >>> sorter.fit(texts, labels, "200 steps")  # doctest: +SKIP
        >>> sorter.predict(["Send a message to all."])  # doctest: +SKIP

    Raises: ConfigError, ModelError as `Template.encode`, the verbalizers and the strategies do.
    Source: arXiv 2107.13586.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        template: Template | str,
        verbalizer: Words | Verbalizer,
        strategy: str = "fixed-prompt",
        *,
        demonstrations: Demonstrations | None = None,
        multi_token: MultiToken = "error",
        kind: Kind | None = None,
        max_length: int | None = None,
        batch_size: int = 16,
        generator: torch.Generator | None = None,
    ) -> None:
        self.template = template if isinstance(template, Template) else Template(template)
        self.reader = SlotReader(model, tokenizer, kind=kind, max_length=max_length)
        if isinstance(verbalizer, Mapping):
            verbalizer = ManualVerbalizer(verbalizer, self.reader.tokenizer, self.template, multi_token=multi_token)
        if verbalizer.slots != self.template.slots:
            raise ConfigError(
                f"template {self.template.text!r} has {self.template.slots} answer slots, and the verbalizer reads "
                f"{verbalizer.slots}: use one {{mask}}, or a ComposedVerbalizer with a part for each"
            )
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: expected at least 1")
        self.labels, self.batch_size, self.demonstrations = verbalizer.labels, batch_size, demonstrations
        soft_ids = self.template.soft_ids(self.reader.tokenizer)
        generator = generator or torch.Generator().manual_seed(0)
        soft = SoftTokens(soft_ids, self.reader.embedded(), generator) if soft_ids else None
        self.model = PromptedModel(model, soft, verbalizer.to(self.reader.device), self.reader)
        self.strategy = check(strategy, self.model, self.template.promptless)
        self.encode([dict.fromkeys(self.template.fields, "a")], shots=False)

    def encode(self, texts: Sequence[Fields], *, shots: bool = True) -> list[Encoded]:
        """The prompts of texts, with their demonstrations."""
        if isinstance(texts, str):
            raise DataError(f"texts={texts!r} is one text: expected a list of texts")
        shown: list[list[Any]] = [[] for _ in texts]
        if self.demonstrations is not None and shots:
            chosen = self.demonstrations.choose(texts)
            shown = [self.demonstrations.shown(row, self.model.verbalizer) for row in chosen]
        return [self.reader.encode(self.template, text, row) for text, row in zip(texts, shown, strict=True)]

    def fit(
        self,
        texts: Sequence[Fields],
        labels: Sequence[str] | Tensor,
        budget: Budget | str | int,
        config: TrainingConfig | None = None,
    ) -> FitResult:
        """Train what the strategy trains, and nothing else. An earlier calibration ends.

        Args:
            labels: of the texts, or probabilities (texts, labels) such as `PromptEnsemble.soft_labels`.

        Raises: ConfigError under the strategy "tuning-free"; DataError for labels that do not fit; what
        `leaven.training.loop.fit` raises. The parameters are then as they were.
        """
        config = config or TrainingConfig()
        targets = self.targets(texts, labels)
        prompts = self.encode(texts)
        loader = Loader(
            [{"at": at} for at in range(len(prompts))],
            lambda items: self._batch(prompts, targets, [int(item["at"]) for item in items]),
            batch_size=min(self.batch_size, len(prompts)),
            seed=config.seed,
            drop_last=False,
        )
        verbalizer = self.model.verbalizer
        earlier = verbalizer.content_free
        with unchanged_on_failure(self, self.model), training(self.strategy, self.model), preserved_rng():
            try:
                verbalizer.calibrate(None)
                if isinstance(verbalizer, PrototypeVerbalizer):
                    states = torch.cat(self._read(prompts, lambda slots: slots.states))
                    verbalizer.start(states, (targets if targets.ndim == 1 else targets.argmax(-1)).to(states.device))
                return fit(self.model, LabelCrossEntropy(), loader, budget, config, label="prompt")
            except BaseException:
                verbalizer.content_free = earlier
                raise

    def targets(self, texts: Sequence[Fields], labels: Sequence[str] | Tensor) -> Tensor:
        """Places of the labels (texts,) int64, or probabilities (texts, labels) as they are.

        Raises: DataError for labels that are unknown, or not as many as texts.
        """
        if not texts or len(texts) != len(labels):
            raise DataError(f"{len(texts)} texts and {len(labels)} labels: expected as many, and at least one")
        if isinstance(labels, Tensor):
            fits = labels.shape == (len(texts), len(self.labels))
            if not fits or not bool(((labels.sum(-1) - 1).abs() < 1e-3).all() and (labels >= 0).all()):
                raise DataError(
                    f"labels of shape {tuple(labels.shape)}: expected probabilities ({len(texts)}, {len(self.labels)})"
                )
            return labels.float()
        if unknown := [label for label in labels if label not in self.labels]:
            raise DataError(f"label {unknown[0]!r} is not one of {', '.join(self.labels)}")
        return torch.tensor([self.labels.index(label) for label in labels])

    def _batch(self, prompts: Sequence[Encoded], targets: Tensor, rows: list[int]) -> Batch:
        # Probabilities get a dimension: as many labels as tokens would look like tokens to the loop's length groups.
        chosen = targets[rows] if targets.ndim == 1 else targets[rows][:, None]
        return {**self.reader.collate([prompts[at] for at in rows]), "target": chosen}

    def _read(self, prompts: Sequence[Encoded], use: Callable[[Slots], T]) -> list[T]:
        soft = None if self.model.soft is None else self.model.soft.weight
        return self.reader.read(prompts, use, soft=soft, batch_size=self.batch_size)

    def scores(self, texts: Sequence[Fields]) -> Tensor:
        """Log-probabilities (texts, labels), on the CPU."""
        verbalizer = self.model.verbalizer
        found = self._read(self.encode(texts), lambda slots: F.log_softmax(verbalizer(slots), -1).cpu())
        return torch.cat(found) if found else torch.zeros(0, len(self.labels))

    def predict(self, texts: Sequence[Fields]) -> list[str]:
        """The likeliest label of each text."""
        return predicted(self, texts)

    def explain(self, texts: Sequence[Fields]) -> list[Prediction]:
        """Predictions with what they rest on."""
        prompts, verbalizer = self.encode(texts), self.model.verbalizer
        words = verbalizer.words if isinstance(verbalizer, ManualVerbalizer) else ()

        def rows(slots: Slots) -> list[tuple[list[float], list[float]]]:
            units = verbalizer.log_units(slots).exp().tolist()
            return list(zip(verbalizer(slots).softmax(-1).tolist(), units, strict=True))

        made = []
        for prompt, (row, units) in zip(prompts, itertools.chain(*self._read(prompts, rows)), strict=True):
            named = dict(zip(self.labels, row, strict=True))
            said = dict(zip(words, units, strict=True)) if words else {}
            made.append(Prediction(max(named, key=named.__getitem__), named, said, prompt.cut))
        return made

    def calibrate(self, inputs: Sequence[str] | None = CONTENT_FREE) -> None:
        """Divide out what the prompt predicts for inputs that say nothing; None takes that back.

        Source: arXiv 2102.09690 section 5.
        """
        self.model.verbalizer.calibrate(None)
        if inputs is not None:
            prompts = self.encode([dict.fromkeys(self.template.fields, text) for text in inputs])
            read = zip(*self._read(prompts, lambda slots: slots), strict=True)
            self.model.verbalizer.calibrate(Slots(*(torch.cat(part) for part in read)))
