"""Fine-tuning an encoder-decoder on code tasks, one or several at a time, and asking it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from leaven.contracts import Batch, Objective
from leaven.data.examples import ClonePair, Pair
from leaven.data.loader import Loader
from leaven.data.mixture import Mixture
from leaven.data.splits import sample_rates
from leaven.errors import ConfigError
from leaven.evidence.arenas.code_tasks import TaskData
from leaven.evidence.system import Figures
from leaven.generation.beam_search import beam_search
from leaven.generation.greedy import greedy
from leaven.modalities.code_tokenizer import CodeTokenizer
from leaven.modalities.pairs import (
    PairFormat,
    collate_clones,
    collate_pairs,
    encode_clones,
    encode_pairs,
    encode_sources,
    padded,
    target_start,
)
from leaven.models.encoder_decoder import width_of
from leaven.objectives.clone_detection import CloneDetection
from leaven.objectives.sequence_to_sequence import SequenceToSequence
from leaven.training.budgets import Budget
from leaven.training.checkpoint import replaced
from leaven.training.config import TrainingConfig
from leaven.training.distributed import is_main_process
from leaven.training.loop import FitResult, fit

Weights = dict[str, Tensor]


class TaskTrainer(ABC):
    """Trains a model on one task and judges it.

    Args:
        data: the task and its pairs.
        form: how the pairs are written.
        batch_size: pairs per step and process.
    """

    def __init__(self, data: TaskData, tokenizer: CodeTokenizer, form: PairFormat, batch_size: int) -> None:
        self.data, self.tokenizer, self.form, self.batch_size = data, tokenizer, form, batch_size

    def train(
        self, model: nn.Module, budget: Budget | str, config: TrainingConfig, *, out: Path | None = None
    ) -> FitResult:
        """Train in place."""
        label = f"fine-tuning: {self.data.task.name}"
        return fit(model, self.objective(model), self.loader(config.seed), budget, config, out=out, label=label)

    @abstractmethod
    def objective(self, model: nn.Module) -> Objective:
        """The loss, with a fresh head where it needs one."""

    @abstractmethod
    def loader(self, seed: int) -> Loader:
        """Batches of the train split."""

    @abstractmethod
    def judge(self, model: nn.Module, pairs: Sequence[Any], *, beams: int = 1) -> Figures:
        """Every figure of the task on the pairs, in [0, 100]."""

    def _batches(
        self, items: list[dict[str, Any]], collate: Callable[..., Batch], length: Callable[..., int], seed: int
    ) -> Loader:
        return Loader(
            items,
            lambda rows: collate(rows, self.tokenizer.pad_id),
            batch_size=self.batch_size,
            length=length,
            bucket=20,
            seed=seed,
            drop_last=len(items) >= self.batch_size,
        )


class GenerationTrainer(TaskTrainer):
    """Tasks whose answer is written by the decoder."""

    def objective(self, model: nn.Module) -> Objective:
        """Cross-entropy of the target."""
        del model
        return SequenceToSequence()

    def loader(self, seed: int) -> Loader:
        """Batches of pairs, those of like length together."""
        items = encode_pairs(self.data.train, self.tokenizer, self.form).items
        return self._batches(items, collate_pairs, lambda item: len(item["input_ids"]) + len(item["labels"]), seed)

    def judge(self, model: nn.Module, pairs: Sequence[Pair], *, beams: int = 1) -> Figures:
        """The task's figures of what the model writes."""
        predictions = predict(model, self.tokenizer, self.form, [pair.source for pair in pairs], beams=beams)
        return self.data.task.score(predictions, [pair.target for pair in pairs])


class CloneTrainer(TaskTrainer):
    """Clone detection: a classifier on the vectors of both programs."""

    head: CloneDetection | None = None

    def objective(self, model: nn.Module) -> Objective:
        """The classifier."""
        self.head = CloneDetection(width_of(model))
        return self.head

    def loader(self, seed: int) -> Loader:
        """Batches of pairs of programs."""
        items = encode_clones(self.data.train, self.tokenizer, self.form.max_source)
        return self._batches(items, collate_clones, lambda item: max(len(item["first"]), len(item["second"])), seed)

    @torch.inference_mode()
    def judge(self, model: nn.Module, pairs: Sequence[ClonePair], *, beams: int = 1) -> Figures:
        """F1 and accuracy of the head that was trained last; of a fresh one before."""
        del beams
        if self.head is None:
            self.objective(model)
        head = self.head
        assert head is not None
        model.eval()
        items = encode_clones(pairs, self.tokenizer, self.form.max_source)
        answers: list[str] = []
        for first in range(0, len(items), 32):
            scores = head.logits(model, collate_clones(items[first : first + 32], self.tokenizer.pad_id))
            answers += [str(int(answer)) for answer in scores.argmax(1)]
        return self.data.task.score(answers, [str(pair.label) for pair in pairs])


