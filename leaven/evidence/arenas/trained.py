"""Options and loop settings of the systems that train with the one loop and resume in their folder."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from leaven.evidence.system import SystemConfig
from leaven.training.config import TrainingConfig


class TrainedConfig(SystemConfig):
    """Arithmetic and processes of a training."""

    precision: str = Field("fp32", pattern="^(fp32|bf16|auto)$", description="arithmetic: fp32, bf16 or auto")
    parallel: str = Field("ddp", pattern="^(ddp|fsdp)$", description="several processes: replicated or sharded")

    def training(self, rate: float, **settings: Any) -> TrainingConfig:
        """Settings of the loop: a peak learning rate, this seed, a checkpoint a minute; `settings` are added.

        Raises: ConfigError, as `TrainingConfig` does.
        """
        return TrainingConfig.model_validate(
            {
                "learning_rate": rate,
                "seed": self.seed,
                "precision": self.precision,
                "parallel": self.parallel,
                "keep": 1,
                "checkpoint_seconds": 60,
                "checkpoint_every": None,
                **settings,
            }
        )
