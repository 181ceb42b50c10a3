"""CodeT5: identifier-aware unified pre-training of an encoder-decoder on code (arXiv 2109.00859)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field

from leaven.contracts import Objective
from leaven.data.examples import Pair
from leaven.errors import ConfigError
from leaven.evidence.arenas.code_corpus import CodeCorpus, open_corpus
from leaven.evidence.arenas.code_tasks import open_task
from leaven.evidence.arenas.fine_tuning import TaskTrainer, clone_of, predict, train_together, trainer_for
from leaven.evidence.claims import Claim
from leaven.evidence.selection import best_of_grid
from leaven.evidence.system import Figures, Measurement, Outcome, System, SystemConfig, timed
from leaven.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from leaven.models.loading import load_model_and_tokenizer
from leaven.models.saved import save_model
from leaven.objectives.dual_generation import DualGeneration
from leaven.objectives.identifiers import IdentifierTagging, MaskedIdentifierPrediction
from leaven.objectives.mixture import Alternate
from leaven.objectives.span_corruption import SpanCorruption
from leaven.training.budgets import Budget
from leaven.training.config import TrainingConfig
from leaven.training.loop import fit

OBJECTIVES = ("msp", "it", "mip")


class CodeT5Config(SystemConfig):
    """Options of CodeT5."""

    data: str = Field("stdlib-code", description="functions to pre-train on, such as code:DIR or jsonl:FILE")
    model: str = Field("", description="start from zoo:NAME, hf:ID or a folder; empty: from random weights")
    tasks: tuple[str, ...] = Field(
        ("name", "defect", "summarize"), description="what to fine-tune for: task names, set:NAME, or jsonl:FILE"
    )
    dim: int = Field(96, ge=8, le=4096, description="width of the model")
    depth: int = Field(2, ge=1, le=48, description="layers of the encoder, and of the decoder")
    heads: int = Field(4, ge=1, le=64, description="attention heads")
    vocab: int = Field(2048, ge=370, le=200_000, description="tokens of the byte-level BPE, specials included")
    objectives: tuple[str, ...] = Field(
        OBJECTIVES, description="stage 1, alternated with equal probability: msp, it, mip; none: no pre-training"
    )
    dual: float = Field(0.0, ge=0, lt=1, description="share of the pre-training at its end that is dual generation")
    corruption: float = Field(0.15, gt=0, lt=1, description="share of words that masked span prediction removes")
    span: tuple[int, int] = Field((1, 5), description="shortest and longest masked span in words")
    max_unique_identifiers: int = Field(100, ge=1, le=100, description="names that masked identifier prediction hides")
    max_source: int = Field(96, ge=8, le=4096, description="longest input in tokens")
    max_target: int = Field(48, ge=4, le=4096, description="longest target in tokens")
    pretrain: str = Field("600 steps", description="budget of the pre-training; scratch spends it on fine-tuning")
    finetune: str = Field("150 steps", description="budget of the fine-tuning for each task")
    batch_size: int = Field(32, ge=2, le=4096, description="examples per step and process")
    learning_rate: float = Field(2e-3, gt=0, le=1, description="peak learning rate of the pre-training")
    finetune_rates: tuple[float, ...] = Field(
        (1e-3,), min_length=1, description="learning rates of the fine-tuning; the validation split picks one per task"
    )
    multi_task: bool = Field(False, description="fine-tune once on all tasks, told apart by control codes")
    alpha: float = Field(
        0.7, ge=0, le=1, description="multi-task: a task of n examples is drawn in proportion to n^alpha"
    )
    patience: int | None = Field(5, ge=1, description="multi-task: evaluations without gain that end a task")
    beams: int = Field(1, ge=1, le=50, description="beams of decoding when judging")
    valid_limit: int = Field(300, ge=1, description="most examples of a validation split")
    test_limit: int = Field(1000, ge=1, description="most examples of a test split")
    precision: str = Field("fp32", pattern="^(fp32|bf16|auto)$", description="arithmetic: fp32, bf16 or auto")
    parallel: str = Field("ddp", pattern="^(ddp|fsdp)$", description="several processes: replicated or sharded")
    scratch: bool = Field(True, description="also train without pre-training, at the same total budget")


class CodeT5(System[CodeT5Config]):
    """Pre-train on what code is made of, then fine-tune for understanding and generation."""

    slug = "codet5"
    Config = CodeT5Config
    arms: ClassVar[dict[str, dict[str, Any]]] = {
        "scratch": {"objectives": ()},
        "msp": {"objectives": ("msp",)},
        "codet5": {},
        "codet5-dual": {"dual": 1 / 3},
        "no-mip": {"objectives": ("msp", "it")},
        "no-it": {"objectives": ("msp", "mip")},
    }
    claims: ClassVar[tuple[Claim, ...]] = ()
    tasks: ClassVar[dict[str, str]] = {}

    def run(self, out: Path) -> Outcome:
        """Pre-train, fine-tune for each task, and compare with a model that was not pre-trained."""
        config, timings = self.config, dict[str, float]()
        with timed(timings, "data"):
            corpus = self._corpus()
            trainers = self._trainers(corpus)
        model = self._model(corpus)
        fresh = clone_of(model)
        with timed(timings, "pre-training"):
            curves = self._pretrain(model, corpus, out)
        save_model(out / "pretrained", model, corpus.tokenizer, extra={"system": self.slug})
        pretrained = clone_of(model)
        outcome = Outcome(
            system=self.slug,
            title="CodeT5: an encoder-decoder pre-trained on what code is made of",
            config=config.model_dump(mode="json"),
            columns=["task", "metric", "before fine-tuning", "after", "after, without pre-training"],
            rows=[],
            curves=curves,
            timings=timings,
            artefacts={"pre-trained model": "pretrained"},
        )
        together: dict[str, Any] = {}
        if config.multi_task:
            with timed(timings, "all tasks"):
                together = self._finetune_together(model, trainers, out, curves)
        for name, trainer in trainers.items():
            metric, test = trainer.data.task.metric, trainer.data.test.read()
            model.load_state_dict(pretrained)
            before = trainer.judge(model, test)[metric]
            without = None
            if config.scratch:
                with timed(timings, f"{name} without pre-training"):
                    model.load_state_dict(fresh)
                    curves[f"{name} without pre-training"] = self._finetune(
                        model, trainer, out / f"scratch-{_file(name)}", self._whole_budget()
                    )
                    without = trainer.judge(model, test, beams=config.beams)[metric]
            with timed(timings, name):
                if name in together:
                    model.load_state_dict(together[name])
                else:
                    model.load_state_dict(pretrained)
                    curves[name] = self._finetune(model, trainer, out / _file(name), Budget.parse(config.finetune))
                after = trainer.judge(model, test, beams=config.beams)[metric]
            outcome.rows.append([name, metric, before, after, without])
            outcome.artefacts[name] = f"{_file(name)}-model"
            save_model(
                out / outcome.artefacts[name], model, corpus.tokenizer, extra={"system": self.slug, "tasks": [name]}
            )
            outcome.samples += self._samples(model, trainer, test)
        outcome.model = model
        return outcome

    def measure(self, out: Path) -> Measurement:
        """One arm: pre-train once, then for each task pick the fine-tuning rate on the validation split."""
        config, started = self.config, time.perf_counter()
        corpus = self._corpus()
        model = self._model(corpus)
        curves = self._pretrain(model, corpus, out)
        start = clone_of(model)
        budget = Budget.parse(config.finetune) if config.objectives else self._whole_budget()
        metrics: Figures = {}
        validation: Figures = {}
        chosen: dict[str, Any] = {}
        steps: Figures = {}
        for name, trainer in self._trainers(corpus).items():
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
            steps[f"steps: {name}"] = float(_last_step(curves[name]) + sum(map(_last_step, _pretraining(curves))))
        return Measurement(
            metrics=metrics,
            validation=validation,
            budget=steps,
            equal=tuple(steps),
            chosen=chosen,
            curves=curves,
            seconds=time.perf_counter() - started,
        )

    def _corpus(self) -> CodeCorpus:
        config = self.config
        return open_corpus(config.data, vocab=config.vocab, longest=2 * config.max_source, model=config.model)

    def _trainers(self, corpus: CodeCorpus) -> dict[str, TaskTrainer]:
        config = self.config
        limits = (config.valid_limit, config.test_limit)
        trainers = {}
        for name in config.tasks:
            data = open_task(name, config.data, limits=limits)
            form = data.task.form(config.max_source, config.max_target)
            trainers[name] = trainer_for(data, corpus.tokenizer, form, batch_size=config.batch_size)
        return trainers

    def _model(self, corpus: CodeCorpus) -> Any:
        config = self.config
        if config.model:
            return load_model_and_tokenizer(config.model).model
        torch.manual_seed(config.seed)
        form = EncoderDecoderConfig.t5(
            vocab=len(corpus.tokenizer), dim=config.dim, depth=config.depth, heads=config.heads
        )
        return EncoderDecoder(form)

    def _objectives(self, corpus: CodeCorpus, dim: int) -> dict[str, Callable[[], Objective]]:
        config, tokenizer = self.config, corpus.tokenizer
        ends: dict[str, Any] = {"end_id": tokenizer.end_id, "pad_id": tokenizer.pad_id}
        lengths: dict[str, Any] = {"max_inputs": config.max_source, "max_labels": config.max_target}
        return {
            "msp": lambda: SpanCorruption(
                tokenizer.require_sentinels(), density=config.corruption, span=config.span, **ends, **lengths
            ),
            "it": lambda: IdentifierTagging(dim, max_inputs=config.max_source),
            "mip": lambda: MaskedIdentifierPrediction(
                tokenizer.require_sentinels(), max_names=config.max_unique_identifiers, **ends, **lengths
            ),
            "bdg": lambda: DualGeneration(
                start_id=tokenizer.start_id, natural_tag=tokenizer.tag_id("en"), **ends, **lengths
            ),
        }

    def _pretrain(self, model: Any, corpus: CodeCorpus, out: Path) -> dict[str, list[dict[str, Any]]]:
        """Stage 1: the objectives by turns. Stage 2: dual generation on the documented functions."""
        config = self.config
        if not config.objectives:
            return {}
        available = self._objectives(corpus, model.config.encoder.dim)
        unknown = [name for name in config.objectives if name not in OBJECTIVES]
        if unknown:
            raise ConfigError(f"objectives: no objective {unknown[0]!r}; there are {', '.join(OBJECTIVES)}")
        torch.manual_seed(config.seed)
        stage1 = Alternate({name: available[name]() for name in config.objectives})
        whole = Budget.parse(config.pretrain)
        curves = {}
        result = fit(
            model,
            stage1,
            corpus.loader(config.batch_size, config.seed),
            whole.scaled(1 - config.dual),
            self._training(config.learning_rate),
            out=out / "pretrain",
            label="pre-training",
        )
        curves["pre-training"] = result.records
        if config.dual:
            # Each pair is two instances, one in either direction: half as many pairs make a batch.
            pairs = corpus.loader(config.batch_size // 2, config.seed, paired=True)
            result = fit(
                model,
                available["bdg"](),
                pairs,
                whole.scaled(config.dual),
                self._training(config.learning_rate),
                out=out / "pretrain-dual",
                label="pre-training: dual generation",
            )
            curves["pre-training: dual generation"] = result.records
        return curves

    def _finetune(
        self, model: Any, trainer: TaskTrainer, out: Path, budget: Budget, rate: float | None = None
    ) -> list[dict[str, Any]]:
        training = self._training(self.config.finetune_rates[0] if rate is None else rate)
        return trainer.train(model, budget, training, out=out).records

    def _finetune_together(
        self, model: Any, trainers: dict[str, TaskTrainer], out: Path, curves: dict[str, list[dict[str, Any]]]
    ) -> dict[str, Any]:
        """Multi-task fine-tuning with control codes; the best weights of each task."""
        config = self.config
        training = self._training(config.finetune_rates[0]).model_copy(update={"evaluate_every": 0.1})
        result, best = train_together(
            model,
            trainers,
            Budget.parse(config.finetune).scaled(len(trainers)),
            training,
            alpha=config.alpha,
            patience=config.patience,
            out=out / "multi-task",
        )
        curves["all tasks"] = result.records
        return best.weights

    def _samples(self, model: Any, trainer: TaskTrainer, test: list[Any]) -> list[dict[str, str]]:
        """Three inputs of the test split with what the model answers."""
        shown = [pair for pair in test[:: max(1, len(test) // 3)][:3] if isinstance(pair, Pair)]
        answers = (
            predict(model, trainer.tokenizer, trainer.form, [pair.source for pair in shown], beams=5) if shown else []
        )
        return [
            {"task": trainer.data.task.name, "input": pair.source, "answer": answer, "reference": pair.target}
            for pair, answer in zip(shown, answers, strict=True)
        ]

    def _training(self, rate: float) -> TrainingConfig:
        c = self.config
        return TrainingConfig.model_validate(
            {
                "learning_rate": rate,
                "seed": c.seed,
                "precision": c.precision,
                "parallel": c.parallel,
                "keep": 1,
                "checkpoint_seconds": 60,
                "checkpoint_every": None,
            }
        )

    def _whole_budget(self) -> Budget:
        """What the arm without pre-training spends on each task: pre-training and fine-tuning together."""
        return Budget.parse(self.config.pretrain).plus(Budget.parse(self.config.finetune))


def _last_step(records: list[dict[str, Any]]) -> int:
    return int(records[-1]["step"]) if records else 0


def _pretraining(curves: dict[str, list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    return [records for stage, records in curves.items() if stage.startswith("pre-training")]


def _file(task: str) -> str:
    """A task's name as a file name."""
    return re.sub(r"[^\w.-]+", "-", task)
