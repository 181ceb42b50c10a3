"""The code arena: pre-train on functions, fine-tune on code tasks, judge; what differs between systems is the first."""

from __future__ import annotations

import re
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import Field, PositiveInt, field_validator

from leaven.data.examples import Pair
from leaven.evidence.arenas.code_corpus import CodeCorpus, open_corpus
from leaven.evidence.arenas.code_tasks import open_task
from leaven.evidence.arenas.code_use import apply_code_model
from leaven.evidence.arenas.fine_tuning import TaskTrainer, clone_of, predict, train_together, trainer_for
from leaven.evidence.arenas.trained import TrainedConfig
from leaven.evidence.selection import best_of_grid
from leaven.evidence.system import Figures, Measurement, Outcome, System, timed
from leaven.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from leaven.models.loading import load_model_and_tokenizer
from leaven.models.saved import save_model
from leaven.training.budgets import Budget
from leaven.training.config import TrainingConfig
from leaven.training.distributed import is_main_process

Curves = dict[str, list[dict[str, Any]]]
_ALL = 1_000_000


class CodeConfig(TrainedConfig):
    """Options that the systems of the code arena share."""

    data: str = Field("stdlib-code", description="functions to learn from, such as code:DIR or jsonl:FILE")
    model: str = Field("", description="start from zoo:NAME, hf:ID or a folder; empty: from random weights")
    tasks: tuple[str, ...] = Field(
        ("desugar", "clone", "summarize"), description="what to fine-tune for: task names, set:NAME, or jsonl:FILE"
    )
    dim: int = Field(64, ge=8, le=4096, description="width of the model")
    depth: int = Field(2, ge=1, le=48, description="layers of the encoder, and of the decoder")
    heads: int = Field(4, ge=1, le=64, description="attention heads")
    vocab: int = Field(2048, ge=370, le=200_000, description="tokens of the byte-level BPE, specials included")
    max_source: int = Field(64, ge=8, le=4096, description="longest input in tokens")
    max_target: int = Field(48, ge=4, le=4096, description="longest target in tokens")
    budget: str = Field(
        "", description='of the whole training, such as "5min": 2/3 pre-training, the rest shared by the tasks'
    )
    pretrain: str = Field("1500 steps", description="budget of the pre-training; scratch spends it on fine-tuning")
    finetune: str = Field("300 steps", description="budget of the fine-tuning for each task")
    batch_size: int = Field(32, ge=2, le=4096, description="examples per step and process")
    learning_rate: float = Field(3e-3, gt=0, le=1, description="peak learning rate of the pre-training")
    finetune_rates: tuple[float, ...] = Field(
        (2e-3,), min_length=1, description="learning rates of the fine-tuning; the validation split picks one per task"
    )
    multi_task: bool = Field(False, description="fine-tune once on all tasks, told apart by control codes")
    alpha: float = Field(0.7, ge=0, le=1, description="multi-task: a task of n examples is drawn as often as n^alpha")
    patience: int | None = Field(5, ge=1, description="multi-task: evaluations without gain that end a task")
    beams: int = Field(1, ge=1, le=50, description="beams of decoding when judging")
    corpus_limit: int = Field(10_000_000, ge=1, description="most functions to pre-train on")
    train_limit: PositiveInt | dict[str, PositiveInt] = Field(
        _ALL, description="most labelled examples to fine-tune on, of every task, or by task"
    )
    valid_limit: int = Field(300, ge=1, description="most examples of a validation split")
    test_limit: int = Field(1000, ge=1, description="most examples of a test split")
    scratch: bool = Field(False, description="also train without pre-training at the same total budget, to compare")

    @field_validator("budget", "pretrain", "finetune")
    @classmethod
    def _readable(cls, text: str) -> str:
        if text:
            Budget.parse(text)
        return text


C = TypeVar("C", bound=CodeConfig)


