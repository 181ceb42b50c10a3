"""Systems that measure in no time: figures that follow from the configuration and the seed."""

import math
import os
import random
import signal
import time
from typing import ClassVar

from pydantic import Field

from leaven.errors import DataError
from leaven.evidence.alone import alone_in
from leaven.evidence.claims import Claim
from leaven.evidence.runner import run_claims
from leaven.evidence.system import Measurement, Outcome, System, SystemConfig


class SlowConfig(SystemConfig):
    data: str = Field("stdlib-code", description="where examples come from")
    gain: float = Field(0.0, ge=-10, le=10, description="what the method adds")
    steps: int = Field(20, ge=1, description="steps of the training")
    broken: str = Field("", description="what goes wrong: data, nan, or nothing")


class Slow(System[SlowConfig]):
    slug = "slca"
    Config = SlowConfig
    arms: ClassVar = {"sequential": {}, "slca": {"gain": 0.4}, "no-slow": {"gain": 0.2}, "only-standard": {"gain": 0.1}}
    tiers: ClassVar = {"embedded": {}, "standard": {"steps": 40}}
    smoke: ClassVar = {"steps": 5}
    seeds: ClassVar = {"embedded": 3, "standard": 2}
    claims = (
        Claim("A slow representation beats sequential fine-tuning", "accuracy", "slca", "sequential", 0.05, "91 vs 41"),
        Claim("It forgets less", "forgetting", "slca", "sequential", 0.1, smaller_is_better=True),
        Claim("Shown on the standard tier alone", "accuracy", "only-standard", "sequential", 0.0, tiers=("standard",)),
    )
    measured: ClassVar[list[tuple[str, float, int]]] = []

    def run(self, out):
        raise NotImplementedError

    def measure(self, out):
        c = self.config
        (out / "work").write_text("kept to resume from")
        self.measured.append((self.slug, c.gain, c.seed))
        if c.broken == "data":
            raise DataError("rows.jsonl:3: broken JSON")
        noise = random.Random(f"{c.seed} {c.gain}").gauss(0, 0.01)
        base = random.Random(c.seed).gauss(0.3, 0.05)
        accuracy = math.nan if c.broken == "nan" else base + c.gain + noise
        records = [{"step": step, "loss": 1 / step + noise, "lr": 0.1} for step in range(1, c.steps + 1)]
        return Measurement(
            metrics={"accuracy": accuracy, "forgetting": 0.6 - c.gain - noise},
            validation={"accuracy": base + c.gain},
            budget={"steps": float(c.steps)},
            equal=("steps",),
            chosen={"learning_rate": 0.1},
            curves={"training": [*records, {"step": c.steps, "valid/accuracy": 0.5}]},
            seconds=1.5,
        )


class Rival(Slow):
    slug = "lae"
    arms: ClassVar = {"adapters": {"gain": 0.3}}
    tiers: ClassVar = {"embedded": {"steps": 30}}
    claims = ()


class Failing(Slow):
    """Under seed 1 an arm does what `broken` says; the others measure."""

    arms: ClassVar = {**Slow.arms, "slca": {"gain": 0.4, "broken": "data"}}

    def measure(self, out):
        if self.config.seed != 1 and self.config.broken:
            return type(self)(self.config.model_copy(update={"broken": ""})).measure(out)
        if self.config.broken == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().measure(out)


class Killed(Failing):
    arms: ClassVar = {**Slow.arms, "slca": {"gain": 0.4, "broken": "killed"}}


class Endless(Slow):
    """Leaves the number of its process and goes on for ever."""

    def measure(self, out):
        (out / "process").write_text(str(os.getpid()))
        while True:
            time.sleep(1)


def stay_in(folder, arrived):
    """For a process that is at work in a folder until it is killed."""
    with alone_in(folder):
        arrived.set()
        while True:
            time.sleep(1)


def measure_endlessly(out):
    """For a process whose seeds are measured side by side until it is killed."""
    run_claims(Endless, seeds=2, jobs=2, out=out)


class Stranger(Slow):
    slug = "slerp"
    arms: ClassVar = {}
    claims = ()

    def measure(self, out):
        return Measurement(metrics={"perplexity": 3.0}, validation={}, budget={})


def outcome(**changes):
    values = {
        "system": "slca",
        "title": "SLCA <b>on</b> code",
        "config": {"seed": 0, "data": "stdlib-code"},
        "columns": ["task", "before", "after"],
        "rows": [["name", 0.125, None], ["defect", 0.5, 0.75]],
        "samples": [{"input": "</pre><script>alert('x')</script>", "answer": 'a "quoted" & <img src=x onerror=y>'}],
        "curves": {"training": [{"step": s, "loss": 1 / s, "msp": 0.5, "it": 0.1} for s in range(1, 2001)]},
        "timings": {"training": 3.0},
        "artefacts": {"model": "pretrained"},
        "notes": ["three rows were left out"],
    }
    return Outcome(**{**values, **changes})