def trainer_for(data: TaskData, tokenizer: CodeTokenizer, form: PairFormat, *, batch_size: int) -> TaskTrainer:
    """The trainer of a task."""
    kind = CloneTrainer if isinstance(data.train[0], ClonePair) else GenerationTrainer
    return kind(data, tokenizer, form, batch_size)


def predict(
    model: nn.Module,
    tokenizer: CodeTokenizer,
    form: PairFormat,
    sources: Sequence[str],
    *,
    beams: int = 1,
    batch_size: int = 64,
) -> list[str]:
    """What the model writes for each source."""
    rows, _ = encode_sources(sources, tokenizer, form)
    start = target_start(form, tokenizer)
    device = next(model.parameters()).device
    answers = [""] * len(rows)
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    options: dict[str, Any] = {"max_length": form.max_target - len(start), "prefix": start or None}
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        inputs = padded([rows[at] for at in chosen], tokenizer.pad_id).to(device)
        mask = inputs != tokenizer.pad_id
        if beams > 1:
            ids = beam_search(model, inputs, mask, beams=beams, **options).ids
        else:
            ids = greedy(model, inputs, mask, **options).ids
        for at, row in zip(chosen, ids[:, 0].tolist(), strict=True):
            answers[at] = tokenizer.decode(row)
    return answers


class BestPerTask:
    """Keeps, for each of several tasks, the weights of its best evaluation, and stops tasks that no longer improve.

    Args:
        trainers: by task. mixture: the stream whose tasks are stopped.
        patience: evaluations without a better figure after which a task is drawn no more; None never stops.
        folder: where the best weights are kept for a run that resumes; None keeps them in memory alone.
    """

    def __init__(
        self, trainers: Mapping[str, TaskTrainer], mixture: Mixture, patience: int | None, folder: Path | None
    ) -> None:
        self.trainers, self.mixture, self.patience, self.folder = trainers, mixture, patience, folder
        self.scores: dict[str, float] = {}
        self.weights: dict[str, Weights] = {}
        self._waited = dict.fromkeys(trainers, 0)
        if folder is not None and (folder / "scores.json").exists():
            saved = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
            self.scores, self._waited = saved["scores"], saved["waited"]
            self.weights = {name: load_file(folder / f"{name}.safetensors") for name in self.scores}

    def __call__(self, model: nn.Module) -> Figures:
        """Judge every task that is still drawn."""
        figures: Figures = {}
        for name, trainer in self.trainers.items():
            if name in self.mixture.stopped:
                continue
            score = trainer.judge(model, trainer.data.valid)[trainer.data.task.metric]
            figures[name] = score
            if name not in self.scores or score > self.scores[name]:
                self.scores[name], self.weights[name], self._waited[name] = score, clone_of(model), 0
            else:
                self._waited[name] += 1
                if self.patience is not None and self._waited[name] >= self.patience:
                    self.mixture.stop(name)
        self._keep()
        return figures

    def _keep(self) -> None:
        if self.folder is None or not is_main_process():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, weights in self.weights.items():
            # Tied weights are one tensor under two names, which the format refuses.
            with replaced(self.folder / f"{name}.safetensors") as draft:
                save_file({key: weight.clone() for key, weight in weights.items()}, draft)
        with replaced(self.folder / "scores.json") as draft:
            draft.write_text(json.dumps({"scores": self.scores, "waited": self._waited}), encoding="utf-8")


def train_together(
    model: nn.Module,
    trainers: Mapping[str, TaskTrainer],
    budget: Budget | str,
    config: TrainingConfig,
    *,
    alpha: float = 0.7,
    patience: int | None = None,
    out: Path | None = None,
) -> tuple[FitResult, BestPerTask]:
    """Train on several tasks at once: each step draws one, with probability proportional to its size to the alpha.

    Tasks are told apart by their control codes. Evaluations, every `config.evaluate_every`, pick the best weights of
    each task and stop drawing those out of patience.

    Raises: ConfigError for clone detection, whose classifier is no text.
    Source: arXiv 2109.00859 section 3.3, eq. 4; `run_multi_gen.py` for patience and selection per task.
    """
    if any(isinstance(trainer, CloneTrainer) for trainer in trainers.values()):
        raise ConfigError("tasks: clone detection has a classifier of its own and cannot be trained with other tasks")
    loaders = {name: trainer.loader(config.seed) for name, trainer in trainers.items()}
    rates = sample_rates([len(trainer.data.train) for trainer in trainers.values()], alpha)
    mixture = Mixture(loaders, rates, seed=config.seed)
    best = BestPerTask(trainers, mixture, patience, out / "best" if out is not None else None)
    label = "fine-tuning on all tasks"
    result = fit(model, SequenceToSequence(), mixture, budget, config, out=out, evaluate=best, label=label)
    return result, best


def clone_of(model: nn.Module) -> Weights:
    """The weights, to begin again from."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
