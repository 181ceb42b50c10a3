"""Time and peak memory of a training step with LoRA and with SVFit against peft, on the same BERT of transformers.

Outputs and losses must be equal first. LoRA is of the same rank and weights on both sides. peft has no SVFit; the peer
is peft's LoRA of the same rank with the factors V^T and U diag(s - sigma), which computes the same but trains both.
Time: steps of the two sides alternate in one process. Memory: every side is a process of its own, largest resident size
as the system reports it, imports included; `before` is what that was when the first step began.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

# torch is imported where it is used: on Linux a child's peak includes the size its parent had when starting it.

SIDES = ("leaven", "peft")
KINDS = ("lora", "svfit")
TIME_TARGET, MEMORY_TARGET = 1.1, 1.05
TOLERANCE = 1e-4


def build(side: str, kind: str, *, dim: int, layers: int, rank: int, seed: int) -> Any:
    """An adapted BERT classifier with random weights; both sides compute the same."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=8000,
        hidden_size=dim,
        num_hidden_layers=layers,
        num_attention_heads=dim // 64,
        intermediate_size=4 * dim,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=4,
    )
    model: Any = BertForSequenceClassification(config).train()
    attentions = [layer.attention.self for layer in model.bert.encoder.layer]
    weights = [
        getattr(attention, name).weight.detach().clone() for attention in attentions for name in ("query", "value")
    ]
    if side == "leaven":
        from leaven.adapt.peft import LoRA, SVFit, adapter_parameters

        method = LoRA(rank=rank, alpha=rank) if kind == "lora" else SVFit(rank=rank, targets="q,v")
        type(method)(**{**method.__dict__, "train": ("classifier",)}).apply(model)
        learned = adapter_parameters(model)
    else:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model,
            LoraConfig(
                r=rank, lora_alpha=rank, target_modules=["query", "value"], modules_to_save=["classifier"],
                lora_dropout=0.0,
            ),
        )  # fmt: skip
        learned = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    generator = torch.Generator().manual_seed(seed)
    names = list(learned)
    with torch.no_grad():
        for at, weight in enumerate(weights):
            down, up = (torch.randn(shape, generator=generator) * 0.02 for shape in ((rank, dim), (dim, rank)))
            if kind == "svfit":
                u, values, vt = torch.linalg.svd(weight)
                change = 0.1 * values[:rank] * torch.rand(rank, generator=generator)
                down, up = vt[:rank], u[:, :rank] * change
            if side == "leaven" and kind == "svfit":
                learned[names[at]].copy_(values[:rank] + change)
            else:
                learned[names[2 * at]].copy_(down)
                learned[names[2 * at + 1]].copy_(up)
    return model


class Step:
    """A training step on one batch: forward, backward, AdamW on what trains."""

    def __init__(self, model: Any, *, batch: int, tokens: int, seed: int) -> None:
        import torch

        generator = torch.Generator().manual_seed(seed)
        self.model, self.trained = model, [p for p in model.parameters() if p.requires_grad]
        self.ids = torch.randint(5, 8000, (batch, tokens), generator=generator)
        self.labels = torch.randint(4, (batch,), generator=generator)
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)

    def __call__(self) -> float:
        """The loss before the update."""
        loss = self.model(input_ids=self.ids, labels=self.labels).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def _megabytes() -> float:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def child(options: dict[str, Any]) -> dict[str, float]:
    """Memory of one side."""
    import torch

    torch.set_num_threads(options.pop("threads"))
    steps, batch, tokens = (options.pop(name) for name in ("steps", "batch", "tokens"))
    step = Step(build(**options), batch=batch, tokens=tokens, seed=options["seed"])
    before = _megabytes()
    for _ in range(min(steps, 3)):
        step()
    return {"before": before, "peak": _megabytes()}


