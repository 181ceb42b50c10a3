"""Model soups: the average of many fine-tunings of one model (arXiv 2203.05482)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from leaven.errors import ConfigError
from leaven.evidence.arenas.merge_arena import SMOKE, MergeSystem
from leaven.evidence.arenas.merge_classifiers import beside
from leaven.evidence.arenas.merge_ground import Ground, Merged, plain_merge
from leaven.evidence.arenas.merge_images import classifier_ground
from leaven.evidence.arenas.merge_sweep import MergeConfig, Sweep
from leaven.evidence.claims import Claim
from leaven.merge import greedy_soup, learned_soup, open_weights, soup_versus_ensemble
from leaven.training.budgets import Budget

Recipe = Literal["greedy", "uniform", "learned", "best-single", "average-single", "ensemble", "one-long-run"]


class ModelSoupsConfig(MergeConfig):
    """Options of model soups."""

    recipe: Recipe = Field("greedy", description="what is made of the runs")
    learned_epochs: int = Field(5, ge=1, le=1000, description="passes over the validation images of a learned soup")
    learned_rate: float = Field(0.05, gt=0, le=1, description="learning rate of a learned soup's shares")
    two_starts: bool = Field(False, description="every second run comes from another start, an ablation")
    start_budget: str = Field("300 steps", description="pre-training of the other start")

    @field_validator("start_budget")
    @classmethod
    def _readable(cls, text: str) -> str:
        return str(Budget.parse(text))


class ModelSoups(MergeSystem[ModelSoupsConfig]):
    """Keep all runs of a hyper-parameter sweep, and average their weights.

    The greedy soup, which the paper recommends, adds a run as long as the average gets better on held-out data.
    Source: section 2.
    """

    slug = "model-soups"
    title = "Model soups: the average of many fine-tunings of one model"
    Config = ModelSoupsConfig
    recipes: ClassVar[tuple[str, ...]] = ("greedy", "uniform", "learned", "best-single", "average-single", "ensemble")
    arms: ClassVar[dict[str, dict[str, Any]]] = {
        "best-single": {"recipe": "best-single"},
        "average-single": {"recipe": "average-single"},
        "one-long-run": {"recipe": "one-long-run"},
        "uniform": {"recipe": "uniform"},
        "greedy": {"recipe": "greedy"},
        "learned": {"recipe": "learned"},
        "ensemble": {"recipe": "ensemble"},
        "different-starts": {"recipe": "uniform", "two_starts": True},
    }
    tiers: ClassVar[dict[str, dict[str, Any]]] = {
        "embedded": {"classes": 12, "runs": 8, "epochs": (4, 8), "batch_size": 16, "per_class": (24, 15, 30)},
        "standard": {
            "data": "cifar10",
            "image_limit": 40,
            "runs": 8,
            "epochs": (2, 4),
            "batch_size": 16,
            "start_budget": "100 steps",
        },
    }
    seeds: ClassVar[dict[str, int]] = {"embedded": 5, "standard": 3}
    smoke: ClassVar[dict[str, Any]] = {**SMOKE, "learned_epochs": 1, "start_budget": "3 steps"}
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            says="The greedy soup is at least as good as the best single run",
            metric="accuracy",
            better="greedy",
            than="best-single",
            by=0.0,
            paper="ImageNet, CLIP ViT-B/32: 81.03 against 80.39",
        ),
        Claim(
            says="The uniform soup beats the average run",
            metric="accuracy",
            better="uniform",
            than="average-single",
            by=2.0,
            paper="ImageNet, CLIP ViT-B/32: 79.97 against 77.93",
        ),
        Claim(
            says="The uniform soup comes near the ensemble, which costs a forward pass for each run",
            metric="accuracy",
            better="uniform",
            than="ensemble",
            by=-3.0,
        ),
        Claim(
            says="Under mild shifts the uniform soup beats the best single run",
            metric="shifted",
            better="uniform",
            than="best-single",
            by=0.5,
            paper="mean of five shifts of ImageNet: 51.58 against 47.97",
        ),
        Claim(
            says="The greedy soup is at least as good as one run with the budget of the whole sweep",
            metric="accuracy",
            better="greedy",
            than="one-long-run",
            by=0.0,
            paper="no such arm",
        ),
        Claim(
            says="Runs from different starts cannot be averaged",
            metric="accuracy",
            better="uniform",
            than="different-starts",
            by=20.0,
            paper="no such arm; the runs have to share their initialisation (section 2)",
        ),
    )

    def ground(self, place: Path) -> Ground:
        """The runs; every second one from another start where the configuration asks for it."""
        config = self.config
        if not config.ingredients:
            self.sweep = Sweep(config, place)
            other = Sweep(config, place, pretrain=config.start_budget) if config.two_starts else None
            return classifier_ground(config, place, self.sweep, other)
        if config.two_starts or config.recipe == "one-long-run":
            option = "two_starts" if config.two_starts else "recipe=one-long-run"
            raise ConfigError(
                f"{option} trains models, but ingredients={config.ingredients} are merged as they are: leave either"
            )
        return classifier_ground(config, place)

    def merged(self, ground: Ground, recipe: str) -> Merged:
        """What a recipe makes of the runs."""
        runs = tuple(ground.ingredients)
        if plain := plain_merge(ground, recipe, self.config.lengths):
            return plain
        if recipe == "greedy":
            soup = greedy_soup(runs, ground.score)
            return Merged((soup,), chosen={"accepted": list(soup.accepted), "trials": [list(t) for t in soup.trials]})
        if recipe == "learned":
            return self._learned(ground)
        if recipe == "average-single":
            return Merged(runs)
        if recipe == "ensemble":
            return Merged(runs, "ensemble", used={"forward passes": float(len(runs))})
        scores = [ground.score(run.state()) for run in runs]
        best = max(range(len(runs)), key=scores.__getitem__)
        chosen = {"run": best, "scores": scores}
        if recipe == "best-single":
            return Merged((runs[best],), chosen=chosen)
        long = self.sweep.long_run(best)
        return Merged((long.weights,), chosen=chosen, curves={"one long run": long.records})

    def _learned(self, ground: Ground) -> Merged:
        config = self.config
        soup = learned_soup(
            ground.model,
            ground.ingredients,
            ground.batches,
            lambda model, batch: model(pixel_values=batch["pixel_values"]),
            lambda logits, batch: F.cross_entropy(logits, batch["label"]),
            epochs=config.learned_epochs,
            learning_rate=config.learned_rate,
        )
        shares = soup.coefficients().detach().mean(1).tolist()
        steps = config.learned_epochs * len(ground.batches)
        chosen = {"scale of the logits": float(soup.scale.detach()), "mean share of each run": shares}
        return Merged((soup.baked(),), chosen=chosen, used={"steps on validation images": float(steps)})

    def notes(self, ground: Ground, results: dict[str, Merged]) -> list[str]:
        """Which runs the greedy soup took, and whether the two best runs lie in one basin."""
        scores = results["best-single"].chosen["scores"]
        first, second = sorted(range(len(scores)), key=lambda at: -scores[at])[:2]

        @torch.no_grad()
        def predict(state: dict[str, Tensor]) -> Tensor:
            model = ground.filled(open_weights(state))
            inputs = (beside(model, {"pixel_values": batch["pixel_values"]}) for batch in ground.batches)
            return torch.cat([model(**one).cpu() for one in inputs])

        labels = torch.cat([batch["label"] for batch in ground.batches])
        found = soup_versus_ensemble(ground.ingredients[first], ground.ingredients[second], predict, labels)
        middle = len(found.alpha) // 2
        return [
            *super().notes(ground, {"greedy": results["greedy"]}),
            "half-way between the two best runs the loss of averaged weights is that of averaged logits "
            f"{float(found.difference[middle]):+.4f}; curvature and confidence predict "
            f"{float(found.approximation[middle]):+.4f} "
            f"(correlation along the way {found.correlation:.2f})",
        ]
