"""DSEE: a low-rank and sparse update, which then decides what of the frozen weights is pruned (arXiv 2111.00160)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from leaven.adapt.peft import DSEE, LoRA, forward_flops, prune_heads, prune_weights, sparsity
from leaven.adapt.peft.sites import heads_of
from leaven.adapt.peft.sublayers import attention_layers
from leaven.errors import ModelError
from leaven.evidence.arenas.peft_arena import EMBEDDED, STANDARD, PeftConfig, PeftSystem, Tuned
from leaven.evidence.arenas.peft_data import ClassificationTask
from leaven.evidence.arenas.peft_model import HEAD, Adaptation, Classifier, attach, settled_cost
from leaven.evidence.claims import Claim
from leaven.evidence.system import Figures
from leaven.training.budgets import Budget


class DSEEConfig(PeftConfig):
    """Options of DSEE."""

    budget: str = Field("250 steps", description="of each training, before and after pruning together")
    retune: float = Field(0.4, gt=0, lt=1, description="share of the training that follows pruning")
    method: Literal["dsee", "lora"] = Field(
        "dsee", description="the update: low-rank and sparse, or low-rank alone with as many numbers"
    )
    prune: Literal["weights", "heads", "none"] = Field("weights", description="what is pruned after the first stage")
    rank: int = Field(8, ge=2, le=4096, description="of the update; one of it makes room for the sparse entries")
    sparse: bool = Field(True, description="dsee: free entries in the place of one rank; without, all ranks")
    support: Literal["decomposition", "random"] = Field(
        "decomposition", description="dsee: free entries where the weight's sparse part is largest, or anywhere"
    )
    targets: str = Field("q,v", description="weights to adapt")
    amount: float = Field(0.5, gt=0, lt=1, description="weights: share that is pruned")
    by: Literal["ABS", "WABS", "AB", "W", "NABS", "random"] = Field(
        "ABS", description="weights: ranking of the adapted ones, by the update (ABS) or by the weight (W)"
    )
    heads: float = Field(0.25, gt=0, lt=1, description="heads: share of each layer's that is removed, at least one")
    heads_by: Literal["update", "random"] = Field("update", description="heads: ranking, by the update or at random")


class DSEESystem(PeftSystem[DSEEConfig]):
    """Update, prune by the update, update on: the mask falls on the frozen weights alone.

    All arms train equally many numbers for equally many steps. Source: sections 3.2 and 3.3.
    """

    slug = "dsee"
    title = "DSEE: small patches of low rank and sparse, and a pruned model under them"
    Config = DSEEConfig
    arms: ClassVar[dict[str, dict[str, Any]]] = {
        "lora": {"method": "lora", "prune": "none"},
        "lora-magnitude": {"method": "lora", "by": "W"},
        "dsee": {},
        "heads": {"prune": "heads"},
        "random-heads": {"prune": "heads", "heads_by": "random"},
        "no-sparse": {"sparse": False},
        "random-support": {"support": "random"},
    }
    tiers: ClassVar[dict[str, dict[str, Any]]] = {"embedded": EMBEDDED, "standard": STANDARD}
    seeds: ClassVar[dict[str, int]] = {"embedded": 5, "standard": 3}
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            says="With half of the weights pruned it comes close to dense LoRA",
            metric="accuracy",
            better="dsee",
            than="lora",
            by=-2.0,
            paper="on par with LoRA from 25 to 50 % sparsity",
        ),
        Claim(
            says="Pruning by the update is not behind pruning by magnitude",
            metric="accuracy",
            better="dsee",
            than="lora-magnitude",
            by=-0.5,
        ),
        Claim(
            says="Heads ranked by the update beat random ones",
            metric="accuracy",
            better="heads",
            than="random-heads",
            by=0.5,
        ),
        Claim(
            says="Cutting heads saves operations",
            metric="flops_percent",
            better="heads",
            than="lora",
            by=7.0,
            paper="about 75 % of the operations",
            smaller_is_better=True,
        ),
        Claim(
            says="Of the attention projections' operations a quarter goes",
            metric="attention_flops_percent",
            better="heads",
            than="lora",
            by=24.0,
            smaller_is_better=True,
        ),
        Claim("The weights are as sparse as asked for", "sparsity_percent", "dsee", "lora", 49.9),
    )

    def adaptation(self, model: Classifier) -> Adaptation:
        """The update; its sparse entries are as many as one rank has numbers."""
        config = self.config
        if config.method == "lora":
            return LoRA(rank=config.rank, alpha=2.0 * config.rank, targets=config.targets, train=(HEAD,))
        rank = config.rank - config.sparse
        return DSEE(
            rank=rank,
            sparse=None if config.sparse else 0,
            alpha=2.0 * rank,
            targets=config.targets,
            support=config.support,
            train=(HEAD,),
        )

    def named(self) -> str:
        """Update and pruning."""
        return f"{self.config.method}, pruned: {self.config.prune}"

    def train(self, model: Classifier, task: ClassificationTask, rate: float, out: Path) -> Tuned:
        """Two stages with the pruning between them."""
        config, used = self.config, Figures()
        adaptation = self.adaptation(model)
        attach(model, adaptation, config.seed)
        tokens = config.max_tokens if task.train.inputs else model.tokens
        dense = forward_flops(model, tokens)
        whole = Budget.parse(config.budget)
        first, second = whole.scaled(1 - config.retune), whole.scaled(config.retune)
        curves = {"update": self.tune(model, task, rate, first, out=out / "update", used=used)}
        cost = settled_cost(model, adaptation)
        self._prune(model)
        curves["re-tuning"] = self.tune(model, task, rate, second, out=out / "re-tuning", used=used)
        left = forward_flops(model, tokens)
        figures = {
            "flops_percent": 100 * left.total / dense.total,
            "attention_flops_percent": 100 * left.attention_projections / dense.attention_projections,
            "sparsity_percent": 100 * sparsity(model).share,
        }
        return Tuned(model, adaptation, curves, used, cost, figures)

    def _prune(self, model: Classifier) -> None:
        config, generator = self.config, torch.Generator().manual_seed(self.config.seed)
        if config.prune == "weights":
            prune_weights(model, config.amount, mode=config.by, generator=generator)
        elif config.prune == "heads":
            heads = heads_of(model.get_submodule(attention_layers(model)[0].core))
            if heads is None:
                raise ModelError("prune=heads: the model does not say how many heads its attention has")
            prune_heads(model, max(1, round(config.heads * heads)), by=config.heads_by, generator=generator)
