"""A unified view of parameter-efficient transfer learning, and the adapter that mixes its best choices (2110.04366)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from leaven.adapt.peft import MAM, Adapter, LoRA, Method, Prefix
from leaven.evidence.arenas.peft_arena import EMBEDDED, STANDARD, PeftConfig, PeftSystem
from leaven.evidence.arenas.peft_budget import Family, matched_widths, projection_numbers, width_for
from leaven.evidence.arenas.peft_model import HEAD, Adaptation, Classifier
from leaven.evidence.claims import Claim


class PetlUnifiedConfig(PeftConfig):
    """Options of the unified view."""

    method: Literal["mam", "prefix", "lora", "adapter", "parallel-adapter", "full", "head"] = Field(
        "mam", description="what trains beside the head; the first five train equally many numbers"
    )
    share: float = Field(0.04, gt=0, lt=0.5, description="numbers that train, as a share of those of the projections")
    prefix_share: float = Field(0.2, gt=0, lt=1, description="mam: share of its numbers that are the prefix's")
    scale: float = Field(2.0, gt=0, le=100, description="mam, parallel-adapter: factor s of the adapter's change")
    reparameterize: int = Field(
        0, ge=0, le=10_000, description="width of the network that makes prefixes while they train, 0: none"
    )


class PetlUnified(PeftSystem[PetlUnifiedConfig]):
    """Methods as cells of one space of changes of hidden states, under one budget of numbers that train and are kept.

    Prefix at the heads of attention, LoRA at queries and values, a sequential adapter at the feed-forward output, and
    MAM: a short prefix and a scaled parallel adapter. Source: table 1 and section 4.6.
    """

    slug = "petl-unified"
    title = "Adapters, prefixes and LoRA in one space, and MAM, the mix of its best choices"
    Config = PetlUnifiedConfig
    arms: ClassVar[dict[str, dict[str, Any]]] = {
        "mam": {},
        "prefix": {"method": "prefix"},
        "lora": {"method": "lora"},
        "adapter": {"method": "adapter"},
        "full": {"method": "full"},
        "head": {"method": "head"},
        "parallel-s1": {"method": "parallel-adapter", "scale": 1.0},
        "parallel-s2": {"method": "parallel-adapter", "scale": 2.0},
        "parallel-s4": {"method": "parallel-adapter", "scale": 4.0},
    }
    tiers: ClassVar[dict[str, dict[str, Any]]] = {"embedded": EMBEDDED, "standard": STANDARD}
    seeds: ClassVar[dict[str, int]] = {"embedded": 5, "standard": 3}
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            says="The mix beats prefix tuning at the same number of trained numbers",
            metric="accuracy",
            better="mam",
            than="prefix",
            by=1.0,
            paper="XSum, ROUGE-2: 21.90 against 20.46",
        ),
        Claim(
            says="The mix is not behind a sequential adapter of the same size",
            metric="accuracy",
            better="mam",
            than="adapter",
            by=-0.3,
        ),
        Claim(
            says="The mix comes close to full fine-tuning",
            metric="accuracy",
            better="mam",
            than="full",
            by=-2.0,
            paper="MNLI 87.4 against 87.6, SST-2 94.2 against 94.6",
        ),
        Claim(
            says="The mix beats a trained head alone",
            metric="accuracy",
            better="mam",
            than="head",
            by=5.0,
        ),
        Claim(
            says="It trains less than a fifteenth of what full fine-tuning does",
            metric="log10_trainable",
            better="mam",
            than="full",
            by=1.176,
            paper="6.7 % of the model",
            smaller_is_better=True,
        ),
    )

    def adaptation(self, model: Classifier) -> Adaptation:
        """The method at the width that the budget gives it."""
        config = self.config
        if config.method in ("full", "head"):
            return "full" if config.method == "full" else "head"
        families = self.families(model)
        matched = matched_widths(model, families, config.share * projection_numbers(model.encoder))
        # At one bottleneck, insertion is all that differs.
        named = "adapter" if config.method == "parallel-adapter" else config.method
        family: Family = self._parallel if config.method == "parallel-adapter" else families[config.method]
        return family(matched[named])

    def families(self, model: Classifier) -> dict[str, Family]:
        """The methods by their widths; LoRA leads, as its counts are the coarsest."""
        config = self.config
        numbers = config.prefix_share * config.share * projection_numbers(model.encoder)
        short = width_for(model, self._prefix, numbers)

        def mam(width: int) -> Method:
            return MAM(
                prefix=short, bottleneck=width, scale=config.scale, reparameterize=config.reparameterize, train=(HEAD,)
            )

        return {
            "lora": lambda width: LoRA(rank=width, alpha=2.0 * width, targets="q,v", train=(HEAD,)),
            "prefix": self._prefix,
            "adapter": lambda width: Adapter(bottleneck=width, train=(HEAD,)),
            "mam": mam,
        }

    def _prefix(self, width: int) -> Method:
        return Prefix(length=width, reparameterize=self.config.reparameterize, train=(HEAD,))

    def _parallel(self, width: int) -> Method:
        return Adapter(bottleneck=width, insertion="parallel", scale=self.config.scale, train=(HEAD,))
