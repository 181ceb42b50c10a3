"""One process of a training for the tests of crashes and of several processes.

python worker.py OUT [parallel=ddp] [batch_size=8] [steps=40] [sleep=0] [checkpoint_every=5] [die_at=STEP]
    [length_groups=1]
"""

import json
import sys
import time
from pathlib import Path

import torch
from training.toy import Corrupted, Model, loader

from leaven.training.config import TrainingConfig
from leaven.training.loop import fit


def main(arguments: list[str]) -> None:
    out = Path(arguments[0])
    options = dict(argument.split("=") for argument in arguments[1:])
    torch.set_num_threads(1)
    steps, sleep = int(options.get("steps", 40)), float(options.get("sleep", 0))

    class Slow(Corrupted):
        def prepare(self, batch, generator):
            time.sleep(sleep)
            if int(batch["step"]) == int(options.get("die_at", -1)):
                raise SystemExit(0)
            return super().prepare(batch, generator)

    model, objective = Model(dropout=float(options.get("dropout", 0))), Slow()
    config = TrainingConfig(
        checkpoint_every=int(options.get("checkpoint_every", 5)),
        log_every=1,
        ema=0.9,
        parallel=options.get("parallel", "ddp"),
        length_groups=int(options.get("length_groups", 1)),
        optimizer="muon",
        learning_rate=0.003,
        progress=False,
    )
    data = loader(batch_size=int(options.get("batch_size", 8)))

    def evaluate(model):
        sharded = hasattr(model.trunk.blocks[0].ffn.up_proj.weight, "full_tensor")
        return {"norm": float(model.head.weight.norm()), "sharded": float(sharded)}

    result = fit(model, objective, data, f"{steps} steps", config, out=out, evaluate=evaluate)
    weights = {**model.state_dict(), **objective.state_dict()}
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        torch.save(weights, out / "weights.pt")
        (out / "records.json").write_text(json.dumps(result.records))


if __name__ == "__main__":
    main(sys.argv[1:])