class CodeSystem(System[C]):
    """Pre-training by the system, everything else by the arena."""

    title = ""
    smoke: ClassVar[dict[str, Any]] = {
        "dim": 32,
        "depth": 1,
        "heads": 2,
        "vocab": 512,
        "batch_size": 8,
        "pretrain": "6 steps",
        "finetune": "4 steps",
        "corpus_limit": 500,
        "train_limit": 200,
        "valid_limit": 8,
        "test_limit": 12,
    }

    @abstractmethod
    def pretrain(self, model: Any, corpus: CodeCorpus, out: Path) -> Curves:
        """Train the model in place; no records where the configuration asks for no pre-training."""

    def run(self, out: Path) -> Outcome:
        """Pre-train, fine-tune for each task, and compare with a model that was not pre-trained."""
        config, timings = self.config, dict[str, float]()
        with timed(timings, "data"):
            corpus = self.corpus()
            trainers = self.trainers(corpus)
        model = self.model(corpus)
        fresh = clone_of(model)
        with timed(timings, "pre-training"):
            curves = self.pretrain(model, corpus, out)
        self._save(out / "pretrained", model, corpus, {})
        pretrained = clone_of(model)
        outcome = Outcome(
            system=self.slug,
            title=self.title,
            config=config.model_dump(mode="json"),
            columns=["task", "metric", "before fine-tuning", "after", "without pre-training"],
            rows=[],
            curves=curves,
            timings=timings,
            artefacts={"pre-trained model": "pretrained"},
        )
        together: dict[str, Any] = {}
        if config.multi_task:
            with timed(timings, "all tasks"):
                together = self._finetune_together(model, trainers, out, curves)
            self._save(out / "all-tasks", model, corpus, trainers)
            outcome.artefacts["all tasks"] = "all-tasks"
        for name, trainer in trainers.items():
            metric, test = trainer.data.task.metric, trainer.data.test.read()
            model.load_state_dict(pretrained)
            before = trainer.judge(model, test)[metric]
            without = None
            if config.scratch:
                with timed(timings, f"{name} without pre-training"):
                    model.load_state_dict(fresh)
                    place = out / f"{_file(name)}-without"
                    curves[f"{name} without pre-training"] = self._finetune(model, trainer, place, self.whole_budget())
                    without = trainer.judge(model, test, beams=config.beams)[metric]
            with timed(timings, name):
                model.load_state_dict(together.get(name, pretrained))
                if name not in together:
                    curves[name] = self._finetune(model, trainer, out / f"{_file(name)}-training", self.task_budget())
                after = trainer.judge(model, test, beams=config.beams)[metric]
            outcome.rows.append([name, metric, before, after, without])
            outcome.artefacts[name] = _file(name)
            self._save(out / _file(name), model, corpus, {name: trainer})
            outcome.samples += _samples(model, trainer, test)
        if config.scratch:
            outcome.notes.append(
                f"without pre-training: as much training in all, {self.whole_budget()} on each task where the others "
                f"have {self.task_budget()}"
            )
        outcome.model = model
        return outcome

    def measure(self, out: Path) -> Measurement:
        """One arm: pre-train once, then for each task pick the fine-tuning rate on the validation split."""
        config, started = self.config, time.perf_counter()
        corpus = self.corpus()
        model = self.model(corpus)
        curves = self.pretrain(model, corpus, out)
        pretraining = sum(_last_step(records) for records in curves.values())
        start = clone_of(model)
        budget = self.task_budget() if curves else self.whole_budget()
        metrics: Figures = {}
        validation: Figures = {}
        chosen: dict[str, Any] = {}
        steps: Figures = {}
        for name, trainer in self.trainers(corpus).items():
            metric = trainer.data.task.metric

            def attempt(rate: float, name: str = name, trainer: TaskTrainer = trainer) -> tuple[float, Any]:
                model.load_state_dict(start)
                records = self._finetune(model, trainer, out / f"{_file(name)}-{rate:g}", budget, rate)
                score = trainer.judge(model, trainer.data.valid)[trainer.data.task.metric]
                return score, (clone_of(model), records)

            best = best_of_grid(config.finetune_rates, attempt)
            model.load_state_dict(best.result[0])
            curves[name] = best.result[1]
            figures = trainer.judge(model, trainer.data.test.read(), beams=config.beams)
            metrics |= {f"{name}/{figure}": value for figure, value in figures.items()}
            validation[f"{name}/{metric}"] = best.score
            chosen[name] = {"learning_rate": best.value, "scores": {f"{r:g}": s for r, s in best.scores.items()}}
            steps[f"steps: {name}"] = float(_last_step(curves[name]) + pretraining)
        return Measurement(
            metrics=metrics,
            validation=validation,
            budget=steps,
            equal=tuple(steps),
            chosen=chosen,
            curves=curves,
            seconds=time.perf_counter() - started,
        )

    @classmethod
    def apply(cls, loaded: Any, extra: Mapping[str, Any], task: str, text: str, **options: Any) -> list[dict[str, str]]:
        """One answer per function; see `apply_code_model`."""
        return apply_code_model(loaded, extra, task, text, **options)

    def corpus(self) -> CodeCorpus:
        """The functions to learn from; objectives corrupt before they cut, so they are kept longer than the input."""
        config = self.config
        longest, most = 2 * config.max_source, config.corpus_limit
        return open_corpus(config.data, vocab=config.vocab, longest=longest, most=most, model=config.model)

    def model(self, corpus: CodeCorpus) -> Any:
        """The model that is named, else a fresh T5 whose weights the seed decides."""
        config = self.config
        if config.model:
            return load_model_and_tokenizer(config.model).model
        torch.manual_seed(config.seed)
        return EncoderDecoder(
            EncoderDecoderConfig.t5(vocab=len(corpus.tokenizer), dim=config.dim, depth=config.depth, heads=config.heads)
        )

    def trainers(self, corpus: CodeCorpus) -> dict[str, TaskTrainer]:
        """Every task's data and training."""
        config = self.config
        most = config.train_limit
        trainers = {}
        for name in config.tasks:
            labelled = most if isinstance(most, int) else most.get(name, _ALL)
            limits = (labelled, config.valid_limit, config.test_limit)
            data = open_task(name, config.data, limits=limits)
            form = data.task.form(config.max_source, config.max_target)
            trainers[name] = trainer_for(data, corpus.tokenizer, form, batch_size=config.batch_size)
        return trainers

    def pretraining_budget(self) -> Budget:
        """Of the pre-training."""
        config = self.config
        return Budget.parse(config.budget).scaled(2 / 3) if config.budget else Budget.parse(config.pretrain)

    def task_budget(self) -> Budget:
        """Of the fine-tuning for one task."""
        config = self.config
        if config.budget:
            return Budget.parse(config.budget).scaled(1 / 3 / len(config.tasks))
        return Budget.parse(config.finetune)

    def whole_budget(self) -> Budget:
        """What a model without pre-training spends on each task: pre-training and fine-tuning together."""
        return self.pretraining_budget().plus(self.task_budget())

    def training(self, rate: float) -> TrainingConfig:
        """Settings of the loop."""
        config = self.config
        # From random weights AdamW stays for thousands of steps where the decoder ignores the source; Muon leaves that
        # plateau in hundreds. T5's embeddings start at 1 and its projections near 0.1, so they need the larger rate.
        fresh: dict[str, Any] = {"optimizer": "muon", "lr_factors": {"embed.*": 30.0}}
        return config.training(rate, **({} if config.model else fresh))

    def _finetune(
        self, model: Any, trainer: TaskTrainer, out: Path, budget: Budget, rate: float | None = None
    ) -> list[dict[str, Any]]:
        training = self.training(self.config.finetune_rates[0] if rate is None else rate)
        return trainer.train(model, budget, training, out=out).records

    def _finetune_together(self, model: Any, trainers: dict[str, TaskTrainer], out: Path, curves: Curves) -> Any:
        """Multi-task fine-tuning with control codes; the best weights of each task."""
        config = self.config
        training = self.training(config.finetune_rates[0]).model_copy(update={"evaluate_every": 0.1})
        result, best = train_together(
            model,
            trainers,
            self.task_budget().scaled(len(trainers)),
            training,
            alpha=config.alpha,
            patience=config.patience,
            out=out / "all-tasks-training",
        )
        curves["all tasks"] = result.records
        return best.weights

    def _save(self, folder: Path, model: Any, corpus: CodeCorpus, trainers: dict[str, TaskTrainer]) -> None:
        """A model with what it was trained for, so that it can be applied."""
        if is_main_process():
            forms = {name: asdict(trainer.form) for name, trainer in trainers.items()}
            extra = {"system": self.slug, "tasks": forms, "config": self.config.model_dump(mode="json")}
            save_model(folder, model, corpus.tokenizer, extra=extra)


def _samples(model: Any, trainer: TaskTrainer, test: list[Any]) -> list[dict[str, str]]:
    """Three inputs of the test split with what the model answers."""
    shown = [pair for pair in test[:: max(1, len(test) // 3)][:3] if isinstance(pair, Pair)]
    sources = [pair.source for pair in shown]
    answers = predict(model, trainer.tokenizer, trainer.form, sources, beams=5) if shown else []
    return [
        {"task": trainer.data.task.name, "input": pair.source, "answer": answer, "reference": pair.target}
        for pair, answer in zip(shown, answers, strict=True)
    ]


def _last_step(records: list[dict[str, Any]]) -> int:
    return int(records[-1]["step"]) if records else 0


def _file(task: str) -> str:
    """A task's name as a file name."""
    return re.sub(r"[^\w.-]+", "-", task)
