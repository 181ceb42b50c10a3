"""Every setting of the training loop."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from leaven.errors import ConfigError
from leaven.training.schedules import ScheduleName


class GuardConfig(BaseModel):
    """When the loop returns to its last good state."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(True, description="watch for NaN, infinite and exploding losses and gradients")
    window: int = Field(100, ge=4, le=100_000, description="losses that the running median and MAD are taken over")
    spike_mads: float | None = Field(
        20.0,
        gt=0,
        description="a loss above median + this many MADs is a spike; None watches for NaN and infinity only",
    )
    spike_steps: int = Field(3, ge=1, le=1000, description="steps in a row above the bound that make a spike")
    snapshot_every: int = Field(50, ge=1, description="steps between copies of the last good state in memory")
    max_returns: int = Field(5, ge=1, le=1000, description="returns in a row, without progress, after which to give up")


class TrainingConfig(BaseModel):
    """Settings of `fit`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: Literal["adamw", "muon", "sgd"] = Field(
        "adamw", description="adamw; muon for the matrices of the model's blocks and AdamW for the rest; or sgd"
    )
    learning_rate: float = Field(1e-3, gt=0, le=100, description="peak learning rate")
    weight_decay: float = Field(
        0.01, ge=0, le=10, description="weight decay, decoupled but for sgd, which adds it to the gradient"
    )
    decay_vectors: bool = Field(False, description="decay biases, norm scales and other one-dimensional parameters too")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW decay rates of the moments, each in [0, 1)")
    momentum: float = Field(0.95, ge=0, lt=1, description="decay rate of the momentum of Muon or SGD")
    eps: float = Field(1e-8, gt=0, le=1, description="AdamW term added to the denominator")
    lr_factors: dict[str, float] = Field(
        default_factory=dict,
        description="learning-rate factor by parameter-name pattern (*, ?, [...]); the first pattern that fits counts",
    )
    schedule: ScheduleName = Field("linear", description="decay after the warm-up, over the budget's own unit")
    warmup: float = Field(0.05, ge=0, description="warm-up: below 1 a share of the budget, otherwise a number of steps")
    floor: float = Field(
        0.0, ge=0, le=1, description="learning rate at the end of a linear or cosine decay, as a share"
    )
    clip: float | None = Field(1.0, gt=0, description="largest global gradient norm; None does not clip")
    accumulate: int = Field(1, ge=1, le=100_000, description="micro-batches per step and process")
    length_groups: int = Field(
        1, ge=1, le=64, description="groups of rows of like length that a batch is computed in, to save padding"
    )
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "fp32", description="arithmetic of the forward pass; auto takes bf16 if a short measurement finds it faster"
    )
    parallel: Literal["ddp", "fsdp"] = Field("ddp", description="how several processes share the work")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of a moving average of the weights, used to evaluate and at the end"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of corruption and dropout")
    guard: GuardConfig = Field(GuardConfig(), description="return to the last good state after a NaN or a loss spike")
    checkpoint_every: int | None = Field(
        500, ge=1, description="steps between checkpoints; None only by time and at end"
    )
    checkpoint_seconds: float | None = Field(None, gt=0, description="seconds of training between checkpoints")
    keep: int = Field(2, ge=1, le=1000, description="newest checkpoints kept")
    evaluate_every: float | None = Field(
        None,
        gt=0,
        description="evaluate every so many steps, or below 1 every such share of the budget; None at the end",
    )
    metric: str | None = Field(None, description="evaluation figure that picks the best weights and stops early")
    mode: Literal["max", "min"] = Field("max", description="whether a larger or a smaller metric is better")
    min_delta: float = Field(0.0, ge=0, description="smallest change of the metric that counts as better")
    patience: int | None = Field(None, ge=1, description="evaluations without a better metric after which to stop")
    restore_best: bool = Field(False, description="finish with the weights of the best evaluation")
    log_every: int = Field(10, ge=1, description="steps between records in metrics.jsonl")
    progress: bool = Field(True, description="show a progress bar when standard error is a terminal")

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        for name in ("warmup", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and value >= 1 and value != int(value):
                raise ConfigError(f"{name} is {value}; expected a share below 1 or a whole number of steps")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas is {self.betas}; expected two numbers in [0, 1)")
        if self.schedule == "inverse-sqrt" and self.warmup == 0:
            raise ConfigError("schedule inverse-sqrt decays from the end of the warm-up on: set warmup above 0")
        negative = [pattern for pattern, factor in self.lr_factors.items() if not factor >= 0]
        if negative:
            raise ConfigError(f"lr_factors[{negative[0]!r}] is {self.lr_factors[negative[0]]}; expected at least 0")
        for name in ("patience", "restore_best"):
            if getattr(self, name) and self.metric is None:
                raise ConfigError(f"{name} needs a metric: set metric to a figure that the evaluation returns")
        return self

    def numerics(self) -> dict[str, object]:
        """The settings that decide the weights; a run can only be resumed with the same ones.

        How often to write, evaluate, log or show progress may change, and so may `parallel`: both forms give the
        same steps.
        """
        free = {"checkpoint_every", "checkpoint_seconds", "keep", "log_every", "progress", "parallel", "restore_best"}
        free |= {"evaluate_every", "metric", "mode", "min_delta", "patience"}
        return self.model_dump(mode="json", exclude=free)
