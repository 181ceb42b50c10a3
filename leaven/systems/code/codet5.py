"""CodeT5: identifier-aware unified pre-training of an encoder-decoder on code (arXiv 2109.00859)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator

from leaven.errors import ConfigError
from leaven.evidence.arenas.code_arena import CodeConfig, CodeSystem, Curves
from leaven.evidence.arenas.code_corpus import CodeCorpus
from leaven.evidence.claims import Claim
from leaven.models.encoder_decoder import width_of
from leaven.objectives.dual_generation import DualGeneration
from leaven.objectives.identifiers import IdentifierTagging, MaskedIdentifierPrediction
from leaven.objectives.mixture import Alternate
from leaven.objectives.span_corruption import SpanCorruption
from leaven.training.loop import fit

OBJECTIVES = ("msp", "it", "mip")


class CodeT5Config(CodeConfig):
    """Options of CodeT5."""

    objectives: tuple[str, ...] = Field(
        OBJECTIVES, description="stage 1, alternated with equal probability: msp, it, mip; none: no pre-training"
    )
    dual: float = Field(0.0, ge=0, lt=1, description="share of the pre-training, at its end, that is dual generation")
    corruption: float = Field(0.15, gt=0, lt=1, description="share of words that masked span prediction removes")
    span: tuple[int, int] = Field((1, 5), description="shortest and longest masked span in words")
    max_unique_identifiers: int = Field(100, ge=1, le=100, description="names that masked identifier prediction hides")

    @field_validator("objectives")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in OBJECTIVES]
        if unknown:
            raise ConfigError(f"objectives: there is no {unknown[0]!r}; there are {', '.join(OBJECTIVES)}")
        return names


class CodeT5(CodeSystem[CodeT5Config]):
    """Pre-train on what code is made of, then fine-tune for understanding and generation.

    Stage 1 alternates masked span prediction, identifier tagging and masked identifier prediction, one drawn per step;
    stage 2 is dual generation, documentation from program and program from documentation. Source: section 3.2.
    """

    slug = "codet5"
    title = "CodeT5: an encoder-decoder pre-trained on what code is made of"
    Config = CodeT5Config
    arms: ClassVar[dict[str, dict[str, Any]]] = {
        "scratch": {"objectives": ()},
        "msp": {"objectives": ("msp",)},
        "codet5": {},
        "codet5-dual": {"dual": 1 / 3},
        "no-mip": {"objectives": ("msp", "it")},
        "no-it": {"objectives": ("msp", "mip")},
    }
    tiers: ClassVar[dict[str, dict[str, Any]]] = {
        "embedded": {
            "tasks": ("desugar",),
            "max_target": 48,
            "pretrain": "1000 steps",
            "finetune": "250 steps",
            "finetune_rates": (4e-3, 1.2e-2),
        },
        "standard": {
            "data": "java2cs",
            "tasks": ("set:java2cs",),
            "max_source": 96,
            "max_target": 96,
            "pretrain": "800 steps",
            "finetune": "300 steps",
            "finetune_rates": (4e-3, 1.2e-2),
            "valid_limit": 150,
        },
    }
    seeds: ClassVar[dict[str, int]] = {"embedded": 5, "standard": 3}
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            says="Pre-training on masked spans and identifiers beats as many steps on the task alone",
            metric="desugar/exact",
            better="codet5",
            than="scratch",
            by=3.0,
            paper="no such arm; PLBART, the rival, is behind in every task",
            tiers=("embedded",),
        ),
        Claim(
            says="Identifier objectives add to masked spans",
            metric="desugar/exact",
            better="codet5",
            than="msp",
            by=1.0,
            paper="dropping identifier prediction: CodeBLEU 41.39 to 38.25 (small model, Table 6)",
            tiers=("embedded",),
        ),
        Claim(
            says="Dual generation at the end of pre-training helps generation",
            metric="desugar/bleu",
            better="codet5-dual",
            than="codet5",
            by=0.3,
            paper="six-language mean of summaries 19.55 to 19.75 (base model, Table 2)",
            tiers=("embedded",),
        ),
        Claim("Identifier prediction matters", "desugar/exact", "codet5", "no-mip", 0.0, tiers=("embedded",)),
        Claim("Identifier tagging matters", "desugar/exact", "codet5", "no-it", 0.0, tiers=("embedded",)),
        Claim(
            says="Pre-training on functions of both languages beats as many steps on translation alone",
            metric="set:java2cs/bleu",
            better="codet5",
            than="scratch",
            by=1.0,
            paper="no such arm; exact match 65.90 against 64.60 of PLBART (Table 4)",
            tiers=("standard",),
        ),
        Claim(
            says="Identifier objectives add to masked spans in translation",
            metric="set:java2cs/bleu",
            better="codet5",
            than="msp",
            by=0.5,
            paper="dropping identifier prediction: CodeBLEU 41.39 to 38.25 (small model, Table 6)",
            tiers=("standard",),
        ),
    )

    def pretrain(self, model: Any, corpus: CodeCorpus, out: Path) -> Curves:
        """Stage 1 on all functions, stage 2 on those that have documentation."""
        config, curves = self.config, Curves()
        if not config.objectives:
            return curves
        torch.manual_seed(config.seed)
        stage1 = Alternate({name: self._objective(name, model, corpus) for name in config.objectives})
        whole, training = self.pretraining_budget(), self.training(config.learning_rate)
        functions = corpus.loader(config.batch_size, config.seed)
        budget, place = whole.scaled(1 - config.dual), out / "pretraining"
        curves["pre-training"] = fit(
            model, stage1, functions, budget, training, out=place, label="pre-training"
        ).records
        if config.dual:
            # A pair is two instances, one in either direction: half as many pairs make a batch.
            pairs = corpus.loader(config.batch_size // 2, config.seed, paired=True)
            stage2, label = self._objective("bdg", model, corpus), "dual generation"
            budget, place = whole.scaled(config.dual), out / "dual-generation"
            curves[label] = fit(model, stage2, pairs, budget, training, out=place, label=label).records
        return curves

    def _objective(self, name: str, model: Any, corpus: CodeCorpus) -> Any:
        config, tokenizer = self.config, corpus.tokenizer
        common: dict[str, Any] = {
            "end_id": tokenizer.end_id,
            "pad_id": tokenizer.pad_id,
            "max_inputs": config.max_source,
            "max_labels": config.max_target,
        }
        if name == "msp":
            sentinels = tokenizer.require_sentinels()
            return SpanCorruption(sentinels, density=config.corruption, span=config.span, **common)
        if name == "it":
            return IdentifierTagging(width_of(model), max_inputs=config.max_source)
        if name == "mip":
            sentinels = tokenizer.require_sentinels()
            return MaskedIdentifierPrediction(sentinels, max_names=config.max_unique_identifiers, **common)
        return DualGeneration(start_id=tokenizer.start_id, natural_tag=tokenizer.tag_id("en"), **common)
