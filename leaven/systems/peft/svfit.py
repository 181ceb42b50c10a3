"""SVFit: only the largest singular values of each weight train (arXiv 2409.05926)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from leaven.adapt.peft import LoRA, Method, SVFit, spectra
from leaven.evidence.arenas.peft_arena import EMBEDDED, STANDARD, PeftConfig, PeftSystem
from leaven.evidence.arenas.peft_budget import learned_numbers
from leaven.evidence.arenas.peft_model import HEAD, Adaptation, Classifier
from leaven.evidence.claims import Claim
from leaven.evidence.json_file import write_json
from leaven.evidence.system import Outcome

_RATES = (2e-3, 1e-2, 5e-2, 2e-1)
"""Singular values want larger rates than matrices; below the first no arm was better."""
_SOME = ("q", "q,v", "q,k,v", "q,k,v,o")


class SVFitConfig(PeftConfig):
    """Options of SVFit."""

    data: str = Field(
        "glyphs",
        description="glyphs, or imagefolder:DIR; docstring-topics, or rows of {text, label} such as jsonl:FILE",
    )
    budget: str = Field("120 steps", description="of each training")
    method: Literal["svfit", "lora", "lora-r1", "full", "head"] = Field(
        "svfit", description="what trains beside the head; lora-r1 trains about as many numbers as svfit"
    )
    targets: str = Field("attention", description="weights to adapt: roles such as q,v or attention, or a name pattern")
    energy: float = Field(0.99, gt=0, le=1, description="svfit: share of the spectrum that the trained values hold")
    criterion: Literal["energy", "nuclear"] = Field(
        "energy", description="svfit: whether the share is of squares or of the values themselves"
    )
    basis: Literal["top", "bottom", "random"] = Field(
        "top", description="svfit: vectors of the largest values, of the smallest, or random ones"
    )
    rank: int = Field(8, ge=1, le=4096, description="lora: rank")


class SVFitSystem(PeftSystem[SVFitConfig]):
    """Singular values in the frozen basis of each weight, against LoRA on the same weights and a random basis.

    Source: section 3.
    """

    slug = "svfit"
    title = "SVFit: adapters of a few kilobytes, the largest singular values of each weight"
    Config = SVFitConfig
    arms: ClassVar[dict[str, dict[str, Any]]] = {
        "svfit": {},
        "lora": {"method": "lora"},
        "head": {"method": "head"},
        "random": {"basis": "random"},
        "lora-r1": {"method": "lora-r1"},
        "full": {"method": "full"},
        "energy-50": {"energy": 0.5},
        "energy-90": {"energy": 0.9},
        "energy-100": {"energy": 1.0},
        "bottom-50": {"energy": 0.5, "basis": "bottom"},
    }
    tiers: ClassVar[dict[str, dict[str, Any]]] = {
        "embedded": {**EMBEDDED, "gap": 0.9, "learning_rates": _RATES},
        "standard": {**STANDARD, "learning_rates": _RATES},
    }
    seeds: ClassVar[dict[str, int]] = {"embedded": 5, "standard": 3}
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            says="Singular values alone come close to LoRA of rank 8",
            metric="accuracy",
            better="svfit",
            than="lora",
            by=-1.0,
            paper="better than LoRA",
        ),
        Claim(
            says="They are at most a tenth as many numbers",
            metric="log10_trainable",
            better="svfit",
            than="lora",
            by=1.0,
            paper="16 times fewer",
            smaller_is_better=True,
        ),
        Claim("They beat a trained head alone", "accuracy", "svfit", "head", 2.0),
        Claim("The weight's own singular vectors beat random ones", "accuracy", "svfit", "random", 0.5),
        Claim("They beat LoRA of as many numbers", "accuracy", "svfit", "lora-r1", 1.0),
        Claim(
            says="Singular values beat LoRA of rank 8 outright",
            metric="accuracy",
            better="svfit",
            than="lora",
            by=0.0,
            paper="better than LoRA with 16 times fewer trained numbers",
        ),
    )

    def adaptation(self, model: Classifier) -> Adaptation:
        """The method on the same weights."""
        config = self.config
        if config.method in ("full", "head"):
            return "full" if config.method == "full" else "head"
        if config.method == "lora":
            return LoRA(rank=config.rank, alpha=2.0 * config.rank, targets=config.targets, train=(HEAD,))
        singular = SVFit(
            energy=config.energy,
            criterion=config.criterion,
            basis=config.basis,
            targets=config.targets,
            train=(HEAD,),
        )
        return singular if config.method == "svfit" else _lora_of_one(model, learned_numbers(model, singular))

    def run(self, out: Path) -> Outcome:
        """As the arena; of SVFit the spectra before and after are kept too."""
        outcome = super().run(out)
        if self.config.method == "svfit":
            found = spectra(outcome.model)
            write_json(out / "spectra.json", {name: [b.tolist(), a.tolist()] for name, (b, a) in found.items()})
            outcome.artefacts["singular values before and after"] = "spectra.json"
        return outcome


def _lora_of_one(model: Classifier, numbers: int) -> Method:
    """LoRA of rank 1 on those of the attention projections that bring it nearest to a number of trained numbers."""
    candidates = [LoRA(rank=1, alpha=2.0, targets=roles, train=(HEAD,)) for roles in _SOME]
    return min(candidates, key=lambda one: abs(learned_numbers(model, one) - numbers))