def memory(options: dict[str, Any]) -> dict[str, float]:
    """Memory of one side, measured in a process of its own."""
    with tempfile.TemporaryFile() as errors:
        done = subprocess.run(
            [sys.executable, __file__, "--child", json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=errors,
            check=False,
            env=os.environ,
        )
        if done.returncode:
            errors.seek(0)
            raise SystemExit(f"{options} failed:\n{errors.read().decode(errors='replace')[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Differences and times of the two sides."""
    import torch

    torch.set_num_threads(options["threads"])
    shape = {name: options[name] for name in ("dim", "layers", "seed")} | {"rank": options[f"{kind}_rank"]}
    size = {name: options[name] for name in ("batch", "tokens", "seed")}
    steps = {side: Step(build(side, kind, **shape), **size) for side in SIDES}
    with torch.no_grad():
        logits = [step.model(input_ids=step.ids).logits for step in steps.values()]
    difference = float((logits[0] - logits[1]).abs().max())
    losses = {side: step() for side, step in steps.items()}
    spent: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(options["steps"]):
        for side, step in steps.items():
            started = time.perf_counter()
            step()
            spent[side].append(time.perf_counter() - started)
    seconds = {side: statistics.median(spent[side]) for side in SIDES}
    return {
        "rank": shape["rank"],
        "largest_difference": difference,
        "loss_difference": abs(losses["leaven"] - losses["peft"]),
        "trained": {side: sum(p.numel() for p in step.trained) for side, step in steps.items()},
        "seconds": seconds,
        "time_ratio": seconds["leaven"] / seconds["peft"],
    }


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """All figures."""
    used: dict[str, dict[str, dict[str, float]]] = {}
    for kind in KINDS:
        shape = {name: options[name] for name in ("dim", "layers", "seed", "threads", "steps", "batch", "tokens")}
        shape |= {"kind": kind, "rank": options[f"{kind}_rank"]}
        used[kind] = {side: memory({**shape, "side": side}) for side in SIDES}
    rows = {}
    for kind in KINDS:
        peaks = used[kind]
        rows[kind] = compare(kind, options) | {
            "megabytes": peaks,
            "memory_ratio": peaks["leaven"]["peak"] / peaks["peft"]["peak"],
        }
    return {**options, "rows": rows, "time_target": TIME_TARGET, "memory_target": MEMORY_TARGET}


def main(argv: list[str] | None = None) -> int:
    """Print the figures; exit code 1 when outputs differ, or a ratio is above its target."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    for name, value, what in (
        ("dim", 512, "width of the model"),
        ("layers", 6, "of the model"),
        ("batch", 16, "sequences a step"),
        ("tokens", 64, "of a sequence"),
        ("lora-rank", 8, "of LoRA"),
        ("svfit-rank", 256, "singular values of each weight"),
        ("steps", 20, "that are timed"),
        ("seed", 0, "of weights and data"),
        ("threads", 1, "threads of torch, for both sides"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=what)
    parser.add_argument("--json", action="store_true", help="print the figures as json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = vars(parser.parse_args(argv))
    as_json, of_child = options.pop("json"), options.pop("child")
    if of_child:
        print(json.dumps(child(json.loads(of_child))))
        return 0
    figures = measure(options)
    if as_json:
        print(json.dumps(figures, indent=1))
    else:
        for kind, row in figures["rows"].items():
            print(f"{kind}, rank {row['rank']}: largest difference of outputs {row['largest_difference']:.1e}")
            for side in SIDES:
                peak = row["megabytes"][side]
                print(
                    f"  {side:8} {1e3 * row['seconds'][side]:8.1f} ms {peak['peak']:7.0f} MB "
                    f"({peak['before']:.0f} before), {row['trained'][side]:,} numbers train"
                )
            print(f"  leaven to peft: time {row['time_ratio']:.2f}, memory {row['memory_ratio']:.2f}")
        print(f"targets: time {TIME_TARGET:g}, memory {MEMORY_TARGET:g}; {figures['threads']} threads")
    rows = figures["rows"].values()
    equal = all(max(row["largest_difference"], row["loss_difference"]) <= TOLERANCE for row in rows)
    frugal = all(row["time_ratio"] <= TIME_TARGET and row["memory_ratio"] <= MEMORY_TARGET for row in rows)
    return 0 if equal and frugal else 1


if __name__ == "__main__":
    sys.exit(main())
