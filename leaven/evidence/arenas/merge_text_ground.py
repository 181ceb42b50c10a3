"""The merge arena for text embeddings: specialists of several groups of tasks, joint training, and the exams."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from leaven.data.mixture import Mixture
from leaven.data.splits import sample_rates
from leaven.errors import ConfigError
from leaven.evidence.arenas.kept_weights import KeptWeights, Records
from leaven.evidence.arenas.merge_classifiers import beside
from leaven.evidence.arenas.merge_embedders import (
    SentenceEncoder,
    TextModel,
    TextStore,
    open_text_model,
    text_batch,
    text_batches,
    text_loader,
)
from leaven.evidence.arenas.merge_exams import Exam, TextRow
from leaven.evidence.arenas.merge_folder import checkpoint_paths
from leaven.evidence.arenas.merge_ground import Ground, Judge, LazyBatches, Merged
from leaven.evidence.arenas.merge_sweep import MergeConfig
from leaven.evidence.arenas.merge_texts import STANDARD, STDLIB, text_task
from leaven.evidence.selection import Sealed
from leaven.evidence.system import Figures
from leaven.merge import Weights, open_weights, task_conflict
from leaven.merge.compatibility import refuse_nonfinite
from leaven.models.bridge.huggingface import save_huggingface
from leaven.models.loading import MINILM
from leaven.models.saved import MANIFEST, save_model
from leaven.objectives.contrastive import TextContrast
from leaven.training.config import TrainingConfig
from leaven.training.loop import fit
from leaven.training.randomness import mix

TEXTS = (STDLIB, STANDARD)


class TextMergeConfig(MergeConfig):
    """Options of merging text embedding models, beside those of merging image classifiers."""

    data: str = Field(
        STDLIB,
        description="stdlib-texts: docstrings and code; standard-texts: stsb and agnews; or labelled images: glyphs, "
        "imagefolder:DIR",
    )
    model: str = Field(
        "", description="what the specialists start from: zoo:NAME, hf:ID or a folder; empty: minilm, or zoo:mini-vit"
    )
    tasks: tuple[str, ...] = Field(
        ("edits", "code"),
        min_length=2,
        description="groups of tasks: edits, code, modules of stdlib-texts; sts, headlines of standard-texts",
    )
    rows: tuple[int, ...] = Field((100, 800), description="texts to train on, of each group")
    probe: tuple[int, ...] = Field((256, 256), description="texts to search the position with, of each group")
    exam_rows: int = Field(300, ge=10, description="most texts of each group to choose and test with")
    hard_negatives: tuple[int, int] = Field((1, 3), description="hard negatives of a text, in training and search")
    longest: int = Field(64, ge=8, le=8192, description="longest text in tokens")
    layers: int = Field(2, ge=0, description="last blocks that are trained; 0: all weights")
    temperature: float = Field(0.05, gt=0, le=10, description="that cosines are divided by in the loss")
    text_batch: int = Field(16, ge=2, le=65536, description="texts of a step")
    text_rate: float = Field(
        1e-4, gt=0, le=1, description="peak learning rate of the specialists and of joint training"
    )
    task_steps: int = Field(120, ge=1, description="steps of each specialist")
    search_steps: int = Field(60, ge=1, description="steps of the search, which joint training gets as well")
    search_rate: float = Field(2e-2, gt=0, le=1, description="learning rate of the search")
    penalty: float = Field(0.05, ge=0, description="mu: what a unit of length costs in the search")

    @model_validator(mode="after")
    def _aligned(self) -> TextMergeConfig:
        for name in ("rows", "probe"):
            counts = getattr(self, name)
            if len(counts) != len(self.tasks) or min(counts) < 2:
                raise ConfigError(f"{name}={counts}: expected {len(self.tasks)} numbers from 2 up, one for each task")
        if min(self.hard_negatives) < 1:
            raise ConfigError(f"hard_negatives={self.hard_negatives}: expected at least one each")
        for task in self.tasks:
            if text_task(task).data != self.data and self.data in TEXTS:
                raise ConfigError(
                    f"tasks={self.tasks}: {task} is a group of {text_task(task).data}, not of {self.data}"
                )
        return self


class TextGround:
    """Specialists from one text encoder; those that are trained are kept under `place`.

    Raises: ConfigError when a specialist of the user's differs from the base below the trained blocks.
    """

    def __init__(self, config: TextMergeConfig, place: Path) -> None:
        self.config = config
        self.opened: TextModel = open_text_model(config.model or MINILM, config.longest)
        self.model = SentenceEncoder(self.opened.encoder, config.layers).eval()
        self.store = TextStore(self.model, self.opened.tokenizer)
        self.base: Weights = open_weights({n: t.clone() for n, t in self.model.state_dict().items()}, "the base")
        self.base.folder = self.opened.folder
        self.objective = TextContrast(config.temperature)
        names = set(TextMergeConfig.model_fields) - set(MergeConfig.model_fields)
        names = (names | {"seed", "model"}) - {"probe", "exam_rows", "search_steps", "search_rate", "penalty"}
        self.kept = KeptWeights(place, "specialists", config.model_dump(mode="json", include=names))

    @cached_property
    def train(self) -> dict[str, list[TextRow]]:
        """Rows of the train split by task."""
        return self._rows("train", self.config.rows, self.config.hard_negatives[0])

    @cached_property
    def probe(self) -> dict[str, list[TextRow]]:
        """Rows of the validation split by task. Raises: ConfigError for fewer than are asked for."""
        found = self._rows("valid", self.config.probe, self.config.hard_negatives[1])
        for (task, rows), asked in zip(found.items(), self.config.probe, strict=True):
            if len(rows) < asked:
                raise ConfigError(
                    f"probe={','.join(map(str, self.config.probe))}: the validation split has {len(rows)} rows for "
                    f"{task}, and a probe set that is short of one task is not balanced: ask for at most so many"
                )
        return found

    def _rows(self, split: Literal["train", "valid"], counts: Sequence[int], hard: int) -> dict[str, list[TextRow]]:
        seed = self.config.seed
        pairs = zip(self.config.tasks, counts, strict=True)
        return {task: text_task(task).rows(split, count, hard, seed) for task, count in pairs}

    @cached_property
    def specialists(self) -> list[Weights]:
        """One per task, or those of the configured folder."""
        if self.config.ingredients:
            return self._given()
        return [self._specialist(place, task) for place, task in enumerate(self.config.tasks)]

    def _specialist(self, place: int, task: str) -> Weights:
        config = self.config
        loader = text_loader(self.train[task], self.store, config.text_batch, config.seed)
        training = self._training(mix(config.seed, place))

        def train() -> Records:
            self.base.into(self.model)
            return fit(self.model, self.objective, loader, config.task_steps, training, label=task).records

        return self._with_folder(self.kept.get(task, self.model, train, {"task": task}).weights)

    def _with_folder(self, weights: Weights) -> Weights:
        weights.folder = self.opened.folder
        return weights

    @property
    def paired(self) -> bool:
        """Whether each specialist is known to be of the task in its place; a folder's names must say so."""
        names = [Path(one.label).stem for one in self.specialists]
        return not self.config.ingredients or names == list(self.config.tasks)

    def _given(self) -> list[Weights]:
        config = self.config
        found = []
        paths = checkpoint_paths(config.ingredients)[0]
        if {path.stem for path in paths} == set(config.tasks):
            paths.sort(key=lambda path: config.tasks.index(path.stem))
        for path in paths:
            opened = open_text_model(str(path), config.longest)
            specialist = SentenceEncoder(opened.encoder, config.layers)
            mine, theirs = (
                {n: t for n, t in encoder.state_dict().items() if not n.startswith(("head.", "pooler."))}
                for encoder in (self.opened.encoder, opened.encoder)
            )
            last = len(self.opened.encoder.encoder.blocks) - config.layers
            for name in mine if config.layers else ():
                if name in theirs and not mine[name].equal(theirs[name]) and _below(name, last):
                    raise ConfigError(
                        f"{path} differs from the base in {name}, below its last {config.layers} blocks: set layers=0, "
                        "so that all weights are merged, or give model=, what it was fine-tuned from"
                    )
            weights = open_weights(specialist.state_dict(), str(path))
            weights.folder = opened.folder
            found.append(weights)
        refuse_nonfinite(found)
        return found

    def _training(self, seed: int) -> TrainingConfig:
        return TrainingConfig(learning_rate=self.config.text_rate, schedule="cosine", warmup=0.1, seed=seed)

    def joint(self, alpha: float) -> Merged:
        """One model trained on all tasks with as many steps as specialists and search have together.

        The cosines between the tasks' gradients are taken at the start and at each quarter.

        Args:
            alpha: a task of n rows is drawn in proportion to n^alpha: 1 by size, 0 uniformly.
        """
        config = self.config
        loaders = {
            task: text_loader(rows, self.store, config.text_batch, config.seed) for task, rows in self.train.items()
        }
        mixture = Mixture(loaders, sample_rates([len(rows) for rows in self.train.values()], alpha), seed=config.seed)
        training = self._training(config.seed).model_copy(update={"evaluate_every": 0.25})
        self.base.into(self.model)
        start = self.conflict(self.model)
        found = fit(self.model, self.objective, mixture, self.steps, training, evaluate=self.conflict, label="joint")
        weights = open_weights({n: t.detach().clone() for n, t in self.model.state_dict().items()}, "joint training")
        return Merged(
            (self._with_folder(weights),),
            chosen={"gradients at the start": start, "gradients at the end": found.evaluation},
            curves={"joint training": found.records},
            used={"steps": float(self.steps)},
        )

    @torch.enable_grad()
    def conflict(self, model: nn.Module) -> Figures:
        """Mean cosine between the gradients of the tasks' losses, and the share of pairs that is negative."""
        batches = {
            task: [beside(model, text_batch(rows[: self.config.text_batch], self.store))]
            for task, rows in self.probe.items()
        }
        found = task_conflict(model, self.objective, batches)
        pairs = found.cosines[*torch.triu_indices(len(batches), len(batches), 1)]
        return {"gradient cosine": float(pairs.mean()), "negative gradient cosines": found.negative}

    @property
    def steps(self) -> int:
        """Steps that every arm may use."""
        return len(self.config.tasks) * self.config.task_steps + self.config.search_steps

    def probe_batches(self) -> LazyBatches:
        """The probe set in batches of one task each, as many of each task as it has rows for.

        The seed decides the order within a task; tasks take turns in proportion to their batches, so that a search that
        ends before the probe set does has seen its balance.
        """
        size, rng = self.config.text_batch, np.random.default_rng(self.config.seed)
        placed: list[tuple[float, int, list[TextRow]]] = []
        for task, rows in enumerate(self.probe.values()):
            parts = [rows[at : at + size] for at in range(0, len(rows), size)]
            order = rng.permutation(len(parts))
            placed += [((turn + 0.5) / len(parts), task, parts[at]) for turn, at in enumerate(order)]
        return text_batches([part for *_, part in sorted(placed, key=lambda one: one[:2])], self.store)

    def ground(self) -> Ground:
        """Figures: `score`, the mean over tasks; `worst drop`, the most that a task lost against its specialist."""
        config, tasks = self.config, self.config.tasks
        # A closure reads the specialists first, so that no training disturbs the model that is judged later.
        specialists, paired = self.specialists, self.paired

        def judge(split: Literal["valid", "test"]) -> Judge:
            exams: dict[str, Exam] = {t: text_task(t).exam(split, config.exam_rows, config.seed) for t in tasks}

            def score(model: nn.Module, task: str) -> float:
                return exams[task].score(lambda texts: self.store.vectors(model, texts))

            @cache
            def reference() -> tuple[float, ...]:
                model = copy.deepcopy(self.model)
                return tuple(score(own.into(model), task) for own, task in zip(specialists, tasks, strict=True))

            def summary(scores: dict[str, float]) -> Figures:
                figures = {"score": sum(scores.values()) / len(scores), **scores}
                if not paired:
                    return figures
                drops = [own - scores[task] for own, task in zip(reference(), tasks, strict=True)]
                return {**figures, "worst drop": max(drops)}

            return Judge(tasks, score, summary)

        return Ground(
            model=self.model,
            base=lambda: self.base,
            ingredients=specialists,
            objective=self.objective,
            batches=self.probe_batches(),
            valid=judge("valid"),
            test=Sealed(judge("test"), config.data),
            figure="score",
            budget={} if config.ingredients else {"allowed steps": float(self.steps)},
            save=self.save,
        )

    def save(self, path: Path, model: nn.Module) -> Path:
        """A folder of the kind that the base came in, tokenizer and sentence-transformers' modules included."""
        assert isinstance(model, SentenceEncoder)
        source, encoder = self.opened.folder, model.settle()
        if (source / MANIFEST).is_file():
            save_model(path, encoder)
        else:
            if (path / "config.json").is_file():
                shutil.rmtree(path)
            save_huggingface(encoder, path)
        for file in source.iterdir():
            if file.is_dir() and re.fullmatch(r"\d+_\w+", file.name):
                shutil.copytree(file, path / file.name)
            elif file.suffix in (".json", ".txt") and not (path / file.name).exists():
                shutil.copyfile(file, path / file.name)
        return path


def _below(name: str, last: int) -> bool:
    """Whether a weight of a text encoder belongs to the embedding or a block before the last ones."""
    found = re.match(r"encoder\.blocks\.(\d+)\.", name)
    return int(found[1]) < last if found else name.startswith("embed.")
